"""Small kernels, each with one planted bug and the finding that must name it, and for each a correct look-alike.

Every case is whole: source, launch and arguments. ``run`` takes the objects that run it, so that the same corpus runs
on the emulator (test_emulator_watch.py) and on a card (corpus_on_card.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np

from fusedref.csrc import COMMON


@dataclass(frozen=True)
class Case:
    """A kernel ``k``, how it is launched, and what must be found: (kind, argument, element, line), or None for nothing.

    ``arguments``: ``("zeros", n)``, ``("empty", n)`` and ``("arange", n)`` are arrays of ``dtype``, an int is a C int.
    """

    name: str
    source: str
    arguments: tuple
    expected: tuple | None = None
    block: tuple = (64, 1, 1)
    grid: tuple = (1, 1)
    shared: int = 0
    dtype: str = "int32"
    options: tuple = field(default=())


CASES: list[Case] = []


def pair(name: str, source: str, arguments: tuple, expected: tuple, **launch: object) -> None:
    """Add a bug and its cure to the corpus, given as one text: ``@(bug||cure)@``."""
    texts = {"bug": "", "cure": ""}
    rest = source.strip("\n") + "\n"
    while "@(" in rest:
        before, _, rest = rest.partition("@(")
        choice, _, rest = rest.partition(")@")
        bug, _, cure = choice.partition("||")
        texts["bug"] += before + bug
        texts["cure"] += before + cure
    other = launch.pop("cured", {})
    case = Case(name, texts["bug"] + rest, arguments, expected, **launch)
    CASES.append(case)
    CASES.append(replace(case, name=f"{name}_cured", source=texts["cure"] + rest, expected=None, **other))


# --------------------------------------------------------------------------------------------------- out of bounds

pair(
    "bounds_guard",
    """
__global__ void k(int* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    @(if (i <= n)||if (i < n))@
        y[i] = i;
}""",
    (("empty", 100), 100),
    ("out-of-bounds", "y", 100, 4),
    grid=(2, 1),
)
pair(
    "bounds_read",
    """
__global__ void k(int* y, const int* x) {
    int i = threadIdx.x;
    y[i] = x[i] + @(x[i + 1]||x[(i + 1) % 64])@;
}""",
    (("empty", 64), ("arange", 64)),
    ("out-of-bounds", "x", 64, 3),
)
pair(
    "bounds_negative",
    """
__global__ void k(int* y, const int* x) {
    int i = threadIdx.x;
    y[i] = @(x[i - 1]||i ? x[i - 1] : 0)@;
}""",
    (("empty", 64), ("arange", 64)),
    ("out-of-bounds", "x", -1, 3),
)
pair(
    "bounds_static_shared",
    """
__global__ void k(int* y) {
    __shared__ int s[@(63||64)@];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}""",
    (("empty", 64),),
    ("out-of-bounds", "s", 63, 3),
)
pair(
    "bounds_shared_row",
    """
__global__ void k(int* y) {
    __shared__ int s[8][9];
    s[threadIdx.x / 8][threadIdx.x % 8] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x % 8@( + 1||)@][threadIdx.x / 8];
}""",
    (("empty", 64),),
    ("out-of-bounds", "s", 72, 5),
)
pair(
    "bounds_dynamic_shared",
    """
__global__ void k(int* y) {
    extern __shared__ int s[];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}""",
    (("empty", 64),),
    ("out-of-bounds", "s", 60, 3),
    shared=240,
    cured={"shared": 256},
)
pair(
    "bounds_constant",
    """
__constant__ int c[4] = {1, 2, 3, 4};
__global__ void k(int* y) {
    y[threadIdx.x] = c[threadIdx.x / @(15||16)@];
}""",
    (("empty", 64),),
    ("out-of-bounds", "c", 4, 3),
)
pair(
    "bounds_device_variable",
    """
__device__ int d[64];
__global__ void k(int* y) {
    d[threadIdx.x@( + 1||)@] = 1;
    y[threadIdx.x] = 2;
}""",
    (("empty", 64),),
    ("out-of-bounds", "d", 64, 3),
)
pair(
    "bounds_atomic",
    """
