"""Draw the lessons' pictures. Every function returns a finished picture with alternative text, for a cell to show.

The colours are Okabe and Ito's, chosen to be distinguishable with any colour vision. No picture relies on colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from IPython.display import Image
from matplotlib import cbook
from matplotlib.figure import Figure

# Lessons call everything that they show by this module.
from lessons.excerpts import excerpt as excerpt
from lessons.excerpts import listing as listing

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#6b6b6b",
)
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
PALE = ("#cfe3f1", "#fbe6bd", "#c4e8dc", "#f7d3bd", "#f0d9e6", "#d9effa")  # PALETTE behind black digits

STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw(size: tuple[float, float], paint: Callable[[Figure], None], alt: str, kind: str = "png") -> Image:
    """Return a picture of `size` inches that `paint` draws, with the alternative text `alt`.

    kind: "png", or "jpeg", which is smaller for photographs.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=120)
    return Image(file.getvalue(), format=kind, alt=alt, width=int(size[0] * 90))


def photo(height: int) -> np.ndarray:
    """Return Matplotlib's sample photograph of Grace Hopper, float32 [3, height, width], values 0 to 1."""
    from PIL import Image as Photograph

    with Photograph.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        width = round(picture.width * height / picture.height)
        pixels = np.asarray(picture.convert("RGB").resize((width, height)), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255


def images(planes: Mapping[str, np.ndarray], alt: str) -> Image:
    """Draw images side by side under their titles: [3, height, width] in colour, [height, width] in grey.

    In a grey image with negative values, zero is middle grey.
    """

    def paint(figure: Figure) -> None:
        for axes, (title, plane) in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes.items(), strict=True):
            if plane.ndim == 3:
                axes.imshow(plane.transpose(1, 2, 0).clip(0, 1))
            else:
                low, high = np.percentile(plane, [1, 99])
                if low < 0:
                    low, high = -max(-low, high), max(-low, high)
                axes.imshow(plane, cmap="gray", vmin=low, vmax=high)
            axes.set_title(title, loc="center")
            axes.set_axis_off()

    return draw((2.5 * len(planes), 3.2), paint, alt, kind="jpeg")


def index_map(
    numbers: np.ndarray,
    owners: np.ndarray,
    alt: str,
    *,
    title: str = "",
    owner: str | Mapping[int, str] = "block",
    rows: str = "row",
    columns: str = "column",
) -> Image:
    """Draw a grid of cells that show `numbers`, coloured by their `owners`.

    owner: what the legend calls an owner, or the name of each; empty: no legend.
    """
    height, width = numbers.shape

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        present = [int(value) for value in np.unique(owners)]
        for (row, column), value in np.ndenumerate(numbers):
            place = present.index(int(owners[row, column])) % len(PALE)
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, facecolor=PALE[place], edgecolor="white", linewidth=2
                )
            )
            axes.text(column, row, f"{value}", ha="center", va="center", fontsize=10)
        axes.set(
            xlim=(-0.5, width - 0.5),
            ylim=(height - 0.5, -0.5),
            aspect="equal",
            xlabel=columns,
            ylabel=rows,
            xticks=range(width),
            yticks=range(height),
        )
        axes.set_title(title)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if not owner:
            return
        handles = [
            matplotlib.patches.Patch(
                facecolor=PALE[place % len(PALE)],
                edgecolor=GREY,
                label=f"{owner} {value}" if isinstance(owner, str) else owner[value],
            )
            for place, value in enumerate(present)
        ]
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))

    return draw((max(5.0, 0.52 * width + 2.2), max(2.2, 0.46 * height + 1.1)), paint, alt)


def counts(array: np.ndarray, alt: str, *, title: str = "", label: str = "") -> Image:
    """Draw a small matrix of whole numbers, with darker cells for larger numbers."""
    height, width = array.shape

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        shown = axes.imshow(array, cmap="Blues", vmin=0, vmax=array.max() * 1.25)
        for (row, column), value in np.ndenumerate(array):
            dark = value > 0.8 * array.max()
            axes.text(
                column, row, f"{value}", ha="center", va="center", fontsize=10, color="white" if dark else "black"
            )
        axes.set(xlabel="column", ylabel="row", xticks=range(width), yticks=range(height))
        axes.set_title(title)
        figure.colorbar(shown, ax=axes, label=label, shrink=0.8)

    return draw((max(5.0, 0.5 * width + 2), max(3.0, 0.5 * height + 1)), paint, alt)


