"""Asynchronous copies that are not waited for, and mbarriers."""

from tests.corpus.case import PTX, pair

# ----------------------------------------------------------------------------------------------------------- cp.async

pair(
    "wait_forgotten",
    PTX
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
    PTX
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
    PTX
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

# ------------------------------------------------------------------------------------------ bulk copies and mbarriers

BULK = (
    PTX
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
    PTX
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
    PTX
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
    PTX
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

# Warp 0 fills two stages in turn, warps 1 and 2 empty them. RELEASE: how a consumer releases a stage.
SPECIALISTS = (
    PTX
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
