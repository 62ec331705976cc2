// The filters of T = conv_transpose(a dy, W), for backward.cu:  a = scale * gamma / sqrt(var + eps), one number per channel.
//
// a W is scaled by one power of two, which brings the largest magnitude to [2^14, 2^15), split into hi + lo in fp16, and
// written in the order of mma's fragments: backward_filters.cuh.
//
// Macros: IN_CHANNELS OUT_CHANNELS KERNEL_HEIGHT KERNEL_WIDTH ELEMENT VECTOR
// Launch: block (512), grid (1).
#include <cuda_fp16.h>

#include <cstdint>

#include "backward_filters.cuh"
#include "elements.cuh"
#include "split.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH, THREADS = 512;
// Half of the output channels make one sum, of 2 KERNEL_WIDTH steps, and the accumulator grows evenly to it.
constexpr float SHORTFALL = (2 * KERNEL_WIDTH + 1) * 0.5f * TRUNCATION;

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
    if (thread < 64) {
        const bool real = thread < OUT_CHANNELS;
        const double g = real && gamma ? double(float(gamma[thread])) : 1.0;
        slopes[thread] = real ? scaling_factor * g / sqrt((double)var[thread] + eps) : 0.0;
        filters[FILTER_SLOPES + thread] = float(slopes[thread]);
    }
    __syncthreads();
    unsigned most = 0;
    for (int i = thread; i < 64 * 8 * TAPS; i += THREADS) {
        const int o = i / (8 * TAPS), c = i / TAPS % 8, tap = i % TAPS;
        float product = 0.0f;
        if (o < OUT_CHANNELS && c < IN_CHANNELS)
            product = float(slopes[o] * (double)float(weight[(o * IN_CHANNELS + c) * TAPS + tap]));
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
    for (int i = thread; i < FRAGMENTS; i += THREADS) {
        const int lane = i % 32, step = i / 32 % 4, tap = i / 128, group = lane / 4, member = lane % 4;
        __half2 hi[2], lo[2];
        #pragma unroll
        for (int k = 0; k < 2; k++) {
            const float* row = &scaled[step * 16 + k * 8 + member * 2][tap * 8 + group];
            const float v0 = row[0] * scale, v1 = row[8 * TAPS + 1] * scale;
            hi[k] = __floats2half2_rn(v0, v1);
            const float2 f = __half22float2(hi[k]);
            lo[k] = __floats2half2_rn(fmaf(SHORTFALL, v0, v0 - f.x), fmaf(SHORTFALL, v1, v1 - f.y));
        }
        reinterpret_cast<uint4*>(filters)[i] = make_uint4(
            *reinterpret_cast<uint32_t*>(&hi[0]), *reinterpret_cast<uint32_t*>(&hi[1]),
            *reinterpret_cast<uint32_t*>(&lo[0]), *reinterpret_cast<uint32_t*>(&lo[1]));
    }
}
