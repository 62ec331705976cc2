// input_gradient.cu: sizes, shared memory, and how pixels are loaded, split and staged.
#pragma once

#include <cuda_fp16.h>

#include "elements.cuh"
#include "input_gradient_borders.cuh"
#include "ptx.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr long long PLANE = (long long)HEIGHT * WIDTH;
constexpr int SCALES = (KERNEL_HEIGHT * KERNEL_WIDTH * 8 + 1) * KERNEL_HEIGHT * KERNEL_WIDTH * 8 + 8;  // in `moments`
constexpr int ACROSS = (WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;

// A ring of chunks of rows, with the columns that the windows reach. What is outside of x does not change: if a strip has all
// columns, those beside x are staged once.
constexpr int REACH = KERNEL_WIDTH - 1, STAGED_COLUMNS = TILE_COLUMNS + 2 * REACH;
constexpr int PITCH = STAGED_COLUMNS | 1;
constexpr int AHEAD = KERNEL_HEIGHT > 1 ? 2 : 1;  // chunks that the windows of a chunk reach: itself and the next
constexpr int RING_ROWS = (AHEAD + 1) * CHUNK_ROWS;
constexpr int LOADED_COLUMNS = ACROSS == 1 ? WIDTH : STAGED_COLUMNS, FIRST_LOADED = ACROSS == 1 ? 0 : -REACH;
constexpr int SHARE = (CHUNK_ROWS * LOADED_COLUMNS + THREADS - 1) / THREADS;  // pixels of a chunk that a thread loads

constexpr int UNITS = (TILE_COLUMNS + 15) / 16;  // of 16 columns and four rows
static_assert(CHUNK_ROWS % 4 == 0 && CHUNK_ROWS / 4 * UNITS <= WARPS, "a unit per warp");

// Columns near the border are computed 16 rows at a time, or a chunk if that is more. The pixels that their windows reach are
// staged a second time: those of the left columns, then those of the right ones.
constexpr int LEFT = ColumnKinds::BEFORE_COUNT, RIGHT = ColumnKinds::AFTER_COUNT;
constexpr int BORDERS = ColumnKinds::COUNT - (ColumnKinds::INNER < ColumnKinds::COUNT);
constexpr int INNER_COLUMNS = BORDERS < ColumnKinds::COUNT ? ColumnKinds::INNER : 0;  // 0: no column is of this kind
constexpr int LEFT_PART = LEFT ? LEFT + 2 * REACH : 0, RIGHT_PART = RIGHT ? RIGHT + 2 * REACH : 0;
constexpr int RIGHT_BEGIN = WIDTH - RIGHT - REACH;        // the first column of the right part
constexpr int EDGE_PITCH = (LEFT_PART + RIGHT_PART) | 1;  // odd, so that a column's pixels lie in different banks
constexpr int GROUP_ROWS = CHUNK_ROWS < 16 ? 16 / CHUNK_ROWS * CHUNK_ROWS : CHUNK_ROWS;
constexpr int EDGE_ROWS =
    GROUP_ROWS + 3 * CHUNK_ROWS;  // a ring: a group is computed while the chunk after its next is staged

struct Shared {
    uint4 ring[PIECES][RING_ROWS][PITCH];              // 8 channels of a pixel, hi and lo
    uint4 edge_pixels[PIECES][EDGE_ROWS][EDGE_PITCH];  // the same, near the border
    uint4 composites[STEPS][PIECES][32];               // of pixels that have all taps
    float2 scale[8];                                   // x' scale = fma(x, scale.x, scale.y)
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan computes it, too");

struct Strip {
    int row, rows, column;  // the first row, how many rows are left from there, the first column
    long long image;
    __device__ __forceinline__ Strip() : column(blockIdx.x % ACROSS * TILE_COLUMNS), image(blockIdx.x / ACROSS) {
        const int chunks = (HEIGHT + CHUNK_ROWS - 1) / CHUNK_ROWS;
        rows = (chunks + gridDim.y - 1) / gridDim.y * CHUNK_ROWS;
        row = blockIdx.y * rows;
        rows = min(rows, HEIGHT - row);
    }
};

// The input channels of a pixel of x.
struct Pixel {
    Element value[IN_CHANNELS];
    __device__ __forceinline__ void load(const Element* __restrict__ image, int row, int column, bool wanted) {
        const bool inside = wanted && (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
        #pragma unroll
        for (int c = 0; c < IN_CHANNELS; c++)
            value[c] = inside ? image[c * PLANE + row * WIDTH + column] : Element(0.0f);
    }
    // Shifts, scales and splits the numbers, and stages them: in the ring (column is the strip's), and near the border.
    __device__ __forceinline__ void stage(
        Shared& shared, int ring_row, int edge_row, const Strip& strip, int column) const {
        const float2(&scale)[8] = shared.scale;
        uint32_t hi[4], lo[4];
        #pragma unroll
        for (int k = 0; k < 4; k++) {
            float v[2] = {};
            #pragma unroll
            for (int e = 0; e < 2; e++)
                if (2 * k + e < IN_CHANNELS)
                    v[e] = fmaf(float(value[2 * k + e]), scale[2 * k + e].x, scale[2 * k + e].y);
            const __half2 h = __floats2half2_rn(v[0], v[1]);
            const float2 f = __half22float2(h);
            const __half2 l = __floats2half2_rn(v[0] - f.x, v[1] - f.y);
            hi[k] = *reinterpret_cast<const uint32_t*>(&h);
            lo[k] = *reinterpret_cast<const uint32_t*>(&l);
        }
        const uint4 pieces[2] = {make_uint4(hi[0], hi[1], hi[2], hi[3]), make_uint4(lo[0], lo[1], lo[2], lo[3])};
        const int left = strip.column + column + REACH, right = strip.column + column - RIGHT_BEGIN;
        #pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            shared.ring[piece][ring_row][REACH + column] = pieces[piece];
            if (left < LEFT_PART) shared.edge_pixels[piece][edge_row][left] = pieces[piece];
            if (0 <= right && right < RIGHT_PART)
                shared.edge_pixels[piece][edge_row][LEFT_PART + right] = pieces[piece];
        }
    }
};

// A thread's pixels of the chunk that begins at a row.
static __device__ __forceinline__ void load_chunk(
    Pixel (&pixels)[SHARE], const Element* __restrict__ image, int first_row, int first_column, int thread) {
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int k = thread + i * THREADS;
        pixels[i].load(
            image, first_row + k / LOADED_COLUMNS, first_column + FIRST_LOADED + k % LOADED_COLUMNS,
            k < CHUNK_ROWS * LOADED_COLUMNS);
    }
}
static __device__ __forceinline__ void stage_chunk(
    Shared& shared, const Pixel (&pixels)[SHARE], int ring_row, int edge_row, const Strip& strip, int thread) {
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int k = thread + i * THREADS, row = k / LOADED_COLUMNS;
        if (CHUNK_ROWS * LOADED_COLUMNS % THREADS && k >= CHUNK_ROWS * LOADED_COLUMNS) break;
        pixels[i].stage(shared, ring_row + row, edge_row + row, strip, FIRST_LOADED + k % LOADED_COLUMNS);
    }
}
