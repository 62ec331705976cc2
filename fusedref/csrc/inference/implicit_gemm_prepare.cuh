// implicit_gemm.cu: scale and split the chunk that has arrived into the rows that ldmatrix reads.
#pragma once

#include "implicit_gemm_load.cuh"

// Writes eight numbers as one row of each piece.
__device__ __forceinline__ void put_row(uint4* hi, uint4* lo, const Raw (&v)[8], float scale) {
    uint32_t h[4], l[4] = {};
    #pragma unroll
    for (int c = 0; c < 4; c++) {
#if ELEMENT == 0
        split(v[2 * c] * scale, v[2 * c + 1] * scale, h[c], l[c]);
#else
        h[c] = v[2 * c] | uint32_t(v[2 * c + 1]) << 16;
#endif
    }
    *hi = make_uint4(h[0], h[1], h[2], h[3]);
    if (PIECES == 2) *lo = make_uint4(l[0], l[1], l[2], l[3]);
}

// Writes the rows of x, of magnitudes from `low` up to `high` alone unless ALL; the others count as zero.
template <bool ALL>
__device__ __forceinline__ void prepare_x(Shared& shared, float scale, unsigned low, unsigned high) {
    #pragma unroll 1
    for (int i = threadIdx.x; i < SLICES * IN_PIXELS; i += THREADS) {
        const int slice = i / IN_PIXELS, row = i % IN_PIXELS / IN_COLUMNS, column = i % IN_COLUMNS;
        Raw v[8] = {};
        #pragma unroll
        for (int k = 0; k < FOLD * SLICE; k++)
            if (k < SLICE || column + k / SLICE * DILATION_W < IN_COLUMNS) {
                v[k] = shared.raw_x[raw_place(slice * 8 + k % SLICE, row, column + k / SLICE * DILATION_W)];
                if (!ALL && (magnitude_of(v[k]) < low || magnitude_of(v[k]) >= high)) v[k] = 0;
            }
        const int place = row * PITCH + place_of(column);
        put_row(&shared.rows[0][slice][place], &shared.rows[PIECES - 1][slice][place], v, scale);
    }
}

// The factor that undoes the scale of some numbers: NaN if one of them is not finite, negative if split() loses bits.
__device__ __forceinline__ float unscale_of(const Range& range) {
    if (range.largest >= NOT_FINITE) return nanf("");
    const float unscale = power_of_two(-range.shift());
    return range.splits() ? unscale : -unscale;
}

// Prepares the magnitudes of x below `high` that one scale serves; ~0 means all, also what is not finite. Returns below which
// magnitude x is left for another scale, 0 if nothing is.
__device__ __forceinline__ unsigned prepare(Shared& shared, bool new_weights, int slot, unsigned high) {
    unsigned low = 0;
    if (SCALED) {
        const auto range_of_x = [&] {
            const int lane = threadIdx.x % 32;
            return (lane < WARPS ? shared.x_range[lane] : Range()).of_warp();
        };
        Range range = range_of_x();
        if (range.largest >= NOT_FINITE) {
            __syncthreads();
            find_range_below(shared, NOT_FINITE);
            __syncthreads();
            range = range_of_x();
        }
        const float scale = power_of_two(range.shift());
        low = range.splits() ? 0 : magnitude_of(power_of_two(-range.shift()) / 16384);  // see splits()
        if (range.largest < low) low = 0;                                               // no scale is large enough
        if (threadIdx.x == 0) shared.x_unscale = low != 0 ? power_of_two(-range.shift()) : unscale_of(range);
        if (low == 0 && high == ~0u) prepare_x<true>(shared, scale, low, high);
        else prepare_x<false>(shared, scale, low, high);
    } else prepare_x<true>(shared, 1.0f, 0, 0);
    if (!new_weights || high != ~0u) return low;
    if (SCALED && threadIdx.x < CHANNELS)
        shared.weight_unscale[slot][threadIdx.x] = unscale_of(shared.weight_range[threadIdx.x]);
    // The channels whose units fill all banks once; the other lanes of the warp take the next entry.
    constexpr int TOGETHER = WEIGHT_UNIT * SIZE == 16 ? 8 : WEIGHT_UNIT * SIZE == 8 || CHANNELS == 16 ? 16 : 32;
    #pragma unroll 1
    for (int item = threadIdx.x; item < CHANNELS * ENTRIES; item += THREADS) {
        const int channel = item / (TOGETHER * ENTRIES) * TOGETHER + item % TOGETHER;
        const int entry = item / TOGETHER % ENTRIES;
        const int slice = entry / (KERNEL_HEIGHT * FOLDS), i = entry / FOLDS % KERNEL_HEIGHT, j = entry % FOLDS * FOLD;
        Raw v[8] = {};
        #pragma unroll
        for (int k = 0; k < FOLD * SLICE; k++) {
            const int place = ((slice * 8 + k % SLICE) * KERNEL_HEIGHT + i) * KERNEL_WIDTH + j + k / SLICE;
            if (k < SLICE || j + k / SLICE < KERNEL_WIDTH) v[k] = shared.raw_weight[channel][place];
        }
        uint4(&pieces)[PIECES][CHANNELS] = shared.filters[slot][entry];
        const float scale = SCALED ? power_of_two(shared.weight_range[channel].shift()) : 1.0f;
        put_row(&pieces[0][channel], &pieces[PIECES - 1][channel], v, scale);
    }
    return low;
}
