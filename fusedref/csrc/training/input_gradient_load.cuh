// input_gradient.cu: the loading warps bring x and T to shared memory, and split x.
#pragma once

#include "input_gradient_products.cuh"

// The input channels of a pixel of x.
struct Pixel {
    Element value[IN_CHANNELS];
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

// Elements from the atom that holds the first element to that element.
static __device__ __forceinline__ int offset(long long first) { return MOST_OFFSET ? int(first & (ATOM - 1)) : 0; }

// Copies what a loading warp stages: every fourth row of x of a chunk, and of T.
struct Copies {
    const Element* x;
    const Element* t;
    const Strip& strip;
    int warp, lane;
    long long elements;
    __device__ __forceinline__
    Copies(const Element* __restrict__ x, const Element* t, const Strip& strip, int warp, int lane)
        : x(x),
          t(t),
          strip(strip),
          warp(warp),
          lane(lane),
          elements((long long)(gridDim.x / ACROSS) * IN_CHANNELS * PLANE) {}
    // Index of the first element that is loaded of a row of x.
    __device__ __forceinline__ long long first_of(int row, int c) const {
        return (strip.image * IN_CHANNELS + c) * PLANE + (long long)row * WIDTH + strip.column + FIRST_LOADED;
    }
    __device__ __forceinline__ void start_first(Shared& shared) const {
        #pragma unroll
        for (int number = 0; number < SLOTS - 1; number++) {
            start(shared, number);
            ptx::cp_async_commit();
        }
    }
    __device__ __forceinline__ void start(Shared& shared, int number) const {
        if (number >= strip.chunks + AHEAD - 1) return;
        #pragma unroll
        for (int k = 0; k < CHUNK_ROWS / LOADERS; k++) {
            const int its = warp + k * LOADERS, row = strip.row - (KERNEL_HEIGHT - 1) + number * CHUNK_ROWS + its;
            if ((unsigned)row >= HEIGHT) continue;
            #pragma unroll
            for (int c = 0; c < IN_CHANNELS; c++) {
                const long long first = first_of(row, c), before = offset(first);
                Element* to = shared.x[number % SLOTS][its][c];
                #pragma unroll
                for (int atom = lane; atom < (ATOMS + 31) / 32 * 32; atom += 32) {
                    const long long from = first - before + atom * ATOM;
                    if (atom * ATOM >= LOADED_COLUMNS + before) continue;
                    if (MOST_OFFSET == 0) ptx::cp_async_16(to + atom * ATOM, x + from);
                    else if (from >= 0 && from < elements)
                        ptx::cp_async_16_partly(
                            to + atom * ATOM, x + from,
                            int(min(elements - from, (long long)ATOM)) * int(sizeof(Element)));
                }
            }
        }
        if (!ALIGNED || number < AHEAD - 1) return;
        #pragma unroll
        for (int k = 0; k < CHUNK_ROWS / LOADERS; k++) {
            const int chunk = number - (AHEAD - 1), its = warp + k * LOADERS;
            const int row = strip.row + chunk * CHUNK_ROWS + its;
            if (row >= HEIGHT) continue;
            #pragma unroll
            for (int c = 0; c < IN_CHANNELS; c++) {
                const long long first = (strip.image * IN_CHANNELS + c) * PLANE + (long long)row * WIDTH + strip.column;
                #pragma unroll
                for (int atom = lane; atom < (T_ATOMS + 31) / 32 * 32; atom += 32)
                    if (atom < T_ATOMS && strip.column + atom * ATOM < WIDTH)
                        ptx::cp_async_16(&shared.t[chunk % RING_CHUNKS][its][c][atom * ATOM], t + first + atom * ATOM);
            }
        }
    }
    // Splits the rows of x that have arrived.
    __device__ __forceinline__ void stage(Shared& shared, int number, int edge_row) const {
        #pragma unroll
        for (int k = 0; k < CHUNK_ROWS / LOADERS; k++) {
            const int its = warp + k * LOADERS, row = strip.row - (KERNEL_HEIGHT - 1) + number * CHUNK_ROWS + its;
            const auto& from = shared.x[number % SLOTS][its];
            #pragma unroll
            for (int i = 0; i < (LOADED_COLUMNS + 31) / 32; i++) {
                const int pixel = i * 32 + lane, column = FIRST_LOADED + pixel;
                if (LOADED_COLUMNS % 32 && pixel >= LOADED_COLUMNS) continue;
                const bool inside = (unsigned)row < HEIGHT && (unsigned)(strip.column + column) < WIDTH;
                Pixel staged = {};
                #pragma unroll
                for (int c = 0; c < IN_CHANNELS; c++)
                    if (inside) staged.value[c] = from[c][pixel + offset(first_of(row, c))];
                staged.stage(shared, number % RING_CHUNKS * CHUNK_ROWS + its, edge_row + its, strip, column);
            }
        }
    }
};

static __device__ __forceinline__ void load_chunks(
    Shared& shared, const Copies& copies, const Strip& strip, int warp, int lane) {
    const int chunks = strip.chunks + AHEAD - 1;
    if (ACROSS == 1 && REACH)  // the columns beside x
        for (int k = warp * 32 + lane; k < EDGE_ROWS * 2 * REACH; k += LOADING_THREADS) {
            const int row = k / (2 * REACH), place = k % (2 * REACH);
            Pixel{}.stage(shared, row % RING_ROWS, row, strip, place < REACH ? place - REACH : place - REACH + WIDTH);
        }
    int group = 0,
        edge_row = 0;  // the first row of the next group near the border; the next row of the edge pixels' ring
    for (int number = 0; number < chunks; number++) {
        const int ahead = number + SLOTS - 1;
        // T of the chunk that was here has been computed; so have older chunks of the ring.
        const int before = ahead - (AHEAD - 1) - RING_CHUNKS;
        if (before >= 0) ptx::mbarrier_wait(&shared.computed[before % RING_CHUNKS], before / RING_CHUNKS % 2);
        copies.start(shared, ahead);
        ptx::cp_async_commit();
        ptx::cp_async_wait<SLOTS - 1>();
        __syncwarp();
        copies.stage(shared, number, edge_row);
        __syncwarp();  // before the next copy into this slot
        ptx::mbarrier_arrive(&shared.staged[number % RING_CHUNKS]);
        edge_row = edge_row + CHUNK_ROWS < EDGE_ROWS ? edge_row + CHUNK_ROWS : 0;
        const int rows = (number + 1 - (AHEAD - 1)) * CHUNK_ROWS;  // that can be computed
        if (BORDERS && (rows - group == GROUP_ROWS || number == chunks - 1)) {
            // The next rows may take the place of the group's before.
            if (group > 0) ptx::mbarrier_wait(&shared.edges_computed, (group / GROUP_ROWS - 1) % 2);
            ptx::mbarrier_arrive(&shared.edges_staged);
            group += GROUP_ROWS;
        }
    }
}
