"""Which plan should be the fastest where nobody has timed them: a rule, learned from times on an H100.

The tiles of implicit_gemm and wgmma_gemm come with about how many cycles they take. What the others take is estimated:
the time in which memory moves the bytes, with two more passes over y for a library, and that of the multiply-adds at
the rate that was measured. Another plan takes the place of the first kernel that serves the problem only if it should
save a quarter. Little problems keep their kernel, because a second launch costs more than it saves.
"""

from __future__ import annotations

import math

import torch

from fusedref.plans.base import Plan
from fusedref.plans.implicit_gemm import best_gemm_tile
from fusedref.plans.library import library_plan, unserved_by_library, unserved_by_matmul
from fusedref.plans.variant import KernelVariant
from fusedref.plans.wgmma_gemm import best_wgmma_tile, unserved_by_wgmma_gemm, wgmma_gemm_plan
from fusedref.problem import Problem
from fusedref.target import Target

CYCLES = 1.7e3  # in a microsecond
BANDWIDTH = 2.6e12  # bytes a second
LAUNCHES = 5.0  # microseconds of a library's kernel and the pass after it
RATES = {"folded": 4e12, "library": 20e12}  # multiplications and additions a second
PRODUCT_RATES = {torch.float32: 40e12, torch.float16: 300e12, torch.bfloat16: 300e12}  # the same of matmul
LITTLE, SAVING = 20.0, 0.75


def plan_by_rule(problem: Problem, target: Target, variant: KernelVariant, own: Plan) -> Plan:
    """Return ``own``, the plan by the first kernel that serves the problem, or the one that should be faster."""
    if target.architecture != "sm_90a" or own.kernel not in ("implicit_gemm", "folded") or not problem.batch:
        return own
    if own.kernel == "folded":
        own_us = 1e6 * problem.flops / RATES["folded"]
    else:
        own_us = best_gemm_tile(problem, target, variant).cycles / CYCLES
    if own_us < LITTLE:
        return own
    found: list[tuple[float, str]] = []
    is_fp32 = variant.pieces(problem.dtype) == 2
    if is_fp32 and unserved_by_wgmma_gemm(problem, target, variant) is None:
        found.append((best_wgmma_tile(problem, target, variant).cycles / CYCLES, "wgmma_gemm"))
    if unserved_by_matmul(problem, target, variant) is None:
        found.append((_library_us(problem, PRODUCT_RATES[problem.dtype]), "matmul"))
    elif own.kernel == "folded" and unserved_by_library(problem, target, variant) is None:
        found.append((_library_us(problem, RATES["library"]), "library"))
    us, kernel = min(found, default=(math.inf, ""))
    if us > SAVING * own_us:
        return own
    reason = f"it should take {us:.0f} us on an H100, and {own.kernel} {own_us:.0f} us"
    if kernel == "wgmma_gemm":
        return wgmma_gemm_plan(problem, best_wgmma_tile(problem, target, variant), target, variant, reason)
    return library_plan(problem, target, variant, reason, kernel)


def _library_us(problem: Problem, rate: float) -> float:
    """Return about how many microseconds a library takes, with the pass after it."""
    moved = problem.least_bytes + 2 * problem.dtype.itemsize * math.prod(problem.output_shape)
    return LAUNCHES + 1e6 * (moved / BANDWIDTH + problem.flops / rate)
