// 12 training: the statistics of conv(x) without ever storing conv(x).
//
//   z = conv(x, weight) + bias;  mean and biased var of z per channel;  y = the finished kernel, given mean and var
//
// New since 11: z does not exist. Rung 11 wrote z (520 MB) to read it twice. Here the convolution is computed twice: first
// for the statistics alone, then by the finished kernel (rung 10), which takes mean and var as if they were the running ones.
// 18.7 GFLOP more, and 1.5 GB less. There are two ways to the statistics:
//
//   conv_statistics     convolves, and every thread keeps mean and squares of 16 channels in registers (Welford, as in 11)
//   moments             does not convolve at all: z is linear in the patches P of x, so mean(z) = W mean(P) + bias and
//                       var(z) = W Cov(P) W'. Products of two floats are exact in double, so no cancellation can hurt.
//
// fusedref's own moments, fast, on the tensor cores in float64, are in fusedref/csrc/training.
//
// Byte ledger at problem 73: reads x twice (67.1 MB each, once here, once in the finished kernel), writes y (520.2 MB).
//
// Launch of conv_statistics: block (32, 8), grid (slices, ceil(OUT_CHANNELS / 64)).
// Launch of finish_statistics: block (32), grid (OUT_CHANNELS).
// Launch of moments: block (256), grid (slices). Launch of finish_moments: block (256), grid (ceil(TAPS * (TAPS + 1) / 256)).
// Launch of statistics_of_moments: block (128), grid (OUT_CHANNELS).
// Compiled with -DIN_CHANNELS= -DOUT_CHANNELS= -DHEIGHT= -DWIDTH= -DKERNEL_SIZE= -DPADDING= (zeros around the image).

#include "11_batch_statistics.cu"

constexpr int OUT_HEIGHT = HEIGHT + 2 * PADDING - KERNEL_SIZE + 1, OUT_WIDTH = WIDTH + 2 * PADDING - KERNEL_SIZE + 1;
constexpr int TAPS = IN_CHANNELS * KERNEL_SIZE * KERNEL_SIZE;                        // the numbers of a patch
constexpr int TILE_H = 8, TILE_W = 32;                                               // outputs
constexpr int HALO_H = TILE_H + KERNEL_SIZE - 1, HALO_W = TILE_W + KERNEL_SIZE - 1;  // the inputs that they see
constexpr int ACROSS = (OUT_WIDTH + TILE_W - 1) / TILE_W, DOWN = (OUT_HEIGHT + TILE_H - 1) / TILE_H;
constexpr int GROUP = 16, CHANNELS = 64;  // out_channels of a warp and of a block

// Copy the inputs of a tile into shared memory, with zeros where the padding is and beyond it. Its rows lie `pitch` numbers
// apart, its planes `plane`.
template <typename Number>
__device__ void load_tile(const float* image, Number* tile, int pitch, int plane, int top, int left, int thread) {
    for (int i = thread; i < IN_CHANNELS * HALO_H * HALO_W; i += 256) {
        const int channel = i / (HALO_H * HALO_W), halo_row = i / HALO_W % HALO_H, halo_column = i % HALO_W;
        const int row = top + halo_row - PADDING, column = left + halo_column - PADDING;
        const bool inside = row >= 0 && row < HEIGHT && column >= 0 && column < WIDTH;
        tile[channel * plane + halo_row * pitch + halo_column] =
            inside ? image[(channel * HEIGHT + row) * WIDTH + column] : 0;
    }
}

