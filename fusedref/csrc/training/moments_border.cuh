// moments.cu: the warps that sum over the borders of the images, where some taps reach no pixel.
//
// Every row of TOP and BOTTOM, and every column of LEFT and RIGHT, is a class of its own: an edge is the part of such a line
// between the corners, a corner is a single pixel. A warp walks along 8 pieces of an edge at a time, or visits the same
// corner of 8 images, with a window of fragments in registers that come straight from global memory.
#pragma once

#include "moments_tile.cuh"

constexpr int BORDER_PAIRS = (LAGS + 1) / 2;
using BorderSums = Sums<BORDER_PAIRS>;

constexpr int STEPS = 8;  // pixels of a piece, at most

// A piece of an edge, as a lane sees it.
struct Piece {
    const Element* plane;  // of the lane's channel; null: no pixels
    int row, column;       // of the first pixel
    int count;             // pixels
    __device__ __forceinline__ double fetch(int down, int right) const {
        const int r = row + down, c = column + right;
        const bool there = plane && r < HEIGHT && (unsigned)c < WIDTH;
        return there ? number(plane[(long long)r * WIDTH + c]) : 0.0;
    }
};

// Adds 8 pieces: lane % 4 has the piece of that number and the one 4 after it.
template <bool DOWNWARDS>
__device__ __forceinline__ void add_pieces(BorderSums& sums, const Piece (&pieces)[2], int steps) {
    double window[2][KERNEL_HEIGHT][WINDOW_COLUMNS];
    #pragma unroll
    for (int half = 0; half < 2; half++)
        #pragma unroll
        for (int row = 0; row < KERNEL_HEIGHT - DOWNWARDS; row++)
            #pragma unroll
            for (int column = 0; column < WINDOW_COLUMNS - !DOWNWARDS; column++)
                window[half][row][column] = pieces[half].fetch(row, column - REACH);
    #pragma unroll 1
    for (int step = 0; step < steps; step++) {
        double pixel[2];
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            if (DOWNWARDS) {
                #pragma unroll
                for (int column = 0; column < WINDOW_COLUMNS; column++)
                    window[half][KERNEL_HEIGHT - 1][column] =
                        pieces[half].fetch(step + KERNEL_HEIGHT - 1, column - REACH);
            } else {
                #pragma unroll
                for (int row = 0; row < KERNEL_HEIGHT; row++)
                    window[half][row][WINDOW_COLUMNS - 1] = pieces[half].fetch(row, step + REACH);
            }
            pixel[half] = step < pieces[half].count ? window[half][0][REACH] : 0.0;
            sums.pixels += pixel[half];
        }
        #pragma unroll
        for (int i = 0; i < BORDER_PAIRS; i++) {
            const int a = 2 * i, b = 2 * i + 1;
            const bool both = b < LAGS;
            ptx::mma_m16n8k8_f64(
                sums.products[i], window[0][down(a)][REACH + right(a)],
                both ? window[0][down(b)][REACH + right(b)] : 0.0, window[1][down(a)][REACH + right(a)],
                both ? window[1][down(b)][REACH + right(b)] : 0.0, pixel[0], pixel[1], sums.products[i]);
        }
        #pragma unroll
        for (int half = 0; half < 2; half++)
            #pragma unroll
            for (int row = 0; row < KERNEL_HEIGHT - DOWNWARDS; row++)
                #pragma unroll
                for (int column = 0; column < WINDOW_COLUMNS - !DOWNWARDS; column++)
                    window[half][row][column] = window[half][row + DOWNWARDS][column + !DOWNWARDS];
    }
}

// Adds a warp's share of an edge: 8 pieces of one image at a time.
template <bool DOWNWARDS>
__device__ __forceinline__ void add_edge(
    BorderSums& sums, const Element* x, int line, int share, long long batch, int lane) {
    constexpr int LENGTH = DOWNWARDS ? INNER_ROWS : INNER_COLUMNS;
    constexpr int UNITS = (LENGTH + 8 * STEPS - 1) / (8 * STEPS);  // of an image
    if constexpr (LENGTH > 0) {
        constexpr int PIECE = (LENGTH + 8 * UNITS - 1) / (8 * UNITS);
        const int channel = lane / 4;
        for (long long unit = share; unit < batch * UNITS; unit += SHARES * BORDER_WARPS) {
            Piece pieces[2];
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                const int first = (int(unit % UNITS) * 8 + half * 4 + lane % 4) * PIECE;
                const bool there = channel < IN_CHANNELS && first < LENGTH;
                const long long plane = unit / UNITS * IN_CHANNELS + channel;
                pieces[half].plane = there ? x + plane * HEIGHT * WIDTH : nullptr;
                pieces[half].row = DOWNWARDS ? TOP + first : row_of(line);
                pieces[half].column = DOWNWARDS ? column_of(line) : LEFT + first;
                pieces[half].count = min(LENGTH - first, PIECE);
            }
            add_pieces<DOWNWARDS>(sums, pieces, PIECE);
        }
    }
}

// Adds a warp's share of a corner: that of 8 images at a time.
__device__ __forceinline__ void add_corner(
    BorderSums& sums, const Element* x, int row, int column, int share, long long batch, int lane) {
    const int channel = lane / 4;
    for (long long image = share * 8; image < batch; image += BORDER_WARPS * 8) {
        Piece pieces[2];
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            const long long mine = image + half * 4 + lane % 4;
            const bool there = channel < IN_CHANNELS && mine < batch;
            pieces[half].plane = there ? x + (mine * IN_CHANNELS + channel) * HEIGHT * WIDTH : nullptr;
            pieces[half].row = row;
            pieces[half].column = column;
            pieces[half].count = 1;
        }
        add_pieces<false>(sums, pieces, 1);
    }
}

// Sums the block's border parts and writes them: SHARES of each line of rows, SHARES of each line of columns, the corners.
__device__ __forceinline__ void sum_border(
    Shared& shared, const Element* x, double* parts, long long batch, int warp, int lane) {
    for (int part = blockIdx.x; part < BORDER_PARTS; part += gridDim.x) {
        BorderSums sums = {};
        const int edge = part / SHARES, share = part % SHARES * BORDER_WARPS + warp;
        if (edge < LINES_DOWN) {
            add_edge<false>(sums, x, edge, share, batch, lane);
        } else if (edge < EDGES) {
            add_edge<true>(sums, x, edge - LINES_DOWN, share, batch, lane);
        } else if constexpr (CORNERS > 0) {
            const int corner = part - EDGES * SHARES;
            add_corner(sums, x, row_of(corner / LINES_ACROSS), column_of(corner % LINES_ACROSS), warp, batch, lane);
        }
        double* region = shared.border[warp];
        #pragma unroll
        for (int i = 0; i < BORDER_PAIRS; i++) {
            put(region + 2 * i * 64, sums.products[i][0], sums.products[i][1], lane);
            if (2 * i + 1 < LAGS) put(region + (2 * i + 1) * 64, sums.products[i][2], sums.products[i][3], lane);
        }
        put_pixels(region, sums.pixels, lane);
        ptx::named_barrier_sync(2, BORDER_WARPS * 32);
        for (int i = warp * 32 + lane; i < SUMS; i += BORDER_WARPS * 32) {
            double sum = 0.0;
            #pragma unroll
            for (int k = 0; k < BORDER_WARPS; k++) sum += shared.border[k][i];
            parts[part * SUMS + i] = sum;
        }
        ptx::named_barrier_sync(2, BORDER_WARPS * 32);
    }
}
