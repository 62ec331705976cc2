"""Accesses beyond the end of memory, and misaligned ones."""

from tests.corpus.case import pair

# ------------------------------------------------------------------------------------------------------ out of bounds

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

# --------------------------------------------------------------------------------------------------------- misaligned

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
