// y = a * conv2d(x, weight) + b, folded.cu's operator, as an asynchronous pipeline over the tensor cores of sm_90a.
//
// An implicit matrix product: M = 64 output channels, N = pixels of a tile, K = taps x 8 input channels. Persistent blocks
// of 16 warps take tiles; the warps are specialists, and mbarriers pass the tiles on:
//   warps 0-7    multiply: two warpgroups; weights live in registers (a), pixels stay where they lie (b: a tap is an offset)
//   warps 8-13   load: one lane a pixel, all channels; scale, split, write rows of 8 channels
//   warps 14-15  store: half of the channels each, one bulk copy a channel
//
// Float32 from fp16: scaled by powers of two so that the largest magnitude (of the tile; of the channel's weights) lies in
// [2^14, 2^15), a number is hi + lo / 4096 to 23 bits, and a product hi hi' + (hi lo' + lo hi') / 4096, each sum accumulated
// in fp32. The tensor core truncates where an addition rounds: what that takes off on average, the weights' lo gives back.
// That holds down to 2^-14, 28 bits under the largest. What has a nonzero magnitude below, or is not finite, or would leave
// float32's range when the scales are undone, is computed plainly: the same warps, folded.cu's sums, from global memory.
// With PIECES 1 hi alone is used: fp16 has tf32's 11 bits. Halves are their own hi, unscaled.
//
// Memory takes whole sectors of 32 bytes much faster than parts, so a tile works out a few outputs of the next one, EXTRA,
// and each channel's run is stored from sector to sector: it leaves to the tile before what that has stored.
//
// Serves stride 1, one group, up to 8 input channels and 9 taps, any padding and dilation. Sizes are compile-time constants:
//   IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH
//   PAD_TOP PAD_LEFT DILATION_H DILATION_W
//   ELEMENT VECTOR            the types, see elements.cuh
//   PIECES                    2: hi and lo, 1: hi alone (always so for halves)
//   TILE_ROWS TILE_COLUMNS    outputs of a tile; TILE_COLUMNS is OUT_WIDTH, or TILE_ROWS is 1
//   TURN                      nanoseconds from one burst of reads to the next, 0: as there is room
//   SHARED_BYTES              dynamic shared memory, as fusedref/planning.py reckons it
//
// Launch: block (512), grid (any number of blocks, at best one per multiprocessor; OUT_CHANNELS / 64, rounded up).
#include <cuda_fp16.h>
#include "affine.cuh"
#include "elements.cuh"
#include "ptx.cuh"
#include "split.cuh"

constexpr int gcd(long long a, int b) { return b == 0 ? int(a) : gcd(b, int(a % b)); }
constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

