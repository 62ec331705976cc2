// y = a * conv2d(x, weight) + b, folded.cu's operator, as an asynchronous pipeline over the tensor cores of sm_90a.
//
// An implicit matrix product: M = 64 output channels, N = pixels of a tile, K = taps x 8 input channels. Persistent blocks
// of 16 warps take tiles; the warps are specialists, and mbarriers pass the tiles on:
//   warps 0-7    multiply: two warpgroups; weights live in registers (a), pixels stay where they lie (b: a tap is an offset)
//   warps 8-13   load: one lane a pixel, all channels; scale, split, write rows of 8 channels
//   warps 14-15  store: a buffer each, one bulk copy a channel
//
// Float32 from fp16: scaled by powers of two so that the largest magnitude (of the tile; of the channel's weights) lies in
// [2^14, 2^15), a number is hi + lo / 4096 to 23 bits, and a product hi hi' + (hi lo' + lo hi') / 4096, each sum accumulated
// in fp32. The tensor core truncates where an addition rounds: hi hi' is dealt among CHAINS accumulators, and what truncation
// takes off on average is added again.
// That holds down to 2^-14, 28 bits under the largest. What has a nonzero magnitude below, or is not finite, or would
// overflow when the scales are undone, is computed plainly: the same warps, folded.cu's sums, from global memory.
//
// Serves stride 1, one group, up to 8 input channels and 9 taps, any padding and dilation. Sizes are compile-time constants:
//   IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH
//   PAD_TOP PAD_LEFT DILATION_H DILATION_W
//   TILE_ROWS TILE_COLUMNS    outputs of a tile; TILE_COLUMNS is OUT_WIDTH, or TILE_ROWS is 1
//   SHARED_BYTES              dynamic shared memory, as fusedref/fused.py reckons it
//
// Launch: block (512), grid (any number of blocks, at best one per multiprocessor; OUT_CHANNELS / 64, rounded up).
#include <cuda_fp16.h>
#include "ptx.cuh"

