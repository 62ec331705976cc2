// implicit_gemm.cu: a warp's products of one chunk, added to its sums.
#pragma once

#include "implicit_gemm_tile.cuh"

__device__ __forceinline__ void mma_k16(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
#if ELEMENT == 2
    ptx::mma_m16n8k16_bf16(d, a[0], a[1], a[2], a[3], b0, b1, c);
#else
    ptx::mma_m16n8k16_f16(d, a[0], a[1], a[2], a[3], b0, b1, c);
#endif
}

__device__ __forceinline__ void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, const float (&c)[4]) {
#if ELEMENT == 2
    ptx::mma_m16n8k8_bf16(d, a0, a1, b0, c);
#else
    ptx::mma_m16n8k8_f16(d, a0, a1, b0, c);
#endif
}

// Bytes from a pixel's first row to that of an entry.
__host__ __device__ constexpr int entry_bytes(int entry) {
    const int slice = entry / (KERNEL_HEIGHT * FOLDS), i = entry / FOLDS % KERNEL_HEIGHT, j = entry % FOLDS * FOLD;
    return (slice * SLICE_ROWS + i * DILATION_H * PITCH + place_of(j * DILATION_W)) * 16;
}

using Sums = float[M][N][4];

// What a lane names of shared memory for ldmatrix, so that the registers which a product takes together are loaded together.
struct Lane {
    const unsigned char* filters;  // of the chunk: its channel in the warp's first matrix
    const unsigned char* rows[2];  // its pixels in the first two matrices of pixels, and in the others
    int second, filter_second;     // 1 where it names the second of two entries (or pieces) of pixels, of weights
};

// A step: two entries of k = 8, `filter` bytes from the first of weights and `row` from the first rows (those of the lane's
// entry); or the last of an odd number, and then the pieces stand side by side: lo, hi of weights with hi, lo of pixels.
template <bool TWO>
__device__ __forceinline__ void multiply_step(
    Sums& sum, Sums& cross, const Lane& at, int filter, int row, const float (&unscale)[M][2]) {
    uint32_t x_hi[2][4], x_lo[2][4];  // of two matrices of pixels: first and second register of each
    #pragma unroll
    for (int q = 0; q < 2; q++) {
        ptx::ldmatrix_x4(x_hi[q], at.rows[q] + row);
        if (PIECES == 2 && TWO) ptx::ldmatrix_x4(x_lo[q], at.rows[q] + row + LO_ROW);
    }
    #pragma unroll
    for (int m = 0; m < M; m++) {
        uint32_t w_hi[4], w_lo[4];
        ptx::ldmatrix_x4(w_hi, at.filters + filter + m * 256);
        if (PIECES == 2 && TWO) ptx::ldmatrix_x4(w_lo, at.filters + filter + m * 256 + LO_WEIGHT);
        // Products that wait for one another are kept apart.
        float product[N][4] = {};
        #pragma unroll
        for (int n = 0; n < N; n++) {
            float (&d)[4] = PIECES == 2 ? product[n] : SCALED ? cross[m][n] : sum[m][n];
            const uint32_t (&x)[4] = x_hi[n / 2];
            if (TWO) mma_k16(d, w_hi, x[n % 2 * 2], x[n % 2 * 2 + 1], d);
            else mma_k8(d, w_hi[PIECES * 2 - 2], w_hi[PIECES * 2 - 1], x[n % 2 * 2], d);
        }
        if (PIECES == 2) {
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const uint32_t (&x)[4] = x_hi[n / 2];
                mma_k16(cross[m][n], TWO ? w_lo : w_hi, x[n % 2 * 2], x[n % 2 * 2 + 1], cross[m][n]);
            }
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const uint32_t (&x)[4] = x_lo[n / 2];
                if (TWO) mma_k16(cross[m][n], w_hi, x[n % 2 * 2], x[n % 2 * 2 + 1], cross[m][n]);
            }
            #pragma unroll
            for (int n = 0; n < N; n++)
                #pragma unroll
                for (int i = 0; i < 4; i++) sum[m][n][i] = fmaf(product[n][i], unscale[m][i / 2], sum[m][n][i]);
        }
    }
}

// Adds a chunk to the warp's sums; units undo the scales of a lane's channels.
__device__ __forceinline__ void multiply(
    Sums& sum, const int (&places)[ENTRIES], const Lane& at, const float (&unscale)[M][2]) {
    Sums cross = {};  // 4096 times too large; with one piece, the whole sum of the chunk
    Lane pairs = at;
    pairs.filters += at.filter_second * ENTRY_BYTES;
    // Unrolled, the compiler begins more products than it has registers for.
    #pragma unroll 1
    for (int e = 0; e < ENTRIES - 1; e += 2)
        multiply_step<true>(sum, cross, pairs, e * ENTRY_BYTES, places[e + at.second], unscale);
    if (ENTRIES % 2 == 1) {
        Lane last = at;
        if (PIECES == 2) last.filters += (1 - at.filter_second) * LO_WEIGHT;
        const int row = entry_bytes(ENTRIES - 1) + (PIECES == 2 ? at.second * LO_ROW : 0);
        multiply_step<false>(sum, cross, last, (ENTRIES - 1) * ENTRY_BYTES, row, unscale);
    }
    if (SCALED) {
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int n = 0; n < N; n++)
                #pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[m][n][i] =
                        fmaf(cross[m][n][i] * (PIECES == 2 ? 1 / LO_SCALE : 1.0f), unscale[m][i / 2], sum[m][n][i]);
    }
}