extern "C" __global__ void conv_statistics(
    const float* x,       // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const float* weight,  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_SIZE, KERNEL_SIZE]
    float* parts,         // [OUT_CHANNELS, slices, 3]   count, mean, squares of the convolution without its bias
    int batch) {
    __shared__ float tile[IN_CHANNELS][HALO_H][HALO_W];
    __shared__ __align__(16) float filters[TAPS][CHANNELS];
    __shared__ Moments of_rows[2][CHANNELS];
    const int lane = threadIdx.x, thread = threadIdx.y * 32 + threadIdx.x;
    const int first = blockIdx.y * CHANNELS, group = threadIdx.y / 2 * GROUP;  // a pair of warps has 16 channels
    for (int i = thread; i < TAPS * CHANNELS; i += 256) {
        const int channel = first + i % CHANNELS;
        filters[i / CHANNELS][i % CHANNELS] = channel < OUT_CHANNELS ? weight[channel * TAPS + i / CHANNELS] : 0;
    }

    float count = 0, mean[GROUP] = {}, squares[GROUP] = {};
    for (int index = blockIdx.x; index < batch * DOWN * ACROSS; index += gridDim.x) {
        const int image = index / (DOWN * ACROSS), top = index / ACROSS % DOWN * TILE_H, left = index % ACROSS * TILE_W;
        __syncthreads();  // nobody reads the last tile any more
        const float* planes = x + (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
        load_tile(planes, &tile[0][0][0], HALO_W, HALO_H * HALO_W, top, left, thread);
        __syncthreads();
        for (int row = threadIdx.y % 2; row < TILE_H; row += 2) {
            if (top + row >= OUT_HEIGHT || left + lane >= OUT_WIDTH) continue;
            float z[GROUP] = {};
            for (int tap = 0; tap < TAPS; tap++) {
                const int i = tap / KERNEL_SIZE % KERNEL_SIZE, j = tap % KERNEL_SIZE;
                const float value = tile[tap / (KERNEL_SIZE * KERNEL_SIZE)][row + i][lane + j];
                for (int k = 0; k < GROUP; k += 4) {
                    const float4 w = *reinterpret_cast<const float4*>(&filters[tap][group + k]);  // one load for four
                    z[k] += value * w.x;
                    z[k + 1] += value * w.y;
                    z[k + 2] += value * w.z;
                    z[k + 3] += value * w.w;
                }
            }
            count += 1;
            const float share = 1 / count;
            for (int k = 0; k < GROUP; k++) {
                const float distance = z[k] - mean[k];
                mean[k] += distance * share;
                squares[k] += distance * (z[k] - mean[k]);
            }
        }
    }

    for (int k = 0; k < GROUP; k++) {
        const Moments all = merge_lanes({count, mean[k], squares[k]});
        if (lane == 0) of_rows[threadIdx.y % 2][group + k] = all;
    }
    __syncthreads();
    if (thread >= CHANNELS || first + thread >= OUT_CHANNELS) return;
    const Moments all = merge(of_rows[0][thread], of_rows[1][thread]);
    float* part = parts + ((first + thread) * gridDim.x + blockIdx.x) * 3;
    part[0] = all.count;
    part[1] = all.mean;
    part[2] = all.squares;
}

// Write the statistics of a channel, and let the running ones follow them, as torch does: the variance that it remembers
// is unbiased.
__device__ void write_statistics(
    int channel, float batch_mean, float batch_var, float count, float momentum, float* mean, float* var,
    float* running_mean, float* running_var) {
    mean[channel] = batch_mean;
    var[channel] = batch_var;
    const float unbiased = batch_var * (count / (count - 1));
    running_mean[channel] += momentum * (batch_mean - running_mean[channel]);
    running_var[channel] += momentum * (unbiased - running_var[channel]);
}

extern "C" __global__ void finish_statistics(
    const float* parts,   // [OUT_CHANNELS, slices, 3]
    const float* bias,    // [OUT_CHANNELS]
    float momentum,       // how far the running statistics follow
    float* mean,          // [OUT_CHANNELS]
    float* var,           // [OUT_CHANNELS]   biased
    float* running_mean,  // [OUT_CHANNELS]   changed in place
    float* running_var,   // [OUT_CHANNELS]   changed in place
    int slices) {
    const int channel = blockIdx.x;
    const Moments all = merge_parts(parts + channel * slices * 3, slices);
    if (threadIdx.x > 0) return;
    write_statistics(
        channel, all.mean + bias[channel], all.squares / all.count, all.count, momentum, mean, var, running_mean,
        running_var);
}

// A patch with a one behind it, [P, 1]: the sum of its products with itself holds sum P P', sum P and the count at once.
constexpr int ONE = TAPS, COLUMNS = TAPS + 1;
constexpr int SIDE = 4, STRIPES = (COLUMNS + SIDE - 1) / SIDE;  // a thread has 4 x 4 of the sums

// The planes of the tile lie so far apart that number t of a patch is in bank t modulo 16 (a double has two of the 32
// banks): rows KERNEL_SIZE apart and planes KERNEL_SIZE^2 apart, modulo 16. Neighbouring lanes take neighbouring columns.
constexpr int PITCH = TILE_W + KERNEL_SIZE;
constexpr int PLANE = HALO_H * PITCH + (KERNEL_SIZE * KERNEL_SIZE + 16 * KERNEL_SIZE - HALO_H * PITCH % 16) % 16;

// Return where in the tile a column of [P, 1] has its number for pixel (0, 0); from ONE on, in the plane of ones.
__device__ int place(int column) {
    const int tap = min(column, ONE);
    const int channel = tap / (KERNEL_SIZE * KERNEL_SIZE), i = tap / KERNEL_SIZE % KERNEL_SIZE, j = tap % KERNEL_SIZE;
    return channel * PLANE + i * PITCH + j;
}

extern "C" __global__ void moments(
    const float* x,  // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    double* parts,   // [slices, COLUMNS, COLUMNS]   sums of the products of [P, 1], each once
    int batch) {
    static_assert(STRIPES * (STRIPES + 1) / 2 <= 256, "a thread of the block for every 4 x 4 sums");
    __shared__ double tile[(IN_CHANNELS + 1) * PLANE];  // the last plane is the ones
    for (int i = threadIdx.x; i < PLANE; i += 256) tile[IN_CHANNELS * PLANE + i] = 1;

    // Stripe s has the columns s, s + STRIPES, s + 2 STRIPES, ... The products are symmetric: a thread takes a pair of
    // stripes with first <= second.
    int second = 0;
    while ((second + 1) * (second + 2) / 2 <= threadIdx.x) second++;
    const int first = threadIdx.x - second * (second + 1) / 2;
    const bool busy = second < STRIPES;
    const double *a[SIDE], *b[SIDE];
    for (int k = 0; k < SIDE; k++) {
        a[k] = tile + place(first + k * STRIPES);
        b[k] = tile + place(second + k * STRIPES);
    }

    double sums[SIDE][SIDE] = {};
    for (int index = blockIdx.x; index < batch * DOWN * ACROSS; index += gridDim.x) {
        const int image = index / (DOWN * ACROSS), top = index / ACROSS % DOWN * TILE_H, left = index % ACROSS * TILE_W;
        __syncthreads();
        const float* planes = x + (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
        load_tile(planes, tile, PITCH, PLANE, top, left, threadIdx.x);
        __syncthreads();
        if (!busy) continue;
        for (int row = 0; row < TILE_H && top + row < OUT_HEIGHT; row++) {
            for (int column = 0; column < TILE_W && left + column < OUT_WIDTH; column++) {
                const int pixel = row * PITCH + column;
                for (int i = 0; i < SIDE; i++) {
                    for (int j = 0; j < SIDE; j++) sums[i][j] += a[i][pixel] * b[j][pixel];
                }
            }
        }
    }
    if (!busy) return;
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            const int row = first + i * STRIPES, column = second + j * STRIPES;
            if (row < COLUMNS && column < COLUMNS) {
                parts[(blockIdx.x * COLUMNS + row) * COLUMNS + column] = sums[i][j];
            }
        }
    }
}

