"""Plans for training with few channels on sm_90a: the launches of a forward and of a backward pass."""

from __future__ import annotations

import dataclasses
import math

import torch

from fusedref.plans import plan_for
from fusedref.plans.backward import (
    backward_launch,
    parts_shape,
    unserved_by_backward,
)
from fusedref.plans.base import Argument, Launch
from fusedref.plans.gradients import gradients_launch
from fusedref.plans.input_gradient import composites_launch, composites_shape, constants_shape, input_gradient_launch
from fusedref.plans.moments import moments_plan, unserved_by_moments
from fusedref.plans.pipeline import pipeline_plan
from fusedref.plans.variant import KernelVariant
from fusedref.problem import Problem
from fusedref.target import Target


def unserved_by_fast_training(problem: Problem, target: Target, variant: KernelVariant) -> str | None:
    """Return why the launches of this file do not train ``problem``, None where they do."""
    return unserved_by_moments(problem, target, variant) or unserved_by_backward(problem, target, variant)


def workspaces(problem: Problem, target: Target, variant: KernelVariant) -> dict[str, int]:
    """Return the bytes of everything that launches of this file write for later ones."""
    channels, moments = problem.out_channels, moments_plan(problem, target, variant)
    return {
        **dict.fromkeys(("mean", "var", "centre"), 4 * channels),
        "moments": 8 * moments.moments,
        "moment_parts": 8 * moments.parts,
        "squares": 8 * moments.squares,
        "finished": 4,
        "parts": 4 * math.prod(parts_shape(problem, target)),
        "slopes": 8 * 2 * channels,
        "composites": 4 * math.prod(composites_shape(problem)),
        "constants": 4 * math.prod(constants_shape(problem)),
    }


def statistics_launches(problem: Problem, target: Target, variant: KernelVariant) -> list[Launch]:
    """Return the launches that compute the moments of x, and the batch statistics from them."""
    return [_renamed(launch, parts="moment_parts") for launch in moments_plan(problem, target, variant).launches]


def forward_launches(problem: Problem, target: Target, variant: KernelVariant) -> list[Launch]:
    """Return the launches of a forward pass: the batch statistics, and y by the plan of evaluation mode.

    The pipeline convolves x less a pivot, so that the mean of x costs no accuracy.
    """
    with_float32_vectors = variant._replace(vectors=torch.float32)
    plan = plan_for(problem, target, with_float32_vectors)
    columns = 8 * math.prod(problem.kernel)
    pivot = columns + columns * columns if plan.kernel == "pipeline" and problem.dtype == torch.float32 else 0
    if pivot:
        plan = pipeline_plan(problem, target, with_float32_vectors, pivot)
    mean = "centre" if pivot else "mean"  # of the convolution of x less the pivot, or of x
    evaluation = [_renamed(each, running_mean=mean, running_var="var", bias="float32_bias") for each in plan.launches]
    return [*statistics_launches(problem, target, variant), *evaluation]


def backward_launches(
    problem: Problem, target: Target, variant: KernelVariant, training: bool, of_x: bool, of_parameters: bool
) -> list[Launch]:
    """Return the launches of a backward pass.

    ``training`` says whether BatchNorm took the batch's statistics; ``of_x`` and ``of_parameters`` say which gradients
    are needed.
    """
    with_sums = of_parameters or training  # without the batch's statistics the gradient of x needs no sum over dy
    launches = []
    if with_sums and not training:  # for the pivots and scales alone
        launches = [
            _renamed(
                each, mean="unread_mean", var="unread_var",
                running_mean="nothing", running_var="nothing", batches="nothing",
            )
            for each in statistics_launches(problem, target, variant)
        ]  # fmt: skip
    launches.append(backward_launch(problem, target, variant, with_a=with_sums, with_t=of_x))
    if with_sums:
        launches.append(gradients_launch(problem, parts_shape(problem, target)[0], training, variant))
    if training and of_x:
        launches += [composites_launch(problem, variant), input_gradient_launch(problem, target, variant)]
    return launches


def _renamed(launch: Launch, **names: str) -> Launch:
    """Return the launch with other names for some of its arguments' values."""
    signature = tuple(Argument(names.get(name, name), kind) for name, kind in launch.signature)
    return dataclasses.replace(launch, signature=signature)
