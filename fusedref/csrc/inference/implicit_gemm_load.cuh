// implicit_gemm.cu: copy a chunk of x and weights to shared memory unchanged, and find its largest magnitudes.
#pragma once

#include "implicit_gemm_tile.cuh"

// Copies a unit, or zeros if it is not valid. cp.async can copy only aligned units of 4 bytes or more.
template <int UNIT>
__device__ __forceinline__ void copy_async(Raw* to, const Element* from, bool valid, bool aligned) {
    if (UNIT * SIZE == 16 && aligned) ptx::cp_async_16(to, from, valid);
    else if (UNIT * SIZE == 8 && aligned) ptx::cp_async_8(to, from, valid);
    else if (UNIT * SIZE == 4 && aligned) ptx::cp_async_4(to, from, valid);
    else {
        #pragma unroll
        for (int e = 0; e < UNIT; e++) {
#if ELEMENT == 0
            ptx::cp_async_4(to + e, from + e, valid);
#else
            to[e] = valid ? __ldg(reinterpret_cast<const uint16_t*>(from) + e) : 0;
#endif
        }
    }
}

// Calls `visit` for the thread's units of a chunk of x, with the channel (in the chunk), row and column of its first
// element.
template <typename Visit>
__device__ __forceinline__ void for_units_of_x(const Visit& visit) {
    constexpr int COLUMNS = CHANNELS_LAST ? IN_COLUMNS : RAW_COLUMNS / X_UNIT, PIXELS = IN_ROWS * COLUMNS;
    constexpr int CHANNEL_UNITS = CHANNELS_LAST ? CHUNK / X_UNIT : 1;
    constexpr int EACH = CHANNELS_LAST ? 1 : SLICE;  // channels per computed position
    #pragma unroll 1
    for (int i = threadIdx.x; i < PIXELS * CHANNEL_UNITS * (CHANNELS_LAST ? 1 : CHUNK / SLICE); i += THREADS) {
        const int pixel = CHANNELS_LAST ? i / CHANNEL_UNITS : i % PIXELS;
        const int channel = CHANNELS_LAST ? i % CHANNEL_UNITS * X_UNIT : i / PIXELS * SLICE;
        const int row = pixel / COLUMNS, column = pixel % COLUMNS * (CHANNELS_LAST ? 1 : X_UNIT) - LEAD;
        #pragma unroll
        for (int c = 0; c < EACH; c++) visit(channel + c, row, column);
    }
}

__device__ __forceinline__ void load_x(Shared& shared, const Input& in, const Tile& tile, int chunk) {
    const Element* image = image_of(in, tile);
    const int top = tile.row * STRIDE_H - PAD_TOP, left = tile.column * STRIDE_W - PAD_LEFT, first = chunk * CHUNK;
    const bool aligned = reinterpret_cast<uintptr_t>(in.x) % (X_UNIT * SIZE) == 0;
    for_units_of_x([&](int channel, int row, int column) {
        const bool inside = (unsigned)(top + row) < HEIGHT && (unsigned)(left + column) < WIDTH;
        const bool valid = inside && (GROUP_IN % CHUNK == 0 || first + channel < GROUP_IN);
        const Element* from = valid ? image + place_in_x(in.group, first + channel, top + row, left + column) : in.x;
        copy_async<X_UNIT>(&shared.raw_x[raw_place(channel, row, column)], from, valid, aligned);
    });
}

// Calls `visit` for the thread's units of a chunk of weights, one warp per channel, and `done` after each channel.
template <typename Visit, typename Done>
__device__ __forceinline__ void for_units_of_weights(const Visit& visit, const Done& done) {
    #pragma unroll 1
    for (int channel = threadIdx.x / 32; channel < CHANNELS; channel += WARPS) {
        #pragma unroll 4
        for (int i = threadIdx.x % 32 * WEIGHT_UNIT; i < CHUNK * TAPS; i += 32 * WEIGHT_UNIT) visit(channel, i);
        done(channel);
    }
}

__device__ __forceinline__ void load_weights(Shared& shared, const Input& in, int chunk) {
    constexpr int ALL = GROUP_IN * TAPS;
    const bool aligned = reinterpret_cast<uintptr_t>(in.weight) % (WEIGHT_UNIT * SIZE) == 0;
    const int first = in.group * GROUP_OUT + in.first_channel, k = chunk * CHUNK * TAPS;
    for_units_of_weights(
        [&](int channel, int i) {
            const bool valid = in.first_channel + channel < GROUP_OUT && (GROUP_IN % CHUNK == 0 || k + i < ALL);
            const Element* from = valid ? in.weight + (long long)(first + channel) * ALL + k + i : in.weight;
            copy_async<WEIGHT_UNIT>(&shared.raw_weight[channel][i], from, valid, aligned);
        },
        [](int) {});
}

// Each thread reads only the elements that it has copied itself, so no barrier is needed before this.
__device__ __forceinline__ void find_ranges(Shared& shared, bool new_weights) {
#if ELEMENT == 0
    const int lane = threadIdx.x % 32;
    Range range;
    for_units_of_x(
        [&](int channel, int row, int column) { range.add<X_UNIT>(&shared.raw_x[raw_place(channel, row, column)]); });
    range = range.of_warp();
    if (lane == 0) shared.x_range[threadIdx.x / 32] = range;
    if (!new_weights) return;
    range = Range();
    for_units_of_weights(
        [&](int channel, int i) { range.add<WEIGHT_UNIT>(&shared.raw_weight[channel][i]); },
        [&](int channel) {
            range = range.of_warp();
            if (lane == 0) shared.weight_range[channel] = range;
            range = Range();
        });
#endif
}

// Finds the range of the chunk's x again, of magnitudes below `high` alone.
__device__ __forceinline__ void find_range_below(Shared& shared, unsigned high) {
#if ELEMENT == 0
    Range range;
    for_units_of_x([&](int channel, int row, int column) {
        #pragma unroll 1
        for (int e = 0; e < X_UNIT; e++) {
            const float value = shared.raw_x[raw_place(channel, row, column) + e];
            if (magnitude_of(value) < high) range.add(value);
        }
    });
    range = range.of_warp();
    if (threadIdx.x % 32 == 0) shared.x_range[threadIdx.x / 32] = range;
#endif
}