// Add a sum of products up over the slices, in their order. It is where the lower stripe is the row.
__device__ double total(const double* parts, int slices, int i, int j) {
    const int place = i % STRIPES <= j % STRIPES ? i * COLUMNS + j : j * COLUMNS + i;
    double sum = 0;
    for (int slice = 0; slice < slices; slice++) sum += parts[slice * COLUMNS * COLUMNS + place];
    return sum;
}

extern "C" __global__ void finish_moments(
    const double* parts,  // [slices, COLUMNS, COLUMNS]
    double* patch_mean,   // [TAPS]
    double* patch_cov,    // [TAPS, TAPS]
    int slices) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x, i = index / COLUMNS, j = index % COLUMNS;
    if (i >= TAPS) return;
    const double count = total(parts, slices, ONE, ONE);
    const double mean_i = total(parts, slices, i, ONE) / count, mean_j = total(parts, slices, j, ONE) / count;
    if (j == ONE) {
        patch_mean[i] = mean_i;
    } else {
        patch_cov[i * TAPS + j] = total(parts, slices, i, j) / count - mean_i * mean_j;
    }
}

extern "C" __global__ void statistics_of_moments(
    const double* patch_mean,  // [TAPS]
    const double* patch_cov,   // [TAPS, TAPS]
    const float* weight,       // [OUT_CHANNELS, TAPS]
    const float* bias,         // [OUT_CHANNELS]
    float momentum,            // how far the running statistics follow
    float* mean,               // [OUT_CHANNELS]
    float* var,                // [OUT_CHANNELS]   biased
    float* running_mean,       // [OUT_CHANNELS]   changed in place
    float* running_var,        // [OUT_CHANNELS]   changed in place
    float count) {             // batch * OUT_HEIGHT * OUT_WIDTH
    __shared__ double terms[2][TAPS];
    const float* filter = weight + blockIdx.x * TAPS;
    for (int j = threadIdx.x; j < TAPS; j += blockDim.x) {
        double sum = 0;
        for (int i = 0; i < TAPS; i++) sum += filter[i] * patch_cov[i * TAPS + j];
        terms[0][j] = filter[j] * patch_mean[j];
        terms[1][j] = filter[j] * sum;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    double batch_mean = bias[blockIdx.x], batch_var = 0;
    for (int j = 0; j < TAPS; j++) {
        batch_mean += terms[0][j];
        batch_var += terms[1][j];
    }
    if (batch_var < 0) batch_var = 0;  // a rounding error of constant data; NaN stays
    write_statistics(blockIdx.x, batch_mean, batch_var, count, momentum, mean, var, running_mean, running_var);
}