constexpr int STAGES = 3, BUFFERS = 2;  // tiles of pixels, and of outputs, in shared memory
constexpr int AHEAD = 2;                // tiles that the L2 cache is asked for before their turn
constexpr int CHANNELS = 64;  // output channels of a block
constexpr int UNIT = 32;      // pixels of one product
constexpr int CHAINS = 2;     // with longer units the registers would not suffice for products that overlap
constexpr int CONSUMERS = 8, STORERS = BUFFERS, PRODUCERS = 8 - STORERS;  // warps
constexpr int LOADING_THREADS = PRODUCERS * 32;
constexpr int THREADS = (CONSUMERS + PRODUCERS + STORERS) * 32;
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int STEPS = (TAPS + 1) / 2;  // of k = 16: two taps
constexpr int SUMS = CHAINS < STEPS ? CHAINS : STEPS;
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH;
constexpr long long OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
constexpr int TILES_DOWN = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS;
constexpr int TILES_ACROSS = (OUT_WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;
constexpr int TILES_PER_PLANE = TILES_DOWN * TILES_ACROSS;
constexpr int IN_ROWS = TILE_ROWS + (KERNEL_HEIGHT - 1) * DILATION_H;
constexpr int PITCH = TILE_COLUMNS + (KERNEL_WIDTH - 1) * DILATION_W;  // pixels of a row in shared memory
constexpr int IN_PIXELS = IN_ROWS * PITCH;
constexpr int SHARE = (IN_PIXELS + LOADING_THREADS - 1) / LOADING_THREADS;  // pixels that a loading thread holds
constexpr int MY_UNITS = (TILE_ROWS * PITCH + 2 * UNIT - 1) / (2 * UNIT);   // of a warpgroup
constexpr int STAGED_PIXELS =  // whole units are read, with their last tap
    2 * MY_UNITS * UNIT + (KERNEL_HEIGHT - 1) * DILATION_H * PITCH + (KERNEL_WIDTH - 1) * DILATION_W;
constexpr int LO = STAGED_PIXELS * 16;  // bytes from a pixel's hi to its lo
constexpr int RUN = TILE_ROWS * TILE_COLUMNS;  // consecutive outputs of a tile's channel
// Floats from one channel's run in a buffer to the next: 4 modulo 16, so that a store's channels have banks of their own.
constexpr int RUN_PITCH = (RUN + 15) / 16 * 16 + 4;
constexpr float LO_SCALE = 4096.0f;
// By how much a sum falls short, each step being cut off towards zero: half a unit of its last place a time.
constexpr float SHORTFALL = STEPS / 5.0f / 16777216;
constexpr int PLAIN = 1000;  // an exponent that no finite tile has

// Whether every run starts and ends at a multiple of 16 bytes, as bulk copies want it.
constexpr bool BULK = OUT_PLANE % 4 == 0 && (TILES_DOWN == 1 || TILE_ROWS * OUT_WIDTH % 4 == 0)
    && (TILES_ACROSS == 1 || (OUT_WIDTH % 4 == 0 && TILE_COLUMNS % 4 == 0));
// Lanes of a warp that report a filled or an emptied buffer. One does for its warp, behind __syncwarp. Where the storing
// warps read by ordinary loads all do, so that racecheck, which follows each thread by itself, can see the order.
constexpr int HANDS = BULK ? 1 : 32;
constexpr bool IN_PAIRS = PITCH % 2 == 0 && TILE_COLUMNS % 2 == 0;  // outputs 2 n and 2 n + 1 of a row: one store

static_assert(IN_CHANNELS <= 8 && TAPS <= 9 && (TILE_COLUMNS == OUT_WIDTH || TILE_ROWS == 1), "what this kernel serves");

struct Shared {
    alignas(128) unsigned char stage[STAGES][2 * LO];
    alignas(128) float buffer[BUFFERS][CHANNELS * RUN_PITCH];
    uint64_t full[STAGES], empty[STAGES], staged[BUFFERS], stored[BUFFERS];
    int exponent[STAGES];  // of the tile's largest magnitude, or PLAIN
    unsigned largest[2][PRODUCERS], smallest[2][PRODUCERS];
    int weight_exponent;   // the largest of the block's channels, or PLAIN
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan reckons otherwise");

struct Input {
    const float *x, *weight, *bias, *mean, *var, *gamma, *beta;
    float scaling_factor, eps;
};

// Where a tile lies.
struct Tile {
    long long image;
    int row, column;  // of its first output
    __device__ __forceinline__ explicit Tile(int tile)
        : image(tile / TILES_PER_PLANE), row(tile % TILES_PER_PLANE / TILES_ACROSS * TILE_ROWS),
          column(TILES_ACROSS == 1 ? 0 : tile % TILES_ACROSS * TILE_COLUMNS) {}
    // Its place in a plane of y, and how many of its outputs exist.
    __device__ __forceinline__ long long first() const { return (long long)row * OUT_WIDTH + column; }
    __device__ __forceinline__ int count() const
    {
        return TILES_ACROSS == 1 ? int(min((long long)RUN, OUT_PLANE - first())) : min(TILE_COLUMNS, OUT_WIDTH - column);
    }
};

// ---- numbers ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t bits(__half2 h) { return *reinterpret_cast<uint32_t*>(&h); }

// (v0, v1) as hi + lo / LO_SCALE in fp16.
__device__ __forceinline__ void split(float v0, float v1, uint32_t& hi, uint32_t& lo)
{
    const __half2 h = __floats2half2_rn(v0, v1);
    const float2 f = __half22float2(h);
    hi = bits(h);
    lo = bits(__floats2half2_rn((v0 - f.x) * LO_SCALE, (v1 - f.y) * LO_SCALE));
}

// The largest magnitude of many numbers, and the smallest but for zero, as bits; the smallest less 1, so that 0 is none.
struct Range {
    unsigned largest = 0, smallest = ~0u;
    __device__ __forceinline__ void add(float value)
    {
        const unsigned magnitude = __float_as_uint(value) & 0x7fffffffu;
        largest = max(largest, magnitude);
        smallest = min(smallest, magnitude - 1);
    }
    __device__ __forceinline__ int exponent() const { return max(int(largest >> 23) - 127, -112); }
    // Times this, all are under 2^15.
    __device__ __forceinline__ float scale() const { return __int_as_float((14 - exponent() + 127) << 23); }
    // Whether two pieces hold each of the numbers to 23 bits.
    __device__ __forceinline__ bool splits() const
    {
        const float least = __uint_as_float(smallest + 1) * scale();
        return largest < 0x7f800000u && (smallest == ~0u || least >= 1.0f / 16384);
    }
};

__device__ __forceinline__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// ---- loading ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void load_tile(float (&raw)[SHARE][8], const float* __restrict__ x, const Tile& tile, int thread)
{
    const float* image = x + tile.image * IN_CHANNELS * IN_PLANE;
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int pixel = thread + i * LOADING_THREADS;
        const int row = tile.row - PAD_TOP + pixel / PITCH, column = tile.column - PAD_LEFT + pixel % PITCH;
        const bool inside = pixel < IN_PIXELS && (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
        const float* from = image + (long long)row * WIDTH + column;
        #pragma unroll
        for (int channel = 0; channel < 8; channel++)
            raw[i][channel] = inside && channel < IN_CHANNELS ? __ldg(from + channel * IN_PLANE) : 0.0f;
    }
}

// Under the weight of the stores a read from memory takes microseconds: it has to be under way tiles ahead.
__device__ __forceinline__ void prefetch_tile(const float* __restrict__ x, const Tile& tile, int thread)
{
    constexpr int LINES = (PITCH + 31) / 32;
    const float* image = x + tile.image * IN_CHANNELS * IN_PLANE;
    for (int i = thread; i < IN_CHANNELS * IN_ROWS * LINES; i += LOADING_THREADS) {
        const int row = tile.row - PAD_TOP + i / LINES % IN_ROWS, column = tile.column - PAD_LEFT + i % LINES * 32;
        if ((unsigned)row < HEIGHT && (unsigned)column < WIDTH)
            ptx::prefetch_l2(image + i / (LINES * IN_ROWS) * IN_PLANE + row * WIDTH + column);
    }
}

__device__ __forceinline__ void produce(Shared& shared, const float* __restrict__ x, int tiles, int thread)
{
    const int warp = thread / 32, lane = thread % 32;
    float raw[SHARE][8];
    if (blockIdx.x < tiles) load_tile(raw, x, Tile(blockIdx.x), thread);
    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, step++) {
        if (tile + AHEAD * gridDim.x < tiles) prefetch_tile(x, Tile(tile + AHEAD * gridDim.x), thread);
        Range range;
        #pragma unroll
        for (int i = 0; i < SHARE; i++)
            #pragma unroll
            for (int channel = 0; channel < IN_CHANNELS; channel++) range.add(raw[i][channel]);
        range.largest = __reduce_max_sync(~0u, range.largest);
        range.smallest = __reduce_min_sync(~0u, range.smallest);
        if (lane == 0) {
            shared.largest[step % 2][warp] = range.largest;
            shared.smallest[step % 2][warp] = range.smallest;
        }
        ptx::named_barrier_sync(1, LOADING_THREADS);
        #pragma unroll
        for (int i = 0; i < PRODUCERS; i++) {
            range.largest = max(range.largest, shared.largest[step % 2][i]);
            range.smallest = min(range.smallest, shared.smallest[step % 2][i]);
        }
        const float scale = range.scale();

        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
        #pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int pixel = thread + i * LOADING_THREADS;
            if (IN_PIXELS % LOADING_THREADS == 0 || pixel < IN_PIXELS) {
                uint32_t hi[4], lo[4];
                #pragma unroll
                for (int c = 0; c < 4; c++) split(raw[i][2 * c] * scale, raw[i][2 * c + 1] * scale, hi[c], lo[c]);
                *reinterpret_cast<uint4*>(&shared.stage[s][pixel * 16]) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
                *reinterpret_cast<uint4*>(&shared.stage[s][pixel * 16 + LO]) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
            }
        }
        if (thread == 0) shared.exponent[s] = range.splits() ? range.exponent() : PLAIN;
        ptx::fence_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.full[s]);
        if (tile + gridDim.x < tiles) load_tile(raw, x, Tile(tile + gridDim.x), thread);
    }
}

