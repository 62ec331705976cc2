"""Guess what a candidate does in training instead of the operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.slips import slips_beside_statistics
from fusedref.validation.training_reference import (
    EVERYTHING,
    Forward,
    forward,
    gradients,
    moved,
    pixels_of,
    running,
)

EXPLAINED = 0.01  # a slip fits if it leaves at most this part of the error
WRONG_AXES = {
    (2, 3): "of each image apart",
    (0,): "over the images alone",
    (0, 3): "over images and columns alone",
    (0, 2): "over images and rows alone",
    (1, 2, 3): "over the channels of each image together",
    (0, 1, 2, 3): "over all channels together",
}
Slip = tuple[str, Callable[[], Tensor | None]]


class Slips:
    """The usual slips of one call in training, computed when they are asked for."""

    def __init__(
        self, problem: Problem, inputs: Parameters, momentum: float, found: Forward, dy: Tensor | None, training: bool
    ) -> None:
        self.problem, self.inputs, self.momentum = problem, inputs, momentum
        self.found, self.dy, self.training = found, dy, training
        self._gradients = functools.cache(self._computed_gradients)

    def explain(self, name: str, got: Tensor) -> list[str]:
        """Return the slip that explains the error of tensor ``name`` best, if it leaves almost none of it."""
        if not got.isfinite().all():
            return []
        got = got.double()
        if not got.any():
            return [f"{name}: every element is zero"]
        right = self._right(name)
        error = float((got - right).norm()) if right.isfinite().all() else float("nan")
        left = {
            slip: float((got - value).norm()) for slip, compute in self._slips(name) if (value := compute()) is not None
        }
        best = min(left, key=lambda slip: left[slip], default=None)
        if best is None or not left[best] <= EXPLAINED * error:
            return []
        return [f"{name} is what comes out where {best}"]

    def _right(self, name: str) -> Tensor:
        """Return what the tensor must be."""
        if name == "y":
            return self.found.y
        if name in ("running_mean", "running_var"):
            mean, var = running(self.problem, self.inputs, self.found, self.momentum)
            return mean if name == "running_mean" else var
        return self._gradient(name, "")

    def _slips(self, name: str) -> Iterator[Slip]:
        """Yield slips: what they are, and how the tensor ``name`` is computed with them."""
        if name == "y":
            yield from self._slips_of_y()
        elif name in ("running_mean", "running_var"):
            for slip, (mean, var) in self._slips_of_statistics():
                yield slip, functools.partial(_same, mean if name == "running_mean" else var)
        else:
            names = [*GRADIENT_SLIPS, *(f"c1 and c2 are taken {words}" for words in WRONG_AXES.values())]
            for slip in names if self.training else EVALUATION_SLIPS:
                yield slip, functools.partial(self._gradient, name, slip)
            if name == "dgamma" and self.dy is not None:
                yield "zhat's normalisation is missing: dy is multiplied by z - mean", self._unnormalised

    def _slips_of_y(self) -> Iterator[Slip]:
        if self.training:
            yield "the running statistics are used", self._y(self.inputs, training=False)
            yield "the variance is the unbiased one", self._y(self.inputs, unbiased=True)
            for axes, words in WRONG_AXES.items():
                yield f"the statistics are taken {words}", self._y(self.inputs, axes=axes)
        else:
            yield "the statistics of the batch are used", self._y(self.inputs)
        for slip, changed in slips_beside_statistics(self.inputs):
            yield slip, self._y(changed, training=self.training)

    def _y(self, inputs: Parameters, **options: Any) -> Callable[[], Tensor]:
        """Return a function that computes y with other inputs or options."""
        return lambda: forward(self.problem, inputs, **options).y

    def _slips_of_statistics(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Yield slips with the running mean and variance that they lead to."""
        pixels, found = pixels_of(self.problem), self.found
        mean, biased = found.mean.flatten(), found.var.flatten()
        unbiased = biased * pixels / (pixels - 1)
        move = functools.partial(moved, self.inputs)
        yield "it is not updated", move(mean, unbiased, momentum=0.0)
        yield "the biased variance is taken", move(mean, biased, momentum=self.momentum)
        yield "momentum and 1 - momentum are swapped", move(mean, unbiased, momentum=1 - self.momentum)
        yield "momentum is 0.1, whatever is given", move(mean, unbiased, momentum=0.1)
        yield "momentum is left out: it is the batch's", move(mean, unbiased, momentum=1.0)
        once = move(mean, unbiased, momentum=self.momentum)
        twice = self.inputs._replace(running_mean=once[0], running_var=once[1])
        yield "it is updated twice", moved(twice, mean, unbiased, momentum=self.momentum)
        if self.inputs.bias is not None:
            without = mean - self.inputs.bias.double()
            yield "the convolution's bias is left out", move(without, unbiased, momentum=self.momentum)
        for axes, words in WRONG_AXES.items():
            other = forward(self.problem, self.inputs, axes=axes)
            mean, biased = (value.expand_as(found.z).mean(EVERYTHING) for value in (other.mean, other.var))
            values = move(mean, biased * pixels / (pixels - 1), momentum=self.momentum)
            yield f"the statistics are taken {words}", values

    def _gradient(self, name: str, slip: str) -> Tensor:
        value = getattr(self._gradients(slip), name)
        assert isinstance(value, Tensor)
        return value

    def _computed_gradients(self, slip: str) -> object:
        assert self.dy is not None
        inputs, found = self.inputs, self.found
        options: dict[str, Any] = {"training": self.training}
        for axes, words in WRONG_AXES.items():
            if slip.endswith(words):
                return gradients(self.problem, inputs, self.dy, found, axes=axes)
        if slip == FORGOTTEN_C1:
            options["c1"] = False
        elif slip == FORGOTTEN_C2:
            options["c2"] = False
        elif slip == AS_IN_EVALUATION:
            options["training"] = False
        elif slip == AS_IN_TRAINING:
            options["training"], found = True, forward(self.problem, inputs)
        elif slip == UNSCALED:
            inputs = inputs._replace(scaling_factor=1.0)
        elif slip == WITHOUT_GAMMA:
            inputs = inputs._replace(gamma=None if inputs.gamma is None else inputs.gamma * 0 + 1)
        elif slip == UNBIASED:
            found = forward(self.problem, inputs, unbiased=True)
        elif slip == RUNNING:
            found = forward(self.problem, inputs, training=False)
        elif slip == FLIPPED:
            inputs = inputs._replace(weight=inputs.weight.flip(2, 3))
        return gradients(self.problem, inputs, self.dy, found, **options)

    def _unnormalised(self) -> Tensor:
        assert self.dy is not None
        return self.inputs.scaling_factor * (self.dy.double() * (self.found.z - self.found.mean)).sum(EVERYTHING)


FORGOTTEN_C1 = "c1, the mean of dy, is forgotten"
FORGOTTEN_C2 = "c2 zhat, with c2 the mean of dy zhat, is forgotten"
AS_IN_EVALUATION = "c1 and c2 are forgotten, as if the statistics did not depend on x"
AS_IN_TRAINING = "the statistics are those of the batch, not the running ones"
UNSCALED = "scaling_factor is left out"
WITHOUT_GAMMA = "gamma is left out"
UNBIASED = "the variance is the unbiased one"
RUNNING = "the running statistics are used"
FLIPPED = "the filter is flipped"
GRADIENT_SLIPS = (
    FORGOTTEN_C1, FORGOTTEN_C2, AS_IN_EVALUATION, UNSCALED, WITHOUT_GAMMA, UNBIASED, RUNNING, FLIPPED,
)  # fmt: skip
EVALUATION_SLIPS = (UNSCALED, WITHOUT_GAMMA, AS_IN_TRAINING, FLIPPED)


def _same(value: Tensor) -> Tensor:
    return value
