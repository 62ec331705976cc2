// Split a float32 into two or three fp16 numbers, which a tensor core can multiply:
//   v * scale = hi + lo / LO_SCALE                    to 23 bits
//   v * scale = hi + (lo + rest) / LO_SCALE_OF_THREE  to 24 bits
// scale is a power of two that brings the largest |v| below 2^15.
#pragma once

#include <cuda_fp16.h>

constexpr float LO_SCALE = 4096.0f;

// Splits two scaled numbers; v0 goes to the low halves of hi and lo. Adds (more0, more1) to lo.
static __device__ __forceinline__ void split(
    float v0, float v1, uint32_t& hi, uint32_t& lo, float more0 = 0.0f, float more1 = 0.0f) {
    const __half2 h = __floats2half2_rn(v0, v1);
    const float2 f = __half22float2(h);
    const __half2 l = __floats2half2_rn(fmaf(v0 - f.x, LO_SCALE, more0), fmaf(v1 - f.y, LO_SCALE, more1));
    hi = *reinterpret_cast<const uint32_t*>(&h);
    lo = *reinterpret_cast<const uint32_t*>(&l);
}

constexpr float LO_SCALE_OF_THREE = 2048.0f;

// Splits two scaled numbers in three. hi is a multiple of 32, so that a product of two is a multiple of 2^10 up to 2^30:
// fp32 holds the sum of at least 16 of them exactly. Adds (more0, more1) to lo.
static __device__ __forceinline__ void split_in_three(
    float v0, float v1, uint32_t& hi, uint32_t& lo, uint32_t& rest, float more0 = 0.0f, float more1 = 0.0f) {
    constexpr float LARGE = 1.5f * (1 << 28);  // numbers near it are multiples of 32
    const float f0 = v0 + LARGE - LARGE, f1 = v1 + LARGE - LARGE;
    const float left0 = fmaf(v0 - f0, LO_SCALE_OF_THREE, more0), left1 = fmaf(v1 - f1, LO_SCALE_OF_THREE, more1);
    const __half2 h = __floats2half2_rn(f0, f1), l = __floats2half2_rn(left0, left1);
    const float2 f = __half22float2(l);
    const __half2 r = __floats2half2_rn(left0 - f.x, left1 - f.y);
    hi = *reinterpret_cast<const uint32_t*>(&h);
    lo = *reinterpret_cast<const uint32_t*>(&l);
    rest = *reinterpret_cast<const uint32_t*>(&r);
}

static __device__ __forceinline__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// The largest magnitude of a set of numbers and the smallest nonzero one, as float32 bits. `smallest` is stored minus 1:
// zero then wraps around to the largest unsigned number, so the minimum ignores it.
struct Range {
    unsigned largest = 0, smallest = ~0u;
    __device__ __forceinline__ void add(float value) {
        const unsigned magnitude = __float_as_uint(value) & 0x7fffffffu;
        largest = max(largest, magnitude);
        smallest = min(smallest, magnitude - 1);
    }
    // Adds COUNT consecutive numbers, read with one load.
    template <int COUNT>
    __device__ __forceinline__ void add(const float* values) {
        struct alignas(4 * COUNT) { float value[COUNT]; } all;
        all = *reinterpret_cast<const decltype(all)*>(values);
        #pragma unroll
        for (int i = 0; i < COUNT; i++) add(all.value[i]);
    }
    // Returns the range over all lanes of the warp.
    __device__ __forceinline__ Range of_warp() const {
        return {__reduce_max_sync(~0u, largest), __reduce_min_sync(~0u, smallest)};
    }
    // The scale is 2^shift: it brings all magnitudes below 2^15. At most 126, so that 2^-shift is normal; 0 for all zeros.
    __device__ __forceinline__ int shift() const { return largest == 0 ? 0 : min(14 + 127 - int(largest >> 23), 126); }
    // Whether split() represents each number to 23 bits: all are finite, and no nonzero magnitude is less than 2^-28 of
    // the largest.
    __device__ __forceinline__ bool splits() const {
        const float least = __uint_as_float(smallest + 1) * power_of_two(shift());
        return largest < 0x7f800000u && (smallest == ~0u || least >= 1.0f / 16384);
    }
};
