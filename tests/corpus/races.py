"""Races between the threads of a block, and between blocks."""

from tests.corpus.case import pair

# ----------------------------------------------------------------------------------------------- races within a block

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

# ----------------------------------------------------------------------------------------------- races between blocks

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