// ---- multiplying ------------------------------------------------------------------------------------------------------

// Bytes in shared memory from a window's first tap to tap t.
__host__ __device__ constexpr int tap_bytes(int t)
{
    return (t / KERNEL_WIDTH * DILATION_H * PITCH + t % KERNEL_WIDTH * DILATION_W) * 16;
}

struct Weights { uint32_t hi[TAPS][2], lo[TAPS][2]; };  // of two channels, input channels 2 member and 2 member + 1
struct Accumulators { float cross[UNIT / 2], part[SUMS][UNIT / 2]; };

// The channel of a thread's matrix row: even ones first in each 16, which keeps the banks of staged runs apart.
__device__ __forceinline__ int channel_of(int warp, int h, int group) { return warp % 4 * 16 + 2 * group + h; }

// Floats from a channel's place in a buffer to its run there. The copy engine takes one and a third times as long where
// source and destination differ modulo 32 bytes.
__device__ __forceinline__ int shift(const float* y, const Tile& tile, int channel, int out_channel)
{
    const long long run = (tile.image * OUT_CHANNELS + out_channel) * OUT_PLANE + tile.first();
    return BULK ? unsigned(reinterpret_cast<uintptr_t>(y) / 4 + run - channel * RUN_PITCH) % 8 : 0;
}

