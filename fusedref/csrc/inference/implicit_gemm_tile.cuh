// implicit_gemm.cu: its constants, shared memory and tiles.
#pragma once

#include <cstdint>

#include "elements.cuh"
#include "ptx.cuh"
#include "split.cuh"

constexpr int GROUP_IN = IN_CHANNELS / GROUPS;    // input channels that one output sees
constexpr int GROUP_OUT = OUT_CHANNELS / GROUPS;  // output channels that share them
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int IN_PLANE = HEIGHT * WIDTH, OUT_PLANE = OUT_HEIGHT * OUT_WIDTH;

constexpr int WARPS = WARPS_DOWN * WARPS_ACROSS, THREADS = 32 * WARPS;
constexpr int CHANNELS = WARP_CHANNELS * WARPS_DOWN;                   // output channels of a block
constexpr int CHANNEL_BLOCKS = (GROUP_OUT + CHANNELS - 1) / CHANNELS;  // of a group
constexpr int M = WARP_CHANNELS / 16, N = 4;                           // matrices of a warp
constexpr int CHUNKS = (GROUP_IN + CHUNK - 1) / CHUNK;
constexpr int SLICES = (CHUNK + 7) / 8, SLICE = CHUNK < 8 ? CHUNK : 8;  // a slice of the chunk fills a row
static_assert((CHUNK % 8 == 0 || CHUNK == GROUP_IN) && (SLOTS == 1 || SLOTS == CHUNKS), "see implicit_gemm.cu");
static_assert(TILE_ROWS * TILE_COLUMNS <= 32 * WARPS_ACROSS && CHANNELS <= THREADS, "see implicit_gemm.cu");

constexpr bool SCALED = ELEMENT == 0;

// FOLD taps of a filter's row share a shared-memory row of 8 numbers. If FOLD does not divide KERNEL_WIDTH, the last row is
// filled with zero weights. Zero times NaN is NaN, which only the scaled kernel detects; so in the others it must divide.
static_assert(FOLD * SLICE <= 8 && (SCALED || KERNEL_WIDTH % FOLD == 0), "the plan's geometry");
constexpr int FOLDS = (KERNEL_WIDTH + FOLD - 1) / FOLD;
constexpr int ENTRIES = SLICES * KERNEL_HEIGHT * FOLDS;  // of k = 8

// A tile of x. Columns that are STRIDE_W apart are neighbours in shared memory: neighbouring outputs read them.
constexpr int IN_ROWS = (TILE_ROWS - 1) * STRIDE_H + (KERNEL_HEIGHT - 1) * DILATION_H + 1;
constexpr int IN_COLUMNS = (TILE_COLUMNS - 1) * STRIDE_W + (KERNEL_WIDTH - 1) * DILATION_W + 1;
constexpr int IN_PIXELS = IN_ROWS * IN_COLUMNS;
constexpr int PHASE = (IN_COLUMNS + STRIDE_W - 1) / STRIDE_W;
constexpr int SLICE_ROWS = IN_ROWS * PITCH;
static_assert(PITCH >= STRIDE_W * PHASE, "the plan's geometry");
// The raw copies consist of units: as many bytes as one copy can move, at most 16.
constexpr int SIZE = ELEMENT == 0 ? 4 : 2;
static_assert(16 / SIZE % WEIGHT_UNIT == 0 && GROUP_IN * TAPS % WEIGHT_UNIT == 0, "the plan's geometry");
static_assert(CHUNK * TAPS % WEIGHT_UNIT == 0 && WEIGHT_PITCH % WEIGHT_UNIT == 0, "the plan's geometry");
static_assert(16 / SIZE % X_UNIT == 0 && (CHANNELS_LAST ? GROUP_IN : WIDTH) % X_UNIT == 0, "the plan's geometry");
// NCHW: a raw row begins LEAD columns left of the tile's first, where a unit begins.
constexpr int LEAD = CHANNELS_LAST ? 0 : (X_UNIT - PAD_LEFT % X_UNIT) % X_UNIT;
static_assert((CHANNELS_LAST ? RAW_PITCH : RAW_COLUMNS) % X_UNIT == 0, "the plan's geometry");
constexpr int RAW_X = CHANNELS_LAST ? IN_PIXELS * RAW_PITCH : CHUNK * RAW_PITCH;
__host__ __device__ constexpr int raw_place(int channel, int row, int column) {
    return CHANNELS_LAST ? (row * IN_COLUMNS + column) * RAW_PITCH + channel
                         : channel * RAW_PITCH + row * RAW_COLUMNS + LEAD + column;
}
// The position of a column of the tile in its row of shared memory.
__host__ __device__ constexpr int place_of(int column) { return column % STRIDE_W * PHASE + column / STRIDE_W; }
// Floats per row of a warp's staging area: 8 channels of 32 pixels, or with channels last 8 pixels of all its channels.
constexpr int RUN_PITCH = CHANNELS_LAST ? WARP_CHANNELS + 4 : 40;

#if ELEMENT == 0
using Raw = float;
#else
using Raw = uint16_t;
#endif
// As float32 bits, which are in the order of the magnitudes.
__device__ __forceinline__ unsigned magnitude_of(float value) { return __float_as_uint(value) & 0x7fffffffu; }
constexpr unsigned NOT_FINITE = 0x7f800000u;  // infinity; NaN is larger

struct Shared {
    uint4 filters[SLOTS][ENTRIES][PIECES][CHANNELS];
    uint4 rows[PIECES][SLICES][SLICE_ROWS];
    float runs[WARPS][8][RUN_PITCH];
    float a[CHANNELS], shift[CHANNELS], b[CHANNELS];
    float weight_unscale[SLOTS][CHANNELS], x_unscale;  // inverse scales, see unscale_of
    Range weight_range[CHANNELS], x_range[WARPS];
    int places[ENTRIES];  // entry_bytes of each
    alignas(16) Raw raw_weight[CHANNELS][WEIGHT_PITCH];
    alignas(16) Raw raw_x[RAW_X];
};
static_assert((sizeof(Shared) + 15) / 16 * 16 == SHARED_BYTES, "the plan computes another size");
constexpr int ENTRY_BYTES = PIECES * CHANNELS * 16, LO_WEIGHT = CHANNELS * 16, LO_ROW = SLICES * SLICE_ROWS * 16;

struct Input {
    const Element *x, *weight;
    int group, first_channel;  // of the block; first_channel counts within the group
};

// The position of a tile: its first output.
struct Tile {
    static constexpr int DOWN = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS;
    static constexpr int ACROSS = (OUT_WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int image, row, column;
    __device__ __forceinline__ explicit Tile(int tile)
        : image(tile / (DOWN * ACROSS)), row(tile / ACROSS % DOWN * TILE_ROWS), column(tile % ACROSS * TILE_COLUMNS) {}
};

// The offset of an element of the group's input from the start of its image.
__device__ __forceinline__ int place_in_x(int group, int channel, int row, int column) {
    channel += group * GROUP_IN;
    return CHANNELS_LAST ? (row * WIDTH + column) * IN_CHANNELS + channel : channel * IN_PLANE + row * WIDTH + column;
}

__device__ __forceinline__ const Element* image_of(const Input& in, const Tile& tile) {
    return in.x + (long long)tile.image * IN_CHANNELS * IN_PLANE;
}
