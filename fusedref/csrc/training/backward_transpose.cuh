// backward.cu: the warps that compute T = conv_transpose(a dy, W).
#pragma once

#include "backward_tile.cuh"

// A warp computes every second tile of 16 pixels, all input channels, from half of the output channels: it keeps its filters
// in registers. A row of T is the sum over KERNEL_HEIGHT rows of dy, which the warp keeps as they come.
struct Filters {
    uint32_t piece[TAPS][2][2 * PIECES];  // [tap][step of 16 channels][hi, hi, lo, lo]: b of mma
    __device__ __forceinline__ void load(const float* __restrict__ filters, int half, int lane) {
        const uint4* from = reinterpret_cast<const uint4*>(filters);
        #pragma unroll
        for (int t = 0; t < TAPS; t++)
            #pragma unroll
            for (int k = 0; k < 2; k++) {
                const uint4 four = from[(t * 4 + half * 2 + k) * 32 + lane];
                piece[t][k][0] = four.x;
                piece[t][k][1] = four.y;
                if constexpr (PIECES == 2) {
                    piece[t][k][2] = four.z;
                    piece[t][k][3] = four.w;
                }
            }
    }
};

// Sums of a tile: hi * hi', hi * lo' and lo * hi', of each row of the filter, in the layout of mma's d.
template <int PRODUCTS> struct RowSums { float value[PRODUCTS][KERNEL_HEIGHT][4]; };

// Adds the partner's half of the channels to the tiles that this warp stores (of its tiles, those with index % 2 == half).
struct Exchange {
    Shared& shared;
    int half, pair, lane;
    int turn = 0;
    __device__ __forceinline__ void sum(float (&out)[TILES_OF_WARP][4]) {
        float (*partial)[32][4] = shared.partial[turn][pair];
        #pragma unroll
        for (int i = 0; i < TILES_OF_WARP; i++)
            if (i % 2 != half)
                *reinterpret_cast<float4*>(partial[i][lane]) = make_float4(out[i][0], out[i][1], out[i][2], out[i][3]);
        ptx::named_barrier_sync(3 + pair, 64);
        #pragma unroll
        for (int i = 0; i < TILES_OF_WARP; i++)
            if (i % 2 == half) {
                const float4 other = *reinterpret_cast<const float4*>(partial[i][lane]);
                out[i][0] += other.x;
                out[i][1] += other.y;
                out[i][2] += other.z;
                out[i][3] += other.w;
            }
        turn ^= 1;
    }
};

// Stores row `row` of T, counted in the padded input, where it exists.
__device__ __forceinline__ void store_row(
    Element* __restrict__ dx, const float (&out)[TILES_OF_WARP][4], const Walk& at, int row, int half, int pair,
    int lane) {
    const int in_row = row - PAD_TOP, group = lane / 4, member = lane % 4;
    if ((unsigned)in_row >= HEIGHT) return;
    const int first = at.column() + FIRST_OF_T - PAD_LEFT;
    const bool last_strip = STRIPS == 1 || at.column() + STRIP_COLUMNS >= OUT_WIDTH;
    const int end = last_strip ? WIDTH : at.column() + STRIP_COLUMNS - PAD_LEFT;
    Element* plane = dx + (at.image() * IN_CHANNELS + 2 * member) * IN_PLANE + (long long)in_row * WIDTH;
    #pragma unroll
    for (int i = 0; i < TILES_OF_WARP; i++) {
        if (i % 2 != half) continue;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            const int column = first + (i * 2 + pair) * 16 + group + 8 * h;
            if (column < 0 || column >= end) continue;
            if (2 * member < IN_CHANNELS) plane[column] = Element(out[i][2 * h]);
            if (2 * member + 1 < IN_CHANNELS) plane[IN_PLANE + column] = Element(out[i][2 * h + 1]);
        }
    }
}

