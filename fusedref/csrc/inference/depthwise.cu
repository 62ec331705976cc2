// Depthwise convolution, in which every channel has its own filter, with BatchNorm and the scale, in NCHW order:
//   y = a * (conv2d(x, weight) + shift) + b        a, shift and b of each channel: see affine.cuh
//
// A block computes TILE_ROWS rows of PLANES planes [image, channel]; several planes only if they are whole. It copies the
// rows of x that it needs, which are consecutive in memory, to shared memory as float32, with zeros around them for the
// padding. Then a thread computes RUN outputs below each other, so that it reads a row of a window once for all of them.
//
// Macros: the sizes as for folded.cu (GROUPS = IN_CHANNELS = OUT_CHANNELS), and
//   PLANES TILE_ROWS RUN    see above; RUN divides TILE_ROWS
//   UNIT                    numbers of x that a thread loads at once; divides WIDTH
//   BLOCKS                  blocks of a multiprocessor
//
// Launch: block (THREADS), grid (tiles of a plane * (batch * IN_CHANNELS / PLANES rounded up)).
#include <cstdint>

#include "affine.cuh"
#include "depthwise_unit.cuh"

constexpr int THREADS = 256;
constexpr int AHEAD = 4;  // units that a thread has in flight
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int TILES = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS;  // of a plane
constexpr int GROUPS_OF_ROWS = TILE_ROWS / RUN;

constexpr int IN_ROWS = (TILE_ROWS - 1) * STRIDE_H + (KERNEL_HEIGHT - 1) * DILATION_H + 1;    // of a tile
constexpr int RUN_ROWS = (RUN - 1) * STRIDE_H + (KERNEL_HEIGHT - 1) * DILATION_H + 1;         // of a thread
constexpr int IN_COLUMNS = (OUT_WIDTH - 1) * STRIDE_W + (KERNEL_WIDTH - 1) * DILATION_W + 1;  // from -PAD_LEFT on
constexpr int LEFT = (PAD_LEFT + 3) / 4 * 4;  // zeros before a row, so that its units are aligned
constexpr int USED = IN_COLUMNS - PAD_LEFT > WIDTH ? IN_COLUMNS - PAD_LEFT : WIDTH;
constexpr int PITCH = (LEFT + USED + 3) / 4 * 4;
constexpr int MARGIN = PITCH - WIDTH;  // zeros of a row
constexpr int ROW_UNITS = WIDTH / UNIT;

static_assert(TILE_ROWS % RUN == 0 && WIDTH % UNIT == 0, "whole runs and units");
static_assert(PLANES == 1 || TILES == 1, "several planes only if they are whole");

struct alignas(16) Tile {
    float x[PLANES][IN_ROWS][PITCH];
    float a[PLANES], shift[PLANES], b[PLANES];
};

// Copies the tile's rows of x, and zeros for those beyond the plane.
__device__ __forceinline__ void copy_rows(Tile& tile, const Element* x, int top, long long planes) {
    constexpr int UNITS = PLANES * IN_ROWS * ROW_UNITS;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % sizeof(Unit) == 0;
    for (int first = threadIdx.x; first < UNITS; first += AHEAD * THREADS) {
        Unit unit[AHEAD];
        #pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int i = first + k * THREADS, column = i % ROW_UNITS * UNIT, row = top + i / ROW_UNITS % IN_ROWS;
            const int plane = i / (ROW_UNITS * IN_ROWS);
            if (i < UNITS && (unsigned)row < HEIGHT && plane < planes)
                unit[k] = load(x + ((long long)plane * HEIGHT + row) * WIDTH + column, aligned);
            else
                #pragma unroll
                for (int e = 0; e < UNIT; e++) unit[k].value[e] = Element(0.0f);
        }
        #pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int i = first + k * THREADS, column = i % ROW_UNITS * UNIT, row = i / ROW_UNITS % IN_ROWS;
            if (i < UNITS)
                #pragma unroll
                for (int e = 0; e < UNIT; e++)
                    tile.x[i / (ROW_UNITS * IN_ROWS)][row][LEFT + column + e] = float(unit[k].value[e]);
        }
    }
    for (int i = threadIdx.x; i < PLANES * IN_ROWS * MARGIN; i += THREADS) {
        const int place = i % MARGIN;
        tile.x[i / (MARGIN * IN_ROWS)][i / MARGIN % IN_ROWS][place < LEFT ? place : place + WIDTH] = 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) depthwise(
    const Element* __restrict__ x,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,       // [IN_CHANNELS, 1, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [IN_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [IN_CHANNELS]
    const Vector* __restrict__ running_var,   // [IN_CHANNELS]
    const Vector* __restrict__ gamma,         // [IN_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [IN_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, IN_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    long long batch) {
    __shared__ Tile tile;
    const int first_row = int(blockIdx.x % TILES) * TILE_ROWS;
    const long long first_plane = (long long)(blockIdx.x / TILES) * PLANES;
    const long long planes = batch * IN_CHANNELS - first_plane;  // from the first on

    copy_rows(tile, x + first_plane * HEIGHT * WIDTH, first_row * STRIDE_H - PAD_TOP, planes);
    for (int plane = threadIdx.x; plane < PLANES; plane += THREADS) {
        const int channel = int((first_plane + plane) % IN_CHANNELS);
        tile.a[plane] = affine_a(channel, running_var, gamma, scaling_factor, eps);
        tile.shift[plane] = affine_shift(channel, bias, running_mean);
        tile.b[plane] = affine_b(channel, beta, scaling_factor);
    }
    __syncthreads();

    for (int i = threadIdx.x; i < PLANES * GROUPS_OF_ROWS * OUT_WIDTH; i += THREADS) {
        const int column = i % OUT_WIDTH, row = i / OUT_WIDTH % GROUPS_OF_ROWS * RUN;
        const int plane = i / (OUT_WIDTH * GROUPS_OF_ROWS);
        if (plane >= planes || first_row + row >= OUT_HEIGHT) continue;
        const Element* filter = weight + int((first_plane + plane) % IN_CHANNELS) * TAPS;
        float taps[KERNEL_HEIGHT][KERNEL_WIDTH];
        #pragma unroll
        for (int tap = 0; tap < TAPS; tap++) taps[tap / KERNEL_WIDTH][tap % KERNEL_WIDTH] = float(filter[tap]);

        float sum[RUN] = {};
        const float* window = &tile.x[plane][row * STRIDE_H][LEFT - PAD_LEFT + column * STRIDE_W];
        #pragma unroll
        for (int r = 0; r < RUN_ROWS; r++) {
            float value[KERNEL_WIDTH];
            #pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; j++) value[j] = window[r * PITCH + j * DILATION_W];
            #pragma unroll
            for (int run = 0; run < RUN; run++) {
                const int below = r - run * STRIDE_H;  // the first row of the output's window
                if (below < 0 || below % DILATION_H || below / DILATION_H >= KERNEL_HEIGHT) continue;
                #pragma unroll
                for (int j = 0; j < KERNEL_WIDTH; j++) sum[run] += value[j] * taps[below / DILATION_H][j];
            }
        }
        const float a = tile.a[plane], shift = tile.shift[plane], b = tile.b[plane];
        Element* to = y + ((first_plane + plane) * OUT_HEIGHT + first_row + row) * OUT_WIDTH + column;
        #pragma unroll
        for (int run = 0; run < RUN; run++)
            if (first_row + row + run < OUT_HEIGHT) to[run * OUT_WIDTH] = Element(a * (sum[run] + shift) + b);
    }
}