__global__ void k(int* bins, const int* x) {
    atomicAdd(&bins[x[threadIdx.x] / @(15||16)@], 1);
}""",
    (("zeros", 4), ("arange", 64)),
    ("out-of-bounds", "bins", 4, 2),
)
pair(
    "bounds_vector",
    """
__global__ void k(int* y) {
    if (threadIdx.x < @(17||16)@)
        ((int4*)y)[threadIdx.x] = make_int4(1, 2, 3, 4);
}""",
    (("empty", 66),),
    ("out-of-bounds", "y", 64, 3),
    cured={"arguments": (("empty", 64),)},
)
pair(
    "bounds_byte",
    """
__global__ void k(char* y, int n) {
    for (int i = 0; @(i <= n||i < n)@; i++)
        y[i] = 1;
}""",
    (("empty", 13), 13),
    ("out-of-bounds", "y", 13, 3),
    block=(1, 1, 1),
    dtype="int8",
)
pair(
    "bounds_height_for_width",
    """
__global__ void k(float* y, const float* x, int height, int width) {
    int row = threadIdx.y, column = threadIdx.x;
    y[row * width + column] = x[row * @(height||width)@ + column];
}""",
    (("empty", 40), ("arange", 40), 8, 5),
    ("out-of-bounds", "x", 40, 3),
    block=(5, 8, 1),
    dtype="float32",
)

# ------------------------------------------------------------------------------------------------------ misaligned

pair(
    "misaligned_float4",
    """
__global__ void k(float* y, const float* x) {
    float4 v = *(const float4*)(x + @(2||4)@);
    y[threadIdx.x] = v.x;
}""",
    (("empty", 1), ("arange", 16)),
    ("misaligned", "x", 2, 2),
    block=(1, 1, 1),
    dtype="float32",
)
pair(
    "misaligned_store",
    """
__global__ void k(int* y) {
    *(int2*)(y + @(2 * threadIdx.x + 1||2 * threadIdx.x)@) = make_int2(1, 2);
}""",
    (("empty", 129),),
    ("misaligned", "y", 1, 2),
    cured={"arguments": (("empty", 128),)},
)
pair(
    "misaligned_shared",
    """
__global__ void k(int* y) {
    __shared__ float s[256];
    for (int i = 0; i < 4; i++) s[64 * i + threadIdx.x] = 1;
    __syncthreads();
    float4 v = *(float4*)(s + @(threadIdx.x||4 * threadIdx.x)@);
    y[threadIdx.x] = v.x;
}""",
    (("empty", 64),),
    ("misaligned", "s", 1, 5),
)
pair(
    "misaligned_constant",
    """
__constant__ float c[8] = {1, 2, 3, 4, 5, 6, 7, 8};
__global__ void k(float* y) {
    float4 v = *(float4*)(c + @(threadIdx.x||4 * threadIdx.x)@);
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}""",
    (("empty", 2),),
    ("misaligned", "c", 1, 3),
    block=(2, 1, 1),
    dtype="float32",
)
pair(
    "misaligned_double",
    """
__global__ void k(double* y, char* x) {
    y[threadIdx.x] = *(double*)(x + @(12||16)@);
}""",
    (("empty", 1), ("arange", 4)),
    ("misaligned", "x", 12, 2),
    block=(1, 1, 1),
    dtype="float64",
)
pair(
    "misaligned_int",
    """
__global__ void k(char* y) {
    *(int*)(y + @(6||8)@) = 0x01010101;
    for (int i = 0; i < 16; i++) y[i] = 1;
}""",
    (("empty", 16),),
    ("misaligned", "y", 6, 2),
    block=(1, 1, 1),
    dtype="int8",
)

# --------------------------------------------------------------------------------------------------- uninitialised

pair(
    "uninitialised_shared",
    """
__global__ void k(int* y) {
    __shared__ int s[64];
    if (threadIdx.x @(> 0||>= 0)@) s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}""",
    (("empty", 64),),
    ("uninitialised", "s", 0, 5),
)
pair(
    "uninitialised_halo",
    """
__global__ void k(int* y, const int* x) {
    __shared__ int s[66];
    s[threadIdx.x + 1] = x[threadIdx.x];
    if (threadIdx.x == 0) s[0] = 0;
    @(||if (threadIdx.x == 63) s[65] = 0;)@
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x] + s[threadIdx.x + 1] + s[threadIdx.x + 2];
}""",
    (("empty", 64), ("arange", 64)),
    ("uninitialised", "s", 65, 7),
)
pair(
    "uninitialised_accumulator",
    """
