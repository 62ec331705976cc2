// The gradient of a convolution's weight in float32, on the tensor cores of sm_80 and later:
//   dweight[o, c, i, j] = sum over images and pixels (p, q) of dz[o, p, q] x[c, p STRIDE_H - PAD_TOP + i DILATION_H, ...]
//
// A matrix product: M = output channels, N = taps x input channels, K = pixels. A block computes M_CHANNELS output channels
// by some slices of 8 input channels and some taps, over a part of the tiles of pixels; sum_weight_gradient adds the parts in
// a fixed order, in float64.
//   load       a tile of dz and what its windows reach of x, from global memory to registers, during the products before
//   prepare    one power of two scales the tile of dz, one that of x; split both into two numbers of fp16 (split.cuh).
//              Shared memory has dz as [channel][pixel], and x as [pixel][8 channels], so that a tap is an offset
//   multiply   mma, 16 pixels at a time. As in implicit_gemm.cu, each product of the high numbers starts from zero, and the
//              FFMA that adds it to the sum brings it to the scale of the sum
//
// A magnitude of less than 2^-29 of the largest in its tile loses bits: all of them at 2^-52. Infinities become NaN, which
// stay in their channels.
//
// Sizes are compile-time constants, those of implicit_gemm.cu and
//   TILE_ROWS TILE_COLUMNS    pixels of a tile: columns a multiple of 8, all a multiple of 16
//   WARP_ROWS                 output channels of a warp / 16
//   WARP_SLICES WARP_TAPS     slices of input channels and taps of a warp
//   WARPS_DOWN WARPS_ACROSS   warps that share the output channels, and the slices and taps, of a block
//   BLOCKS                    resident blocks per multiprocessor that registers must allow
//
// Launch: block (32 WARPS_DOWN WARPS_ACROSS), grid (blocks for all slices and taps, ROW_BLOCKS GROUPS, parts).
#include <cstdint>

#include "ptx.cuh"
#include "split.cuh"
#include "sum_of_parts.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int GROUP_IN = IN_CHANNELS / GROUPS, GROUP_OUT = OUT_CHANNELS / GROUPS;
constexpr int SLICES = (GROUP_IN + 7) / 8;
constexpr int TAP_RANGES = (TAPS + WARP_TAPS - 1) / WARP_TAPS;
constexpr int M_CHANNELS = 16 * WARP_ROWS * WARPS_DOWN;
constexpr int ROW_BLOCKS = (GROUP_OUT + M_CHANNELS - 1) / M_CHANNELS;
// A block's warps share whole slices, or one range of them: so its slices follow from its first warp's.
static_assert(WARPS_ACROSS % TAP_RANGES == 0 || TAP_RANGES % WARPS_ACROSS == 0, "the plan's geometry");
constexpr int BLOCK_SLICES = WARP_SLICES * (WARPS_ACROSS / TAP_RANGES > 0 ? WARPS_ACROSS / TAP_RANGES : 1);

