// The kernels of the convolution that input_gradient.cu computes, from what gradients.cu left. For a pixel of x, where the
// sums are over the taps (kh, kw) that connect it with an output, and over all output channels o:
//   composite[c, c', dh, dw] = sum of slope[o] filter[o, c, kh, kw] weight[o, c', kh + dh, kw + dw]
//   constant[c]              = sum of offset[o] filter[o, c, kh, kw]
// where filter is a weight as backward.cu rounds it for T: so the rounding cancels in T less this convolution, however
// small the difference is. Computed in float64, stored as the fragments of an mma: composite[c, c'] 2^exponent[c] / scale[c'] = hi + lo, two numbers of fp16.
// `scale` are the powers of two by which input_gradient.cu multiplies x; 2^exponent[c] keeps all composites below 2^15.
//
// A border is a kind of pairs of rows and a kind of columns (input_gradient_borders.cuh): pair kind * ColumnKinds::COUNT +
// column kind. Fragments: [borders][STEPS][2][32] of 16 bytes. Step KERNEL_HEIGHT d + j multiplies rows 2 j and 2 j + 1 of
// the window at its column d; the first half is hi, the second lo. Lane 4 c + m has the products of channel c with channels
// 2 m and 2 m + 1: the upper pixel's and the lower pixel's in window row 2 j, then both in row 2 j + 1.
// Constants: [1 + borders][2][8] float32: 2^-exponent[c], then each border's for the upper and the lower pixel.
//
// Sizes are compile-time constants: IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH
//   PAD_TOP PAD_LEFT ELEMENT VECTOR PIECES
//
// A block computes the columns' kind blockIdx.x at the (dh, dw) blockIdx.y: first the sums over o for each tap, then those
// over the taps of each kind of pairs. The last blocks compute the constants.
//
// Launch: block (576), grid (ColumnKinds::COUNT, (2 KERNEL_HEIGHT - 1) (2 KERNEL_WIDTH - 1) + 1).
#include <cstdint>

#include <cuda_fp16.h>

#include "backward_filters.cuh"
#include "elements.cuh"
#include "input_gradient_borders.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH, COLUMNS = TAPS * 8;
constexpr int SCALES = COLUMNS + COLUMNS * COLUMNS + 8;            // their place in `moments`
constexpr int WINDOWS = (2 * KERNEL_HEIGHT - 1) * WINDOW_COLUMNS;  // the (dh, dw) of a composite
constexpr int THREADS = 576, WARPS = THREADS / 32;
constexpr int QUADS = TAPS * 16, SHARES = THREADS / QUADS;  // threads that sum one (2 c, 2 c') of a tap
constexpr int CONSTANT_SHARES = THREADS / COLUMNS < 8 ? THREADS / COLUMNS : 8;  // threads that sum one for a tap

struct Shared {
    double weight[OUT_CHANNELS][TAPS][8], filter[OUT_CHANNELS][TAPS][8];
    double slope[OUT_CHANNELS], offset[OUT_CHANNELS];
    union {
        double shares[SHARES][TAPS][8][8];  // sums over some output channels, by c and c'
        struct {                            // before them
            double a[OUT_CHANNELS], maxima[WARPS][8];
            unsigned magnitudes[WARPS][8];
        };
        double constant_shares[CONSTANT_SHARES][COLUMNS];
    };
    double largest[8];  // of slope a weight^2, by channel
    double factor[8];   // 2^exponent[c]
};

static __device__ __forceinline__ double double_power_of_two(int exponent) {  // -1022 to 1023
    return __longlong_as_double((long long)(exponent + 1023) << 52);
}
// The exponent of a number that is not negative: it is below 2^(exponent + 1). -1023 for 0, 1024 for infinity and NaN.
static __device__ __forceinline__ int exponent_of(double number) {
    return int(__double_as_longlong(number) >> 52) - 1023;
}

// The power of two that brings all composites of channel c below 2^15: |composite| is at most 2^10 (64 output channels, 9
// taps) * sqrt(largest[c] largest[c']) / scale[c']. 1 if nothing is above 0 or if something is not finite.
static __device__ __forceinline__ double factor_of(const Shared& shared, const double* __restrict__ scale, int c) {
    int most = -5000;
    #pragma unroll
    for (int k = 0; k < 8; k++)
        if (shared.largest[k] > 0.0) most = max(most, exponent_of(shared.largest[k]) - 2 * exponent_of(scale[k]));
    const int own = exponent_of(shared.largest[c]);
    if (own == -1023 || own == 1024 || most > 1024 || most < -3000) return 1.0;
    return double_power_of_two(min(max(5 - ((own + most + 3) >> 1), -1000), 1000));
}

