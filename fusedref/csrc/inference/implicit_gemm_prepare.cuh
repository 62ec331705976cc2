// implicit_gemm.cu: scale and split the chunk that has arrived into the rows that ldmatrix reads.
#pragma once

#include "implicit_gemm_tile.cuh"

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

__device__ __forceinline__ void prepare(Shared& shared, bool new_weights, int slot) {
    float scale = 1.0f;
    if (SCALED) {
        const int lane = threadIdx.x % 32;
        const Range range = (lane < WARPS ? shared.x_range[lane] : Range()).of_warp();
        scale = power_of_two(range.shift());
        const bool served = LOSES_TINY ? range.largest < 0x7f800000u : range.splits();
        if (threadIdx.x == 0) shared.x_unscale = served ? power_of_two(-range.shift()) : nanf("");
    }
    #pragma unroll 1
    for (int i = threadIdx.x; i < SLICES * IN_PIXELS; i += THREADS) {
        const int slice = i / IN_PIXELS, row = i % IN_PIXELS / IN_COLUMNS, column = i % IN_COLUMNS;
        Raw v[8] = {};
        #pragma unroll
        for (int k = 0; k < FOLD * SLICE; k++)
            if (k < SLICE || column + k / SLICE * DILATION_W < IN_COLUMNS)
                v[k] = shared.raw_x[raw_place(slice * 8 + k % SLICE, row, column + k / SLICE * DILATION_W)];
        const int place = row * PITCH + place_of(column);
        put_row(&shared.rows[0][slice][place], &shared.rows[PIECES - 1][slice][place], v, scale);
    }
    if (!new_weights) return;
    if (SCALED && threadIdx.x < CHANNELS) {
        const Range range = shared.weight_range[threadIdx.x];
        shared.weight_unscale[slot][threadIdx.x] = range.splits() ? power_of_two(-range.shift()) : nanf("");
    }
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
        scale = SCALED ? power_of_two(shared.weight_range[channel].shift()) : 1.0f;
        put_row(&pieces[0][channel], &pieces[PIECES - 1][channel], v, scale);
    }
}
