// Batch statistics of z = conv2d(x, weight) + bias, per output channel, from the parts that moments.cu writes:
//   p = sum over output pixels of the patch, M = sum of the products of its elements, N = number of output pixels
//   mean = weight . p / N + bias        var = weight' M weight / N - (weight . p / N)^2
// and what BatchNorm keeps of them. Everything is float64 until it is stored.
//
// A column of p and M is an element of a patch: tap * 8 + channel, tap = row * KERNEL_WIDTH + column of the kernel. The
// columns of channels that x does not have are zero.
//
// Each block of 512 threads makes 64 elements of M, those of two taps, from all the parts that the first reaches, and their
// share of every channel's weight' M weight; or one tap's p; or the sums of x. The last block to finish does the rest. All
// sums are taken in a fixed order.
//
// Serves what moments.cu serves, up to 64 output channels. Its macros, and OUT_CHANNELS.
//
// Launch: block (512), grid (STATISTICS_BLOCKS).
#include "moments_layout.cuh"

constexpr int WARPS = 16;
constexpr int MOST_PARTS = BORDER_PARTS + MOST_BLOCKS;
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH, COLUMNS = TAPS * 8;
constexpr int PAIRS = TAPS * (TAPS + 1) / 2;
constexpr int STATISTICS_BLOCKS = PAIRS + TAPS + 1;
constexpr int PIVOT_AT = COLUMNS + COLUMNS * COLUMNS, SCALE_AT = PIVOT_AT + 8;  // in `moments`
static_assert(OUT_CHANNELS <= 64, "statistics.cu does not serve this problem");

// Whether some output pixel has this row of x at this row of the kernel; columns alike.
__device__ __forceinline__ bool reaches_row(int kernel_row, int row) {
    return (unsigned)(row + PAD_TOP - kernel_row) < OUT_HEIGHT;
}
__device__ __forceinline__ bool reaches_column(int kernel_column, int column) {
    return (unsigned)(column + PAD_LEFT - kernel_column) < OUT_WIDTH;
}

// Whether a tap reaches the pixels of a part.
__device__ __forceinline__ bool reaches(int tap, int part) {
    const int kernel_row = tap / KERNEL_WIDTH, kernel_column = tap % KERNEL_WIDTH;
    if (part >= BORDER_PARTS) return true;
    if (part < ROW_PARTS) return reaches_row(kernel_row, row_of(part / SHARES));
    if (part < ROW_PARTS + COLUMN_PARTS)
        return reaches_column(kernel_column, column_of((part - ROW_PARTS) / (2 * SHARES)));
    if constexpr (CORNERS > 0) {
        const int corner = part - ROW_PARTS - COLUMN_PARTS;
        return reaches_row(kernel_row, row_of(corner / LINES_ACROSS))
            && reaches_column(kernel_column, column_of(corner % LINES_ACROSS));
    }
    return false;
}

__device__ __forceinline__ double weight_of(const Element* weight, int channel, int in_channel, int tap) {
    const bool there = channel < OUT_CHANNELS && in_channel < IN_CHANNELS;
    return there ? double(float(weight[(channel * IN_CHANNELS + in_channel) * TAPS + tap])) : 0.0;
}

// The sum over the eight threads of an output channel.
__device__ __forceinline__ double sum_of_eight(double value) {
    value += __shfl_xor_sync(~0u, value, 1);
    value += __shfl_xor_sync(~0u, value, 2);
    return value + __shfl_xor_sync(~0u, value, 4);
}

// Finds the parts that a tap reaches; a tap below 0 stands for all pixels. Threads then load the parts that they add up, or
// part 0 instead, without a branch, so that all loads are in flight together.
__device__ __forceinline__ void find_reached(bool (&reached)[MOST_PARTS], int tap, int count) {
    for (int part = threadIdx.x; part < MOST_PARTS; part += WARPS * 32)
        reached[part] = part < count && (tap < 0 || reaches(tap, part));
    __syncthreads();
}

