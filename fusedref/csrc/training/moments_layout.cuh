// moments.cu and statistics.cu: the lags, the parts of the image, and how the sums lie in memory.
#pragma once

#include "elements.cuh"

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }

// Rows of x at its edges that some row of the kernel does not reach, and the rows between them; columns alike.
constexpr int TOP = least(KERNEL_HEIGHT - 1 - PAD_TOP, HEIGHT);
constexpr int BOTTOM = least(HEIGHT + PAD_TOP - OUT_HEIGHT, HEIGHT - TOP);
constexpr int LEFT = least(KERNEL_WIDTH - 1 - PAD_LEFT, WIDTH);
constexpr int RIGHT = least(WIDTH + PAD_LEFT - OUT_WIDTH, WIDTH - LEFT);
constexpr int INNER_ROWS = HEIGHT - TOP - BOTTOM, INNER_COLUMNS = WIDTH - LEFT - RIGHT;

// Lags (down, right) from a pixel to its partner: (0, 0), (0, 1), ... and then whole rows (1, -REACH) to (1, REACH), ...
constexpr int REACH = KERNEL_WIDTH - 1;
constexpr int WINDOW_COLUMNS = 2 * REACH + 1;
constexpr int LAGS = KERNEL_WIDTH + (KERNEL_HEIGHT - 1) * WINDOW_COLUMNS;
__host__ __device__ constexpr int down(int lag) {
    return lag < KERNEL_WIDTH ? 0 : 1 + (lag - KERNEL_WIDTH) / WINDOW_COLUMNS;
}
__host__ __device__ constexpr int right(int lag) {
    return lag < KERNEL_WIDTH ? lag : (lag - KERNEL_WIDTH) % WINDOW_COLUMNS - REACH;
}

// A part is SUMS numbers: for each lag the 8 x 8 products, channels of the partner down, and then the sums of x by channels.
// First lie the parts of the border, see below: rows, columns, corners. Each block's part of the interior follows.
constexpr int SUMS = LAGS * 64 + 8;

// The interior, in units of GROUP rows by 4 STRIDE columns. Each block sums a run of units.
constexpr int GROUP = 4;
constexpr int UNITS_DOWN = (INNER_ROWS + GROUP - 1) / GROUP;
constexpr int UNITS_PER_IMAGE = INNER_COLUMNS > 0 ? UNITS_DOWN * UNITS_ACROSS : 0;
static_assert(4 * STRIDE * UNITS_ACROSS >= INNER_COLUMNS, "units must cover the columns");

// The blocks of moments.cu.
__device__ __forceinline__ int blocks_of(long long batch) {
    return max(int(min(batch * UNITS_PER_IMAGE, (long long)MOST_BLOCKS)), 1);
}

// Each line (row or column) of the border is a class of its own. An edge is the part of a line between the corners; SHARES
// blocks share it. A corner is one pixel.
constexpr int LINES_DOWN = TOP + BOTTOM, LINES_ACROSS = LEFT + RIGHT;
constexpr int EDGES = LINES_DOWN + LINES_ACROSS, CORNERS = LINES_DOWN * LINES_ACROSS;
constexpr int BORDER_PARTS = EDGES * SHARES + CORNERS;

// The row of x that is line i of TOP and BOTTOM; the column that is line i of LEFT and RIGHT.
__device__ __forceinline__ int row_of(int i) { return i < TOP ? i : HEIGHT - BOTTOM + i - TOP; }
__device__ __forceinline__ int column_of(int i) { return i < LEFT ? i : WIDTH - RIGHT + i - LEFT; }

static_assert(
    IN_CHANNELS <= 8 && KERNEL_HEIGHT <= 3 && KERNEL_WIDTH <= 3 && PAD_TOP < KERNEL_HEIGHT && PAD_LEFT < KERNEL_WIDTH,
    "moments.cu does not serve this problem");
