"""Memory that is read before it is written, and outputs that are not written."""

from tests.corpus.case import pair

# ------------------------------------------------------------------------------------------------------ uninitialised

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

# ---------------------------------------------------------------------------------------------------------- unwritten

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