// Starts the product of the weights and UNIT pixels, whose first taps lie at `rows`.
__device__ __forceinline__ void multiply(Accumulators& sum, const Weights& w, const unsigned char* rows)
{
    ptx::wgmma_fence();
    #pragma unroll
    for (int t = 0; t < TAPS; t += 2) {
        const int p = t / 2 * SUMS / STEPS;
        const bool begun = t > 0 && (t / 2 - 1) * SUMS / STEPS == p;
        const unsigned char* here = rows + tap_bytes(t);
        if (t + 1 < TAPS) {
            const int next = tap_bytes(t + 1) - tap_bytes(t);
            ptx::wgmma_f16(sum.part[p], w.hi[t][0], w.hi[t][1], w.hi[t + 1][0], w.hi[t + 1][1], here, next, begun);
            ptx::wgmma_f16(sum.cross, w.lo[t][0], w.lo[t][1], w.lo[t + 1][0], w.lo[t + 1][1], here, next, t > 0);
            ptx::wgmma_f16(sum.cross, w.hi[t][0], w.hi[t][1], w.hi[t + 1][0], w.hi[t + 1][1], here + LO, next, true);
        } else {  // the last of an odd number of taps: hi * hi with nothing beside it, both cross terms in one step
            ptx::wgmma_f16(sum.part[p], w.hi[t][0], w.hi[t][1], 0, 0, here, 0, begun);
            ptx::wgmma_f16(sum.cross, w.lo[t][0], w.lo[t][1], w.hi[t][0], w.hi[t][1], here, LO, t > 0);
        }
    }
    ptx::wgmma_commit();
}

struct Affine { float unscale[2], a[2], b[2]; };

