"""Exercise of lesson 07: the shape of a thread's tile of sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lessons.exercises import Exercise, Wrong, parts, whole


def best_tile_answer(registers):
    fitting = [
        (channels, pixels)
        for channels in range(1, registers)
        for pixels in range(1, registers)
        if channels * pixels + channels + pixels <= registers
    ]
    return min(fitting, key=lambda tile: (tile[0] + tile[1]) / (tile[0] * tile[1]))


def _judge_best_tile(answer: Callable[..., Any]) -> str:
    for registers in (3, 15, 44, 63, 120, 200):
        returned = parts(answer(registers), "(channels, pixels)")
        channels, pixels = given = [whole(number) or 0 for number in returned]
        if min(given) < 1:
            raise Wrong(
                f"With {registers} registers it returned {returned!r}; it should return two whole numbers above 0."
            )
        needed = channels * pixels + channels + pixels
        if needed > registers:
            raise Wrong(
                f"With {registers} registers, {channels} x {pixels} does not fit: the sums and the numbers loaded for "
                f"them need {needed}."
            )
        right = best_tile_answer(registers)
        loaded, least = (sum(tile) / (tile[0] * tile[1]) for tile in (given, right))
        if loaded > least * (1 + 1e-9):
            raise Wrong(
                f"With {registers} registers, {channels} x {pixels} fits and loads {loaded:.3f} numbers for a "
                f"multiply-add. There is a tile that loads {least:.3f}."
            )
    return "The nearer to a square, the fewer numbers are loaded; the more registers, the larger the square."


best_tile = Exercise(
    _judge_best_tile,
    [
        "channels x pixels sums stay in registers, and channels + pixels loaded numbers beside them.",
        "Minimise the numbers loaded, divided by the multiply-adds that use them.",
        "You need no formula. A loop over both numbers finds it.",
    ],
    best_tile_answer,
)
