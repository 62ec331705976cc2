"""Exercise of lesson 09: a number split into two fp16 numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lessons.exercises import Exercise, Wrong, parts


def split_answer(v):
    hi = np.float16(v)
    lo = np.float16((v - np.float32(hi)) * np.float32(4096))
    return hi, lo


def _judge_split(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(9)
    worst = 0.0
    for exponent in (14, 10, 0, -3, -8, -12):
        for v in (draw.uniform(1, 2, 200) * draw.choice([-1, 1], 200) * 2.0**exponent).astype(np.float32):
            with np.errstate(over="ignore", invalid="ignore"):
                hi, lo = (float(part) for part in parts(answer(v), "(hi, lo)"))
                for name, value in (("hi", hi), ("lo", lo)):
                    if np.isfinite(value) and float(np.float16(value)) != value:
                        raise Wrong(
                            f"For {v:.9g}, {name} is {value:.9g}, which is no number of fp16: np.float16 rounds."
                        )
            error = abs(hi + lo / 4096 - float(v)) / abs(float(v))
            if not error < 2.0**-22:  # also where it is NaN
                raise Wrong(
                    f"{v:.9g} comes back as {hi:.9g} + {lo:.9g} / 4096 = {hi + lo / 4096:.9g}: "
                    f"a relative error of {error:.1e}."
                )
            if abs(hi - float(v)) > abs(float(v)) / 2048:
                raise Wrong(f"hi alone should be within rounding of {v:.9g}; it is {hi:.9g}.")
            worst = max(worst, error)
    return f"The largest relative error is {worst:.1e}, where fp16 alone has {2.0**-11:.1e}."


split = Exercise(
    _judge_split,
    [
        "np.float16(v) rounds to the nearest number of fp16.",
        "The remainder is v - hi. Compute it in np.float32, where it is exact.",
        "v is hi + lo / 4096. So the remainder is lo / 4096, and lo is ...",
    ],
    split_answer,
)