constexpr int THREADS = 32 * WARPS_DOWN * WARPS_ACROSS, WARPS = THREADS / 32;
constexpr int PIXELS = TILE_ROWS * TILE_COLUMNS, STEPS = PIXELS / 16;
static_assert(TILE_COLUMNS % 8 == 0 && PIXELS % 16 == 0, "a matrix of 8 pixels lies in one row");
constexpr int DOWN = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS, ACROSS = (OUT_WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;
constexpr int IN_ROWS = (TILE_ROWS - 1) * STRIDE_H + (KERNEL_HEIGHT - 1) * DILATION_H + 1;
constexpr int IN_COLUMNS = (TILE_COLUMNS - 1) * STRIDE_W + (KERNEL_WIDTH - 1) * DILATION_W + 1;
constexpr int IN_PIXELS = IN_ROWS * IN_COLUMNS;
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH, OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
constexpr int PITCH = PIXELS + 8;  // 16 bytes more, so that rows begin in different banks

constexpr int PAIRS = M_CHANNELS * PIXELS / 2, PAIR_LOADS = (PAIRS + THREADS - 1) / THREADS;  // of a thread
constexpr int ROWS = BLOCK_SLICES * IN_PIXELS, ROW_LOADS = (ROWS + THREADS - 1) / THREADS;

constexpr int MOST_SHIFT = 2 * 126;  // of two scales

struct Shared {
    alignas(16) uint4 x[2][BLOCK_SLICES][IN_PIXELS];  // hi and lo
    alignas(16) unsigned short dz[2][M_CHANNELS][PITCH];
    unsigned largest[2][WARPS];  // of dz, and of x
};

struct Tile {
    int row, column;
    long long image;
    __device__ __forceinline__ explicit Tile(long long tile)
        : row(int(tile / ACROSS % DOWN) * TILE_ROWS),
          column(int(tile % ACROSS) * TILE_COLUMNS),
          image(tile / ACROSS / DOWN) {}
};

// A thread's share of a tile, on its way from global to shared memory.
struct Loaded {
    float dz[PAIR_LOADS][2], x[ROW_LOADS][8];

    __device__ __forceinline__ void load(
        const float* __restrict__ from_dz, const float* __restrict__ from_x, const Tile& tile, int group, int first_row,
        int first_slice) {
        from_dz += tile.image * (OUT_CHANNELS * OUT_PLANE) + (group * GROUP_OUT + first_row) * OUT_PLANE;
        from_x += tile.image * (IN_CHANNELS * IN_PLANE) + (group * GROUP_IN + first_slice * 8) * IN_PLANE;
        #pragma unroll
        for (int i = 0; i < PAIR_LOADS; i++) {
            const int pair = threadIdx.x + i * THREADS, channel = pair / (PIXELS / 2);
            const int row = tile.row + pair % (PIXELS / 2) * 2 / TILE_COLUMNS;
            const int column = tile.column + pair % (PIXELS / 2) * 2 % TILE_COLUMNS;
            const bool inside = (PAIRS % THREADS == 0 || pair < PAIRS) && first_row + channel < GROUP_OUT
                && row < OUT_HEIGHT && column < OUT_WIDTH;
            const float* at = from_dz + (channel * int(OUT_PLANE) + row * OUT_WIDTH + column);
            if (OUT_WIDTH % 2 == 0) {
                const float2 two = inside ? *reinterpret_cast<const float2*>(at) : make_float2(0.0f, 0.0f);
                dz[i][0] = two.x, dz[i][1] = two.y;
            } else {
                dz[i][0] = inside ? at[0] : 0.0f;
                dz[i][1] = inside && column + 1 < OUT_WIDTH ? at[1] : 0.0f;
            }
        }
        #pragma unroll
        for (int i = 0; i < ROW_LOADS; i++) {
            const int item = threadIdx.x + i * THREADS, channel = item / IN_PIXELS * 8;
            const int row = tile.row * STRIDE_H - PAD_TOP + item % IN_PIXELS / IN_COLUMNS;
            const int column = tile.column * STRIDE_W - PAD_LEFT + item % IN_PIXELS % IN_COLUMNS;
            const bool inside =
                (ROWS % THREADS == 0 || item < ROWS) && (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
            const float* at = from_x + (channel * int(IN_PLANE) + row * WIDTH + column);
            #pragma unroll
            for (int c = 0; c < 8; c++)
                x[i][c] = inside && first_slice * 8 + channel + c < GROUP_IN ? at[c * IN_PLANE] : 0.0f;
        }
    }

    // Leaves the largest finite magnitudes of the warp's numbers in `largest`.
    __device__ __forceinline__ void find_largest(unsigned (&largest)[2][WARPS]) const {
        Range of_dz, of_x;
        const auto add = [](Range& range, float value) { range.add(isfinite(value) ? value : 0.0f); };
        #pragma unroll
        for (int i = 0; i < PAIR_LOADS; i++) add(of_dz, dz[i][0]), add(of_dz, dz[i][1]);
        #pragma unroll
        for (int i = 0; i < ROW_LOADS; i++)
            #pragma unroll
            for (int c = 0; c < 8; c++) add(of_x, x[i][c]);
        of_dz = of_dz.of_warp(), of_x = of_x.of_warp();
        if (threadIdx.x % 32 == 0) {
            largest[0][threadIdx.x / 32] = of_dz.largest;
            largest[1][threadIdx.x / 32] = of_x.largest;
        }
    }

    // Scales, splits and writes the numbers. Returns the power of two that scales a product.
    __device__ __forceinline__ int prepare(Shared& shared) const {
        Range of_dz, of_x;
        #pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            of_dz.largest = max(of_dz.largest, shared.largest[0][warp]);
            of_x.largest = max(of_x.largest, shared.largest[1][warp]);
        }
        const float dz_scale = power_of_two(of_dz.shift()), x_scale = power_of_two(of_x.shift());
        #pragma unroll
        for (int i = 0; i < PAIR_LOADS; i++) {
            const int pair = threadIdx.x + i * THREADS, channel = pair / (PIXELS / 2), pixel = pair % (PIXELS / 2) * 2;
            if (PAIRS % THREADS != 0 && pair >= PAIRS) continue;
            uint32_t hi, lo;
            split(dz[i][0] * dz_scale, dz[i][1] * dz_scale, hi, lo);
            *reinterpret_cast<uint32_t*>(&shared.dz[0][channel][pixel]) = hi;
            *reinterpret_cast<uint32_t*>(&shared.dz[1][channel][pixel]) = lo;
        }
        #pragma unroll
        for (int i = 0; i < ROW_LOADS; i++) {
            const int item = threadIdx.x + i * THREADS;
            if (ROWS % THREADS != 0 && item >= ROWS) continue;
            uint32_t hi[4], lo[4];
            #pragma unroll
            for (int c = 0; c < 4; c++) split(x[i][2 * c] * x_scale, x[i][2 * c + 1] * x_scale, hi[c], lo[c]);
            shared.x[0][item / IN_PIXELS][item % IN_PIXELS] = make_uint4(hi[0], hi[1], hi[2], hi[3]);
            shared.x[1][item / IN_PIXELS][item % IN_PIXELS] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
        }
        return of_dz.largest && of_x.largest ? of_dz.shift() + of_x.shift() : MOST_SHIFT;
    }
};

using Sums = float[WARP_ROWS][WARP_SLICES][WARP_TAPS][4];

// Adds the products of a tile. dz and x point to the rows that the lane passes to ldmatrix, x to that of the warp's first tap.
__device__ __forceinline__ void multiply(
    Sums& sums, const unsigned short* dz, const uint4* x, int first_tap, float unscale) {
    const int second = threadIdx.x / 8 % 2;  // the lane's matrices of x have the second 8 of 16 pixels
    #pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
        const auto place = [](int pixel) {
            return pixel / TILE_COLUMNS * STRIDE_H * IN_COLUMNS + pixel % TILE_COLUMNS * STRIDE_W;
        };
        const uint4* here = x + (second ? place(step * 16 + 8) : place(step * 16));
        uint32_t hi[WARP_ROWS][4], lo[WARP_ROWS][4];
        #pragma unroll
        for (int m = 0; m < WARP_ROWS; m++) {
            ptx::ldmatrix_x4(hi[m], dz + m * 16 * PITCH + step * 16);
            ptx::ldmatrix_x4(lo[m], dz + (M_CHANNELS + m * 16) * PITCH + step * 16);
        }
        #pragma unroll
        for (int s = 0; s < WARP_SLICES; s++)
            #pragma unroll
            for (int t = 0; t < WARP_TAPS; t++) {
                // The compiler moves no load of fragments across this: more of them would not fit into the registers.
                if (WARP_ROWS == 2 && (s * WARP_TAPS + t) % 3 == 2) __syncwarp();
                const int tap = min(first_tap + t, TAPS - 1);  // beyond the last: any; not stored
                uint32_t b[4];                                 // hi: both halves of the pixels; lo: the same
                ptx::ldmatrix_x4_trans(
                    b,
                    here + s * IN_PIXELS + tap / KERNEL_WIDTH * DILATION_H * IN_COLUMNS
                        + tap % KERNEL_WIDTH * DILATION_W);
                #pragma unroll
                for (int m = 0; m < WARP_ROWS; m++) {
                    float product[4] = {}, cross[4] = {};
                    ptx::mma_m16n8k16_f16(product, hi[m][0], hi[m][1], hi[m][2], hi[m][3], b[0], b[1], product);
                    ptx::mma_m16n8k16_f16(cross, lo[m][0], lo[m][1], lo[m][2], lo[m][3], b[0], b[1], cross);
                    ptx::mma_m16n8k16_f16(cross, hi[m][0], hi[m][1], hi[m][2], hi[m][3], b[2], b[3], cross);
                    #pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float& sum = sums[m][s][t][i];
                        sum = fmaf(cross[i], unscale / LO_SCALE, fmaf(product[i], unscale, sum));
                    }
                }
            }
    }
}

