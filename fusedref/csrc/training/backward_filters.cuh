// The filters of T = conv_transpose(a dy, W), a = scale * gamma / sqrt(var + eps) of each channel, in fp16.
//
// Each input channel of a W is scaled by a power of two, which brings its largest magnitude to [2^14, 2^15), and split
// into hi + lo, fp16 numbers. For bf16 tensors these are bf16, which needs no scale.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "elements.cuh"
#include "split.cuh"

#if ELEMENT == 2
using Piece = __nv_bfloat16;
#else
using Piece = __half;
#endif

// The average relative error of a sum of so many steps on the tensor core, which truncates where an addition rounds: of
// the products in a step, and of the accumulator, which grows evenly to the sum. Fitted to random data.
constexpr float shortfall(int steps) { return (0.39f + 0.48f * (steps + 1) / 2) / 16777216; }
constexpr float FILTER_SHORTFALL = shortfall(3);  // of four steps, where the small products come first

__device__ __forceinline__ double slope_of(
    int channel, const float* __restrict__ var, const Vector* __restrict__ gamma, float scaling_factor, float eps) {
    const double g = gamma ? (double)float(gamma[channel]) : 1.0;
    return scaling_factor * g / sqrt((double)var[channel] + eps);
}

// Twice the bits of a finite magnitude, plus 2^24: infinities and NaNs wrap around to the least.
__device__ __forceinline__ unsigned magnitude_of(float number) { return __float_as_uint(number) * 2 + (1u << 24); }

// The power of two for numbers of which the largest has this magnitude.
__device__ __forceinline__ int shift_of(unsigned magnitude) {
    return ELEMENT == 2 ? 0 : min(14 + 127 + 1 - int(magnitude >> 24), 126);
}

// A number of a W, scaled and split. The lo compensates the average loss of the tensor core.
struct Filter {
    Piece hi, lo;
    __device__ __forceinline__ explicit Filter(float scaled)
        : hi(Piece(scaled)), lo(Piece(fmaf(FILTER_SHORTFALL, scaled, scaled - float(hi)))) {}
    // What the products take it for.
    __device__ __forceinline__ double value() const {
        return PIECES == 2 ? (double(float(hi)) + float(lo)) * (1.0 - FILTER_SHORTFALL) : float(hi);
    }
};
