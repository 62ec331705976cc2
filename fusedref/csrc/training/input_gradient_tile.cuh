// input_gradient.cu: sizes, shared memory, and how pixels are loaded, split and staged.
#pragma once

#include <cuda_fp16.h>

#include "elements.cuh"
#include "input_gradient_borders.cuh"
#include "ptx.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int PLANE = HEIGHT * WIDTH;
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
static_assert(
    CHUNK_ROWS % 4 == 0 && STRIP_ROWS % CHUNK_ROWS == 0 && CHUNK_ROWS / 4 * UNITS <= WARPS, "a unit per warp");

// Columns near the border, and those that their windows reach: in the left part, then in the right part.
constexpr int LEFT = ColumnKinds::BEFORE_COUNT, RIGHT = ColumnKinds::AFTER_COUNT;
constexpr int BORDERS = ColumnKinds::COUNT - (ColumnKinds::INNER < ColumnKinds::COUNT);
constexpr int INNER_COLUMNS = BORDERS < ColumnKinds::COUNT ? ColumnKinds::INNER : 0;  // 0: no column is of this kind
constexpr int LEFT_PART = LEFT ? LEFT + 2 * REACH : 0, RIGHT_PART = RIGHT ? RIGHT + 2 * REACH : 0;
constexpr int EDGE_ROWS = STRIP_ROWS + 2 * (KERNEL_HEIGHT - 1);
constexpr int EDGE_COLUMNS = LEFT_PART + RIGHT_PART;
constexpr int EDGE_PITCH = EDGE_COLUMNS | 1;  // odd, so that a column's pixels lie in different banks

struct Shared {
    uint4 ring[PIECES][RING_ROWS][PITCH];               // 8 channels of a pixel, hi and lo
    uint4 edge_pixels[PIECES][EDGE_ROWS][EDGE_PITCH];   // the same, of the columns near the border
    uint4 composites[STEPS][PIECES][32];                // of pixels that have all taps
    float edges[BORDERS ? BORDERS : 1][STRIP_ROWS][8];  // what is subtracted from T in the columns near the border
    float2 scale[8];                                    // x' scale = fma(x, scale.x, scale.y)
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
    // Shifts, scales and splits the numbers; writes hi to *to, lo to to[next].
    __device__ __forceinline__ void stage(uint4* to, int next, const float2 (&scale)[8]) const {
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
        *to = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        if (PIECES == 2) to[next] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
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
    Shared& shared, const Pixel (&pixels)[SHARE], int ring_row, int thread) {
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int k = thread + i * THREADS;
        if (CHUNK_ROWS * LOADED_COLUMNS % THREADS && k >= CHUNK_ROWS * LOADED_COLUMNS) break;
        pixels[i].stage(
            &shared.ring[0][ring_row + k / LOADED_COLUMNS][REACH + FIRST_LOADED + k % LOADED_COLUMNS],
            RING_ROWS * PITCH, shared.scale);
    }
}

// A thread's pixels of the columns near the border.
constexpr int EDGE_SHARE = (EDGE_ROWS * EDGE_COLUMNS + THREADS - 1) / THREADS;
constexpr int EDGE_DIVISOR = EDGE_COLUMNS ? EDGE_COLUMNS : 1;

static __device__ __forceinline__ void load_edges(
    Pixel (&pixels)[EDGE_SHARE + 1], const Element* __restrict__ image, int first_row, int rows, int thread) {
    #pragma unroll
    for (int i = 0; i < EDGE_SHARE; i++) {
        const int k = thread + i * THREADS, row = k / EDGE_DIVISOR, place = k % EDGE_DIVISOR;
        pixels[i].load(
            image, first_row + row, place < LEFT_PART ? place - REACH : place - LEFT_PART + WIDTH - RIGHT - REACH,
            row < rows);
    }
}
static __device__ __forceinline__ void stage_edges(Shared& shared, const Pixel (&pixels)[EDGE_SHARE + 1], int thread) {
    #pragma unroll
    for (int i = 0; i < EDGE_SHARE; i++) {
        const int k = thread + i * THREADS;
        if (EDGE_ROWS * EDGE_COLUMNS % THREADS && k >= EDGE_ROWS * EDGE_COLUMNS) break;
        pixels[i].stage(
            &shared.edge_pixels[0][k / EDGE_DIVISOR][k % EDGE_DIVISOR], EDGE_ROWS * EDGE_PITCH, shared.scale);
    }
}
