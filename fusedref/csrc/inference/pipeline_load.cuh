// pipeline.cu: the loading warps read x from global memory and write tiles of split pixels to shared memory.
#pragma once

#include "pipeline_tile.cuh"

// The input channels of one pixel, as stored in global memory.
struct Pixel {
#if ELEMENT == 0
    float value[8];
#else
    uint32_t pairs[4];
#endif
    __device__ __forceinline__ void load(const Element* __restrict__ from, bool inside) {
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            const bool real = inside && c < IN_CHANNELS;
#if ELEMENT == 0
            value[c] = real ? __ldg(from + c * IN_PLANE) : 0.0f;
#else
            const uint32_t half = real ? __ldg(reinterpret_cast<const unsigned short*>(from) + c * IN_PLANE) : 0;
            pairs[c / 2] = c % 2 ? pairs[c / 2] | half << 16 : half;
#endif
        }
    }
};

__device__ __forceinline__ void load_tile(
    Pixel (&raw)[SHARE], const Element* __restrict__ x, const Tile& tile, int thread) {
    const Element* image = x + tile.image * IN_CHANNELS * IN_PLANE;
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int pixel = thread + i * LOADING_THREADS;
        const int row = tile.row - PAD_TOP + pixel / PITCH, column = tile.column - PAD_LEFT + pixel % PITCH;
        const bool inside = pixel < IN_PIXELS && (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
        raw[i].load(image + (long long)row * WIDTH + column, inside);
    }
}

// Subtracts each channel's pivot, from the zeros of the padding too: y is the same if the mean is that of the shifted
// convolution. Pixels that no filter reads stay zero, so that they do not widen the range of the tile.
__device__ __forceinline__ void subtract_pivots(
    Pixel (&raw)[TILES_IN_FLIGHT][SHARE], const float (&pivots)[IN_CHANNELS], int tile, int thread) {
#if PIVOT
    #pragma unroll
    for (int i = 0; i < TILES_IN_FLIGHT; i++, tile += gridDim.x) {
        const Tile here(tile);
        #pragma unroll
        for (int k = 0; k < SHARE; k++) {
            const int pixel = thread + k * LOADING_THREADS;
            const int row = here.row + pixel / PITCH, column = here.column + pixel % PITCH;
            const bool read =
                pixel < IN_PIXELS && row < OUT_HEIGHT + (KERNEL_HEIGHT - 1) * DILATION_H && column < OUT_WIDTH + REACH;
            #pragma unroll
            for (int c = 0; c < IN_CHANNELS; c++)
                if (read) raw[i][k].value[c] -= pivots[c];
        }
    }
#endif
}

// Computes the ranges of the tiles in flight, of which every loading thread holds some pixels.
__device__ __forceinline__ void find_ranges(
    Range (&ranges)[TILES_IN_FLIGHT], Shared& shared, const Pixel (&raw)[TILES_IN_FLIGHT][SHARE], int burst,
    int thread) {
#if ELEMENT == 0
    Range(&shares)[TILES_IN_FLIGHT][PRODUCERS] = shared.ranges[burst % 2];
    #pragma unroll
    for (int i = 0; i < TILES_IN_FLIGHT; i++) {
        Range range;
        #pragma unroll
        for (int pixel = 0; pixel < SHARE; pixel++)
            #pragma unroll
            for (int channel = 0; channel < IN_CHANNELS; channel++) range.add(raw[i][pixel].value[channel]);
        range = range.of_warp();
        if (thread % 32 == 0) shares[i][thread / 32] = range;
    }
    ptx::named_barrier_sync(1, LOADING_THREADS);
    #pragma unroll
    for (int i = 0; i < TILES_IN_FLIGHT; i++) {
        ranges[i] = shares[i][0];
        #pragma unroll
        for (int k = 1; k < PRODUCERS; k++) {
            ranges[i] = {max(ranges[i].largest, shares[i][k].largest), min(ranges[i].smallest, shares[i][k].smallest)};
        }
    }
#endif
}

