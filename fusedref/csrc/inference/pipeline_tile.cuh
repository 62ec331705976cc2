// pipeline.cu: its constants, shared memory and tiles.
#pragma once

#include <cuda_fp16.h>

#include "elements.cuh"
#include "ptx.cuh"
#include "split.cuh"

constexpr int gcd(long long a, int b) { return b == 0 ? int(a) : gcd(b, int(a % b)); }
constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

constexpr int BUFFERS = 2;                                // output tiles in shared memory
constexpr int CHANNELS = 64;                              // output channels of a block
constexpr int UNIT = 32;                                  // pixels of one product
constexpr int CONSUMERS = 8, PRODUCERS = 6, STORERS = 2;  // warps of each kind
constexpr int LOADING_THREADS = PRODUCERS * 32;
constexpr int THREADS = (CONSUMERS + PRODUCERS + STORERS) * 32;
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH;
constexpr long long OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
constexpr int TILES_DOWN = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES_ACROSS = (OUT_WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;
constexpr int TILES_PER_PLANE = TILES_DOWN * TILES_ACROSS;
constexpr int RUN = TILE_ROWS * TILE_COLUMNS;  // consecutive outputs of a tile's channel

// Elements of a sector, and of the smallest bulk copy.
constexpr int SECTOR = 32 / sizeof(Element), ATOM = 16 / sizeof(Element);
// Whether a run can start or end inside an ATOM: at the edge of a plane, or anywhere if there is no EXTRA.
constexpr bool RAGGED = gcd(EXTRA ? OUT_PLANE : GRAIN, ATOM) < ATOM;
constexpr int PERIOD = SECTOR / gcd(OUT_PLANE, 4);  // channels after which runs have the same offset in a sector again
constexpr int MOST_SHIFT = SECTOR - gcd(GRAIN, 4);  // the largest shift()
static_assert(SECTOR % GRAIN == 0 && (EXTRA == 0 || EXTRA == SECTOR - GRAIN), "the plan's geometry");
static_assert(RUN_PITCH >= RUN + EXTRA + MOST_SHIFT && RUN_PITCH % (2 * SECTOR) == 4, "the plan's geometry");

constexpr int IN_ROWS = TILE_ROWS + (KERNEL_HEIGHT - 1) * DILATION_H;
constexpr int REACH = (KERNEL_WIDTH - 1) * DILATION_W;
constexpr int PITCH = TILE_COLUMNS + REACH;  // pixels of a row in shared memory
constexpr int IN_PIXELS = IN_ROWS * PITCH + (EXTRA ? EXTRA + REACH : 0);
constexpr int SHARE = (IN_PIXELS + LOADING_THREADS - 1) / LOADING_THREADS;  // pixels of a loading thread
// Whether hi and lo of up to 4 channels share a row of 8 numbers. The row LO bytes further on then has rest.
constexpr bool SHARED_ROWS = PIECES == 3 && IN_CHANNELS <= 4;
constexpr int PLANES = SHARED_ROWS ? 2 : PIECES;  // rows of a pixel
// Units whose sums a warpgroup holds in registers. If units cross rows, or there are many weights, they suffice for one only.
constexpr int UNITS_IN_FLIGHT = PITCH % UNIT == 0 && (PIECES < 3 || SHARED_ROWS || TAPS < 8) ? 2 : 1;
constexpr int BODY = 2 * UNITS_PER_WARPGROUP * UNIT;  // pixels of both warpgroups' units
static_assert(BODY >= TILE_ROWS * PITCH && BODY + TAIL >= TILE_ROWS * PITCH + EXTRA, "units must cover the tile");
// What wgmma reads: whole units, up to their last tap.
constexpr int STAGED_PIXELS = BODY + TAIL + (KERNEL_HEIGHT - 1) * DILATION_H * PITCH + REACH;
constexpr int LO = STAGED_PIXELS * 16;  // bytes from a pixel's hi to its lo, and from there to its rest
// The average relative loss of a sum: each step (of two taps) truncates, unless its products of hi add up exactly.
constexpr float SHORTFALL = PIECES == 2 ? (TAPS + 1) / 2 * 0.4f / 16777216 : 0.0f;
constexpr float CROSS_SCALE = PIECES == 3 ? LO_SCALE_OF_THREE : LO_SCALE;  // of the sums of all products but hi * hi
constexpr int PLAIN = 1000;  // an exponent beyond that of any finite tile: compute in plain float32

// Lanes of a warp that arrive at the mbarrier of a buffer. One lane suffices after __syncwarp. If the storing warps also
// read the buffer with ordinary loads, all lanes arrive, because racecheck tracks each thread separately.
constexpr int ARRIVING_LANES = RAGGED ? 32 : 1;
// Whether one store writes outputs 2 n and 2 n + 1.
constexpr bool IN_PAIRS = PITCH % 2 == 0 && TILE_COLUMNS % 2 == 0 && GRAIN % 2 == 0;

static_assert(
    IN_CHANNELS <= 8 && TAPS <= 9 && (TILE_COLUMNS == OUT_WIDTH || TILE_ROWS == 1),
    "pipeline.cu does not serve this problem");
static_assert(ELEMENT == 0 || PIECES == 1, "fp16 and bf16 tensors have one piece");

struct Shared {
    alignas(128) unsigned char stage[STAGES][PLANES * LO];
    alignas(128) Element buffer[BUFFERS][CHANNELS * RUN_PITCH];
    alignas(8) uint64_t full[STAGES];
    uint64_t empty[STAGES], staged[BUFFERS], stored[BUFFERS];
    int exponent[STAGES];                         // of the tile's largest magnitude, or PLAIN
    Range ranges[2][TILES_IN_FLIGHT][PRODUCERS];  // of the tiles of this burst and the last, per loading warp
    int most, least;                              // over the block's channels: exponent of the weights times the slope
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan computes another size");

struct Input {
    const Element *x, *weight;
    const Vector *bias, *mean, *var, *gamma, *beta;
    float scaling_factor, eps;
    const double* moments;  // null if PIVOT is 0
    // What is subtracted from input channel c.
    __device__ __forceinline__ float pivot(int c) const { return PIVOT ? float(moments[PIVOT + c]) : 0.0f; }
};

// The position of a tile.
struct Tile {
    long long image;
    int row, column;  // of its first output
    __device__ __forceinline__ explicit Tile(int tile)
        : image(tile / TILES_PER_PLANE),
          row(tile % TILES_PER_PLANE / TILES_ACROSS * TILE_ROWS),
          column(TILES_ACROSS == 1 ? 0 : tile % TILES_ACROSS * TILE_COLUMNS) {}
    // Index of its first output in a plane of y, and how many of its outputs exist.
    __device__ __forceinline__ long long first() const { return (long long)row * OUT_WIDTH + column; }
    __device__ __forceinline__ int count() const {
        return TILES_ACROSS == 1 ? int(min((long long)RUN, OUT_PLANE - first()))
                                 : min(TILE_COLUMNS, OUT_WIDTH - column);
    }
    __device__ __forceinline__ bool last() const { return row + TILE_ROWS >= OUT_HEIGHT; }
    // Index in y of a channel's run.
    __device__ __forceinline__ long long run(int channel) const {
        return (image * OUT_CHANNELS + channel) * OUT_PLANE + first();
    }
};

// Elements from a channel's place in a buffer to its run there. The copy engine takes 1.33 times as long if source and
// destination differ modulo 32 bytes.
__device__ __forceinline__ int shift(const Tile& tile, int channel, int out_channel) {
    return unsigned(tile.run(out_channel) - channel * RUN_PITCH) % SECTOR;
}

// The barrier of the whole block: mbarriers are initialised, and the buffers hold the raw weights.
__device__ __forceinline__ void setup_barrier() { ptx::named_barrier_sync(3, THREADS); }

template <class Two> __device__ __forceinline__ uint32_t bits(Two h) { return *reinterpret_cast<uint32_t*>(&h); }

// Two numbers, rounded to the type that the tensor cores multiply and packed.
__device__ __forceinline__ uint32_t pair(float v0, float v1) {
#if ELEMENT == 2
    return bits(__floats2bfloat162_rn(v0, v1));
#else
    return bits(__floats2half2_rn(v0, v1));
#endif
}

constexpr int UNSCALED = 14;  // the exponent of numbers that are not scaled
__device__ __forceinline__ int exponent_of(const Range& range) { return UNSCALED - range.shift(); }
