// The gradient of a depthwise convolution's weight (one input channel per group) in float32, on CUDA cores:
//   dweight[o, i, j] = sum over images and pixels (p, q) of dz[o, p, q] x[o / GROUP_OUT, p STRIDE_H - PAD_TOP + i DILATION_H, ...]
//
// A thread takes RUN neighbouring pixels of a row of dz and what their windows reach of x, which comes from the L1 cache after
// its first use, and adds their products to a sum for each tap. Blocks share the rows of dz of a channel;
// sum_depthwise_gradient adds their parts in a fixed order. Sums of a thread are float32, all others float64.
//
// Sizes are compile-time constants, those of folded.cu. Launch: block (256), grid (OUT_CHANNELS, parts).
#include "sum_of_parts.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH, GROUP_OUT = OUT_CHANNELS / GROUPS;
constexpr int RUN = 4, RUNS = (OUT_WIDTH + RUN - 1) / RUN;  // pixels of a thread; runs in a row of dz
constexpr int REACH = (RUN - 1) * STRIDE_W + (KERNEL_WIDTH - 1) * DILATION_W + 1;  // columns of x that a run sees
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH, OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
static_assert(IN_CHANNELS == GROUPS, "the plan's choice");

extern "C" __global__ void __launch_bounds__(THREADS) depthwise_gradient(
    const float* __restrict__ dz,  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    const float* __restrict__ x,   // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    double* __restrict__ parts,    // [parts, OUT_CHANNELS, TAPS]
    long long batch) {
    const int channel = blockIdx.x;
    const long long runs = batch * OUT_HEIGHT * RUNS, end = runs * (blockIdx.y + 1) / gridDim.y;
    float sums[KERNEL_HEIGHT][KERNEL_WIDTH] = {};
    for (long long run = runs * blockIdx.y / gridDim.y + threadIdx.x; run < end; run += THREADS) {
        const long long line = run / RUNS, image = line / OUT_HEIGHT;
        const int row = int(line % OUT_HEIGHT), column = int(run % RUNS) * RUN;
        const float* from = dz + (image * OUT_CHANNELS + channel) * OUT_PLANE + row * OUT_WIDTH + column;
        const float* plane = x + (image * IN_CHANNELS + channel / GROUP_OUT) * IN_PLANE;
        float gradient[RUN];
        #pragma unroll
        for (int q = 0; q < RUN; q++) gradient[q] = OUT_WIDTH % RUN == 0 || column + q < OUT_WIDTH ? from[q] : 0.0f;
        const int left = column * STRIDE_W - PAD_LEFT;
        #pragma unroll
        for (int i = 0; i < KERNEL_HEIGHT; i++) {
            const int x_row = row * STRIDE_H - PAD_TOP + i * DILATION_H;
            const bool inside = (unsigned)x_row < HEIGHT;
            const float* values = plane + (long long)x_row * WIDTH + left;
            float reach[REACH];
            #pragma unroll
            for (int c = 0; c < REACH; c++) reach[c] = inside && (unsigned)(left + c) < WIDTH ? values[c] : 0.0f;
            #pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; j++)
                #pragma unroll
                for (int q = 0; q < RUN; q++)
                    sums[i][j] = fmaf(gradient[q], reach[q * STRIDE_W + j * DILATION_W], sums[i][j]);
        }
    }

    __shared__ double of_warps[TAPS][WARPS];
    #pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        double sum = sums[tap / KERNEL_WIDTH][tap % KERNEL_WIDTH];
        #pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
        if (threadIdx.x % 32 == 0) of_warps[tap][threadIdx.x / 32] = sum;
    }
    __syncthreads();
    for (int tap = threadIdx.x; tap < TAPS; tap += THREADS) {
        double sum = 0.0;
        #pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += of_warps[tap][warp];
        parts[((long long)blockIdx.y * OUT_CHANNELS + channel) * TAPS + tap] = sum;
    }
}

// Launch: block (32, lanes), grid (numbers of a part / 32 rounded up).
extern "C" __global__ void sum_depthwise_gradient(
    const double* __restrict__ parts,  // [count, OUT_CHANNELS, TAPS]
    float* __restrict__ dweight,       // [OUT_CHANNELS, TAPS]
    int count) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    const double sum = sum_of_parts(parts, count, OUT_CHANNELS * TAPS, i);
    if (threadIdx.y == 0 && i < OUT_CHANNELS * TAPS) dweight[i] = sum;
}