constexpr int STAGES = ELEMENT == 0 && PIECES == 1 ? 4 : 3;  // tiles of pixels in shared memory
constexpr int BUFFERS = 2;                                   // and of outputs
constexpr int CHANNELS = 64;                                 // output channels of a block
constexpr int UNIT = 32;                                     // pixels of one product
constexpr int CONSUMERS = 8, PRODUCERS = 6, STORERS = 2;     // warps
constexpr int LOADING_THREADS = PRODUCERS * 32;
constexpr int THREADS = (CONSUMERS + PRODUCERS + STORERS) * 32;
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH;
constexpr long long OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
constexpr int TILES_DOWN = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES_ACROSS = (OUT_WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;
constexpr int TILES_PER_PLANE = TILES_DOWN * TILES_ACROSS;
constexpr int RUN = TILE_ROWS * TILE_COLUMNS;  // consecutive outputs of a tile's channel

// Elements of a sector, of a bulk copy's smallest unit, and the largest power of two that divides where every run starts.
constexpr int SECTOR = 32 / sizeof(Element), ATOM = 16 / sizeof(Element);
constexpr int GRAIN =
    gcd(TILES_PER_PLANE == 1 ? 0 : TILE_ROWS * OUT_WIDTH,
        gcd(OUT_PLANE, TILES_ACROSS == 1 ? SECTOR : gcd(TILE_COLUMNS, SECTOR)));
constexpr int EXTRA = TILES_DOWN == 1 || TILES_ACROSS > 1 || OUT_WIDTH < SECTOR ? 0 : SECTOR - GRAIN;
// Whether a run may start or end, at the edge of a plane or wherever there is no EXTRA, inside of ATOM.
constexpr bool RAGGED = gcd(EXTRA ? OUT_PLANE : GRAIN, ATOM) < ATOM;
constexpr int PERIOD = SECTOR / gcd(OUT_PLANE, 4);  // channels after which sectors lie alike again
constexpr int MOST_SHIFT = SECTOR - gcd(GRAIN, 4);  // see shift()
// Elements from one channel's run in a buffer to the next: 4 modulo 64 bytes, so that a store's channels have banks of
// their own.
constexpr int RUN_PITCH = round_up(larger(RUN + EXTRA + MOST_SHIFT - 4, 48), 2 * SECTOR) + 4;

constexpr int IN_ROWS = TILE_ROWS + (KERNEL_HEIGHT - 1) * DILATION_H;
constexpr int REACH = (KERNEL_WIDTH - 1) * DILATION_W;
constexpr int PITCH = TILE_COLUMNS + REACH;  // pixels of a row in shared memory
constexpr int IN_PIXELS = IN_ROWS * PITCH + (EXTRA ? EXTRA + REACH : 0);
constexpr int SHARE = (IN_PIXELS + LOADING_THREADS - 1) / LOADING_THREADS;  // pixels that a loading thread holds
constexpr int UNDER_WAY = ELEMENT == 0 && SHARE <= 3 ? 2 : 1;  // tiles that loading threads hold in registers
constexpr int MY_UNITS = (TILE_ROWS * PITCH + 2 * UNIT - 1) / (2 * UNIT);  // of a warpgroup
constexpr int OVERLAP =
    PITCH % UNIT == 0 ? 2 : 1;             // units in registers; where they straddle rows these would not suffice
constexpr int BODY = 2 * MY_UNITS * UNIT;  // pixels of both warpgroups' units
constexpr int TAIL = BODY >= TILE_ROWS * PITCH + EXTRA ? 0 : EXTRA <= 8 ? 8 : 16;  // of a last, smaller one, for EXTRA
constexpr int STAGED_PIXELS =  // whole units are read, with their last tap
    BODY + TAIL + (KERNEL_HEIGHT - 1) * DILATION_H * PITCH + REACH;
constexpr int LO = STAGED_PIXELS * 16;  // bytes from a pixel's hi to its lo
#if PIECES == 2
// By how much a sum falls short on average, each step (of two taps) being cut off towards zero.
constexpr float SHORTFALL = (TAPS + 1) / 2 * 0.4f / 16777216;
#endif
constexpr int PLAIN = 1000;  // an exponent that no finite tile has

// Lanes of a warp that report a filled or an emptied buffer. One does for its warp, behind __syncwarp. Where the storing
// warps read by ordinary loads all do, so that racecheck, which follows each thread by itself, can see the order.
constexpr int HANDS = RAGGED ? 32 : 1;
// Outputs 2 n and 2 n + 1 take one store.
constexpr bool IN_PAIRS = PITCH % 2 == 0 && TILE_COLUMNS % 2 == 0 && GRAIN % 2 == 0;

static_assert(
    IN_CHANNELS <= 8 && TAPS <= 9 && (TILE_COLUMNS == OUT_WIDTH || TILE_ROWS == 1), "what this kernel serves");
static_assert(ELEMENT == 0 || PIECES == 1, "halves have one piece");

struct Shared {
    alignas(128) unsigned char stage[STAGES][PIECES * LO];
    alignas(128) Element buffer[BUFFERS][CHANNELS * RUN_PITCH];
    alignas(8) uint64_t full[STAGES];
    uint64_t empty[STAGES], staged[BUFFERS], stored[BUFFERS];
    int exponent[STAGES];                   // of the tile's largest magnitude, or PLAIN
    Range ranges[2][UNDER_WAY][PRODUCERS];  // of this burst's tiles and the last's, as each loading warp knows them
    int most, least;  // exponent of a channel's weights and slope together, the largest and the smallest of the block
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan reckons otherwise");

struct Input {
    const Element *x, *weight;
    const Vector *bias, *mean, *var, *gamma, *beta;
    float scaling_factor, eps;
};

// Where a tile lies.
struct Tile {
    long long image;
    int row, column;  // of its first output
    __device__ __forceinline__ explicit Tile(int tile)
        : image(tile / TILES_PER_PLANE),
          row(tile % TILES_PER_PLANE / TILES_ACROSS * TILE_ROWS),
          column(TILES_ACROSS == 1 ? 0 : tile % TILES_ACROSS * TILE_COLUMNS) {}
    // Its place in a plane of y, and how many of its outputs exist.
    __device__ __forceinline__ long long first() const { return (long long)row * OUT_WIDTH + column; }
    __device__ __forceinline__ int count() const {
        return TILES_ACROSS == 1 ? int(min((long long)RUN, OUT_PLANE - first()))
                                 : min(TILE_COLUMNS, OUT_WIDTH - column);
    }
    __device__ __forceinline__ bool last() const { return row + TILE_ROWS >= OUT_HEIGHT; }
    // The index in y of a channel's run.
    __device__ __forceinline__ long long run(int channel) const {
        return (image * OUT_CHANNELS + channel) * OUT_PLANE + first();
    }
};

// The first barrier of all: what the storing warps prepare and the multiplying ones fetch is there.
__device__ __forceinline__ void all_are_ready() { ptx::named_barrier_sync(3, THREADS); }

// ---- numbers ----------------------------------------------------------------------------------------------------------

template <class Two> __device__ __forceinline__ uint32_t bits(Two h) { return *reinterpret_cast<uint32_t*>(&h); }

// Two numbers as a pair of what the tensor cores multiply.
__device__ __forceinline__ uint32_t pair(float v0, float v1) {
#if ELEMENT == 2
    return bits(__floats2bfloat162_rn(v0, v1));
#else
    return bits(__floats2half2_rn(v0, v1));
#endif
}

constexpr int UNSCALED = 14;  // the exponent of numbers that are their own hi
__device__ __forceinline__ int exponent_of(const Range& range) { return UNSCALED - range.shift(); }

// ---- loading ----------------------------------------------------------------------------------------------------------

// One pixel's input channels as they come from memory.
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

// The ranges of tiles of which every loading thread knows a share.
__device__ __forceinline__ void find_ranges(
    Range (&ranges)[UNDER_WAY], Shared& shared, const Pixel (&raw)[UNDER_WAY][SHARE], int burst, int thread) {
#if ELEMENT == 0
    Range(&shares)[UNDER_WAY][PRODUCERS] = shared.ranges[burst % 2];
    #pragma unroll
    for (int i = 0; i < UNDER_WAY; i++) {
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
    for (int i = 0; i < UNDER_WAY; i++) {
        ranges[i] = shares[i][0];
        #pragma unroll
        for (int k = 1; k < PRODUCERS; k++) {
            ranges[i] = {max(ranges[i].largest, shares[i][k].largest), min(ranges[i].smallest, shares[i][k].smallest)};
        }
    }
#endif
}

// Writes a tile's pixels into stage `step % STAGES`, as what the tensor cores multiply.
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
            #pragma unroll
            for (int c = 0; c < 4; c++)
                split(raw[i].value[2 * c] * scale, raw[i].value[2 * c + 1] * scale, hi[c], lo[c]);
            *row = make_uint4(hi[0], hi[1], hi[2], hi[3]);
            if (PIECES == 2) row[LO / 16] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
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

// Under the weight of the stores a read takes longer than a tile, so two tiles are under way where registers suffice.
// Reads strewn among stores cost these more time than they would take alone: where there are many tiles, all blocks read
// in bursts, and at the same time, by the clock. That is a matter of speed alone; a burst that comes late comes late.
__device__ __forceinline__ void produce(Shared& shared, const Element* __restrict__ x, int tiles, int thread) {
    Pixel raw[UNDER_WAY][SHARE] = {};
    const auto load = [&](int tile) {
        #pragma unroll
        for (int i = 0; i < UNDER_WAY; i++, tile += gridDim.x) {
            if (tile < tiles) load_tile(raw[i], x, Tile(tile), thread);
            ptx::in_order();
        }
    };
    load(blockIdx.x);
    all_are_ready();
    const bool in_turns = TURN && tiles >= 16 * gridDim.x;
    unsigned turn = 0;
    for (int tile = blockIdx.x, step = 0;; step += UNDER_WAY) {
        Range ranges[UNDER_WAY];
        find_ranges(ranges, shared, raw, step / UNDER_WAY, thread);
        #pragma unroll
        for (int i = 0; i < UNDER_WAY; i++, tile += gridDim.x)
            if (tile < tiles) stage_tile(shared, raw[i], ranges[i], step + i, thread);
        if (tile >= tiles) return;
        if (in_turns) await_turn(turn);
        load(tile);
    }
}

// ---- multiplying ------------------------------------------------------------------------------------------------------

// Bytes in shared memory from a window's first tap to tap t.
__host__ __device__ constexpr int tap_bytes(int t) {
    return (t / KERNEL_WIDTH * DILATION_H * PITCH + t % KERNEL_WIDTH * DILATION_W) * 16;
}

struct Weights {
    uint32_t hi[TAPS][2], lo[PIECES == 2 ? TAPS : 1][2];
};  // of two channels, input channels 2 member and on

template <int N> struct Sums { float main[N / 2], cross[PIECES == 2 ? N / 2 : 1]; };  // of N pixels

// The channel of a thread's matrix row: even ones first in each 16, which keeps the banks of staged runs apart.
__device__ __forceinline__ int channel_of(int warp, int h, int group) { return warp % 4 * 16 + 2 * group + h; }

// Elements from a channel's place in a buffer to its run there. The copy engine takes one and a third times as long where
// source and destination differ modulo 32 bytes.
__device__ __forceinline__ int shift(const Tile& tile, int channel, int out_channel) {
    return unsigned(tile.run(out_channel) - channel * RUN_PITCH) % SECTOR;
}

template <int N>
__device__ __forceinline__ void product(
    float (&sum)[N], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, ptx::Columns b, bool begun) {
#if ELEMENT == 2
    ptx::wgmma_bf16(sum, a0, a1, a2, a3, b, begun);
#else
    ptx::wgmma_f16(sum, a0, a1, a2, a3, b, begun);
#endif
}

// Starts the product of the weights and N pixels, whose first taps lie at `here`.
template <int N>
__device__ __forceinline__ void multiply(Sums<N>& sum, const Weights& w, ptx::Columns here) {
    ptx::wgmma_fence();
    #pragma unroll
    for (int t = 0; t < TAPS; t += 2) {
        const int tap = tap_bytes(t);
        if (t + 1 < TAPS) {
            const int next = tap_bytes(t + 1) - tap;
            product(sum.main, w.hi[t][0], w.hi[t][1], w.hi[t + 1][0], w.hi[t + 1][1], here.at(tap, next), t > 0);
            if constexpr (PIECES == 2) {
                product(sum.cross, w.lo[t][0], w.lo[t][1], w.lo[t + 1][0], w.lo[t + 1][1], here.at(tap, next), t > 0);
                product(
                    sum.cross, w.hi[t][0], w.hi[t][1], w.hi[t + 1][0], w.hi[t + 1][1], here.at(tap + LO, next), true);
            }
        } else {  // the last of an odd number of taps: hi * hi with nothing beside it, both cross terms in one step
            product(sum.main, w.hi[t][0], w.hi[t][1], 0, 0, here.at(tap, 0), t > 0);
            if constexpr (PIECES == 2)
                product(sum.cross, w.lo[t][0], w.lo[t][1], w.hi[t][0], w.hi[t][1], here.at(tap, LO), t > 0);
        }
    }
    ptx::wgmma_commit();
}

struct Affine { float a[2], b[2]; };  // of two channels: y = a * conv + b

// Finishes the outputs of N pixels from number `first` on and puts them in their runs.
template <int N>
__device__ __forceinline__ void finish(
    const Sums<N>& sum, const Affine& affine, Element* const (&staged)[2], int first, int member) {
    constexpr bool whole = PITCH % N == 0 && N == UNIT;  // all in one row
    #pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const int pixel = first + member * 2 + j * 8;
        const int row = whole ? first / PITCH : pixel / PITCH;
        const int column = whole ? first % PITCH + member * 2 + j * 8 : pixel % PITCH;
        const int next_row = (pixel + 1) / PITCH, next_column = (pixel + 1) % PITCH;
        // Known at compile time where it can be, so that few stores hang on a condition.
        const bool certain = whole && PITCH - UNIT + j * 8 + 8 <= TILE_COLUMNS && TILE_ROWS * PITCH == BODY;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float out[2];
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                const int k = j * 4 + h * 2 + i;
                float dot = sum.main[k];
                if constexpr (PIECES == 2) dot = fmaf(sum.cross[k], 1.0f / LO_SCALE, dot);
                out[i] = fmaf(dot, affine.a[h], affine.b[h]);
                ptx::keep(out[i]);
            }
            const int place = row * TILE_COLUMNS + column, next_place = next_row * TILE_COLUMNS + next_column;
            if (IN_PAIRS) {
                if (certain || (column < TILE_COLUMNS && place < RUN + EXTRA)) {
#if ELEMENT == 0
                    *reinterpret_cast<float2*>(staged[h] + place) = make_float2(out[0], out[1]);
#else
                    *reinterpret_cast<uint32_t*>(staged[h] + place) = pair(out[0], out[1]);
#endif
                }
            } else {
                if (column < TILE_COLUMNS && place < RUN + EXTRA) staged[h][place] = Element(out[0]);
                if (next_column < TILE_COLUMNS && next_place < RUN + EXTRA) staged[h][next_place] = Element(out[1]);
            }
        }
    }
}

