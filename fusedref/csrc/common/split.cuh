// A float32 as two numbers of fp16, which are what a tensor core multiplies:
//   v * scale = hi + lo / LO_SCALE       to 23 bits, where scale, a power of two, brings the largest under 2^15
#pragma once

#include <cuda_fp16.h>

constexpr float LO_SCALE = 4096.0f;

// (v0, v1), scaled, as hi + lo / LO_SCALE: v0 in the low half of each. lo has (more0, more1) added.
static __device__ __forceinline__ void split(
    float v0, float v1, uint32_t& hi, uint32_t& lo, float more0 = 0.0f, float more1 = 0.0f) {
    const __half2 h = __floats2half2_rn(v0, v1);
    const float2 f = __half22float2(h);
    const __half2 l = __floats2half2_rn(fmaf(v0 - f.x, LO_SCALE, more0), fmaf(v1 - f.y, LO_SCALE, more1));
    hi = *reinterpret_cast<const uint32_t*>(&h);
    lo = *reinterpret_cast<const uint32_t*>(&l);
}

static __device__ __forceinline__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// The largest magnitude of many numbers, and the smallest but for zero, as bits; the smallest less 1, so that 0 is none.
struct Range {
    unsigned largest = 0, smallest = ~0u;
    __device__ __forceinline__ void add(float value) {
        const unsigned magnitude = __float_as_uint(value) & 0x7fffffffu;
        largest = max(largest, magnitude);
        smallest = min(smallest, magnitude - 1);
    }
    // Several numbers that lie together, and as one piece of memory.
    template <int COUNT>
    __device__ __forceinline__ void add(const float* values) {
        struct alignas(4 * COUNT) { float value[COUNT]; } all;
        all = *reinterpret_cast<const decltype(all)*>(values);
        #pragma unroll
        for (int i = 0; i < COUNT; i++) add(all.value[i]);
    }
    // Of all numbers of the warp.
    __device__ __forceinline__ Range of_warp() const {
        return {__reduce_max_sync(~0u, largest), __reduce_min_sync(~0u, smallest)};
    }
    // Times 2^shift, all are under 2^15. Limited where 2^-shift would be subnormal; zeros stay as they are.
    __device__ __forceinline__ int shift() const { return largest == 0 ? 0 : min(14 + 127 - int(largest >> 23), 126); }
    // Whether two pieces hold each of the numbers to 23 bits: none is nonzero and 2^28 times smaller than the largest.
    __device__ __forceinline__ bool splits() const {
        const float least = __uint_as_float(smallest + 1) * power_of_two(shift());
        return largest < 0x7f800000u && (smallest == ~0u || least >= 1.0f / 16384);
    }
};