def window(height: int, width: int, kernel_size: int, row: int, column: int, alt: str) -> Image:
    """Draw the input with the window of one output on the left, and that output on the right."""

    def paint(figure: Figure) -> None:
        sides = figure.subplots(1, 2, width_ratios=(width, width - kernel_size + 1))
        marks = (
            ("the input: reads these", height, width, kernel_size, BLUE),
            ("the output: writes this", height - kernel_size + 1, width - kernel_size + 1, 1, RED),
        )
        for axes, (title, rows, columns, side, colour) in zip(sides, marks, strict=True):
            for i in range(rows):
                for j in range(columns):
                    inside = row <= i < row + side and column <= j < column + side
                    axes.add_patch(
                        matplotlib.patches.Rectangle(
                            (j, i),
                            1,
                            1,
                            facecolor=colour if inside else "#f2f2f2",
                            edgecolor="white",
                            linewidth=2,
                            hatch="//" if inside else None,
                        )
                    )
            axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[], title=title)
            for spine in axes.spines.values():
                spine.set_visible(False)
        sides[1].annotate(
            "",
            xy=(column, row + 0.5),
            xycoords=sides[1].transData,
            xytext=(column + kernel_size, row + kernel_size / 2),
            textcoords=sides[0].transData,
            arrowprops={"arrowstyle": "->", "linewidth": 2, "color": "black"},
        )

    return draw((8, 3.4), paint, alt)


def ledger(rows: Mapping[str, tuple[float, float]], alt: str, *, title: str = "") -> Image:
    """Draw the bytes that each kernel reads and writes as bars. rows: name -> (bytes read, bytes written)."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(rows)
        read = np.array([rows[name][0] for name in names]) / 1e6
        written = np.array([rows[name][1] for name in names]) / 1e6
        axes.barh(names, read, color=SKY, edgecolor="white", label="reads")
        axes.barh(names, written, left=read, color=BLUE, edgecolor="white", hatch="//", label="writes")
        for place, total in enumerate(read + written):
            axes.text(total, place, f"  {megabytes(total)}", va="center")
        axes.invert_yaxis()
        axes.set(xlabel="megabytes", xlim=(0, 1.18 * (read + written).max()), title=title)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)

    return draw((9, 0.55 * len(rows) + 1.5), paint, alt)


def megabytes(value: float) -> str:
    """Format a number of megabytes."""
    return f"{value:,.0f} MB" if value >= 10 else f"{value:.2g} MB"


def bars(
    values: Mapping[str, float],
    alt: str,
    *,
    unit: str,
    title: str = "",
    mark: tuple[str, float] | None = None,
    highlight: Sequence[str] = (),
) -> Image:
    """Draw a horizontal bar for each value and a dashed line at `mark`. NaN means not measured.

    highlight: the names of the bars to draw in another colour.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names, lengths = list(values), np.array(list(values.values()), dtype=float)
        longest = max([value for value in [*lengths, mark[1] if mark else np.nan] if np.isfinite(value)], default=1.0)
        colours = [RED if name in highlight else BLUE for name in names]
        axes.barh(names, np.nan_to_num(lengths), color=colours, edgecolor="white")
        for place, value in enumerate(lengths):
            label = f"  {value:,.3g}" if value < 100 else f"  {value:,.0f}"
            axes.text(np.nan_to_num(value), place, label if np.isfinite(value) else "  not measured", va="center")
        if mark:
            axes.axvline(mark[1], color="black", linestyle="--", linewidth=1.5)
            axes.text(mark[1], -0.62, f" {mark[0]}", va="bottom")
        axes.invert_yaxis()
        axes.set(xlabel=unit, xlim=(0, 1.15 * longest))
        if not np.isfinite(lengths).any():
            axes.set_xticks([])
        axes.set_title(title, pad=24 if mark else None)

    return draw((9, 0.5 * len(values) + (1.9 if mark else 1.4)), paint, alt)