__global__ void k(int* y, const int* x) {
    @(||y[threadIdx.x] = 0;)@
    for (int i = 0; i < 4; i++) y[threadIdx.x] += x[threadIdx.x];
}""",
    (("empty", 64), ("arange", 64)),
    ("uninitialised", "y", 0, 3),
)
pair(
    "uninitialised_input",
    """
__global__ void k(int* y, const int* x) {
    y[threadIdx.x] = x[threadIdx.x];
}""",
    (("empty", 64), ("empty", 64)),
    ("uninitialised", "x", 0, 2),
    cured={"arguments": (("empty", 64), ("zeros", 64))},
)
pair(
    "uninitialised_atomic",
    """
__global__ void k(int* y) {
    atomicAdd(y, 1);
}""",
    (("empty", 1),),
    ("uninitialised", "y", 0, 2),
    cured={"arguments": (("zeros", 1),)},
)
pair(
    "uninitialised_dynamic",
    """
__global__ void k(int* y) {
    extern __shared__ int s[];
    @(||s[threadIdx.x] = 0;)@
    s[threadIdx.x] += 3;
    y[threadIdx.x] = s[threadIdx.x];
}""",
    (("empty", 64),),
    ("uninitialised", "s", 0, 4),
    shared=256,
)
pair(
    "uninitialised_next_block",
    """
__global__ void k(int* y) {
    __shared__ int s;
    if (@(blockIdx.x == 0 && threadIdx.x == 0||threadIdx.x == 0)@) s = 5;
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = s;
}""",
    (("empty", 128),),
    ("uninitialised", "s", 0, 5),
    grid=(2, 1),
)

# -------------------------------------------------------------------------------------------- races within a block

pair(
    "race_no_barrier",
    """
__global__ void k(int* y) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    @(||__syncthreads();)@
    y[threadIdx.x] = s[63 - threadIdx.x];
}""",
    (("empty", 64),),
    ("race", "s", 32, 3),
)
pair(
    "race_reuse",
    """
__global__ void k(int* y, const int* x) {
    __shared__ int s[64];
    int sum = 0;
    for (int i = 0; i < 4; i++) {
        s[threadIdx.x] = x[64 * i + threadIdx.x];
        __syncthreads();
        sum += s[63 - threadIdx.x];
        @(||__syncthreads();)@
    }
    y[threadIdx.x] = sum;
}""",
    (("empty", 64), ("arange", 256)),
    ("race", "s", None, 5),
)
pair(
    "race_warp_synchronous",
    """
__global__ void k(int* y) {
    __shared__ int s[32];
    s[threadIdx.x] = threadIdx.x;
    @(||__syncwarp();)@
    y[threadIdx.x] = s[31 - threadIdx.x];
}""",
    (("empty", 32),),
    ("race", "s", None, 3),
    block=(32, 1, 1),
)
pair(
    "race_volatile_reduction",
    """
__global__ void k(int* y, const int* x) {
    __shared__ volatile int s[64];
    int i = threadIdx.x;
    s[i] = x[i];
    s[i + 32] = x[i + 32];
    for (int d = 32; d > 0; d /= 2) {
        @(||__syncwarp(); int v = s[i + d]; __syncwarp();)@
        @(s[i] += s[i + d];||s[i] += v;)@
        @(||__syncwarp();)@
    }
    if (i == 0) y[0] = s[0];
}""",
    (("empty", 1), ("arange", 64)),
    ("race", "s", None, 8),
    block=(32, 1, 1),
)
pair(
    "race_tree_reduction",
    """
__global__ void k(int* y, const int* x) {
    __shared__ int s[256];
    int i = threadIdx.x;
    s[i] = x[i];
    __syncthreads();
    for (int d = 128; d > 0; d /= 2) {
        if (i < d) s[i] += s[i + d];
        @(||__syncthreads();)@
    }
    if (i == 0) y[0] = s[0];
}""",
    (("empty", 1), ("arange", 256)),
    ("race", "s", None, 7),
    block=(256, 1, 1),
)
pair(
    "race_in_place_stencil",
    """
