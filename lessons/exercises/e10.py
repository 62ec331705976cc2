"""Exercises of lesson 10 on copies and mbarriers: a bulk store, a hand-over between warps, and stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from fusedref.emulator import driver
from fusedref.emulator.errors import DeadlockError
from fusedref.emulator.watching import WatchResult
from lessons.exercises import Exercise, Wrong
from lessons.exercises.kernels import code, compare
from lessons.exercises.warp import function, watched

SEEDS = 0, 1, 2  # orders of the threads


def seen_in_every_order(
    kernel: Callable[..., None],
    x: np.ndarray,
    right: np.ndarray,
    axes: tuple[str, ...],
    threads: int,
    blocks: int,
    why: Mapping[str, str],
    mistaken: Mapping[str, np.ndarray] = {},
) -> WatchResult:
    """Launch kernel(x, y, rows) in several orders of the threads, watched, and return what the last one saw.

    Raise Wrong if there is a finding or y is not `right`. why: see `watched`. mistaken: what to say of a y like this.
    """
    for seed in SEEDS:
        y = np.empty(right.shape, dtype=np.float32)
        arguments = driver.In(x), driver.Out(y), np.int32(len(x))
        try:
            seen = watched(partial(kernel, *arguments, block=(threads, 1, 1), grid=(blocks, 1)), seed, why)
            for text, like in mistaken.items():
                if np.array_equal(y, like):
                    raise Wrong(text)
            compare(y, right, axes)
        except Wrong as wrong:
            raise Wrong(f"With {len(x)} row{'s' * (len(x) > 1)}: {wrong}") from None
        except DeadlockError as error:
            raise Wrong(
                f"{error} Either somebody does not arrive, or the wait names the parity of a phase that does not end."
            ) from None
    return seen


def must_meet_once(seen: WatchResult, name: str, blocks: int) -> None:
    """Raise Wrong unless the blocks met in one __syncthreads() each."""
    barriers = seen.counters[name].barriers
    if barriers > blocks:
        raise Wrong(
            f"All numbers are right, but the block meets in {barriers // blocks} barriers; par is 1, before the loop. "
            "A __syncthreads() stops both trades. Let the mbarriers do the waiting."
        )


# --- a: the copy engine writes ---

ROW = 512

_MIRROR = """
#include "ptx.cuh"

__global__ void mirror(const float* x, float* y, int rows)  // x, y: [rows, 512]
{
    __shared__ __align__(128) float buffer[512];
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        for (int i = threadIdx.x; i < 512; i += blockDim.x) buffer[511 - i] = x[row * 512 + i];
        ptx::fence_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::bulk_store(y + row * 512, buffer, 512 * sizeof(float));
            ptx::bulk_commit();
            ptx::bulk_wait_read<0>();
        }
        __syncthreads();
    }
}
"""
_MIRROR_FINDINGS = {
    "missing-wait": "The copy engine reads the buffer when it gets round to it. Nobody may write there before.",
    "unwritten": "How many *bytes* has a row?",
    "race": "Between a thread's write and the engine's read stand two things: the thread's fence, then a barrier of "
    "all. And between the engine's read and the next write stand a wait, then a barrier.",
}


def _judge_mirror(source: str) -> str:
    kernel = function(source, "mirror")
    for rows, blocks in ((1, 1), (5, 2)):
        x = np.random.default_rng(rows).standard_normal((rows, ROW), dtype=np.float32)
        right = x[:, ::-1].astype(np.float64)
        seen = seen_in_every_order(
            kernel, x, right, ("row", "column"), 128, blocks, _MIRROR_FINDINGS, {"y is x, not mirrored.": x}
        )
        counters, least = seen.counters["mirror"], rows * ROW * 4
        if counters.global_store_requests:
            raise Wrong(
                f"All numbers are right, but the warps make {counters.global_store_requests} store requests; par is 0. "
                "The copy engine is to write y."
            )
        if counters.bulk_bytes > least:
            raise Wrong(
                f"All numbers are right, but the engine copies {counters.bulk_bytes:,} bytes; par is {least:,}. "
                "Does every thread start a copy?"
            )
    return f"Your kernel: 0 store requests (par 0), {counters.bulk_bytes:,} bytes copied (par {least:,})."


mirror = Exercise(
    _judge_mirror,
    [
        "Each thread: its fence. Then all: a barrier. Then one thread starts the copy: to, from, bytes.",
        "The thread that started the copy commits it and waits for it. The others do not know of it.",
        "The next row goes into the same buffer. How do the other threads learn that the engine has read it?",
    ],
    _MIRROR,
)

# --- b: one buffer, two trades ---

_TOTALS = """
#include "ptx.cuh"

