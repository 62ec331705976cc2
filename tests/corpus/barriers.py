"""Barriers that not all threads of a block reach, and named barriers for part of a block."""

from tests.corpus.case import PTX, pair

# ------------------------------------------------------------------------------------------------- divergent barriers

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

# ----------------------------------------------------------------------------------------------------- named barriers

pair(
    "barrier_for_part_of_a_block",
    PTX
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
    PTX
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
    PTX
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