__global__ void k(int* y, int* x) {
    int i = threadIdx.x;
    if (i < 63) @(x[i] = x[i + 1];||y[i] = x[i + 1];)@
    @(y[i] = i;||if (i == 63) y[i] = 0;)@
}""",
    (("empty", 64), ("arange", 64)),
    ("race", "x", None, 3),
)
pair(
    "race_counter",
    """
__global__ void k(int* y) {
    __shared__ int n;
    if (threadIdx.x == 0) n = 0;
    __syncthreads();
    @(n += 1;||atomicAdd(&n, 1);)@
    __syncthreads();
    if (threadIdx.x == 0) y[0] = n;
}""",
    (("empty", 1),),
    ("race", "n", 0, 5),
)
pair(
    "race_histogram",
    """
__global__ void k(int* y, const int* x) {
    __shared__ int bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    @(bins[x[threadIdx.x] % 8]++;||atomicAdd(&bins[x[threadIdx.x] % 8], 1);)@
    __syncthreads();
    if (threadIdx.x < 8) y[threadIdx.x] = bins[threadIdx.x];
}""",
    (("empty", 8), ("arange", 64)),
    ("race", "bins", None, 5),
)
pair(
    "race_different_values",
    """
__global__ void k(int* y) {
    __shared__ int s;
    s = @(threadIdx.x||7)@;
    __syncthreads();
    y[threadIdx.x] = s * 0;
}""",
    (("empty", 64),),
    ("race", "s", 0, 3),
)
pair(
    "race_partial_syncwarp",
    """
__global__ void k(int* y) {
    __shared__ int s[32];
    s[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 16) __syncwarp(0x0000ffff); else __syncwarp(0xffff0000);
    y[threadIdx.x] = s[threadIdx.x @(^ 16||^ 8)@];
}""",
    (("empty", 32),),
    ("race", "s", None, 3),
    block=(32, 1, 1),
)
pair(
    "race_transposed_store",
    """
__global__ void k(int* y) {
    int row = threadIdx.y, column = threadIdx.x;
    y[@(row * 8||row * 9)@ + column] = row;
}""",
    (("zeros", 64),),
    ("race", "y", None, 3),
    block=(9, 7, 1),
    cured={"arguments": (("empty", 63),)},
)
pair(
    "race_atomic_and_plain",
    """
__global__ void k(int* y) {
    __shared__ int s;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    atomicAdd(&s, 1);
    @(||__syncthreads();)@
    if (threadIdx.x == 63) y[0] = s;
}""",
    (("empty", 1),),
    ("race", "s", 0, 7),
)
pair(
    "race_double_buffer",
    """
__global__ void k(int* y, const int* x) {
    __shared__ int s[2][64];
    int sum = 0;
    for (int i = 0; i < 4; i++) {
        s[@(0||i % 2)@][threadIdx.x] = x[64 * i + threadIdx.x];
        __syncthreads();
        sum += s[@(0||i % 2)@][63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}""",
    (("empty", 64), ("arange", 256)),
    ("race", "s", None, 5),
)

pair(
    "race_atomic_initialised",
    """
__global__ void k(int* y, const int* x) {
    __shared__ int largest;
    if (threadIdx.x == 0) largest = 0;
    @(||__syncthreads();)@
    atomicMax(&largest, x[threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) y[0] = largest;
}""",
    (("empty", 1), ("arange", 64)),
    ("race", "largest", 0, 3),
)
pair(
    "race_lock_without_fence",
    """
__global__ void k(int* y) {
    __shared__ int lock, n;
    if (threadIdx.x == 0) { lock = 0; n = 0; }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        while (atomicCAS(&lock, 0, 1)) {}
        @(||__threadfence_block();)@
        n += 1;
        @(||__threadfence_block();)@
        atomicExch(&lock, 0);
    }
    __syncthreads();
    if (threadIdx.x == 0) y[0] = n;
}""",
    (("empty", 1),),
    ("race", "n", 0, 8),
    block=(128, 1, 1),
)

# ------------------------------------------------------------------------------------------- races between blocks

pair(
    "race_blocks_sum",
    """
__global__ void k(int* y) {
    if (threadIdx.x == 0) @(y[0] += 1||atomicAdd(y, 1))@;
}""",
    (("zeros", 1),),
    ("race", "y", 0, 2),
    grid=(8, 1),
)
pair(
    "race_blocks_overlap",
    """
__global__ void k(int* y) {
    y[blockIdx.x * @(63||64)@ + threadIdx.x] = blockIdx.x;
}""",
    (("zeros", 256),),
    ("race", "y", 63, 2),
    grid=(4, 1),
)
pair(
    "race_blocks_read_neighbour",
    """
__global__ void k(int* y, int* x) {
    int i = blockIdx.x * 64 + threadIdx.x;
    @(x[i] = i; y[i] = x[(i + 64) % 128];||y[i] = x[(i + 64) % 128];)@
}""",
    (("empty", 128), ("arange", 128)),
    ("race", "x", None, 3),
    grid=(2, 1),
)
pair(
    "race_last_block_without_fence",
    """
__device__ unsigned int finished;
__global__ void k(int* y, int* partial) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x;
        @(||__threadfence();)@
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < gridDim.x; i++) sum += partial[i];
        y[0] = sum;
    }
}""",
    (("zeros", 1), ("empty", 10)),
    ("race", "partial", 0, 12),
    grid=(10, 1),
)
pair(
    "race_fence_of_one_thread",
    """