// Splits a tile's pixels and writes them into stage `step % STAGES` for the tensor cores.
__device__ __forceinline__ void stage_tile(
    Shared& shared, const Pixel (&raw)[SHARE], const Range& range, int step, int thread) {
    const int s = step % STAGES, lane = thread % 32;
    ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int pixel = thread + i * LOADING_THREADS;
        if (IN_PIXELS % LOADING_THREADS == 0 || pixel < IN_PIXELS) {
            uint4* row = reinterpret_cast<uint4*>(&shared.stage[s][pixel * 16]);
#if ELEMENT == 0
            const float scale = power_of_two(range.shift());
            uint32_t hi[4], lo[4];
            [[maybe_unused]] uint32_t rest[4];
            #pragma unroll
            for (int c = 0; c < 4; c++) {
                const float v0 = raw[i].value[2 * c] * scale, v1 = raw[i].value[2 * c + 1] * scale;
                if constexpr (PIECES == 3) split_in_three(v0, v1, hi[c], lo[c], rest[c]);
                else split(v0, v1, hi[c], lo[c]);
            }
            if constexpr (SHARED_ROWS) {
                *row = make_uint4(hi[0], hi[1], lo[0], lo[1]);
                row[LO / 16] = make_uint4(rest[0], rest[1], 0, 0);
                continue;
            }
            *row = make_uint4(hi[0], hi[1], hi[2], hi[3]);
            if constexpr (PIECES == 3) row[2 * LO / 16] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
            if (PIECES >= 2) row[LO / 16] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
#else
            *row = make_uint4(raw[i].pairs[0], raw[i].pairs[1], raw[i].pairs[2], raw[i].pairs[3]);
#endif
        }
    }
    if (thread == 0) shared.exponent[s] = ELEMENT ? UNSCALED : range.splits() ? exponent_of(range) : PLAIN;
    ptx::fence_async_shared();
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.full[s]);
}

// Waits for the next multiple of TURN nanoseconds, unless one has passed since the last wait.
__device__ __forceinline__ void await_turn(unsigned& turn) {
#if TURN
    unsigned now;
    while ((now = ptx::nanoseconds() / TURN) == turn) __nanosleep(40);
    turn = now;
#endif
}

// Under the load of the stores, a read takes longer than the computation of a tile, so two tiles are in flight where the
// registers suffice. Reads scattered among the stores slow the stores down by more than the reads' own time. So with many
// tiles, all blocks read in bursts at the same time, by the GPU's clock. This affects only speed: a late burst is correct.
__device__ __forceinline__ void produce(Shared& shared, const Input& in, int tiles, int thread) {
    float pivots[IN_CHANNELS];
    #pragma unroll
    for (int c = 0; c < IN_CHANNELS; c++) pivots[c] = in.pivot(c);
    Pixel raw[TILES_IN_FLIGHT][SHARE] = {};
    const auto load = [&](int tile) {
        #pragma unroll
        for (int i = 0; i < TILES_IN_FLIGHT; i++, tile += gridDim.x) {
            if (tile < tiles) load_tile(raw[i], in.x, Tile(tile), thread);
            ptx::in_order();
        }
    };
    load(blockIdx.x);
    setup_barrier();
    const bool in_turns = TURN && tiles >= 16 * gridDim.x;
    unsigned turn = 0;
    for (int tile = blockIdx.x, step = 0;; step += TILES_IN_FLIGHT) {
        Range ranges[TILES_IN_FLIGHT];
        subtract_pivots(raw, pivots, tile, thread);
        find_ranges(ranges, shared, raw, step / TILES_IN_FLIGHT, thread);
        #pragma unroll
        for (int i = 0; i < TILES_IN_FLIGHT; i++, tile += gridDim.x)
            if (tile < tiles) stage_tile(shared, raw[i], ranges[i], step + i, thread);
        if (tile >= tiles) return;
        if (in_turns) await_turn(turn);
        load(tile);
    }
}
