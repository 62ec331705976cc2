// moments.cu and statistics.cu: the lags, the parts of the image, and how the sums lie in memory.
#pragma once

#include "elements.cuh"

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }

// Rows of x at its edges that some row of the kernel does not reach, and the rows between them; columns alike. The interior
// is an even number of columns wide.
constexpr int TOP = least(KERNEL_HEIGHT - 1 - PAD_TOP, HEIGHT);
constexpr int BOTTOM = least(HEIGHT + PAD_TOP - OUT_HEIGHT, HEIGHT - TOP);
constexpr int LEFT = least(KERNEL_WIDTH - 1 - PAD_LEFT, WIDTH);
constexpr int UNREACHED_RIGHT = least(WIDTH + PAD_LEFT - OUT_WIDTH, WIDTH - LEFT);
constexpr int RIGHT = UNREACHED_RIGHT + (WIDTH - LEFT - UNREACHED_RIGHT) % 2;
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

// The interior, in units of GROUP rows by UNIT_PAIRS pairs of columns. Each block sums a run of units.
constexpr int GROUP = 4;
constexpr int GROUPS = (INNER_ROWS + GROUP - 1) / GROUP;
constexpr int UNITS_PER_IMAGE = INNER_COLUMNS > 0 ? GROUPS * UNITS_ACROSS : 0;
static_assert(2 * UNIT_PAIRS * UNITS_ACROSS >= INNER_COLUMNS, "units must cover the columns");

// The blocks of moments.cu.
__device__ __forceinline__ int blocks_of(long long batch) {
    return max(int(min(batch * UNITS_PER_IMAGE, (long long)MOST_BLOCKS)), 1);
}

// Each line (row or column) of the border is a class of its own. An edge is the part of a line between the corners; SHARES
// blocks share an edge of a row, and 2 SHARES a side: the edges of a pair of columns. A corner is one pixel.
constexpr int LINES_DOWN = TOP + BOTTOM, LINES_ACROSS = LEFT + RIGHT;
constexpr int SIDES = (LEFT > 0) + (RIGHT + 1) / 2;
constexpr int CORNERS = LINES_DOWN * LINES_ACROSS;
constexpr int ROW_PARTS = LINES_DOWN * SHARES, COLUMN_PARTS = LINES_ACROSS * 2 * SHARES;
constexpr int BORDER_PARTS = ROW_PARTS + COLUMN_PARTS + CORNERS;

// The row of x that is line i of TOP and BOTTOM; the column that is line i of LEFT and RIGHT.
__device__ __forceinline__ int row_of(int i) { return i < TOP ? i : HEIGHT - BOTTOM + i - TOP; }
__device__ __forceinline__ int column_of(int i) { return i < LEFT ? i : WIDTH - RIGHT + i - LEFT; }

static_assert(
    IN_CHANNELS <= 8 && KERNEL_HEIGHT <= 3 && KERNEL_WIDTH <= 3 && PAD_TOP < KERNEL_HEIGHT && PAD_LEFT < KERNEL_WIDTH,
    "moments.cu does not serve this problem");
