// implicit_gemm.cu: compute a warp's products of one chunk and add them to its sums.
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

// Bytes from the row of a pixel's first entry to that of another entry.
__host__ __device__ constexpr int entry_bytes(int entry) {
    const int slice = entry / (KERNEL_HEIGHT * FOLDS), i = entry / FOLDS % KERNEL_HEIGHT, j = entry % FOLDS * FOLD;
    return (slice * SLICE_ROWS + i * DILATION_H * PITCH + place_of(j * DILATION_W)) * 16;
}

using Sums = float[M][N][4];

// The addresses that a lane passes to ldmatrix, so that one ldmatrix loads the registers of one product.
struct Lane {
    const unsigned char* filters;  // its channel in the warp's first matrix of the chunk's weights
    const unsigned char* rows[2];  // its pixel in the first two matrices of pixels, and in the last two
    int second, filter_second;     // 1 if it addresses the second of two entries (or pieces): of pixels, of weights
};

// One step of the product: two entries of k = 8, at byte offsets `filter` of the weights and `row` of the pixels (of the
// lane's entry). Or the last of an odd number of entries: then one k = 16 holds lo, hi of weights and hi, lo of pixels.
template <bool TWO>
__device__ __forceinline__ void multiply_step(
    Sums& sum, Sums& cross, const Lane& at, int filter, int row, const float (&unscale)[M][2]) {
    uint32_t x_hi[2][4], x_lo[2][4];  // of two matrices of pixels each: first and second register
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
        // Issue independent products in a row: those that depend on one another would wait.
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

// Adds a chunk to the warp's sums; `unscale` undoes the scales of a lane's channels.
__device__ __forceinline__ void multiply(
    Sums& sum, const int (&places)[ENTRIES], const Lane& at, const float (&unscale)[M][2]) {
    Sums cross = {};  // LO_SCALE times too large; with one piece, the whole sum of the chunk
    Lane pairs = at;
    pairs.filters += at.filter_second * ENTRY_BYTES;
    // Unrolled, the compiler would start more products than fit into the registers.
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
