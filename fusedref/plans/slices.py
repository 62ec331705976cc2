"""How the kernels that include general.cuh divide a tensor like y among blocks: their macros and their grid."""

from __future__ import annotations

import math

from fusedref.plans.variant import KernelVariant
from fusedref.problem import ELEMENTS, Problem
from fusedref.target import Target

THREADS = 256  # of general.cuh
RESIDENT = {False: 4, True: 2}  # its blocks on a multiprocessor, by channels_last
UNITS_AHEAD = 4  # that a thread has under way
WAVES = 4  # times the blocks that run at once: the last ones to end matter less
MOST_SLICES = {False: 512, True: 128}  # a block of the second pass adds the sums of all slices of its channels


def divided(problem: Problem, target: Target, variant: KernelVariant) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Return the macros, and the grid: groups of channels by slices of the pixels."""
    plane, channels, size = problem.out_height * problem.out_width, problem.out_channels, problem.dtype.itemsize
    if variant.channels_last:
        unit = math.gcd(4, channels)
        lanes = min(128 // (unit * size), 1 << (channels // unit - 1).bit_length())  # 128 bytes, or all channels
        groups, units_per_thread = math.ceil(channels / (unit * lanes)), problem.batch * plane * lanes / THREADS
    else:
        unit, lanes = math.gcd(16 // size, plane), 1
        groups, units_per_thread = channels, problem.batch * plane / unit / THREADS
    seats = WAVES * RESIDENT[variant.channels_last] * target.multiprocessors
    slices = min(
        MOST_SLICES[variant.channels_last], math.ceil(seats / groups), max(1, math.ceil(units_per_thread / UNITS_AHEAD))
    )
    macros = {
        "ELEMENT": ELEMENTS.index(problem.dtype),
        "VECTOR": ELEMENTS.index(variant.vectors or problem.dtype),
        "CHANNELS_LAST": int(variant.channels_last),
        "UNIT": unit,
        "LANES": lanes,
    }
    return macros, (groups, slices, 1)