// A tile in plain float32 as folded.cu computes it: a warp has 8 channels, a lane two pixels.
__device__ __forceinline__ void finish_plainly(Element* buffer, const Input& in, const Tile& tile, int warp, int lane) {
    const Element* image = in.x + tile.image * IN_CHANNELS * IN_PLANE;
    const int first = blockIdx.y * CHANNELS + warp * 8;
    const int count = tile.count() + (tile.last() ? 0 : EXTRA);
    #pragma unroll 1
    for (int pixel = lane; pixel < count; pixel += 64) {
        int top[2], left[2];
        #pragma unroll
        for (int p = 0; p < 2; p++) {
            top[p] = tile.row + (pixel + p * 32) / TILE_COLUMNS - PAD_TOP;
            left[p] = tile.column + (pixel + p * 32) % TILE_COLUMNS - PAD_LEFT;
        }
        float sum[8][2] = {};
        const Element* filter = in.weight + (long long)first * IN_CHANNELS * TAPS;
        #pragma unroll 1
        for (int k = 0; k < IN_CHANNELS * KERNEL_HEIGHT; k++) {
            const Element* plane = image + k / KERNEL_HEIGHT * IN_PLANE;
            #pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; j++, filter++) {
                float value[2];
                #pragma unroll
                for (int p = 0; p < 2; p++) {
                    const int row = top[p] + k % KERNEL_HEIGHT * DILATION_H, column = left[p] + j * DILATION_W;
                    const bool inside = (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
                    value[p] = inside ? float(plane[(long long)row * WIDTH + column]) : 0.0f;
                }
                #pragma unroll
                for (int c = 0; c < 8; c++) {
                    const float tap = first + c < OUT_CHANNELS ? float(filter[c * IN_CHANNELS * TAPS]) : 0.0f;
                    #pragma unroll
                    for (int p = 0; p < 2; p++) sum[c][p] = fmaf(value[p], tap, sum[c][p]);
                }
            }
        }
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            if (first + c >= OUT_CHANNELS) continue;
            const float a = affine_a(first + c, in.var, in.gamma, in.scaling_factor, in.eps);
            const float offset = affine_shift(first + c, in.bias, in.mean);
            const float b = affine_b(first + c, in.beta, in.scaling_factor);
            Element* staged = buffer + (warp * 8 + c) * RUN_PITCH + shift(tile, warp * 8 + c, first + c);
            #pragma unroll
            for (int p = 0; p < 2; p++)
                if (pixel + p * 32 < count) staged[pixel + p * 32] = Element(a * (sum[c][p] + offset) + b);
        }
    }
}

