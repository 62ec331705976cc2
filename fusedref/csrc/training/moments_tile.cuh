// moments.cu: its constants, shared memory and the products that both kinds of warps compute.
#pragma once

#include "moments_layout.cuh"
#include "ptx.cuh"

__host__ __device__ constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

constexpr int INTERIOR_WARPS = 8, BORDER_WARPS = 4;
constexpr int THREADS = (INTERIOR_WARPS + BORDER_WARPS) * 32;

constexpr int REGION = SUMS + 64;  // the sums of a warp: SUMS, and the products of lag (-1, 0)

constexpr int WINDOW_ROWS = GROUP + KERNEL_HEIGHT - 1;

// Bytes of a row of a unit in shared memory, with what lies before it in its first 16 bytes; of a channel, which starts
// 4 banks after the one before it; of all.
constexpr int SIZE = sizeof(Element);
constexpr int ROW_BYTES = round_up(least(4 * STRIDE + 2 * REACH, WIDTH) * SIZE + 16 - SIZE, 16);
constexpr int CHANNEL_BYTES = round_up(WINDOW_ROWS * ROW_BYTES, 128) + 16;
constexpr int STAGE_BYTES = IN_CHANNELS * CHANNEL_BYTES;

struct Shared {
    union {
        alignas(128) unsigned char stage[STAGES * STAGE_BYTES];
        double interior[INTERIOR_WARPS][REGION];  // after the last unit
    };
    double border[BORDER_WARPS][REGION];
    uint64_t full[STAGES], empty[STAGES];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan computes another size");

// Sums of a warp: for each pair of lags the fragment of d, with rows 0 to 7 for the channels of the first lag's partner and
// rows 8 to 15 for the second's; columns are the channels of the pixel.
template <int PAIRS> struct Sums { double products[PAIRS][4], pixels; };

__device__ __forceinline__ double number(Element value) { return double(float(value)); }

// Writes a lag's half of a fragment to its 8 x 8 numbers, partners down.
__device__ __forceinline__ void put(double* lag, double first, double second, int lane) {
    *reinterpret_cast<double2*>(lag + lane * 2) = make_double2(first, second);
}

// Writes the sum of the pixels over the lanes of each channel.
__device__ __forceinline__ void put_pixels(double* region, double pixels, int lane) {
    pixels += __shfl_xor_sync(~0u, pixels, 1);
    pixels += __shfl_xor_sync(~0u, pixels, 2);
    if (lane % 4 == 0) region[LAGS * 64 + lane / 4] = pixels;
}
