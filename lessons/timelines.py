"""Model trades that pass tiles on, and draw who works when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from IPython.display import Image
from matplotlib.figure import Figure

from lessons.pictures import GREY, PALE, draw

Work = tuple[float, float, int]  # begin, end, tile
Schedule = dict[str, list[Work]]  # of each trade


def schedule(durations: Mapping[str, Sequence[float]], places: Sequence[int]) -> Schedule:
    """Return when each trade works on which tile, if everyone begins as early as possible.

    durations: of each trade's work on tile 0, 1, 2, ...; the trades in the order of the tiles' way. places: how many
    tiles fit between a trade and the next. A trade needs its input whole, and a free place for its output from the
    beginning of its work to the end of the next trade's.
    """
    trades = list(durations)
    ends: dict[str, list[float]] = {trade: [] for trade in trades}
    result: Schedule = {trade: [] for trade in trades}
    for tile in range(len(durations[trades[0]])):
        for number, trade in enumerate(trades):
            ready = [0.0, *ends[trade][-1:]]
            if number > 0:
                ready.append(ends[trades[number - 1]][tile])
            if number + 1 < len(trades) and tile >= places[number]:
                ready.append(ends[trades[number + 1]][tile - places[number]])
            begin = max(ready)
            ends[trade].append(begin + durations[trade][tile])
            result[trade].append((begin, ends[trade][-1], tile))
    return result


def in_turns(durations: Mapping[str, Sequence[float]]) -> Schedule:
    """Return when each trade works, if only one works at a time and each tile is finished before the next begins."""
    result: Schedule = {trade: [] for trade in durations}
    now = 0.0
    for tile in range(len(next(iter(durations.values())))):
        for trade, times in durations.items():
            result[trade].append((now, now + times[tile], tile))
            now += times[tile]
    return result


def length(found: Schedule) -> float:
    """Return when the last trade ends."""
    return max(end for work in found.values() for _, end, _ in work)


def timeline(schedules: Mapping[str, Schedule], alt: str) -> Image:
    """Draw schedules below each other, on one axis of time: a bar with its tile's number for each piece of work."""
    rows = [len(found) for found in schedules.values()]
    end = max(map(length, schedules.values()))

    def paint(figure: Figure) -> None:
        for axes, (title, found) in zip(
            figure.subplots(len(schedules), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0],
            schedules.items(),
            strict=True,
        ):
            for row, work in enumerate(found.values()):
                for begin, after, tile in work:
                    axes.add_patch(
                        matplotlib.patches.Rectangle(
                            (begin, row + 0.08), after - begin, 0.84, facecolor=PALE[tile % len(PALE)], edgecolor=GREY
                        )
                    )
                    axes.text((begin + after) / 2, row + 0.5, f"{tile}", ha="center", va="center", fontsize=10)
            axes.axvline(length(found), color="black", linestyle="--", linewidth=1)
            axes.set(xlim=(0, 1.02 * end), ylim=(len(found), 0), title=title)
            axes.set_yticks([row + 0.5 for row in range(len(found))], list(found))
            axes.tick_params(length=0)
        axes.set_xlabel("time")

    return draw((9, 0.42 * sum(rows) + 0.55 * len(schedules) + 0.5), paint, alt)