// The weights of the block's channels on their way through the buffers: lanes want them scattered. A filter has its even
// input channels first, and a pitch of 2 modulo 16: so the lanes of a warp have banks of their own where TAPS is odd.
struct Filters {
    static constexpr int FILTER = IN_CHANNELS * TAPS, PITCH = round_up(FILTER - 2, 16) + 2,
                         EVEN = (IN_CHANNELS + 1) / 2;
    static constexpr int ROUNDS = (FILTER + 31) / 32, SHARE = CHANNELS / CONSUMERS * ROUNDS;  // of a thread
    static_assert(PITCH <= BUFFERS * RUN_PITCH, "they pass through the buffers");
    Element* place;
    __device__ __forceinline__ explicit Filters(Shared& shared) : place(shared.buffer[0]) {}

    __device__ __forceinline__ void fetch(
        Element (&mine)[SHARE], const Element* __restrict__ weight, int warp, int lane) const {
        #pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int channel = blockIdx.y * CHANNELS + warp * CHANNELS / CONSUMERS + i / ROUNDS;
            const int k = lane + i % ROUNDS * 32, slot = k / TAPS;
            const int in_channel = slot < EVEN ? 2 * slot : 2 * (slot - EVEN) + 1;
            const bool real = k < FILTER && channel < OUT_CHANNELS;
            mine[i] = real ? weight[((long long)channel * IN_CHANNELS + in_channel) * TAPS + k % TAPS] : Element(0.0f);
        }
    }
    __device__ __forceinline__ void put(const Element (&mine)[SHARE], int warp, int lane) const {
        #pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int k = lane + i % ROUNDS * 32;
            if (k < FILTER) place[(warp * CHANNELS / CONSUMERS + i / ROUNDS) * PITCH + k] = mine[i];
        }
    }
    // Of the block's channel, and input channel 2 member + j.
    __device__ __forceinline__ float weight(int channel, int member, int j, int tap) const {
        return 2 * member + j < IN_CHANNELS ? float(place[channel * PITCH + (member + j * EVEN) * TAPS + tap]) : 0.0f;
    }
};

