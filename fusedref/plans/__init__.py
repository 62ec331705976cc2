"""Which kernel computes a problem, with which constants, launched how, and why."""

from __future__ import annotations

import re
from functools import lru_cache

import torch

from fusedref.arguments import check_precision
from fusedref.plans.base import Argument, Launch, Plan
from fusedref.plans.candidates import plan_by
from fusedref.plans.choices import shipped, tuned
from fusedref.plans.depthwise import depthwise_plan, unserved_by_depthwise
from fusedref.plans.device import predict
from fusedref.plans.folded import folded_plan
from fusedref.plans.implicit_gemm import best_gemm_tile, gemm_tiles, implicit_gemm_plan, unserved_by_implicit_gemm
from fusedref.plans.library import library_plan
from fusedref.plans.pipeline import pipeline_plan, unserved_by_pipeline
from fusedref.plans.rule import plan_by_rule
from fusedref.plans.variant import KernelVariant
from fusedref.problem import Problem, check_integer
from fusedref.target import EMULATED, Target

__all__ = [
    "Argument",
    "KernelVariant",
    "Launch",
    "Plan",
    "depthwise_plan",
    "folded_plan",
    "gemm_tiles",
    "implicit_gemm_plan",
    "library_plan",
    "own_plan_for",
    "pipeline_plan",
    "plan",
    "plan_for",
    "predict",
]


def plan(
    problem: Problem,
    architecture: str = EMULATED.architecture,
    multiprocessors: int = EMULATED.multiprocessors,
    precision: str = "fp32",
    channels_last: bool = False,
    vectors: torch.dtype | None = None,
    card: str = "",
) -> Plan:
    """Return the plan for ``problem``, with the reason for it.

    What ``fusedref.tune`` measured on this card comes first, then what was measured for the package, on a card of the
    same architecture and size. For any other problem a rule decides: the first kernel of pipeline, implicit_gemm and
    folded that serves it, unless torch's convolution should be faster.

    ``architecture`` is nvcc's name of the GPU's, such as ``"sm_90a"`` or ``"sm_80"``. ``precision="tf32"`` (for float32
    alone) allows to round the factors of the products. ``channels_last`` is how x and y lie in memory; ``vectors`` is
    the dtype of bias, running_mean, running_var, gamma and beta: the problem's (None), or float32. ``card`` is the name
    that ``torch.cuda.get_device_name`` returns; without it, nothing counts that ``fusedref.tune`` measured.

    Raise TypeError or ValueError where one of these is something else.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}")
    if not isinstance(architecture, str):
        raise TypeError(f"architecture must be nvcc's name of one, such as 'sm_80', got {architecture!r}")
    if not re.fullmatch(r"sm_\d{2,3}[af]?", architecture):
        raise ValueError(f"architecture must be nvcc's name of one, such as 'sm_80', got {architecture!r}")
    check_integer("multiprocessors", multiprocessors, least=1)
    check_precision(precision, problem.dtype)
    if not isinstance(channels_last, bool):
        raise TypeError(f"channels_last must be True or False, got {channels_last!r}")
    if vectors not in (None, problem.dtype, torch.float32):
        raise ValueError(f"vectors must be torch.float32 or the problem's {problem.dtype}, got {vectors}")
    if not isinstance(card, str):
        raise TypeError(f"card must be the name of a GPU, got {card!r}")
    target = Target(architecture, multiprocessors, card=card)
    return plan_for(problem, target, KernelVariant(precision, channels_last, vectors))


@lru_cache(maxsize=1024)
def plan_for(problem: Problem, target: Target, variant: KernelVariant) -> Plan:
    """Return the plan for ``problem`` on ``target``; unlike ``plan``, check no argument."""
    choice = tuned(problem, target, variant)
    if choice is not None:
        chosen = plan_by(choice, problem, target, variant, "it was the fastest when fusedref.tune timed them here")
        if chosen is not None:
            return chosen
    found = shipped(problem, target, variant)
    if found is not None:
        choice, card, batch = found
        reason = f"it was the fastest when they were timed on an {card}"
        chosen = plan_by(
            choice, problem, target, variant, reason if batch == problem.batch else f"{reason} at batch {batch}"
        )
        if chosen is not None:
            return chosen
    return plan_by_rule(problem, target, variant, own_plan_for(problem, target, variant))


@lru_cache(maxsize=1024)
def own_plan_for(problem: Problem, target: Target, variant: KernelVariant) -> Plan:
    """Return the plan by the first kernel of ours that serves ``problem``."""
    not_pipeline = unserved_by_pipeline(problem, target, variant)
    if not_pipeline is None:
        return pipeline_plan(problem, target, variant)
    if unserved_by_depthwise(problem, target, variant) is None:
        return depthwise_plan(problem, target, variant)
    not_gemm = unserved_by_implicit_gemm(problem, target, variant)
    if not_gemm is None:
        return implicit_gemm_plan(problem, best_gemm_tile(problem, target, variant), variant, not_pipeline)
    return folded_plan(problem, variant, f"{not_pipeline}; {not_gemm}")