def curve(
    points: Mapping[str, Sequence[tuple[float, float]]],
    alt: str,
    *,
    x: str,
    y: str,
    title: str = "",
    logarithmic: str = "",
    mark: tuple[str, float] | None = None,
    from_zero: bool = True,
    colours: Sequence[str] = PALETTE,
) -> Image:
    """Draw lines through points and a dashed vertical line at `mark`. logarithmic: "", "x", "y" or "xy"."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, line), colour, symbol in zip(points.items(), colours, "osD^vP", strict=False):
            axes.plot(*zip(*line, strict=True), color=colour, marker=symbol, label=name, linewidth=2, clip_on=False)
        if "x" in logarithmic:
            axes.set_xscale("log", base=2)
        if "y" in logarithmic:
            axes.set_yscale("log")
        elif from_zero:
            axes.set_ylim(bottom=0)
        if mark:
            axes.axvline(mark[1], color=GREY, linestyle="--")
            axes.text(mark[1], 0.97, f" {mark[0]}", transform=axes.get_xaxis_transform(), va="top")
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.grid(alpha=0.3)
        if len(points) > 1:
            axes.legend()

    return draw((9, 4), paint, alt)


def roofline(
    points: Mapping[str, tuple[float, float | None]], roofs: Mapping[str, float], bandwidth: float, alt: str
) -> Image:
    """Draw a roofline.

    points: name -> (FLOP per byte, FLOP/s reached, or None to draw the point on the roof). roofs: name -> FLOP/s.
    bandwidth: bytes/s.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        highest = max(roofs.values()) / bandwidth
        axes.plot([0.05, highest], [0.05 * bandwidth, highest * bandwidth], color=GREY, linewidth=2)
        for (name, peak), colour, dash in zip(roofs.items(), (RED, PURPLE, GREEN), ("-", "--", "-."), strict=False):
            axes.plot([peak / bandwidth, 2000], [peak, peak], color=colour, linestyle=dash, linewidth=2)
            axes.text(1900, peak * 1.15, name, ha="right")
        lowest = min(roofs.values())
        axes.text(
            0.06,
            0.06 * bandwidth * 2.2,
            f"the memory: {bandwidth / 1e12:.1f} TB/s",
            rotation=28,
            rotation_mode="anchor",
        )
        for place, (name, (x, reached)) in enumerate(points.items()):
            y = min(lowest, bandwidth * x) if reached is None else reached
            axes.plot(
                x,
                y,
                marker="osD^vP"[place % 6],
                color=BLUE,
                markersize=10,
                markeredgecolor="white",
                zorder=3,
                fillstyle="full",
            )
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(12, -14), fontsize=11)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="arithmetic intensity: operations per byte moved",
            ylabel="operations per second",
            xlim=(0.05, 2000),
            ylim=(bandwidth * 0.03, max(roofs.values()) * 2.5),
        )
        axes.grid(alpha=0.3)

    return draw((9, 5), paint, alt)