__device__ unsigned int finished;
__global__ void k(int* y, int* partial) {
    __shared__ bool last;
    partial[64 * blockIdx.x + threadIdx.x] = threadIdx.x;
    @(||__syncthreads();)@
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < 64 * gridDim.x; i++) sum += partial[i];
        y[0] = sum;
    }
}""",
    (("zeros", 1), ("empty", 640)),
    ("race", "partial", None, 13),
    grid=(10, 1),
)
pair(
    "race_blocks_in_place_stencil",
    """
__global__ void k(int* y, int* x, int n) {
    int i = blockIdx.x * 64 + threadIdx.x, sum = 0;
    for (int j = -2; j <= 2; j++) if (i + j >= 0 && i + j < n) sum += x[i + j];
    __syncthreads();
    @(x[i] = sum; y[i] = sum;||y[i] = sum;)@
}""",
    (("empty", 192), ("arange", 192), 192),
    ("race", "x", None, 5),
    grid=(3, 1),
)
pair(
    "race_blocks_lost_flag",
    """
__global__ void k(int* y, int* flag) {
    if (threadIdx.x == 0) @(flag[0] = blockIdx.x;||flag[0] = 1;)@
    y[blockIdx.x * 64 + threadIdx.x] = 0;
}""",
    (("empty", 256), ("zeros", 1)),
    ("race", "flag", 0, 2),
    grid=(4, 1),
)

# ----------------------------------------------------------------------------------------------- divergent barriers

pair(
    "barrier_in_branch",
    """
__global__ void k(int* y) {
    @(if (threadIdx.x < 32) __syncthreads();||__syncthreads();)@
    y[threadIdx.x] = 1;
}""",
    (("empty", 64),),
    ("divergent-barrier", None, None, 2),
)
pair(
    "barrier_after_return",
    """
__global__ void k(int* y, int n) {
    @(if (threadIdx.x >= n) return;||)@
    __syncthreads();
    @(y[threadIdx.x] = 1;||if (threadIdx.x < n) y[threadIdx.x] = 1;)@
}""",
    (("empty", 50), 50),
    ("divergent-barrier", None, None, 3),
)
pair(
    "barrier_in_both_branches",
    """
__global__ void k(int* y) {
    if (threadIdx.x < 32) {
        y[threadIdx.x] = 1;
        @(__syncthreads();||)@
    } else {
        y[threadIdx.x] = 2;
        @(__syncthreads();||)@
    }
    @(||__syncthreads();)@
}""",
    (("empty", 64),),
    ("divergent-barrier", None, None, 4),
)
pair(
    "barrier_in_loop",
    """
__global__ void k(int* y) {
    for (int i = 0; i < @(threadIdx.x / 32 + 1||2)@; i++)
        __syncthreads();
    y[threadIdx.x] = 1;
}""",
    (("empty", 64),),
    ("divergent-barrier", None, None, 3),
)
pair(
    "barrier_break",
    """