// Multiplies the sums by a power of two, in steps that float32 has.
__device__ __forceinline__ void scale_by(Sums& sums, int exponent) {
    const float first = power_of_two(max(min(exponent / 2, 126), -126)),
                second = power_of_two(max(min(exponent - exponent / 2, 126), -126));
    #pragma unroll
    for (int m = 0; m < WARP_ROWS; m++)
        #pragma unroll
        for (int s = 0; s < WARP_SLICES; s++)
            #pragma unroll
            for (int t = 0; t < WARP_TAPS; t++)
                #pragma unroll
                for (int i = 0; i < 4; i++) sums[m][s][t][i] = sums[m][s][t][i] * first * second;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) weight_gradient(
    const float* __restrict__ dz,  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH], 8-byte aligned
    const float* __restrict__ x,   // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    float* __restrict__ parts,     // [parts, TAPS, OUT_CHANNELS, 8 SLICES]
    long long batch) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = blockIdx.y / ROW_BLOCKS, first_row = int(blockIdx.y) % ROW_BLOCKS * M_CHANNELS;
    const int first_range = int(blockIdx.x) * WARPS_ACROSS, first_slice = first_range / TAP_RANGES * WARP_SLICES;
    const int range = first_range + warp / WARPS_DOWN, slice = range / TAP_RANGES * WARP_SLICES;
    const int first_tap = range % TAP_RANGES * WARP_TAPS, row = warp % WARPS_DOWN * WARP_ROWS * 16;

    const unsigned short* my_dz = &shared.dz[0][row + lane % 16][lane / 16 * 8];
    const uint4* my_x = &shared.x[lane / 16][slice - first_slice][lane % 8 * STRIDE_W];
    const long long tiles = batch * DOWN * ACROSS, end = tiles * (blockIdx.z + 1) / gridDim.z;
    long long tile = tiles * blockIdx.z / gridDim.z;
    Sums sums = {};
    int shift = MOST_SHIFT;  // of the sums: the power of two that scales them
    Loaded loaded;
    if (tile < end) loaded.load(dz, x, Tile(tile), group, first_row, first_slice);
    for (; tile < end; tile++) {
        loaded.find_largest(shared.largest);
        __syncthreads();
        const int of_tile = loaded.prepare(shared);
        if (of_tile < shift - 30) {  // the products of this tile could be too large for the sums' scale
            scale_by(sums, of_tile - shift);
            shift = of_tile;
        }
        if (tile + 1 < end) loaded.load(dz, x, Tile(tile + 1), group, first_row, first_slice);
        __syncthreads();
        multiply(sums, my_dz, my_x, first_tap, power_of_two(max(shift - of_tile, -100)));
    }
    scale_by(sums, -shift);

    #pragma unroll
    for (int m = 0; m < WARP_ROWS; m++)
        #pragma unroll
        for (int s = 0; s < WARP_SLICES; s++)
            #pragma unroll
            for (int t = 0; t < WARP_TAPS; t++)
                #pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int channel = first_row + row + m * 16 + half * 8 + lane / 4, tap = first_tap + t;
                    if (channel >= GROUP_OUT || tap >= TAPS || slice + s >= SLICES) continue;
                    const long long line =
                        ((long long)blockIdx.z * TAPS + tap) * OUT_CHANNELS + group * GROUP_OUT + channel;
                    float* to = parts + (line * SLICES + slice + s) * 8 + lane % 4 * 2;
                    *reinterpret_cast<float2*>(to) = make_float2(sums[m][s][t][half * 2], sums[m][s][t][half * 2 + 1]);
                }
}

// Launch: block (32, lanes), grid (numbers of a part / 32 rounded up).
extern "C" __global__ void sum_weight_gradient(
    const float* __restrict__ parts,  // [count, TAPS, OUT_CHANNELS, 8 SLICES]
    float* __restrict__ dweight,      // [OUT_CHANNELS, GROUP_IN, TAPS]
    int count) {
    constexpr int SIZE = TAPS * OUT_CHANNELS * SLICES * 8;
    const int i = blockIdx.x * 32 + threadIdx.x;
    const double sum = sum_of_parts(parts, count, SIZE, i);
    const int channel = i % (SLICES * 8), out_channel = i / (SLICES * 8) % OUT_CHANNELS;
    const int tap = i / (SLICES * 8) / OUT_CHANNELS;
    if (threadIdx.y == 0 && i < SIZE && channel < GROUP_IN)
        dweight[((long long)out_channel * GROUP_IN + channel) * TAPS + tap] = sum;
}
