// The filters of T = conv_transpose(a dy, W), for backward.cu:  a = scale * gamma / sqrt(var + eps) of each channel.
//
// a W is scaled by one power of two, which brings the largest magnitude to [2^14, 2^15), split into hi + lo in fp16,
// and written in the order of wgmma's b: backward_filters.cuh.
//
// Macros: IN_CHANNELS OUT_CHANNELS KERNEL_HEIGHT KERNEL_WIDTH ELEMENT VECTOR
// Launch: block (1024), grid (1).
#include <cuda_fp16.h>

#include <cstdint>

#include "backward_filters.cuh"
#include "elements.cuh"
#include "split.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH, PRODUCTS = 64 * 8 * TAPS;
constexpr int THREADS = 1024, SHARE = (PRODUCTS + THREADS - 1) / THREADS;
constexpr float SHORTFALL = shortfall(2 * KERNEL_WIDTH);  // of half of the steps of a row's part of T

extern "C" __global__ void __launch_bounds__(THREADS) prepare_backward(
    const Element* __restrict__ weight,  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const float* __restrict__ var,       // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,    // [OUT_CHANNELS] or null: ones
    float scaling_factor,                // multiplies everything
    float eps,                           // added to the variance
    float* __restrict__ filters) {       // [FILTER_FACTOR + 1]
    __shared__ double slopes[64];
    __shared__ float scaled[64][8 * TAPS + 1];  // a W, [output channel][tap * 8 + input channel]
    __shared__ unsigned largest[THREADS / 32];
    const int thread = threadIdx.x;
    float mine[SHARE];  // weights, loaded while the slopes are computed
    #pragma unroll
    for (int k = 0; k < SHARE; k++) {
        const int i = thread + k * THREADS, o = i / (8 * TAPS), c = i / TAPS % 8;
        const bool real = i < PRODUCTS && o < OUT_CHANNELS && c < IN_CHANNELS;
        mine[k] = real ? float(weight[(o * IN_CHANNELS + c) * TAPS + i % TAPS]) : 0.0f;
    }
    if (thread < OUT_CHANNELS) {
        const double g = gamma ? (double)float(gamma[thread]) : 1.0;
        slopes[thread] = scaling_factor * g / sqrt((double)var[thread] + eps);
    }
    __syncthreads();
    unsigned most = 0;
    #pragma unroll
    for (int k = 0; k < SHARE; k++) {
        const int i = thread + k * THREADS, o = i / (8 * TAPS), c = i / TAPS % 8, tap = i % TAPS;
        if (i >= PRODUCTS) break;
        const float product = o < OUT_CHANNELS ? float(slopes[o] * mine[k]) : 0.0f;
        scaled[o][tap * 8 + c] = product;
        // Twice the bits of the largest finite magnitude, plus 2^24: infinities and NaNs wrap around to the least.
        most = max(most, __float_as_uint(product) * 2 + (1u << 24));
    }
    most = __reduce_max_sync(~0u, most);
    if (thread % 32 == 0) largest[thread / 32] = most;
    __syncthreads();
    #pragma unroll
    for (int k = 0; k < THREADS / 32; k++) most = max(most, largest[k]);
    const int shift = min(14 + 127 + 1 - int(most >> 24), 126);
    const float scale = power_of_two(shift);
    if (thread == 0) filters[FILTER_FACTOR] = power_of_two(-shift);
    #pragma unroll
    for (int k = 0; k < (FILTER_WORDS + THREADS - 1) / THREADS; k++) {
        const int i = thread + k * THREADS;  // of two output channels
        if (i >= FILTER_WORDS) break;
        const int c = i / 4 % 8, kh = i / 32 % KERNEL_HEIGHT, rest = i / 32 / KERNEL_HEIGHT;
        const int o = rest % 8 * 8 + i % 4 * 2, kw = rest / 8;
        const float* row = &scaled[o][(kh * KERNEL_WIDTH + kw) * 8 + c];
        const float v0 = row[0] * scale, v1 = row[8 * TAPS + 1] * scale;
        const __half2 hi = __floats2half2_rn(v0, v1);
        const float2 f = __half22float2(hi);
        const __half2 lo = __floats2half2_rn(fmaf(SHORTFALL, v0, v0 - f.x), fmaf(SHORTFALL, v1, v1 - f.y));
        reinterpret_cast<__half2*>(filters)[i] = hi;
        reinterpret_cast<__half2*>(filters)[FILTER_WORDS + i] = lo;
    }
}