__device__ __forceinline__ void consume(Shared& shared, const Input& in, int tiles, int thread) {
    const int warp = __shfl_sync(~0u, thread / 32, 0), lane = thread % 32, group = lane / 4, member = lane % 4;
    const int warpgroup = warp / 4;
    // All that must come from memory is asked for first.
    const Filters filters(shared);
    Element fetched[Filters::SHARE];
    filters.fetch(fetched, in.weight, warp, lane);
    float slope[2];
    [[maybe_unused]] float lost[2];  // by rounding a slope: the part of it that the weights are to carry
    Affine affine;
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int channel = blockIdx.y * CHANNELS + channel_of(warp, h, group);
        const bool real = channel < OUT_CHANNELS;
        const float var = real ? float(in.var[channel]) : 1.0f, mean = real ? float(in.mean[channel]) : 0.0f;
        const float bias = real && in.bias ? float(in.bias[channel]) : 0.0f;
        const float gamma = !real ? 0.0f : in.gamma ? float(in.gamma[channel]) : 1.0f;
        const float beta = real && in.beta ? float(in.beta[channel]) : 0.0f;
        const double a = in.scaling_factor * (double)gamma / sqrt((double)var + in.eps);
        slope[h] = a;
        lost[h] = slope[h] != 0.0f ? float(a / slope[h] - 1.0) : 0.0f;
        affine.b[h] = in.scaling_factor * (double)beta + a * ((double)bias - mean);
    }
    filters.put(fetched, warp, lane);
    all_are_ready();
    Weights w;
    int w_exponent[2];
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        float raw[TAPS][2];
        Range range;
        #pragma unroll
        for (int t = 0; t < TAPS; t++)
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                raw[t][j] = filters.weight(channel_of(warp, h, group), member, j, t);
                range.add(raw[t][j]);
            }
        #pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {  // the four members share the channel
            range.largest = max(range.largest, __shfl_xor_sync(~0u, range.largest, lanes));
            range.smallest = min(range.smallest, __shfl_xor_sync(~0u, range.smallest, lanes));
        }
        w_exponent[h] = ELEMENT ? UNSCALED : exponent_of(range);
        const float scale = ELEMENT ? 1.0f : power_of_two(range.shift());
        #pragma unroll
        for (int t = 0; t < TAPS; t++) {
            const float v0 = raw[t][0] * scale, v1 = raw[t][1] * scale;
#if PIECES == 2
            const float more = (SHORTFALL + lost[h]) * LO_SCALE;
            split(v0, v1, w.hi[t][h], w.lo[t][h], v0 * more, v1 * more);
#else
            w.hi[t][h] = pair(v0, v1);
#endif
        }
        if (!isfinite(slope[h]) || !isfinite(affine.b[h]) || (ELEMENT == 0 && !range.splits())) {
            atomicMax(&shared.most, PLAIN);
        } else if (ELEMENT == 0 && slope[h] != 0.0f && range.largest > 0) {
            const int exponent = w_exponent[h] + ilogbf(slope[h]);
            atomicMax(&shared.most, exponent);
            atomicMin(&shared.least, exponent);
        }
    }
    ptx::named_barrier_sync(2, CONSUMERS * 32);
    const int most = shared.most, least = shared.least;

    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, step++) {
        const Tile here(tile);
        const int s = step % STAGES, buffer = step % BUFFERS;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        const int exponent = shared.exponent[s] - 2 * UNSCALED;
        if (exponent + most > 126 || exponent + least < -126) {
            if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
            ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);
            finish_plainly(shared.buffer[buffer], in, here, warp, lane);
        } else {
            const ptx::Columns columns(shared.stage[s]);
            Sums<UNIT> sum[OVERLAP];  // of this unit and the next: one is multiplied while the other is finished
            Sums<TAIL == 16 ? 16 : 8> tail;
            const bool has_tail = TAIL && step % 2 == warpgroup;  // the warpgroups take turns
            multiply(sum[0], w, columns.at(warpgroup * UNIT * 16, 0));
            Element* staged[2];
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const int channel = channel_of(warp, h, group), e = exponent + w_exponent[h];
                staged[h] =
                    shared.buffer[buffer] + channel * RUN_PITCH + shift(here, channel, blockIdx.y * CHANNELS + channel);
                affine.a[h] = slope[h] * power_of_two(e / 2) * power_of_two(e - e / 2);  // 2^e may be no number
            }
            ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);
            #pragma unroll
            for (int unit = 0; unit < MY_UNITS; unit++) {
                if (OVERLAP == 2 && unit + 1 < MY_UNITS) {
                    multiply(sum[(unit + 1) % OVERLAP], w, columns.at((warpgroup + 2 * unit + 2) * UNIT * 16, 0));
                    ptx::wgmma_wait<1>();
                } else {
                    if (OVERLAP == 1 && unit > 0)
                        multiply(sum[0], w, columns.at((warpgroup + 2 * unit) * UNIT * 16, 0));
                    if (unit + 1 == MY_UNITS && has_tail) multiply(tail, w, columns.at(BODY * 16, 0));
                    ptx::wgmma_wait<0>();
                    if (unit + 1 == MY_UNITS && lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
                }
                finish(sum[unit % OVERLAP], affine, staged, (warpgroup + 2 * unit) * UNIT, member);
            }
            if (has_tail) finish(tail, affine, staged, BODY, member);
        }
        ptx::fence_async_shared();
        __syncwarp();
        if (HANDS == 32 || lane == 0) ptx::mbarrier_arrive(&shared.staged[buffer]);
    }
}