__global__ void totals(const float* x, float* y, int rows)  // x [rows, 256], y [rows]
{
    __shared__ float buffer[256];
    __shared__ uint64_t full, empty;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&full, 1);
        ptx::mbarrier_init(&empty, 1);
    }
    __syncthreads();
    for (int row = 0; row < rows; row++) {
        if (warp == 0) {
            ptx::mbarrier_wait(&empty, (row + 1) % 2);
            for (int i = lane; i < 256; i += 32) buffer[i] = x[row * 256 + i];
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(&full);
        } else {
            ptx::mbarrier_wait(&full, row % 2);
            float sum = 0;
            for (int i = lane; i < 256; i += 32) sum += buffer[i];
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(&empty);
            for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
            if (lane == 0) y[row] = sum;
        }
    }
}
"""
_HANDOVER_FINDINGS = {
    "race": "Who wrote, and who may touch the buffer now? An arrival must come after the last touch of *every* lane "
    "that it speaks for, and the other side must wait for that phase.",
    "uninitialised": "Somebody read before anybody had loaded.",
}


def _judge_totals(source: str) -> str:
    kernel = function(source, "totals")
    for rows in (1, 2, 7):
        x = np.random.default_rng(rows).standard_normal((rows, 256), dtype=np.float32)
        right = x.astype(np.float64).sum(axis=1)
        seen = seen_in_every_order(kernel, x, right, ("row",), 64, 1, _HANDOVER_FINDINGS)
        must_meet_once(seen, "totals", 1)
    return f"Your kernel: {seen.counters['totals'].barriers} barrier of the block for {rows} rows (par 1)."


totals = Exercise(
    _judge_totals,
    [
        "Write down the phases: full ends phase 0 with row 0, phase 1 with row 1, ... Which parity has row's phase?",
        "The buffer is empty at the start, so the first wait for `empty` must not wait. Which parity returns at once?",
        "If lane 0 arrives for all 32 lanes, __syncwarp() must come before, and the phase ends with one arrival.",
    ],
    _TOTALS,
)

# --- c: stages ---

_DIFFERENCES = """
#include "ptx.cuh"

constexpr int STAGES = 3;

__global__ void differences(const float* x, float* y, int rows)  // x, y: [rows, 256]
{
    __shared__ float buffer[STAGES][256];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0)
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], 1);
        }
    __syncthreads();
    for (int row = 0; row < rows; row++) {
        const int s = row % STAGES, before = (row + STAGES - 1) % STAGES;
        if (warp == 0) {
            ptx::mbarrier_wait(&empty[s], (row / STAGES + 1) % 2);
            for (int i = lane; i < 256; i += 32) buffer[s][i] = x[row * 256 + i];
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(&full[s]);
        } else {
            ptx::mbarrier_wait(&full[s], row / STAGES % 2);
            for (int i = lane; i < 256; i += 32)
                y[row * 256 + i] = buffer[s][i] - (row > 0 ? buffer[before][i] : 0);
            __syncwarp();
            if (row > 0 && lane == 0) ptx::mbarrier_arrive(&empty[before]);
        }
    }
}
"""
_STAGES = r"((?:const|constexpr)\s+int\s+STAGES\s*=\s*|#define\s+STAGES\s+)\d+"


def _judge_differences(source: str) -> str:
    function(source, "differences")  # its errors come first
    if not re.search(_STAGES, code(source)):
        raise Wrong("Keep the line `constexpr int STAGES = 3;`: the check tries other numbers too.")
    for stages in (3, 2, 4):
        kernel = function(re.sub(_STAGES, rf"\g<1>{stages}", source), "differences")
        for rows in (1, 2, 9):
            x = np.random.default_rng(rows).standard_normal((rows, 256), dtype=np.float32)
            right = np.diff(x.astype(np.float64), axis=0, prepend=0)
            try:
                seen = seen_in_every_order(kernel, x, right, ("row", "column"), 64, 1, _HANDOVER_FINDINGS)
                must_meet_once(seen, "differences", 1)
            except Wrong as wrong:
                raise Wrong(f"With {stages} stages: {wrong}") from None
            requests, par = seen.counters["differences"].global_load_requests, 8 * rows
            if requests > par:
                raise Wrong(
                    f"All numbers are right, but {rows} rows take {requests} requests to load; par is {par}. "
                    "The row before is in shared memory already, if nobody has given its stage away."
                )
    return f"Your kernel: {requests} requests to load {rows} rows (par {par}), with 2, 3 and 4 stages."


differences = Exercise(
    _judge_differences,
    [
        "Row r goes into stage r % STAGES, and that stage is filled for the (r / STAGES)-th time.",
        "The parity of a stage's phase changes each time that the *stage* is filled, not with each row.",
        "When y[row] is computed, one stage will not be needed again. It is not the one that has just arrived.",
    ],
    _DIFFERENCES,
)