// Finishes a unit's outputs and puts them in their runs.
__device__ __forceinline__ void finish(
    const Accumulators& sum, const Affine& affine, float* const (&staged)[2], int unit, int member)
{
    constexpr bool whole = PITCH % UNIT == 0;  // a unit lies in one row
    const int first = unit * UNIT + member * 2;
    #pragma unroll
    for (int j = 0; j < UNIT / 8; j++) {
        const int pixel = first + j * 8;
        const int row = whole ? unit / (PITCH / UNIT) : pixel / PITCH;
        const int column = whole ? unit % (PITCH / UNIT) * UNIT + member * 2 + j * 8 : pixel % PITCH;
        const int next_row = (pixel + 1) / PITCH, next_column = (pixel + 1) % PITCH;
        // Known at compile time where it can be, so that few stores hang on a condition.
        const bool certain = whole && PITCH - UNIT + j * 8 + 8 <= TILE_COLUMNS && TILE_ROWS * PITCH % (2 * UNIT) == 0;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float out[2];
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                const int k = j * 4 + h * 2 + i;
                float dot = sum.part[0][k];
                #pragma unroll
                for (int p = 1; p < SUMS; p++) dot += sum.part[p][k];
                dot = fmaf(fmaf(dot, SHORTFALL * LO_SCALE, sum.cross[k]), 1.0f / LO_SCALE, dot);
                out[i] = fmaf(dot * affine.unscale[h], affine.a[h], affine.b[h]);
                ptx::keep(out[i]);
            }
            float* place = staged[h] + row * TILE_COLUMNS + column;
            const bool real = certain || (column < TILE_COLUMNS && row < TILE_ROWS);
            if (IN_PAIRS) {
                if (real) *reinterpret_cast<float2*>(place) = make_float2(out[0], out[1]);
            } else {
                if (real) *place = out[0];
                if (next_column < TILE_COLUMNS && next_row < TILE_ROWS)
                    staged[h][next_row * TILE_COLUMNS + next_column] = out[1];
            }
        }
    }
}

// A tile in plain float32 as folded.cu computes it: a warp has 8 channels, a lane two pixels.
__device__ __forceinline__ void finish_plainly(
    float* buffer, const Input& in, const float* y, const Tile& tile, int warp, int lane)
{
    const float* image = in.x + tile.image * IN_CHANNELS * IN_PLANE;
    const int first = blockIdx.y * CHANNELS + warp * 8;
    #pragma unroll 1
    for (int pixel = lane; pixel < tile.count(); pixel += 64) {
        int top[2], left[2];
        #pragma unroll
        for (int p = 0; p < 2; p++) {
            top[p] = tile.row + (pixel + p * 32) / TILE_COLUMNS - PAD_TOP;
            left[p] = tile.column + (pixel + p * 32) % TILE_COLUMNS - PAD_LEFT;
        }
        float sum[8][2] = {};
        const float* filter = in.weight + (long long)first * IN_CHANNELS * TAPS;
        #pragma unroll 1
        for (int k = 0; k < IN_CHANNELS * KERNEL_HEIGHT; k++) {
            const float* plane = image + k / KERNEL_HEIGHT * IN_PLANE;
            #pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; j++, filter++) {
                float value[2];
                #pragma unroll
                for (int p = 0; p < 2; p++) {
                    const int row = top[p] + k % KERNEL_HEIGHT * DILATION_H, column = left[p] + j * DILATION_W;
                    const bool inside = (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
                    value[p] = inside ? __ldg(plane + (long long)row * WIDTH + column) : 0.0f;
                }
                #pragma unroll
                for (int c = 0; c < 8; c++) {
                    const float tap = first + c < OUT_CHANNELS ? __ldg(filter + c * IN_CHANNELS * TAPS) : 0.0f;
                    #pragma unroll
                    for (int p = 0; p < 2; p++) sum[c][p] = fmaf(value[p], tap, sum[c][p]);
                }
            }
        }
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            const int channel = first + c;
            if (channel >= OUT_CHANNELS) continue;
            const float a = in.scaling_factor * (in.gamma ? in.gamma[channel] : 1.0f) / sqrtf(in.var[channel] + in.eps);
            const float offset = (in.bias ? in.bias[channel] : 0.0f) - in.mean[channel];
            const float b = in.beta ? in.scaling_factor * in.beta[channel] : 0.0f;
            float* staged = buffer + (warp * 8 + c) * RUN_PITCH + shift(y, tile, warp * 8 + c, channel);
            #pragma unroll
            for (int p = 0; p < 2; p++)
                if (pixel + p * 32 < tile.count()) staged[pixel + p * 32] = a * (sum[c][p] + offset) + b;
        }
    }
}