// ---- storing ----------------------------------------------------------------------------------------------------------

// What its tile stores of a channel's run: from sector to sector, but for the edges of the plane.
struct Piece {
    int begin, end;            // from the run's first output
    int bulk_begin, bulk_end;  // the part between multiples of 16 bytes, which bulk copies can carry
    __device__ __forceinline__ Piece(const Tile& tile, int channel) {
        const unsigned run = tile.run(channel), count = tile.count();  // the last bits tell where sectors begin
        begin = EXTRA && tile.row > 0 ? -run % SECTOR : 0;
        end = count + (EXTRA && !tile.last() ? -(run + count) % SECTOR : 0);
        bulk_begin = RAGGED ? min(end, begin + int(-(run + begin) % ATOM)) : begin;
        bulk_end = RAGGED ? max(bulk_begin, end - int((run + end) % ATOM)) : end;
    }
};

// What all wait for at first.
__device__ __forceinline__ void prepare(Shared& shared, int lane) {
    if (lane == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&shared.full[s], PRODUCERS);
            ptx::mbarrier_init(&shared.empty[s], CONSUMERS);
        }
        for (int i = 0; i < BUFFERS; i++) {
            ptx::mbarrier_init(&shared.staged[i], CONSUMERS * HANDS);
            ptx::mbarrier_init(&shared.stored[i], STORERS * HANDS);
        }
        ptx::mbarrier_init_fence();
        shared.most = -300;
        shared.least = 300;
    }
    // Pixels that no tile has, which whole units read for outputs that nobody stores.
    for (int s = 0; s < STAGES; s++)
        for (int pixel = IN_PIXELS + lane; pixel < STAGED_PIXELS; pixel += 32)
            for (int half = 0; half < PIECES * LO; half += LO)
                *reinterpret_cast<uint4*>(&shared.stage[s][half + pixel * 16]) = make_uint4(0, 0, 0, 0);
    ptx::fence_async_shared();
}