// The elements of M of two taps, first <= second, and their share of weight' M weight.
__device__ void sum_products(
    const bool (&reached)[MOST_PARTS], const double* parts, const Element* weight, double* moments, double* squares,
    int first, int second) {
    __shared__ __align__(16) double sums[WARPS][64];
    __shared__ double elements[8][9];  // 9: rows that are read together start in different banks
    const int thread = threadIdx.x, lane = thread % 32, channel = thread / 8;
    const double left = weight_of(weight, channel, thread % 8, second);
    double right[8];
    #pragma unroll
    for (int i = 0; i < 8; i++) right[i] = weight_of(weight, channel, i, first);

    const int down = second / KERNEL_WIDTH - first / KERNEL_WIDTH;
    const int across = second % KERNEL_WIDTH - first % KERNEL_WIDTH;
    const int lag = down == 0 ? across : KERNEL_WIDTH + (down - 1) * WINDOW_COLUMNS + across + REACH;
    double2 sum = make_double2(0.0, 0.0);
    #pragma unroll
    for (int i = 0; i < (MOST_PARTS + WARPS - 1) / WARPS; i++) {
        const int part = thread / 32 + i * WARPS;
        const bool wanted = part < MOST_PARTS && reached[part];
        const double* from = parts + (wanted ? part : 0) * SUMS + lag * 64 + lane * 2;
        const double2 two = *reinterpret_cast<const double2*>(from);
        sum.x += wanted ? two.x : 0.0;
        sum.y += wanted ? two.y : 0.0;
    }
    *reinterpret_cast<double2*>(&sums[thread / 32][lane * 2]) = sum;
    __syncthreads();
    if (thread < 64) {
        double total = 0.0;
        #pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += sums[warp][thread];
        const int row = second * 8 + thread / 8, column = first * 8 + thread % 8;
        moments[COLUMNS + row * COLUMNS + column] = total;
        moments[COLUMNS + column * COLUMNS + row] = total;
        elements[thread / 8][thread % 8] = total;
    }
    __syncthreads();
    double square = 0.0;
    #pragma unroll
    for (int i = 0; i < 8; i++) square += elements[thread % 8][i] * right[i];
    square = sum_of_eight(square * left) * (first == second ? 1.0 : 2.0);
    if (thread % 8 == 0) squares[channel] = square;
}

// The sums of x over the pixels of the parts that are reached.
__device__ void sum_pixels(const bool (&reached)[MOST_PARTS], const double* parts, double* sums_of_pixels) {
    __shared__ double sums[WARPS][8];
    const int thread = threadIdx.x;
    double sum = 0.0;
    #pragma unroll
    for (int i = 0; i < (MOST_PARTS + WARPS * 4 - 1) / (WARPS * 4); i++) {
        const int part = thread / 8 + i * WARPS * 4;
        const bool wanted = part < MOST_PARTS && reached[part];
        const double one = parts[(wanted ? part : 0) * SUMS + LAGS * 64 + thread % 8];
        sum += wanted ? one : 0.0;
    }
    sum += __shfl_xor_sync(~0u, sum, 8);
    sum += __shfl_xor_sync(~0u, sum, 16);
    if (thread % 32 < 8) sums[thread / 32][thread % 8] = sum;
    __syncthreads();
    if (thread < 8) {
        double total = 0.0;
        #pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += sums[warp][thread];
        sums_of_pixels[thread] = total;
    }
}

// Replaces the sums of x by the pivots, their averages, and writes the scales: powers of two that bring two bounds to at most
// 2^15. One is on |x - pivot|: sqrt(TAPS count) times its root mean square over all patches. The other is |pivot|: kernels
// write -pivot where no filter reads, in tiles that reach beyond x.
__device__ void choose_pivot(double* moments, double pixels, double count, int channel) {
    double sums[TAPS], squares_of[TAPS];
    #pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        const int column = tap * 8 + channel;
        sums[tap] = moments[column];
        squares_of[tap] = moments[COLUMNS + column * COLUMNS + column];
    }
    const double pivot = float(moments[PIVOT_AT + channel] / pixels);
    double squares = pivot * pivot;
    #pragma unroll
    for (int tap = 0; tap < TAPS; tap++) squares += squares_of[tap] - 2.0 * pivot * sums[tap] + count * pivot * pivot;
    double scale = 1.0;
    if (squares > 0.0 && squares < 1e300) scale = ldexp(1.0, min(max(14 - ilogb(sqrt(squares)), -126), 126));
    moments[PIVOT_AT + channel] = pivot;
    moments[SCALE_AT + channel] = scale;
}