__device__ __forceinline__ void consume(Shared& shared, const Input& in, const float* y, int tiles, int thread)
{
    const int warp = __shfl_sync(~0u, thread / 32, 0), lane = thread % 32, group = lane / 4, member = lane % 4;
    const int warpgroup = warp / 4;
    Weights w;
    int w_exponent[2];
    float slope[2];
    Affine affine;
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int channel = blockIdx.y * CHANNELS + channel_of(warp, h, group);
        const bool real = channel < OUT_CHANNELS;
        const double a = real
            ? in.scaling_factor * (in.gamma ? (double)in.gamma[channel] : 1.0) / sqrt((double)in.var[channel] + in.eps) : 0.0;
        slope[h] = a;
        affine.b[h] = real ? in.scaling_factor * (in.beta ? (double)in.beta[channel] : 0.0)
                + a * ((in.bias ? (double)in.bias[channel] : 0.0) - in.mean[channel]) : 0.0;
    }
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int channel = blockIdx.y * CHANNELS + channel_of(warp, h, group);
        float raw[TAPS][2];
        Range range;
        #pragma unroll
        for (int j = 0; j < 2; j++)
            #pragma unroll
            for (int t = 0; t < TAPS; t++) {
                const int in_channel = member * 2 + j;
                raw[t][j] = channel < OUT_CHANNELS && in_channel < IN_CHANNELS
                    ? __ldg(in.weight + ((long long)channel * IN_CHANNELS + in_channel) * TAPS + t) : 0.0f;
                range.add(raw[t][j]);
            }
        #pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {  // the four members share the channel
            range.largest = max(range.largest, __shfl_xor_sync(~0u, range.largest, lanes));
            range.smallest = min(range.smallest, __shfl_xor_sync(~0u, range.smallest, lanes));
        }
        w_exponent[h] = range.exponent();
        const float scale = range.scale();
        #pragma unroll
        for (int t = 0; t < TAPS; t++) split(raw[t][0] * scale, raw[t][1] * scale, w.hi[t][h], w.lo[t][h]);
        const bool plain = !range.splits() || !isfinite(slope[h]) || !isfinite(affine.b[h]);
        atomicMax(&shared.weight_exponent, plain ? PLAIN : w_exponent[h]);
    }
    ptx::named_barrier_sync(2, CONSUMERS * 32);
    const int largest_w_exponent = shared.weight_exponent;

    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, step++) {
        const Tile here(tile);
        const int s = step % STAGES, buffer = step % BUFFERS;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        const int x_exponent = shared.exponent[s];
        const unsigned char* rows = shared.stage[s];
        if (x_exponent + largest_w_exponent - 28 > 127) {
            if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
            ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);
            finish_plainly(shared.buffer[buffer], in, y, here, warp, lane);
        } else {
            Accumulators sum;
            multiply(sum, w, rows + warpgroup * UNIT * 16);
            float* staged[2];
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const int channel = channel_of(warp, h, group);
                staged[h] = shared.buffer[buffer] + channel * RUN_PITCH
                    + shift(y, here, channel, blockIdx.y * CHANNELS + channel);
                // The scales are undone in two steps where one would be too small a number.
                const int e = x_exponent + w_exponent[h] - 28, within = max(-126, e);
                affine.unscale[h] = power_of_two(within);
                affine.a[h] = slope[h] * power_of_two(max(-126, e - within));
            }
            ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);
            #pragma unroll 1
            for (int i = 0; i < MY_UNITS; i++) {
                if (i > 0) multiply(sum, w, rows + (warpgroup + 2 * i) * UNIT * 16);
                ptx::wgmma_wait<0>();
                if (i + 1 == MY_UNITS && lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
                finish(sum, affine, staged, warpgroup + 2 * i, member);
            }
        }
        ptx::fence_async_shared();
        __syncwarp();
        if (HANDS == 32 || lane == 0) ptx::mbarrier_arrive(&shared.staged[buffer]);
    }
}