__global__ void k(int* y, const int* x) {
    for (int i = 0; i < 4; i++) {
        @(if (x[threadIdx.x] == 5 && i == 2) break;||)@
        __syncthreads();
    }
    y[threadIdx.x] = 1;
}""",
    (("empty", 64), ("arange", 64)),
    ("divergent-barrier", None, None, 4),
)

# ------------------------------------------------------------------------------------------------------ unwritten

pair(
    "unwritten_tail",
    """
__global__ void k(int* y, int n) {
    int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) y[i] = i;
}""",
    (("empty", 100), 100),
    ("unwritten", "y", 64, None),
    grid=(1, 1),
    cured={"grid": (2, 1)},
)
pair(
    "unwritten_first",
    """
__global__ void k(int* y) {
    y[threadIdx.x@( + 1||)@] = 1;
}""",
    (("empty", 65),),
    ("unwritten", "y", 0, None),
    cured={"arguments": (("empty", 64),)},
)
pair(
    "unwritten_last_column",
    """
__global__ void k(float* y, int width) {
    if (threadIdx.x < @(width - 1||width)@) y[threadIdx.y * width + threadIdx.x] = 1;
}""",
    (("empty", 64), 8),
    ("unwritten", "y", 7, None),
    block=(8, 8, 1),
    dtype="float32",
)
pair(
    "unwritten_stride",
    """
__global__ void k(double* y) {
    for (int i = threadIdx.x; i < 256; i += @(128||64)@) y[i] = 1;
}""",
    (("empty", 256),),
    ("unwritten", "y", 64, None),
    dtype="float64",
)

# ---------------------------------------------------------------------------------------------------- missing waits

ASYNC = '#include "ptx.cuh"\n'
pair(
    "wait_forgotten",
    ASYNC
    + """extern "C" __global__ void k(int* y, const int* x) {
    __shared__ __align__(16) int s[256];
    ptx::cp_async_16(&s[4 * threadIdx.x], &x[4 * threadIdx.x]);
    ptx::cp_async_commit();
    @(||ptx::cp_async_wait<0>();)@
    y[threadIdx.x] = s[4 * threadIdx.x];
}""",
    (("empty", 64), ("arange", 256)),
    ("missing-wait", "s", 0, 7),
)
pair(
    "wait_for_the_wrong_group",
    ASYNC
    + """extern "C" __global__ void k(int* y, const int* x) {
    __shared__ __align__(16) int s[2][256];
    ptx::cp_async_16(&s[0][4 * threadIdx.x], &x[4 * threadIdx.x]);
    ptx::cp_async_commit();
    ptx::cp_async_16(&s[1][4 * threadIdx.x], &x[4 * threadIdx.x]);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    y[threadIdx.x] = s[@(1||0)@][4 * threadIdx.x];
    ptx::cp_async_wait<0>();
}""",
    (("empty", 64), ("arange", 256)),
    ("missing-wait", "s", 256, 9),
)
pair(
    "wait_without_barrier",
    ASYNC
    + """extern "C" __global__ void k(int* y, const int* x) {
    __shared__ __align__(16) int s[256];
    ptx::cp_async_16(&s[4 * threadIdx.x], &x[4 * threadIdx.x]);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    @(||__syncthreads();)@
    y[threadIdx.x] = s[255 - 4 * threadIdx.x];
}""",
    (("empty", 64), ("arange", 256)),
    ("race", "s", None, None),
)

# ------------------------------------------------------------- bulk copies, mbarriers and barriers for part of a block

BULK = (
    ASYNC
    + """extern "C" __global__ void k(int* y, const int* x) {
    __shared__ __align__(128) int s[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) { ptx::mbarrier_init(&full, 1); ptx::mbarrier_init_fence(); }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect_tx(&full, 256);
        ptx::bulk_load(@LOAD@, 256, &full);
    }
