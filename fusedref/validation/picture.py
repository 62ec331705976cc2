"""Draw where a result is wrong."""

from __future__ import annotations

import base64
import io

import torch

from fusedref.validation.cases import Errors


def picture_of(title: str, errors: Errors) -> str:
    """Return a PNG in base64: the share of wrong elements at each (row, column) and in each (image, channel)."""
    from matplotlib.figure import Figure

    batch, channels, height, width = errors.shape
    figure = Figure(figsize=(8, 3), layout="constrained")
    plane, planes = figure.subplots(1, 2)
    for axes, counts, each, what, labels in (
        (plane, errors.plane, batch * channels, *_names(errors.axes[2:])),
        (planes, errors.channels, height * width, *_names(errors.axes[:2])),
    ):
        # The colour of a wrong place starts at a third of the scale, so that it never looks right.
        share = torch.where(counts > 0, 1 / 3 + 2 / 3 * counts / each, 0.0)
        axes.imshow(share.numpy(), cmap="Reds", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(title=f"wrong by {what}", xlabel=labels[0], ylabel=labels[1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return base64.b64encode(buffer.getvalue()).decode()


def _names(axes: tuple[str, ...]) -> tuple[str, tuple[str, str]]:
    """Return the names of two axes for a title, and for the horizontal and the vertical axis."""
    vertical, horizontal = axes
    return f"{vertical}s and {horizontal}s", (horizontal, vertical)