// The sums over output channels at (dh, dw) for each tap.
static __device__ __forceinline__ void sum_taps(Shared& shared, const ColumnTaps& columns, int dh, int dw, int thread) {
    const int share = thread / QUADS, tap = thread % QUADS / 16, c = thread % 16 / 4 * 2, first = thread % 4 * 2;
    const int kh = tap / KERNEL_WIDTH, kw = tap % KERNEL_WIDTH;
    if (share >= SHARES) return;
    double sum[2][2] = {};
    if (0 <= kh + dh && kh + dh < KERNEL_HEIGHT && 0 <= kw + dw && kw + dw < KERNEL_WIDTH && columns.has(kw)) {
        const int other = tap + dh * KERNEL_WIDTH + dw;
        #pragma unroll 4
        for (int o = share; o < OUT_CHANNELS; o += SHARES) {
            const double slope = shared.slope[o];
            const double2 w = *reinterpret_cast<const double2*>(&shared.filter[o][tap][c]);
            const double2 v = *reinterpret_cast<const double2*>(&shared.weight[o][other][first]);
            sum[0][0] += slope * w.x * v.x;
            sum[0][1] += slope * w.x * v.y;
            sum[1][0] += slope * w.y * v.x;
            sum[1][1] += slope * w.y * v.y;
        }
    }
    #pragma unroll
    for (int k = 0; k < 4; k++) shared.shares[share][tap][c + k / 2][first + k % 2] = sum[k / 2][k % 2];
}

static __device__ __forceinline__ uint32_t bits_of(__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }

// Stores the fragments of a kind of pairs' upper or lower pixel at (dh, dw), from the sums of the taps that it has.
static __device__ __forceinline__ void store_composites(
    const Shared& shared, const double* __restrict__ scale, uint32_t* __restrict__ fragments, int pair_kind, int lower,
    int dh, int dw, int lane) {
    const RowTaps rows(min(2 * PairKinds::example(pair_kind) + lower, HEIGHT - 1));
    const int c = lane / 4, first = lane % 4 * 2;
    float value[2], rest[2];
    #pragma unroll
    for (int e = 0; e < 2; e++) {
        double total = 0.0;
        #pragma unroll
        for (int tap = 0; tap < TAPS; tap++)
            if (rows.has(tap / KERNEL_WIDTH))
                #pragma unroll
                for (int share = 0; share < SHARES; share++) total += shared.shares[share][tap][c][first + e];
        // scale is a power of two. The tensor core truncates each sum, on average by this much.
        total *= shared.factor[c] * double_power_of_two(-exponent_of(scale[first + e])) * (1.0 + 0x1.4p-24);
        value[e] = float(total);
        rest[e] = float(total - double(__half2float(__float2half(value[e]))));
    }
    const int window_row = dh + KERNEL_HEIGHT - 1 + lower;  // the lower pixel's window starts one row below
    const int step = (dw + KERNEL_WIDTH - 1) * KERNEL_HEIGHT + window_row / 2;
    const int border = pair_kind * ColumnKinds::COUNT + blockIdx.x;
    uint32_t* to = fragments + (((long long)border * STEPS + step) * 2 * 32 + lane) * 4 + lower;
    to[window_row % 2 * 2] = bits_of(__floats2half2_rn(value[0], value[1]));
    to[32 * 4 + window_row % 2 * 2] = bits_of(__floats2half2_rn(rest[0], rest[1]));
    // The step's other row, where it belongs to the other pixel's window alone.
    if (dh == (lower ? -(KERNEL_HEIGHT - 1) : KERNEL_HEIGHT - 1))
        to[2 - window_row % 2 * 2] = to[32 * 4 + 2 - window_row % 2 * 2] = 0;
}

