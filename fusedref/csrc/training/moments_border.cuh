// moments.cu: the warps that sum over the borders of the images, where some taps reach no pixel.
//
// Numbers come straight from global memory. The lanes of a channel stand on the same pixels of four images, in a row's edge or
// at a corner; or on four rows of a side of one image.
#pragma once

#include "moments_products.cuh"

constexpr int INNER_PAIRS = INNER_COLUMNS / 2;
constexpr int SIDE_PARTS = SIDES * 2 * SHARES;
constexpr int TASKS = ROW_PARTS + SIDE_PARTS + LINES_DOWN * SIDES;

// The first of the two columns of a side. The other, or this one, may lie outside x.
__device__ __forceinline__ int first_column(int side) {
    return LEFT > 0 && side == 0 ? LEFT - 2 : WIDTH - RIGHT + 2 * (side - (LEFT > 0));
}

// Adds a pair of columns of a row of an image; a lane whose `row` is not below `rows` has none.
__device__ __forceinline__ void add_pair(
    Shared& shared, Sums& sums, const Element* x, int image, int row, int rows, int column, int batch) {
    const int channel = threadIdx.x % 32 / 4;
    const Element* first = x + ((image * (long long)IN_CHANNELS + channel) * HEIGHT + row) * WIDTH + column;
    const bool paired = has_pairs(x);
    Window window;
    #pragma unroll
    for (int down = 0; down < KERNEL_HEIGHT; down++) {
        const bool there = image < batch && channel < IN_CHANNELS && row + down < (down == 0 ? rows : HEIGHT);
        #pragma unroll
        for (int i = 0; i < 3; i++) {
            const Element* two = first + down * WIDTH + 2 * i - 2;
            const bool left = there && (unsigned)(column + 2 * i - 2) < WIDTH;
            const bool right = there && (unsigned)(column + 2 * i - 1) < WIDTH;
            float2 pair;
            if (paired) pair = left ? both(two) : make_float2(0.0f, 0.0f);
            else pair = make_float2(left ? float(two[0]) : 0.0f, right ? float(two[1]) : 0.0f);
            window[down][i][0] = double(pair.x);
            window[down][i][1] = double(pair.y);
        }
    }
    add_products<0>(sums, window);
    #pragma unroll
    for (int i = 0; i < 2; i++) shared.pixels[i][threadIdx.x] += window[0][1][i];
}

// Writes the sums of the block's warps as a part; see put_sums for `column`.
__device__ __forceinline__ void write_border(
    Shared& shared, const Sums& sums, int column, double* part, int warp, int lane) {
    put_sums(shared, shared.border[warp], sums, column, lane);
    ptx::named_barrier_sync(2, BORDER_WARPS * 32);
    #pragma unroll 1
    for (int i = warp * 32 + lane; i < SUMS; i += BORDER_WARPS * 32) {
        double sum = 0.0;
        #pragma unroll
        for (int k = 0; k < BORDER_WARPS; k++) sum += shared.border[k][i];
        part[i] = sum;
    }
    ptx::named_barrier_sync(2, BORDER_WARPS * 32);
}

// Sums and writes a share of an edge of a row.
__device__ __forceinline__ void sum_edge(
    Shared& shared, const Element* x, double* parts, int task, int batch, int warp, int lane) {
    Sums sums = {};
    shared.pixels[0][threadIdx.x] = shared.pixels[1][threadIdx.x] = 0.0;
    const int units = (batch + 3) / 4 * INNER_PAIRS;
    #pragma unroll 1
    for (int unit = task % SHARES * BORDER_WARPS + warp; unit < units; unit += SHARES * BORDER_WARPS) {
        const int image = unit / max(INNER_PAIRS, 1) * 4 + lane % 4, column = LEFT + unit % max(INNER_PAIRS, 1) * 2;
        add_pair(shared, sums, x, image, row_of(task / SHARES), HEIGHT, column, batch);
    }
    write_border(shared, sums, -1, parts + task * SUMS, warp, lane);
}

// Sums and writes a share of a side, or a corner of a side.
__device__ __forceinline__ void sum_side(
    Shared& shared, const Element* x, double* parts, int task, int batch, int warp, int lane) {
    Sums sums = {};
    shared.pixels[0][threadIdx.x] = shared.pixels[1][threadIdx.x] = 0.0;
    const bool corner = task >= SIDE_PARTS;
    const int column = first_column(corner ? (task - SIDE_PARTS) % SIDES : task / (2 * SHARES));
    const int units = corner ? (batch + 3) / 4 : batch * GROUPS, shares = corner ? 1 : 2 * SHARES;
    const int share = corner ? 0 : task % (2 * SHARES), line = (task - SIDE_PARTS) / SIDES;
    #pragma unroll 1
    for (int unit = share * BORDER_WARPS + warp; unit < units; unit += shares * BORDER_WARPS) {
        const int image = corner ? unit * 4 + lane % 4 : unit / max(GROUPS, 1);
        const int row = corner ? row_of(line) : TOP + unit % max(GROUPS, 1) * GROUP + lane % 4;
        add_pair(shared, sums, x, image, row, corner ? HEIGHT : HEIGHT - BOTTOM, column, batch);
    }
    #pragma unroll 1
    for (int i = 0; i < 2; i++) {
        if ((unsigned)(column + i) >= WIDTH) continue;
        const int across = column + i < LEFT ? column + i : column + i - (WIDTH - RIGHT) + LEFT;
        const int part = corner ? COLUMN_PARTS + line * LINES_ACROSS + across : across * 2 * SHARES + share;
        write_border(shared, sums, 2 + i, parts + (ROW_PARTS + part) * SUMS, warp, lane);
    }
}

// Sums and writes the block's parts of the border.
__device__ __forceinline__ void sum_border(
    Shared& shared, const Element* x, double* parts, int batch, int warp, int lane) {
    #pragma unroll 1
    for (int task = blockIdx.x; task < TASKS; task += gridDim.x) {
        if (task < ROW_PARTS) {
            sum_edge(shared, x, parts, task, batch, warp, lane);
        } else if constexpr (SIDES > 0) {
            sum_side(shared, x, parts, task - ROW_PARTS, batch, warp, lane);
        }
    }
}
