// wgmma_gemm.cu and wgmma_gemm_prepare.cu: write rows of 8 input channels as wgmma reads them, and notes.
#pragma once

#include <cstdint>

#include "split.cuh"
#include "wgmma_gemm_layout.cuh"

// Writes eight numbers as a row of each piece; lo comes `next` bytes after hi.
__device__ __forceinline__ void put_row(
    unsigned char* row, int next, const Element (&v)[8], float scale, float shortfall) {
    uint32_t hi[4], lo[4];
    #pragma unroll
    for (int c = 0; c < 4; c++) {
#if ELEMENT == 0
        const float v0 = v[2 * c] * scale, v1 = v[2 * c + 1] * scale, more = shortfall * LO_SCALE;
        split(v0, v1, hi[c], lo[c], v0 * more, v1 * more);
#else
        const uint16_t* bits = reinterpret_cast<const uint16_t*>(&v[2 * c]);
        hi[c] = bits[0] | uint32_t(bits[1]) << 16;
#endif
    }
    *reinterpret_cast<uint4*>(row) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    if (PIECES == 2) *reinterpret_cast<uint4*>(row + next) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
}

#if ELEMENT == 0
// Adds `mine` over all threads that call this function, with a number of shared memory per warp.
template <typename Barrier>
__device__ __forceinline__ int sum_of_block(int mine, int* sums, int warps, const Barrier& barrier) {
    const int warp = threadIdx.x / 32 % warps, lane = threadIdx.x % 32;
    mine = __reduce_add_sync(~0u, mine);
    if (lane == 0) sums[warp] = mine;
    barrier();
    mine = lane < warps ? sums[lane] : 0;
    barrier();
    return __reduce_add_sync(~0u, mine);
}

// Whether split() loses bits of a number that is multiplied by `scale`, see Range::splits.
__device__ __forceinline__ bool is_tiny(float value, float scale) {
    return value != 0.0f && fabsf(value) * scale < 1.0f / 16384;
}

// The note of `count` numbers. Where most are tiny, a sum is one or two products, for which lo lo' is not small enough.
__device__ __forceinline__ Note note_of(const Range& range, int tiny, int count) {
    const bool served = range.largest < 0x7f800000u && 2 * tiny <= count;
    return {served ? power_of_two(-range.shift()) : nanf(""), float(tiny)};
}
#endif