def sectors(addresses: Sequence[int], alt: str, *, title: str = "") -> Image:
    """Draw memory as 32-byte sectors and mark the words that the lanes of a warp read. addresses: in bytes."""
    addresses = np.asarray(addresses)
    first = addresses.min() // 32
    touched = np.unique(addresses // 32)
    total = int(addresses.max() // 32 - first + 1)
    per_line = 4 if total > 1 else 1
    lines = -(-total // per_line)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for sector in range(total):
            line, place = divmod(sector, per_line)
            for word in range(8):
                address = (first + sector) * 32 + word * 4
                lanes = np.flatnonzero(addresses == address)
                axes.add_patch(
                    matplotlib.patches.Rectangle(
                        (place * 8.4 + word, line),
                        1,
                        0.8,
                        edgecolor="white",
                        facecolor=BLUE if len(lanes) else (PALE[0] if first + sector in touched else "#efefef"),
                    )
                )
                if len(lanes):
                    text = f"{lanes[0]}" if len(lanes) == 1 else f"×{len(lanes)}"
                    axes.text(
                        place * 8.4 + word + 0.5, line + 0.42, text, ha="center", va="center", color="white", fontsize=9
                    )
        axes.set(xlim=(0, per_line * 8.4), ylim=(lines, 0), aspect="equal", title=title)
        axes.set_axis_off()

    return draw((max(4.5, 0.29 * per_line * 8.4), 0.36 * lines + 0.6), paint, alt)


def banks(pitches: Sequence[int], column: int, alt: str, *, rows: int = 8, columns: int = 12) -> Image:
    """Draw the corner of a tile of floats in shared memory with the bank of every number, once for each pitch.

    pitches: the floats in a row. column: the column that a warp reads, which is marked.
    """

    def paint(figure: Figure) -> None:
        for axes, pitch in zip(figure.subplots(1, len(pitches), squeeze=False)[0], pitches, strict=True):
            for row, place in np.ndindex(rows, columns):
                marked = place == column
                axes.add_patch(
                    matplotlib.patches.Rectangle(
                        (place - 0.5, row - 0.5), 1, 1, facecolor=BLUE if marked else "#efefef", edgecolor="white"
                    )
                )
                bank = (row * pitch + place) % 32
                colour, weight = ("white", "bold") if marked else (GREY, "normal")
                axes.text(place, row, f"{bank}", ha="center", va="center", fontsize=9, color=colour, weight=weight)
            axes.set(
                xlim=(-0.5, columns - 0.5),
                ylim=(rows - 0.5, -0.5),
                aspect="equal",
                xlabel="column",
                ylabel="row",
                xticks=range(columns),
                yticks=range(rows),
                title=f"{pitch} floats a row",
            )
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)

    return draw((4.7 * len(pitches), 0.36 * rows + 0.9), paint, alt)


def products(channels: int, pixels: int, alt: str) -> Image:
    """Draw the numbers that a thread with channels x pixels sums loads (weights left, pixels on top) and multiplies."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        cells = [(-1.4, channel, f"w{channel}", PALE[1]) for channel in range(channels)]
        cells += [(pixel, -1.4, f"x{pixel}", PALE[0]) for pixel in range(pixels)]
        cells += [
            (pixel, channel, f"+= w{channel} x{pixel}", "#efefef")
            for channel in range(channels)
            for pixel in range(pixels)
        ]
        for column, row, text, colour in cells:
            axes.add_patch(matplotlib.patches.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white"))
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9)
        axes.set(xlim=(-1.5, pixels), ylim=(channels, -1.5))
        axes.set_title(f"{channels + pixels} numbers fetched, {channels * pixels} multiply-adds")
        axes.set_axis_off()

    return draw((1.0 * pixels + 1.8, 0.33 * channels + 1.1), paint, alt)


def reduction(lanes: int, alt: str) -> Image:
    """Draw how lanes merge in halving steps: who takes whose result, and how many lanes each result stands for."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        steps = [lanes >> step for step in range(1, lanes.bit_length())]  # the offsets
        for row in range(len(steps) + 1):
            useful = lanes >> row
            for lane in range(lanes):
                colour = PALE[0] if lane < useful else "#f2f2f2"
                axes.add_patch(matplotlib.patches.Rectangle((lane + 0.06, 1.6 * row), 0.88, 0.7, facecolor=colour))
                text = f"{lane}" if row == 0 else f"{1 << row}" if lane < useful else ""
                axes.text(lane + 0.5, 1.6 * row + 0.36, text, ha="center", va="center", fontsize=10)
            if row < len(steps):
                axes.text(lanes + 0.2, 1.6 * row + 1.15, f"offset {steps[row]}", va="center", fontsize=11)
                for lane in range(steps[row]):
                    for source, colour in ((lane, GREY), (lane + steps[row], BLUE)):
                        axes.annotate(
                            "",
                            xy=(lane + 0.5, 1.6 * row + 1.6),
                            xytext=(source + 0.5, 1.6 * row + 0.7),
                            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.3},
                        )
        axes.set(xlim=(0, lanes + 2.2), ylim=(1.6 * len(steps) + 0.9, -0.1))
        axes.set_title("the numbers of the lanes; below, how many of them each result holds")
        axes.set_axis_off()

    return draw((9, 0.62 * len(f"{lanes:b}") + 1.7), paint, alt)


def bits(rows: Mapping[str, Sequence[tuple[str, str]]], alt: str) -> Image:
    """Draw the bits of numbers. rows: name -> fields of (kind, bits), such as ("fraction", "0110")."""
    kinds = list(dict.fromkeys(kind for fields in rows.values() for kind, _ in fields))
    longest = max(sum(len(text) for _, text in fields) for fields in rows.values())

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, fields in enumerate(rows.values()):
            column = 0
            for kind, text in fields:
                for bit in text:
                    axes.add_patch(
                        matplotlib.patches.Rectangle(
                            (column, row), 1, 0.75, facecolor=PALE[kinds.index(kind) % len(PALE)], edgecolor="white"
                        )
                    )
                    axes.text(column + 0.5, row + 0.4, bit, ha="center", va="center", fontsize=10)
                    column += 1
                column += 0.4
            axes.text(-0.5, row + 0.4, list(rows)[row], ha="right", va="center")
        axes.set(xlim=(-0.3 * max(map(len, rows)), longest + 1.2), ylim=(len(rows), 0))
        axes.set_axis_off()
        handles = [
            matplotlib.patches.Patch(facecolor=PALE[place % len(PALE)], edgecolor=GREY, label=kind)
            for place, kind in enumerate(kinds)
        ]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(kinds))

    return draw((0.27 * longest + 2.2, 0.42 * len(rows) + 0.7), paint, alt)
