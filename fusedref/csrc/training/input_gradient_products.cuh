// input_gradient.cu: the products.
#pragma once

#include "input_gradient_tile.cuh"

// sum += a step's products: a are composites of 16 rows, b are 8 pixels' registers of the two positions.
static __device__ __forceinline__ void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16_f16(sum, a.x, a.y, a.z, a.w, b0, b1, sum);
}

// What is subtracted from T in channel c of a pixel, from its sum of products.
static __device__ __forceinline__ float subtrahend(
    float sum, const float* __restrict__ constants, int pair_kind, int column_kind, int lower, int c) {
    const int border = pair_kind * ColumnKinds::COUNT + column_kind;
    return fmaf(sum, __ldg(constants + c), __ldg(constants + (2 * (1 + border) + lower) * 8 + c));
}

// Computes the columns near the border of a group of rows, which begins at `row` of the image and at edge_row of the ring of
// edge pixels, and subtracts the results from T. `rows` are left in the image.
static __device__ __forceinline__ void compute_edges(
    const Shared& shared, const uint4* __restrict__ fragments, const float* __restrict__ constants,
    Element* __restrict__ image, int strip_column, int row, int rows, int edge_row, int warp, int lane) {
    const int pairs = (min(rows, GROUP_ROWS) + 1) / 2, c = lane / 4;
    for (int job = warp; job < BORDERS * pairs; job += BORDERERS) {
        const int border = job % BORDERS, column_kind = border + (border >= ColumnKinds::INNER), pair = job / BORDERS;
        const int column = ColumnKinds::example(column_kind), kind = PairKinds::of(row / 2 + pair);
        if (column < strip_column || column >= strip_column + TILE_COLUMNS) continue;
        if (pair % 8 && kind == PairKinds::of(row / 2 + pair - 1)) continue;  // computed with the pair before
        Element t[4], *to[4];
        bool mine[4];
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int its = pair + lane % 4 * 2 + i % 2, its_row = row + 2 * its + i / 2;
            mine[i] = c < IN_CHANNELS && its < pairs && its / 8 == pair / 8 && PairKinds::of(row / 2 + its) == kind
                && its_row < HEIGHT;
            to[i] = image + c * PLANE + its_row * WIDTH + column;
            if (mine[i]) t[i] = *to[i];
        }
        // The four matrices: hi of both positions, lo of both positions; a row is the pixel of one pair of rows.
        const int place = column_kind < LEFT ? column : LEFT_PART + column - (WIDTH - RIGHT);
        const uint4* from[KERNEL_HEIGHT];
        #pragma unroll
        for (int j = 0; j < KERNEL_HEIGHT; j++) {
            const int its = edge_row + 2 * min(pair + lane % 8, pairs - 1) + 2 * j + lane / 8 % 2;
            from[j] = &shared.edge_pixels[PIECES == 2 ? lane / 16 : 0][its < EDGE_ROWS ? its : its - EDGE_ROWS][place];
        }
        const uint4* composites = fragments + (kind * ColumnKinds::COUNT + column_kind) * (STEPS * 64) + lane;
        float sum[4] = {};
        #pragma unroll
        for (int d = 0; d < WINDOW_COLUMNS; d++) {
            float part[4] = {};
            uint32_t b[KERNEL_HEIGHT][4];
            #pragma unroll
            for (int j = 0; j < KERNEL_HEIGHT; j++) {
                ptx::ldmatrix_x4(b[j], from[j] + d);
                if (PIECES == 1) continue;
                const uint4* step = composites + (d * KERNEL_HEIGHT + j) * 64;
                multiply(part, __ldg(step + 32), b[j][0], b[j][1]);
                multiply(part, __ldg(step), b[j][2], b[j][3]);
            }
            #pragma unroll
            for (int j = 0; j < KERNEL_HEIGHT; j++)
                multiply(part, __ldg(composites + (d * KERNEL_HEIGHT + j) * 64), b[j][0], b[j][1]);
            #pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += part[i];
        }
        #pragma unroll
        for (int i = 0; i < 4; i++)
            if (mine[i]) *to[i] = Element(float(t[i]) - subtrahend(sum[i], constants, kind, column_kind, i / 2, c));
    }
}

// Computes all columns near the border of the strip.
static __device__ __forceinline__ void compute_borders(
    Shared& shared, const uint4* __restrict__ fragments, const float* __restrict__ constants, Element* dx,
    const Strip& strip, int warp, int lane) {
    Element* image = dx + strip.image * IN_CHANNELS * PLANE;
    for (int group = 0, edge_row = 0; group * GROUP_ROWS < strip.rows; group++) {
        const int row = group * GROUP_ROWS;
        ptx::mbarrier_wait(&shared.edges_staged, group % 2);
        compute_edges(
            shared, fragments, constants, image, strip.column, strip.row + row, strip.rows - row, edge_row, warp, lane);
        ptx::mbarrier_arrive(&shared.edges_computed);
        edge_row = edge_row + GROUP_ROWS < EDGE_ROWS ? edge_row + GROUP_ROWS : edge_row + GROUP_ROWS - EDGE_ROWS;
    }
}

// sums[pair of rows][mma][register] of 16 columns and four rows, with one kind of composites. `from` are the addresses of
// the lane's pixels in each two rows of the windows.
static __device__ __forceinline__ void compute_sums(
    float (&sums)[2][2][4], const uint4* const (&from)[KERNEL_HEIGHT + 1], const uint4* composites, int hi_to_lo) {
    #pragma unroll 1
    for (int d = 0; d < WINDOW_COLUMNS; d++) {
        uint4 a[KERNEL_HEIGHT];
        uint32_t hi[KERNEL_HEIGHT + 1][4];
        float parts[2][2][4] = {};
        const auto load = [&](int piece) {
            #pragma unroll
            for (int j = 0; j < KERNEL_HEIGHT; j++)
                a[j] = composites[(d * KERNEL_HEIGHT + j) * (32 + hi_to_lo) + piece * 32];
        };
        // Adds the products of the rows' pixels in both pairs' windows.
        const auto multiply_rows = [&](int rows, const uint32_t (&pixels)[4]) {
            #pragma unroll
            for (int k = 0; k < 4; k++) {
                const int j = rows - k / 2, half = k % 2;
                if (0 <= j && j < KERNEL_HEIGHT)
                    multiply(parts[k / 2][half], a[j], pixels[2 * half], pixels[2 * half + 1]);
            }
        };
        load(PIECES - 1);
        #pragma unroll
        for (int rows = 0; rows <= KERNEL_HEIGHT; rows++) {
            ptx::ldmatrix_x4(hi[rows], from[rows] + d);
            multiply_rows(rows, hi[rows]);
        }
        if (PIECES == 2) {
            load(0);
            #pragma unroll
            for (int rows = 0; rows <= KERNEL_HEIGHT; rows++) {
                uint32_t lo[4];
                ptx::ldmatrix_x4(lo, from[rows] + RING_ROWS * PITCH + d);
                multiply_rows(rows, lo);
            }
            #pragma unroll
            for (int rows = 0; rows <= KERNEL_HEIGHT; rows++) multiply_rows(rows, hi[rows]);
        }
        #pragma unroll
        for (int k = 0; k < 16; k++) sums[k / 8][k / 4 % 2][k % 4] += parts[k / 8][k / 4 % 2][k % 4];
    }
}
