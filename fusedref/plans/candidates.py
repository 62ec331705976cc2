"""The kernels that may compute a problem, in the order of preference among those as fast as each other.

A new kernel becomes a candidate by an entry in CANDIDATES; ``fusedref.tune`` then times it beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fusedref.plans.base import Plan
from fusedref.plans.depthwise import depthwise_plan, unserved_by_depthwise
from fusedref.plans.folded import folded_plan, unserved_by_folded
from fusedref.plans.implicit_gemm import (
    best_gemm_tile,
    gemm_tile,
    gemm_tiles,
    implicit_gemm_plan,
    unserved_by_implicit_gemm,
)
from fusedref.plans.library import library_plan, unserved_by_library, unserved_by_matmul
from fusedref.plans.pipeline import pipeline_plan, unserved_by_pipeline
from fusedref.plans.variant import KernelVariant
from fusedref.plans.wgmma_gemm import best_wgmma_tile, unserved_by_wgmma_gemm, wgmma_gemm_plan, wgmma_tile, wgmma_tiles
from fusedref.problem import Problem
from fusedref.target import Target

MOST_TILES = 3  # of a kernel, that are worth timing
MUCH_WORK = 2e8  # multiplications and additions

Sizes = tuple[int, ...]


class Choice(NamedTuple):
    """A kernel, and the sizes of its tile; without them, of several tiles the cheapest by prediction."""

    kernel: str
    sizes: Sizes = ()

    def __str__(self) -> str:
        return " ".join(map(str, (self.kernel, *self.sizes)))


class Candidate(NamedTuple):
    """How to plan a problem by one kernel."""

    unserved: Callable[[Problem, Target, KernelVariant], str | None]  # why not; None: it serves the problem
    tiles: Callable[[Problem, Target, KernelVariant], list[Sizes]]  # those worth timing
    plan: Callable[[Problem, Target, KernelVariant, Sizes, str], Plan | None]  # None: these sizes do not fit


def plan_by(choice: Choice, problem: Problem, target: Target, variant: KernelVariant, reason: str) -> Plan | None:
    """Return the plan of ``choice``, None where the kernel does not serve the problem or the sizes do not fit."""
    candidate = CANDIDATES.get(choice.kernel)
    if candidate is None or candidate.unserved(problem, target, variant) is not None:
        return None
    return candidate.plan(problem, target, variant, choice.sizes, reason)


def candidate_plans(problem: Problem, target: Target, variant: KernelVariant) -> Iterator[tuple[Choice, Plan]]:
    """Yield the plans worth timing."""
    for kernel, candidate in CANDIDATES.items():
        if candidate.unserved(problem, target, variant) is None:
            for sizes in candidate.tiles(problem, target, variant):
                plan = candidate.plan(problem, target, variant, sizes, "it is being timed")
                if plan is not None:
                    yield Choice(kernel, sizes), plan


def _best_gemm_tiles(problem: Problem, target: Target, variant: KernelVariant) -> list[Sizes]:
    """Return the cheapest tile, and the cheapest of those that divide the work among warps in another way."""
    found: dict[tuple[int, ...], Sizes] = {}
    for tile in sorted(gemm_tiles(problem, target, variant), key=lambda tile: tile.cycles):
        found.setdefault((tile.warp_channels, tile.down, tile.across), tile[:7])
    return list(found.values())[:MOST_TILES]


def _gemm_plan(problem: Problem, target: Target, variant: KernelVariant, sizes: Sizes, reason: str) -> Plan | None:
    tile = gemm_tile(problem, target, variant, sizes) if sizes else best_gemm_tile(problem, target, variant)
    return None if tile is None else implicit_gemm_plan(problem, tile, variant, reason)


def _best_wgmma_tiles(problem: Problem, target: Target, variant: KernelVariant) -> list[Sizes]:
    """Return the cheapest tile, and the cheapest of those with other chunks or other ways to prepare x."""
    found: dict[tuple[int, ...], Sizes] = {}
    for tile in sorted(wgmma_tiles(problem, target, variant), key=lambda tile: tile.cycles):
        found.setdefault((tile.chunk, tile.direct), tile.sizes)
    return list(found.values())[:MOST_TILES]


def _wgmma_plan(problem: Problem, target: Target, variant: KernelVariant, sizes: Sizes, reason: str) -> Plan | None:
    tile = wgmma_tile(problem, target, variant, sizes) if sizes else best_wgmma_tile(problem, target, variant)
    return None if tile is None else wgmma_gemm_plan(problem, tile, target, variant, reason)


def _one(problem: Problem, target: Target, variant: KernelVariant) -> list[Sizes]:
    return [()]


def _unless_much_work(problem: Problem, target: Target, variant: KernelVariant) -> list[Sizes]:
    """Return nothing to time where a thread for each output must be slower than another kernel of ours."""
    if unserved_by_depthwise(problem, target, variant) is None:
        return []
    return [] if problem.flops > MUCH_WORK and unserved_by_implicit_gemm(problem, target, variant) is None else [()]


def _unless_product(problem: Problem, target: Target, variant: KernelVariant) -> list[Sizes]:
    """Return nothing to time where the same library's matrix product needs no copy of x."""
    return [] if problem.strides == (1, 1) and unserved_by_matmul(problem, target, variant) is None else [()]


CANDIDATES = {
    "pipeline": Candidate(
        unserved_by_pipeline,
        _one,
        lambda problem, target, variant, _, reason: pipeline_plan(problem, target, variant, reason=reason),
    ),
    "wgmma_gemm": Candidate(unserved_by_wgmma_gemm, _best_wgmma_tiles, _wgmma_plan),
    "depthwise": Candidate(
        unserved_by_depthwise,
        _one,
        lambda problem, target, variant, _, reason: depthwise_plan(problem, target, variant, reason),
    ),
    "implicit_gemm": Candidate(unserved_by_implicit_gemm, _best_gemm_tiles, _gemm_plan),
    "folded": Candidate(
        unserved_by_folded,
        _unless_much_work,
        lambda problem, target, variant, _, reason: folded_plan(problem, variant, reason),
    ),
    "library": Candidate(
        unserved_by_library,
        _unless_product,
        lambda problem, target, variant, _, reason: library_plan(problem, target, variant, reason),
    ),
    "matmul": Candidate(
        unserved_by_matmul,
        _one,
        lambda problem, target, variant, _, reason: library_plan(problem, target, variant, reason, "matmul"),
    ),
}