"""
)
pair(
    "bulk_read_before_its_wait",
    BULK.replace("@LOAD@", "s, x")
    + """    @(y[threadIdx.x] = s[63 - threadIdx.x];||)@
    ptx::mbarrier_wait(&full, 0);
    @(||y[threadIdx.x] = s[63 - threadIdx.x];)@
}""",
    (("empty", 64), ("arange", 64)),
    ("missing-wait", "s", None, 11),
)
pair(
    "bulk_wait_of_one_thread",
    BULK.replace("@LOAD@", "s, x")
    + """    @(if (threadIdx.x == 0)||)@
    ptx::mbarrier_wait(&full, 0);
    y[threadIdx.x] = s[63 - threadIdx.x];
    __syncthreads();
}""",
    (("empty", 64), ("arange", 64)),
    ("missing-wait", "s", None, 13),
)
pair(
    "bulk_bounds",
    BULK.replace("@LOAD@", "s, x + @(16||0)@")
    + """    ptx::mbarrier_wait(&full, 0);
    y[threadIdx.x] = s[threadIdx.x];
}""",
    (("empty", 64), ("arange", 64)),
    ("out-of-bounds", "x", 64, 9),
)
pair(
    "bulk_misaligned",
    BULK.replace("@LOAD@", "s, x + @(2||4)@")
    + """    ptx::mbarrier_wait(&full, 0);
    y[threadIdx.x] = s[threadIdx.x];
}""",
    (("empty", 64), ("arange", 68)),
    ("misaligned", "x", 2, 9),
)
pair(
    "bulk_store_overwritten",
    ASYNC
    + """extern "C" __global__ void k(int* y) {
    __shared__ __align__(128) int s[64];
    for (int i = 0; i < 4; i++) {
        s[threadIdx.x] = 64 * i + threadIdx.x;
        ptx::fence_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::bulk_store(y + 64 * i, s, 256);
            ptx::bulk_commit();
            @(||ptx::bulk_wait_read<0>();)@
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) ptx::bulk_wait_read<0>();
    __syncthreads();
}""",
    (("empty", 256),),
    ("missing-wait", "s", None, 5),
)
pair(
    "bulk_store_without_barrier",
    ASYNC
    + """extern "C" __global__ void k(int* y) {
    __shared__ __align__(128) int s[64];
    s[threadIdx.x] = threadIdx.x;
    ptx::fence_async_shared();
    @(||__syncthreads();)@
    if (threadIdx.x == 63) {
        ptx::bulk_store(y, s, 256);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
    __syncthreads();
}""",
    (("empty", 64),),
    ("race", "s", None, 4),
)

pair(
    "bulk_store_without_fence",
    ASYNC
    + """extern "C" __global__ void k(int* y) {
    __shared__ __align__(128) int s[64];
    s[threadIdx.x] = threadIdx.x;
    @(||ptx::fence_async_shared();)@
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::bulk_store(y, s, 256);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
    __syncthreads();
}""",
    (("empty", 64),),
    ("race", "s", None, 4),
)
pair(
    "bulk_load_before_the_barrier_is_shown",
    BULK.replace("@LOAD@", "s, x").replace("ptx::mbarrier_init_fence();", "@(||ptx::mbarrier_init_fence();)@")
    + """    ptx::mbarrier_wait(&full, 0);
    y[threadIdx.x] = s[threadIdx.x];
}""",
    (("empty", 64), ("arange", 64)),
    ("race", "full", 0, 9),
)

# Warp 0 fills two stages in turn, warps 1 and 2 empty them. RELEASE: how a consumer gives a stage back.
SPECIALISTS = (
    ASYNC
    + """extern "C" __global__ void k(int* y, const int* x, int tiles) {
    __shared__ __align__(128) int s[2][64];
    __shared__ uint64_t full[2], empty[2];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) { ptx::mbarrier_init(full + i, @FULL@); ptx::mbarrier_init(empty + i, @EMPTIED@); }
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    if (warp == 0) {
        for (int i = 0; i < tiles; i++) {
            @EMPTY@
            @FILL@
        }
    } else {
        for (int i = 0; i < tiles; i++) {
            ptx::mbarrier_wait(&full[i % 2], i / 2 % 2);
            y[64 * i + 32 * (warp - 1) + lane] = s[i % 2][95 - threadIdx.x];
            @RELEASE@
        }
    }
}"""
)
EMPTY = "ptx::mbarrier_wait(&empty[i % 2], (i / 2 + 1) % 2);"
RELEASE = "ptx::mbarrier_arrive(&empty[i % 2]);"
COPIED = (
    "if (lane == 0) { ptx::mbarrier_arrive_expect_tx(&full[i % 2], 256); "
    "ptx::bulk_load(s[i % 2], x + 64 * i, 256, &full[i % 2]); } __syncwarp();"
)
STORED = (
    "s[i % 2][lane] = x[64 * i + lane]; s[i % 2][lane + 32] = x[64 * i + lane + 32]; "
    "ptx::mbarrier_arrive(&full[i % 2]);"
)
ONE_FOR_ALL = "@(||__syncwarp();)@ if (lane == 0) ptx::mbarrier_arrive("


def specialists(name: str, line: int, empty: str = EMPTY, fill: str = STORED, release: str = RELEASE) -> None:
    source = SPECIALISTS.replace("@EMPTY@", empty).replace("@FILL@", fill).replace("@RELEASE@", release)
    source = source.replace("@FULL@", "32" if fill == STORED else "1")
    source = source.replace("@EMPTIED@", "64" if release == RELEASE else "2")
    pair(name, source, (("empty", 320), ("arange", 320), 5), ("race", "s", None, line), block=(96, 1, 1))


specialists("pipeline_stores_into_a_full_stage", 14, empty=f"@(||{EMPTY})@")
specialists("pipeline_copies_into_a_full_stage", 14, empty=f"@(||{EMPTY})@", fill=COPIED)
specialists("pipeline_hands_on_before_all_lanes_stored", 19, fill=STORED.replace("ptx::mbarrier_arrive(", ONE_FOR_ALL))
specialists(
    "pipeline_gives_back_before_all_lanes_read",
    19,
    fill=COPIED,
    release=RELEASE.replace("ptx::mbarrier_arrive(", ONE_FOR_ALL),
)

pair(
    "barrier_for_part_of_a_block",
    ASYNC
    + """extern "C" __global__ void k(int* y) {
    __shared__ int s[64];
    if (threadIdx.x < 64) {
        s[threadIdx.x] = threadIdx.x;
        ptx::named_barrier_sync(@(1 + threadIdx.x / 32, 32||1, 64)@);
        y[threadIdx.x] = s[63 - threadIdx.x];
    } else {
        y[threadIdx.x] = 0;
        ptx::named_barrier_sync(3, 32);
    }
}""",
    (("empty", 96),),
    ("race", "s", None, 5),
    block=(96, 1, 1),
)
pair(
    "barrier_without_one_reader",
    ASYNC
    + """extern "C" __global__ void k(int* y) {
    __shared__ int s;
    if (threadIdx.x == 0) s = 1;
    __syncthreads();
    if (threadIdx.x >= 32) y[threadIdx.x] = s; else y[threadIdx.x] = 0;
    @(if (threadIdx.x / 32 != 1) ptx::named_barrier_sync(1, 96);||ptx::named_barrier_sync(1, 128);)@
    if (threadIdx.x == 0) s = 2;
}""",
    (("empty", 128),),
    ("race", "s", 0, 6),
    block=(128, 1, 1),
)
pair(
    "barriers_in_turn",
    ASYNC
    + """extern "C" __global__ void k(int* y) {
    __shared__ int s[32];
    for (int i = 0; i < 4; i++) {
        if (threadIdx.x < 32) s[threadIdx.x] = i;
        ptx::named_barrier_sync(1, 64);
        if (threadIdx.x >= 32) y[32 * i + threadIdx.x - 32] = s[63 - threadIdx.x];
        @(||ptx::named_barrier_sync(2, 64);)@
    }
}""",
    (("empty", 128),),
    ("race", "s", None, 5),
)

BUGS = [case for case in CASES if case.expected]
CORRECT = [case for case in CASES if not case.expected]


def run(case: Case, SourceModule: type, drv: ModuleType, gpuarray: ModuleType) -> None:
    """Launch a case: on a card with PyCUDA's objects, on the emulator with its own of the same names."""
    own = 'extern "C"' in case.source
    module = SourceModule(case.source, no_extern_c=own, include_dirs=[str(COMMON)], options=list(case.options))
    arguments = []
    for argument in case.arguments:
        if isinstance(argument, int):
            arguments.append(np.int32(argument))
            continue
        how, size = argument
        if how == "empty":
            arguments.append(gpuarray.empty(size, np.dtype(case.dtype)))
        else:
            fill = np.arange(size) if how == "arange" else np.zeros(size)
            arguments.append(gpuarray.to_gpu(fill.astype(case.dtype)))
    module.get_function("k")(*arguments, block=case.block, grid=case.grid, shared=case.shared)
    drv.Context.synchronize()
