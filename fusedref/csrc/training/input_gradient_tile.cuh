// input_gradient.cu: sizes, shared memory, and the block's strip of rows.
#pragma once

#include <cuda_fp16.h>

#include "elements.cuh"
#include "input_gradient_borders.cuh"
#include "ptx.cuh"

constexpr long long PLANE = (long long)HEIGHT * WIDTH;
constexpr int SCALES = (KERNEL_HEIGHT * KERNEL_WIDTH * 8 + 1) * KERNEL_HEIGHT * KERNEL_WIDTH * 8 + 8;  // in `moments`
constexpr int ACROSS = (WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;

// A ring of chunks of rows, with the columns that the windows reach. What is outside of x does not change: if a strip has all
// columns, those beside x are staged once.
constexpr int REACH = KERNEL_WIDTH - 1, STAGED_COLUMNS = TILE_COLUMNS + 2 * REACH;
constexpr int PITCH = STAGED_COLUMNS | 1;
constexpr int AHEAD = KERNEL_HEIGHT > 1 ? 2 : 1;  // chunks that the windows of a chunk reach: itself and the next
constexpr int RING_CHUNKS = 4, RING_ROWS = RING_CHUNKS * CHUNK_ROWS;
constexpr int LOADED_COLUMNS = ACROSS == 1 ? WIDTH : STAGED_COLUMNS, FIRST_LOADED = ACROSS == 1 ? 0 : -REACH;

// Rows are copied in atoms of 16 bytes, which start up to MOST_OFFSET elements before what is needed.
constexpr int ATOM = 16 / sizeof(Element);
constexpr bool ALIGNED = WIDTH % ATOM == 0 && TILE_COLUMNS % ATOM == 0;  // the rows of T
constexpr int MOST_OFFSET = ALIGNED && ACROSS == 1 ? 0 : ATOM - 1;
constexpr int ATOMS = (LOADED_COLUMNS + MOST_OFFSET + ATOM - 1) / ATOM, RAW_PITCH = ATOMS * ATOM;
constexpr int T_ATOMS = (TILE_COLUMNS + ATOM - 1) / ATOM, T_PITCH = T_ATOMS * ATOM;
constexpr int SLOTS = 3;  // chunks of x as they come

constexpr int MULTIPLIERS = 8, LOADERS = 4, BORDERERS = ColumnKinds::COUNT > 1 ? 4 : 0;  // warps of each kind
constexpr int LOADING_THREADS = LOADERS * 32, THREADS = (MULTIPLIERS + LOADERS + BORDERERS) * 32;

constexpr int UNITS = (TILE_COLUMNS + 15) / 16;  // of 16 columns and four rows
static_assert(CHUNK_ROWS % 4 == 0 && CHUNK_ROWS / 4 * UNITS <= MULTIPLIERS, "a unit per warp");

// Columns near the border are computed 16 rows at a time, or a chunk if that is more. The pixels that their windows reach are
// staged a second time: those of the left columns, then those of the right ones.
constexpr int LEFT = ColumnKinds::BEFORE_COUNT, RIGHT = ColumnKinds::AFTER_COUNT;
constexpr int BORDERS = ColumnKinds::COUNT - (ColumnKinds::INNER < ColumnKinds::COUNT);
constexpr int INNER_COLUMNS = BORDERS < ColumnKinds::COUNT ? ColumnKinds::INNER : 0;  // 0: no column is of this kind
constexpr int LEFT_PART = LEFT ? LEFT + 2 * REACH : 0, RIGHT_PART = RIGHT ? RIGHT + 2 * REACH : 0;
constexpr int RIGHT_BEGIN = WIDTH - RIGHT - REACH;        // the first column of the right part
constexpr int EDGE_PITCH = (LEFT_PART + RIGHT_PART) | 1;  // odd, so that a column's pixels lie in different banks
constexpr int GROUP_ROWS = CHUNK_ROWS < 16 ? 16 / CHUNK_ROWS * CHUNK_ROWS : CHUNK_ROWS;
constexpr int EDGE_ROWS = 2 * (GROUP_ROWS + CHUNK_ROWS);  // a ring: a group is computed while the next is staged

struct Shared {
    uint4 ring[PIECES][RING_ROWS][PITCH];              // 8 channels of a pixel, hi and lo
    uint4 edge_pixels[PIECES][EDGE_ROWS][EDGE_PITCH];  // the same, near the border
    uint4 composites[STEPS][PIECES][32];               // of pixels that have all taps
    alignas(16) Element x[SLOTS][CHUNK_ROWS][IN_CHANNELS][RAW_PITCH];
    alignas(16) Element t[ALIGNED ? RING_CHUNKS : 1][CHUNK_ROWS][IN_CHANNELS][T_PITCH];
    float2 scale[8];                                      // x' scale = fma(x, scale.x, scale.y)
    uint64_t edges_staged, edges_computed;                // of a group of rows
    uint64_t staged[RING_CHUNKS], computed[RING_CHUNKS];  // of chunk `number`: in the ring; not needed any more
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan computes it, too");

struct Strip {
    int row, rows, column;  // the first row, how many rows are left from there, the first column
    int chunks;             // of rows, without those that only windows reach
    long long image;
    __device__ __forceinline__ Strip() : column(blockIdx.x % ACROSS * TILE_COLUMNS), image(blockIdx.x / ACROSS) {
        constexpr int all = (HEIGHT + CHUNK_ROWS - 1) / CHUNK_ROWS;
        rows = (all + gridDim.y - 1) / gridDim.y * CHUNK_ROWS;
        row = blockIdx.y * rows;
        rows = min(rows, HEIGHT - row);
        chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    }
};