__device__ __forceinline__ void update(Vector* running, int channel, double value, double factor) {
    running[channel] = Vector(float((1.0 - factor) * double(float(running[channel])) + factor * value));
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) finish_statistics(
    const double* __restrict__ parts,    // by moments.cu
    const Element* __restrict__ weight,  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,     // [OUT_CHANNELS] or null: zeros
    Vector* __restrict__ running_mean,   // [OUT_CHANNELS] or null: not kept
    Vector* __restrict__ running_var,    // [OUT_CHANNELS] or null; takes the unbiased variance
    long long* __restrict__ batches,     // [1] or null: number of batches so far, which increases by one
    float momentum,                      // weight of this batch in the running statistics; negative: 1 / batches
    float* __restrict__ mean,            // [OUT_CHANNELS]
    float* __restrict__ var,             // [OUT_CHANNELS], biased
    float* __restrict__ centre,          // [OUT_CHANNELS]: mean of the convolution of x - pivot, plus bias
    double* moments,                     // [COLUMNS p | COLUMNS x COLUMNS M | 8 pivots | 8 scales]
    double* squares,                     // [PAIRS, 64]: workspace
    unsigned* finished,                  // [1]: blocks that have finished; zero before and after
    long long batch) {
    __shared__ bool reached[MOST_PARTS];
    const int block = blockIdx.x, thread = threadIdx.x, parts_count = BORDER_PARTS + blocks_of(batch);
    if (block < PAIRS) {
        int first = 0, second = block;  // pairs in rows: (0, 0) to (0, TAPS - 1), (1, 1) to (1, TAPS - 1), ...
        while (second >= TAPS - first) second -= TAPS - first++;
        find_reached(reached, first, parts_count);
        sum_products(reached, parts, weight, moments, squares + block * 64, first, first + second);
    } else {
        const int tap = block < PAIRS + TAPS ? block - PAIRS : -1;
        find_reached(reached, tap, parts_count);
        sum_pixels(reached, parts, moments + (tap < 0 ? PIVOT_AT : tap * 8));
    }

    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (thread == 0) last = atomicInc(finished, STATISTICS_BLOCKS - 1) == STATISTICS_BLOCKS - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();

    const double count = double(batch) * OUT_HEIGHT * OUT_WIDTH;
    const int channel = thread / 8, in_channel = thread % 8;
    double square = 0.0, sum = 0.0, weights = 0.0;
    if (thread < 8) choose_pivot(moments, double(batch) * HEIGHT * WIDTH, count, thread);
    #pragma unroll
    for (int i = 0; i < (PAIRS + 7) / 8; i++) {
        const int pair = in_channel + i * 8;
        const double one = squares[min(pair, PAIRS - 1) * 64 + channel];
        square += pair < PAIRS ? one : 0.0;
    }
    #pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        const double w = weight_of(weight, channel, in_channel, tap), p = moments[tap * 8 + in_channel];
        sum += in_channel < IN_CHANNELS ? w * p : 0.0;
        weights += w;
    }
    __syncthreads();
    double shifted = in_channel < IN_CHANNELS ? weights * moments[PIVOT_AT + in_channel] : 0.0;
    square = sum_of_eight(square) / count;
    sum = sum_of_eight(sum) / count;
    shifted = sum - sum_of_eight(shifted);
    const double tracked = batches ? double(*batches + 1) : 1.0;
    __syncthreads();
    if (thread == 0 && batches) *batches += 1;
    if (in_channel != 0 || channel >= OUT_CHANNELS) return;
    const double own = bias ? double(float(bias[channel])) : 0.0;
    double variance = square - sum * sum;
    if (variance < 0.0) variance = 0.0;
    mean[channel] = float(sum + own);
    var[channel] = float(variance);
    centre[channel] = float(shifted + own);
    const double factor = momentum < 0.0f ? 1.0 / tracked : double(momentum);
    if (running_mean) update(running_mean, channel, sum + own, factor);
    if (running_var) update(running_var, channel, variance * (count / (count - 1.0)), factor);
}