// MINE, which of the storing warps this is, is no variable: what bulk copies are told must be known to be the same for all
// lanes, or each copy costs a search for the lanes that differ. The warps share out the channels of every tile.
template <int MINE>
__device__ __forceinline__ void store(Shared& shared, Element* __restrict__ y, int tiles, int lane) {
    constexpr int FIRST = MINE * CHANNELS / STORERS;  // of this warp's channels
    const int first_channel = blockIdx.y * CHANNELS + FIRST;
    const int channels =  // which may be none
        OUT_CHANNELS % CHANNELS ? min(CHANNELS / STORERS, OUT_CHANNELS - first_channel) : CHANNELS / STORERS;
    const bool chosen = ptx::elect();
    if (MINE == 0) prepare(shared, lane);
    all_are_ready();
    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, step++) {
        const Tile here(tile);
        const int buffer = step % BUFFERS;
        Element* plane = y + here.run(first_channel);
        const Element* staged = shared.buffer[buffer] + FIRST * RUN_PITCH;
        ptx::mbarrier_wait(&shared.staged[buffer], step / BUFFERS % 2);
        if (chosen) {
            #pragma unroll 1
            for (int i = 0; i < PERIOD && i < channels; i++) {
                const Piece piece(here, first_channel + i);
                const int bytes = (piece.bulk_end - piece.bulk_begin) * int(sizeof(Element));
                if (RAGGED && bytes == 0) continue;
                Element* to = plane + i * OUT_PLANE + piece.bulk_begin;
                const Element* from =
                    staged + i * RUN_PITCH + shift(here, FIRST + i, first_channel + i) + piece.bulk_begin;
                #pragma unroll 8
                for (int channel = i; channel < channels; channel += PERIOD) {
                    ptx::bulk_store(to, from, bytes);
                    to += PERIOD * OUT_PLANE;
                    from += PERIOD * RUN_PITCH;
                }
            }
            ptx::bulk_commit();
        }
        if (RAGGED && lane < channels) {
            const Piece piece(here, first_channel + lane);
            const Element* run = staged + lane * RUN_PITCH + shift(here, FIRST + lane, first_channel + lane);
            Element* to = plane + lane * OUT_PLANE;
            for (int i = piece.begin; i < piece.bulk_begin; i++) to[i] = run[i];
            for (int i = piece.bulk_end; i < piece.end; i++) to[i] = run[i];
        }
        if (chosen) ptx::bulk_wait_read<0>();
        __syncwarp();
        if (HANDS == 32 || lane == 0) ptx::mbarrier_arrive(&shared.stored[buffer]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pipeline(
    const Element* __restrict__ x,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,       // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [OUT_CHANNELS]
    const Vector* __restrict__ running_var,   // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH], 32-byte aligned
    long long batch) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int tiles = int(batch) * TILES_PER_PLANE;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < CONSUMERS) {
        ptx::more_registers<168>();
        const Input in = {x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps};
        consume(shared, in, tiles, threadIdx.x);
    } else {
        ptx::fewer_registers<88>();
        if (warp < CONSUMERS + PRODUCERS) produce(shared, x, tiles, threadIdx.x - CONSUMERS * 32);
        else if (warp == CONSUMERS + PRODUCERS) store<0>(shared, y, tiles, threadIdx.x % 32);
        else store<1>(shared, y, tiles, threadIdx.x % 32);
    }
}