// Stores the constants of the columns' kind for all kinds of pairs.
static __device__ __forceinline__ void store_constants(
    Shared& shared, const ColumnTaps& columns, float* __restrict__ constants, int thread) {
    const int share = thread / COLUMNS, column = thread % COLUMNS;
    if (share < CONSTANT_SHARES) {
        double sum = 0.0;
        #pragma unroll 4
        for (int o = share; o < OUT_CHANNELS; o += CONSTANT_SHARES)
            sum += shared.offset[o] * shared.filter[o][column / 8][column % 8];
        shared.constant_shares[share][column] = sum;
    }
    __syncthreads();
    for (int k = thread; k < 2 * PairKinds::COUNT * 8; k += THREADS) {
        const int pair_kind = k / 16, lower = k / 8 % 2, c = k % 8;
        const RowTaps rows(min(2 * PairKinds::example(pair_kind) + lower, HEIGHT - 1));
        double constant = 0.0;
        #pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            double sum = 0.0;
            #pragma unroll
            for (int its = 0; its < CONSTANT_SHARES; its++) sum += shared.constant_shares[its][tap * 8 + c];
            if (rows.has(tap / KERNEL_WIDTH) && columns.has(tap % KERNEL_WIDTH)) constant += sum;
        }
        const int border = pair_kind * ColumnKinds::COUNT + blockIdx.x;
        constants[(2 * (1 + border) + lower) * 8 + c] = float(constant);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) composites(
    const double* __restrict__ slopes,   // [2, OUT_CHANNELS]: offset and slope, from gradients.cu
    const double* __restrict__ moments,  // p, M, pivot [8], scale [8]
    const Element* __restrict__ weight,  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const float* __restrict__ var,       // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,    // [OUT_CHANNELS] or null: ones
    float scaling_factor,                // multiplies everything
    float eps,                           // added to the variance
    uint32_t* __restrict__ fragments,    // see above
    float* __restrict__ constants)       // see above
{
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const ColumnTaps columns(ColumnKinds::example(blockIdx.x));
    const int dh = int(blockIdx.y) / WINDOW_COLUMNS - (KERNEL_HEIGHT - 1);
    const int dw = int(blockIdx.y) % WINDOW_COLUMNS - (KERNEL_WIDTH - 1);
    const double* scale = moments + SCALES;

    for (int o = thread; o < OUT_CHANNELS; o += THREADS) {
        shared.a[o] = slope_of(o, var, gamma, scaling_factor, eps);
        shared.offset[o] = slopes[o];
        shared.slope[o] = slopes[OUT_CHANNELS + o];
    }
    __syncthreads();
    // THREADS is a multiple of 8: a thread sees one channel.
    constexpr int SHARE = (OUT_CHANNELS * TAPS * 8 + THREADS - 1) / THREADS;
    double largest = 0.0;
    unsigned magnitude = 0;
    #pragma unroll 8
    for (int i = 0; i < SHARE; i++) {
        const int k = thread + i * THREADS, o = k / (TAPS * 8), tap = k / 8 % TAPS, c = k % 8;
        if (OUT_CHANNELS * TAPS * 8 % THREADS && o >= OUT_CHANNELS) break;
        const double value = c < IN_CHANNELS ? float(weight[(o * IN_CHANNELS + c) * TAPS + tap]) : 0.0f;
        shared.weight[o][tap][c] = value;
        largest = fmax(largest, fabs(shared.slope[o] * shared.a[o]) * value * value);
        magnitude = max(magnitude, magnitude_of(float(shared.a[o] * value)));
    }
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, 16));
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, 8));
    magnitude = max(magnitude, __shfl_xor_sync(~0u, magnitude, 16));
    magnitude = max(magnitude, __shfl_xor_sync(~0u, magnitude, 8));
    if (lane < 8) {
        shared.maxima[warp][lane] = largest;
        shared.magnitudes[warp][lane] = magnitude;
    }
    __syncthreads();
    for (int k = 0; k < WARPS; k++) magnitude = max(magnitude, shared.magnitudes[k][lane % 8]);
    const int shift = shift_of(magnitude);
    for (int i = 0; i < SHARE; i++) {
        const int k = thread + i * THREADS, o = k / (TAPS * 8);
        if (OUT_CHANNELS * TAPS * 8 % THREADS && o >= OUT_CHANNELS) break;
        const float product = float(shared.a[o] * (&shared.weight[0][0][0])[k]);
        (&shared.filter[0][0][0])[k] = Filter(product * power_of_two(shift)).value() * power_of_two(-shift);
    }
    if (thread < 8) {
        for (int k = 1; k < WARPS; k++) largest = fmax(largest, shared.maxima[k][thread]);
        shared.largest[thread] = largest;
    }
    __syncthreads();
    if (blockIdx.y == WINDOWS) {
        store_constants(shared, columns, constants, thread);
        if (blockIdx.x == 0 && thread < 16) constants[thread] = float(1.0 / factor_of(shared, scale, thread % 8));
        return;
    }
    sum_taps(shared, columns, dh, dw, thread);
    if (thread < 8) shared.factor[thread] = factor_of(shared, scale, thread);
    __syncthreads();
    for (int k = warp; k < 2 * PairKinds::COUNT; k += WARPS)
        store_composites(shared, scale, fragments, k / 2, k % 2, dh, dw, lane);
}
