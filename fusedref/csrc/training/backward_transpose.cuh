// backward.cu: the warpgroup that computes T = conv_transpose(a dy, W).
#pragma once

#include "backward_tile.cuh"

// A warp computes 16 pixels of each block of 64, all input channels. A row of T sums KERNEL_HEIGHT rows of dy;
// the warp keeps what it has of the next rows as the rows of dy come.
constexpr int T_PRODUCTS = PIECES == 2 ? 3 : 1;  // hi * hi', hi * lo' and lo * hi'

// Of 16 pixels x (row of the filter, input channel), in the layout of wgmma's d. The first product has two sums of
// half of the steps each: the tensor core truncates less in a shorter one.
struct RowSums {
    float first[2][KERNEL_HEIGHT * 4], others[T_PRODUCTS > 1 ? T_PRODUCTS - 1 : 1][KERNEL_HEIGHT * 4];
    __device__ __forceinline__ float total(int i) const {
        float sum = first[0][i] + first[1][i];
        if (T_PRODUCTS > 1) sum += others[0][i] + others[T_PRODUCTS - 2][i];
        return sum;
    }
};

struct Pixels { uint32_t piece[PIECES][4][4]; };  // 16 pixels x 64 channels of dy: a of wgmma, four steps

// Stores row `row` of T, counted in the padded input, where it exists.
__device__ __forceinline__ void store_row(
    Element* __restrict__ dx, const float (&out)[T_BLOCKS][4], const Walk& at, int row, int warp, int lane) {
    const int in_row = row - PAD_TOP, group = lane / 4, member = lane % 4;
    if ((unsigned)in_row >= HEIGHT) return;
    const int end = STRIPS == 1 || at.column() + STRIP_COLUMNS >= OUT_WIDTH ? WIDTH : at.column() + STRIP_COLUMNS;
    Element* plane = dx + (at.image() * IN_CHANNELS + 2 * member) * IN_PLANE + (long long)in_row * WIDTH;
    #pragma unroll
    for (int i = 0; i < T_BLOCKS; i++)
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            const int column = at.column() + i * 64 + warp * 16 + group + 8 * h;
            if (column >= end) continue;
            if (2 * member < IN_CHANNELS) plane[column] = Element(out[i][2 * h]);
            if (2 * member + 1 < IN_CHANNELS) plane[IN_PLANE + column] = Element(out[i][2 * h + 1]);
        }
}

__device__ __forceinline__ void transpose_rows(
    Shared& shared, const float* __restrict__ filters, Element* __restrict__ dx, long long batch, int warp, int lane) {
    for (int i = warp * 32 + lane; i < PIECES * FILTER_BYTES / 16; i += TRANSPOSERS * 32)
        reinterpret_cast<uint4*>(shared.filters)[i] = reinterpret_cast<const uint4*>(filters)[i];
    ptx::fence_async_shared();
    ptx::named_barrier_sync(2, TRANSPOSERS * 32);
    const ptx::Columns w(shared.filters);
    constexpr int half = KERNEL_HEIGHT * 8 * 16;  // bytes of half a step
    const float weight_unscale = filters[FILTER_FACTOR];
    const int matrix = lane / 8;
    // This lane's row of ldmatrix: pixels 0 to 7 and 8 to 15 of an octet of channels, then of the next.
    int dy_place[KERNEL_WIDTH][4];
    #pragma unroll
    for (int kw = 0; kw < KERNEL_WIDTH; kw++)
        #pragma unroll
        for (int k = 0; k < 4; k++)
            dy_place[kw][k] = place(HALO - kw + warp * 16 + matrix % 2 * 8 + lane % 8, k * 2 + matrix / 2);
    float rolling[ABOVE > 0 ? ABOVE : 1][T_BLOCKS][4] = {};  // rows of T that need more rows of dy
    Walk here(batch);
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        float out[T_BLOCKS][4];
        if (here.has_dy()) {
            if (here.row == max(here.first - ABOVE, 0)) {
                #pragma unroll
                for (int a = 0; a < ABOVE; a++)
                    #pragma unroll
                    for (int i = 0; i < T_BLOCKS; i++)
                        #pragma unroll
                        for (int j = 0; j < 4; j++) rolling[a][i][j] = 0.0f;
            }
            const float unscale = power_of_two(-shared.shift[s]);
            #pragma unroll
            for (int i = 0; i < T_BLOCKS; i++) {
                RowSums sums;
                Pixels pixels[KERNEL_WIDTH > 1 ? 2 : 1];
                #pragma unroll
                for (int kw = 0; kw < KERNEL_WIDTH; kw++) {
                    Pixels& dy = pixels[kw % 2];
                    #pragma unroll
                    for (int k = 0; k < 4; k++)
                        #pragma unroll
                        for (int piece = 0; piece < PIECES; piece++)
                            ptx::ldmatrix_x4(
                                dy.piece[piece][k], shared.dy[s] + dy_place[kw][k] + piece * LO + i * 64 * 128);
                    ptx::wgmma_fence();
                    #pragma unroll
                    for (int k = 0; k < 4; k++)
                        #pragma unroll
                        for (int product = 0; product < T_PRODUCTS; product++) {
                            const uint32_t (&a)[4] = dy.piece[product == 2 ? 1 : 0][k];
                            const int from = (product == 1 ? FILTER_BYTES : 0) + (kw * 4 + k) * 2 * half;
                            float (&sum)[KERNEL_HEIGHT * 4] =
                                product == 0 ? sums.first[k / 2] : sums.others[product == 2 ? 1 : 0];
                            const bool begun = kw > 0 || (product == 0 ? k % 2 : k) > 0;
                            ptx::wgmma_f16(sum, a[0], a[1], a[2], a[3], w.at(from, half), begun);
                        }
                    ptx::wgmma_commit();
                    if (kw > 0 && kw + 1 < KERNEL_WIDTH) ptx::wgmma_wait<1>();
                }
                ptx::wgmma_wait<0>();
                if (i == T_BLOCKS - 1) ptx::mbarrier_arrive(&shared.empty[s]);
                #pragma unroll
                for (int j = 0; j < 4; j++) {
                    float sum[KERNEL_HEIGHT];
                    #pragma unroll
                    for (int kh = 0; kh < KERNEL_HEIGHT; kh++) sum[kh] = sums.total(kh * 4 + j) * weight_unscale;
                    out[i][j] = ABOVE == 0 ? sum[0] * unscale : fmaf(sum[0], unscale, rolling[0][i][j]);
                    #pragma unroll
                    for (int a = 0; a + 1 < ABOVE; a++)
                        rolling[a][i][j] = fmaf(sum[a + 1], unscale, rolling[a + 1][i][j]);
                    if (ABOVE > 0) rolling[ABOVE - 1][i][j] = sum[ABOVE] * unscale;
                }
            }
        } else {
            ptx::mbarrier_arrive(&shared.empty[s]);
        }
        if (here.own()) {
            store_row(dx, out, here, here.row, warp, lane);
            if (here.row == OUT_HEIGHT - 1)
                #pragma unroll
                for (int a = 0; a < ABOVE; a++) store_row(dx, rolling[a], here, OUT_HEIGHT + a, warp, lane);
        }
    }
}