// ---- storing ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void store(Shared& shared, float* __restrict__ y, int tiles, int mine, int lane)
{
    const int first_channel = blockIdx.y * CHANNELS, channels = min(CHANNELS, OUT_CHANNELS - first_channel);
    int step = mine;
    const long long stride = (long long)BUFFERS * gridDim.x;
    for (long long tile = blockIdx.x + (long long)mine * gridDim.x; tile < tiles; tile += stride, step += BUFFERS) {
        const Tile here(tile);
        ptx::mbarrier_wait(&shared.staged[mine], step / BUFFERS % 2);
        float* plane = y + (here.image * OUT_CHANNELS + first_channel) * OUT_PLANE + here.first();
        if (BULK) {
            const bool chosen = ptx::elect();
            #pragma unroll 1
            for (int base = 0; base < channels; base += 32) {
                // Each lane works out the copy of its channel; one lane starts them all, from values that all lanes have.
                const int channel = base + lane;
                const uint64_t to = reinterpret_cast<uint64_t>(plane + channel * OUT_PLANE);
                const uint64_t from = reinterpret_cast<uint64_t>(
                    shared.buffer[mine] + channel * RUN_PITCH + shift(y, here, channel, first_channel + channel));
                #pragma unroll 8
                for (int i = 0; i < 32; i++) {
                    float* global = reinterpret_cast<float*>(__shfl_sync(~0u, to, i));
                    const float* local = reinterpret_cast<const float*>(__shfl_sync(~0u, from, i));
                    if (chosen && base + i < channels) ptx::bulk_store(global, local, here.count() * 4);
                }
            }
            if (chosen) {
                ptx::bulk_commit();
                ptx::bulk_wait_read<0>();
            }
        } else {
            #pragma unroll 1
            for (int channel = 0; channel < channels; channel++)
                #pragma unroll 4
                for (int i = lane; i < here.count(); i += 32)
                    plane[channel * OUT_PLANE + i] = shared.buffer[mine][channel * RUN_PITCH + i];
        }
        __syncwarp();
        if (HANDS == 32 || lane == 0) ptx::mbarrier_arrive(&shared.stored[mine]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pipeline(
    const float* __restrict__ x,             // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const float* __restrict__ weight,        // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const float* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const float* __restrict__ running_mean,  // [OUT_CHANNELS]
    const float* __restrict__ running_var,   // [OUT_CHANNELS]
    const float* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const float* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor, float eps,
    float* __restrict__ y,                   // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH], 16-byte aligned
    long long batch)
{
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&shared.full[s], PRODUCERS);
            ptx::mbarrier_init(&shared.empty[s], CONSUMERS);
        }
        for (int i = 0; i < BUFFERS; i++) {
            ptx::mbarrier_init(&shared.staged[i], CONSUMERS * HANDS);
            ptx::mbarrier_init(&shared.stored[i], HANDS);
        }
        ptx::mbarrier_init_fence();
        shared.weight_exponent = -PLAIN;
    }
    // Pixels that no tile has, which whole units read for outputs that nobody stores.
    for (int s = 0; s < STAGES; s++)
        for (int pixel = IN_PIXELS + threadIdx.x; pixel < STAGED_PIXELS; pixel += THREADS)
            for (int half = 0; half < 2 * LO; half += LO)
                *reinterpret_cast<uint4*>(&shared.stage[s][half + pixel * 16]) = make_uint4(0, 0, 0, 0);
    ptx::fence_async_shared();
    __syncthreads();
    const int tiles = int(batch) * TILES_PER_PLANE;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < CONSUMERS) {
        ptx::more_registers<168>();
        const Input in = {x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps};
        consume(shared, in, y, tiles, threadIdx.x);
    } else {
        ptx::fewer_registers<88>();
        if (warp < CONSUMERS + PRODUCERS) produce(shared, x, tiles, threadIdx.x - CONSUMERS * 32);
        else store(shared, y, tiles, warp - CONSUMERS - PRODUCERS, threadIdx.x % 32);
    }
}