__device__ __forceinline__ void transpose_rows(
    Shared& shared, const float* __restrict__ filters, Element* __restrict__ dx, long long batch, int warp, int lane) {
    const int half = warp % 2, pair = warp / 2;  // of the channels, of the tiles
    const int matrix = lane / 8, r = lane % 8;
    Filters w;
    w.load(filters, half, lane);
    const float weight_unscale = filters[FILTER_FACTOR];
    // Where this lane's row of ldmatrix is: matrices of pixels 0 to 7 and 8 to 15 of one octet, then of the next.
    int dy_place[KERNEL_WIDTH][2];
    #pragma unroll
    for (int kw = 0; kw < KERNEL_WIDTH; kw++)
        #pragma unroll
        for (int k = 0; k < 2; k++)
            dy_place[kw][k] =
                place(HALO + FIRST_OF_T - kw + pair * 16 + matrix % 2 * 8 + r, half * 4 + k * 2 + matrix / 2);
    Exchange exchange = {shared, half, pair, lane};
    float rolling[ABOVE > 0 ? ABOVE : 1][TILES_OF_WARP][4] = {};  // rows of T that need more rows of dy
    Walk here(batch);
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        float out[TILES_OF_WARP][4];
        if (here.has_dy()) {
            if (here.row == max(here.first - ABOVE, 0)) {
                #pragma unroll
                for (int a = 0; a < ABOVE; a++)
                    #pragma unroll
                    for (int i = 0; i < TILES_OF_WARP; i++)
                        #pragma unroll
                        for (int j = 0; j < 4; j++) rolling[a][i][j] = 0.0f;
            }
            const float unscale = power_of_two(-shared.shift[s]);
            #pragma unroll
            for (int i = 0; i < TILES_OF_WARP; i++) {
                RowSums<PIECES == 2 ? 3 : 1> sums = {};
                #pragma unroll
                for (int kw = 0; kw < KERNEL_WIDTH; kw++)
                    #pragma unroll
                    for (int k = 0; k < 2; k++) {
                        uint32_t hi[4], lo[4];
                        const unsigned char* row = shared.dy[s] + dy_place[kw][k] + i * 2 * 16 * 128;
                        ptx::ldmatrix_x4(hi, row);
                        if (PIECES == 2) ptx::ldmatrix_x4(lo, row + LO);
                        #pragma unroll
                        for (int product = 0; product < (PIECES == 2 ? 3 : 1); product++)
                            #pragma unroll
                            for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                                const uint32_t (&a)[4] = product == 2 ? lo : hi;
                                const uint32_t* b = &w.piece[kh * KERNEL_WIDTH + kw][k][product == 1 ? 2 : 0];
                                float (&d)[4] = sums.value[product][kh];
                                ptx::mma_m16n8k16_f16(d, a[0], a[1], a[2], a[3], b[0], b[1], d);
                            }
                    }
                #pragma unroll
                for (int j = 0; j < 4; j++) {
                    float sum[KERNEL_HEIGHT];
                    #pragma unroll
                    for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                        sum[kh] = sums.value[0][kh][j];
                        if constexpr (PIECES == 2) sum[kh] += sums.value[1][kh][j] + sums.value[2][kh][j];
                        sum[kh] *= weight_unscale;
                    }
                    out[i][j] = ABOVE == 0 ? sum[0] * unscale : fmaf(sum[0], unscale, rolling[0][i][j]);
                    #pragma unroll
                    for (int a = 0; a + 1 < ABOVE; a++)
                        rolling[a][i][j] = fmaf(sum[a + 1], unscale, rolling[a + 1][i][j]);
                    if (ABOVE > 0) rolling[ABOVE - 1][i][j] = sum[ABOVE] * unscale;
                }
            }
        }
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
        if (here.own()) {
            exchange.sum(out);
            store_row(dx, out, here, here.row, half, pair, lane);
            if (here.row == OUT_HEIGHT - 1) {
                #pragma unroll
                for (int a = 0; a < ABOVE; a++) {
                    exchange.sum(rolling[a]);
                    store_row(dx, rolling[a], here, OUT_HEIGHT + a, half, pair, lane);
                }
            }
        }
    }
}
