// Depthwise convolution, in which every channel has its own filter, with BatchNorm and the scale, with channels last:
//   y = a * (conv2d(x, weight) + shift) + b        a, shift and b of each channel: see affine.cuh
//
// A thread computes RUN rows x COLUMNS columns of UNIT neighbouring channels, and reads a row of their windows once for
// all of them. What neighbouring threads read again is in the L1 cache. The filters of the block's channels are in shared
// memory.
//
// Macros: the sizes as for folded.cu (GROUPS = IN_CHANNELS = OUT_CHANNELS), and
//   RUN COLUMNS    outputs of a thread
//   UNIT           channels of a thread; divides IN_CHANNELS
//   LANES          threads with neighbouring channels, a power of two
//   BLOCKS         blocks of a multiprocessor
//
// Launch: block (THREADS), grid (channels / (UNIT * LANES) rounded up, any number of blocks).
#include <cstdint>

#include "affine.cuh"
#include "depthwise_unit.cuh"

constexpr int THREADS = 256;
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int CHANNELS = UNIT * LANES;    // of a block
constexpr int ABREAST = THREADS / LANES;  // threads with the same channels
constexpr int RUNS = (OUT_HEIGHT + RUN - 1) / RUN;
constexpr int ACROSS = (OUT_WIDTH + COLUMNS - 1) / COLUMNS;
constexpr int RUN_ROWS = (RUN - 1) * STRIDE_H + (KERNEL_HEIGHT - 1) * DILATION_H + 1;
constexpr int IN_COLUMNS = (COLUMNS - 1) * STRIDE_W + (KERNEL_WIDTH - 1) * DILATION_W + 1;

struct alignas(UNIT * sizeof(float)) Floats { float value[UNIT]; };

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) depthwise_last(
    const Element* __restrict__ x,            // [batch, HEIGHT, WIDTH, IN_CHANNELS]
    const Element* __restrict__ weight,       // [IN_CHANNELS, 1, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [IN_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [IN_CHANNELS]
    const Vector* __restrict__ running_var,   // [IN_CHANNELS]
    const Vector* __restrict__ gamma,         // [IN_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [IN_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, OUT_HEIGHT, OUT_WIDTH, IN_CHANNELS]
    long long batch) {
    __shared__ Floats filters[TAPS][LANES], factors[LANES], shifts[LANES], terms[LANES];
    const int first = blockIdx.x * CHANNELS, lane = threadIdx.x % LANES, channel = first + lane * UNIT;
    for (int i = threadIdx.x; i < TAPS * CHANNELS; i += THREADS) {
        const int own = i / TAPS, tap = i % TAPS;
        if (first + own < IN_CHANNELS)
            filters[tap][own / UNIT].value[own % UNIT] = float(weight[(long long)first * TAPS + i]);
    }
    for (int i = threadIdx.x; i < CHANNELS; i += THREADS)
        if (first + i < IN_CHANNELS) {
            factors[i / UNIT].value[i % UNIT] = affine_a(first + i, running_var, gamma, scaling_factor, eps);
            shifts[i / UNIT].value[i % UNIT] = affine_shift(first + i, bias, running_mean);
            terms[i / UNIT].value[i % UNIT] = affine_b(first + i, beta, scaling_factor);
        }
    __syncthreads();
    if (channel >= IN_CHANNELS) return;

    const bool aligned = reinterpret_cast<uintptr_t>(x) % sizeof(Unit) == 0;
    const long long jobs = batch * RUNS * ACROSS;
    for (long long job = (long long)blockIdx.y * ABREAST + threadIdx.x / LANES; job < jobs;
         job += (long long)gridDim.y * ABREAST) {
        const int column = int(job % ACROSS) * COLUMNS, row = int(job / ACROSS % RUNS) * RUN;
        const long long image = job / (ACROSS * RUNS);
        const int top = row * STRIDE_H - PAD_TOP, left = column * STRIDE_W - PAD_LEFT;
        // The lane, but the compiler does not know it: it would keep all filters in registers from job to job.
        const int same_lane = lane + int(job >> 62);
        const Element* from = x + image * HEIGHT * WIDTH * IN_CHANNELS + channel;
        float sum[RUN][COLUMNS][UNIT] = {};
        #pragma unroll
        for (int r = 0; r < RUN_ROWS; r++) {
            Floats value[IN_COLUMNS];
            #pragma unroll
            for (int c = 0; c < IN_COLUMNS; c++) {
                const bool inside = (unsigned)(top + r) < HEIGHT && (unsigned)(left + c) < WIDTH;
                Unit unit;
                if (inside) unit = load(from + ((long long)(top + r) * WIDTH + left + c) * IN_CHANNELS, aligned);
                #pragma unroll
                for (int e = 0; e < UNIT; e++) value[c].value[e] = inside ? float(unit.value[e]) : 0.0f;
            }
            #pragma unroll
            for (int run = 0; run < RUN; run++) {
                const int below = r - run * STRIDE_H;  // the first row of the output's window
                if (below < 0 || below % DILATION_H || below / DILATION_H >= KERNEL_HEIGHT) continue;
                #pragma unroll
                for (int j = 0; j < KERNEL_WIDTH; j++) {
                    const Floats tap = filters[below / DILATION_H * KERNEL_WIDTH + j][same_lane];
                    #pragma unroll
                    for (int c = 0; c < COLUMNS; c++)
                        #pragma unroll
                        for (int e = 0; e < UNIT; e++)
                            sum[run][c][e] += value[c * STRIDE_W + j * DILATION_W].value[e] * tap.value[e];
                }
            }
        }
        const Floats a = factors[same_lane], shift = shifts[same_lane], b = terms[same_lane];
        #pragma unroll
        for (int run = 0; run < RUN; run++)
            #pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (row + run >= OUT_HEIGHT || column + c >= OUT_WIDTH) continue;
                Unit result;
                #pragma unroll
                for (int e = 0; e < UNIT; e++)
                    result.value[e] = Element(a.value[e] * (sum[run][c][e] + shift.value[e]) + b.value[e]);
                const long long pixel = (image * OUT_HEIGHT + row + run) * OUT_WIDTH + column + c;
                *reinterpret_cast<Unit*>(y + pixel * IN_CHANNELS + channel) = result;
            }
    }
}
