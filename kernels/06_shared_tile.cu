// 06 shared_tile: a block copies the part of x that its outputs share into shared memory; its threads read it from
// there.
//
// New since 05: a block loads an input from global memory once for all its outputs, not once per multiply-add. A tile of
// 8 x 32 pixels, with a halo of KERNEL_SIZE - 1 more rows and columns, serves every output channel. The weights of 16
// channels at a time are in shared memory too. Barriers separate the copying from the reading.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB, as 04. The tiles overlap by their halos, so the blocks
// load 1.29 times x; the L2 cache can serve the overlaps. An output still needs 72 inputs and 72 weights, now from
// shared memory. One request loads four weights, the same for every lane. A thread's inputs are the same for every
// channel: nvcc keeps them in registers for the 16 channels.
//
// Sizes are compile-time constants, as in 05 (IN_CHANNELS OUT_CHANNELS HEIGHT WIDTH KERNEL_SIZE; stride 1, no padding):
// shared arrays need a constant size, and unrolled loops need no index arithmetic.
//
// Launch: block (32, 8), grid (ceil(out_width / 32), ceil(out_height / 8), batch).

constexpr int OUT_HEIGHT = HEIGHT - KERNEL_SIZE + 1, OUT_WIDTH = WIDTH - KERNEL_SIZE + 1;
constexpr int TILE_H = 8, TILE_W = 32, THREADS = TILE_H * TILE_W;
constexpr int HALO_H = TILE_H + KERNEL_SIZE - 1, HALO_W = TILE_W + KERNEL_SIZE - 1;
constexpr int TAPS = KERNEL_SIZE * KERNEL_SIZE, K = IN_CHANNELS * TAPS;  // K products per output
constexpr int GROUP = 16;  // output channels whose weights are in shared memory at a time

extern "C" __global__ void __launch_bounds__(THREADS) shared_tile(
    const float* __restrict__ x,             // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const float* __restrict__ weight,        // [OUT_CHANNELS, IN_CHANNELS, KERNEL_SIZE, KERNEL_SIZE]
    const float* __restrict__ bias,          // [OUT_CHANNELS]
    const float* __restrict__ running_mean,  // [OUT_CHANNELS]
    const float* __restrict__ running_var,   // [OUT_CHANNELS]
    const float* __restrict__ gamma,         // [OUT_CHANNELS]
    const float* __restrict__ beta,          // [OUT_CHANNELS]
    float scaling_factor,                    // multiplies everything
    float eps,                               // added to the variance
    float* __restrict__ y)                   // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
{
    __shared__ float tile[IN_CHANNELS][HALO_H][HALO_W];
    __shared__ float filters[GROUP][K];
    const int thread = threadIdx.y * TILE_W + threadIdx.x;
    const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
    const int row = top + threadIdx.y, column = left + threadIdx.x;  // of this thread's output, in every channel
    x += (long long)blockIdx.z * IN_CHANNELS * HEIGHT * WIDTH;
    y += (long long)blockIdx.z * OUT_CHANNELS * OUT_HEIGHT * OUT_WIDTH;

    for (int i = thread; i < IN_CHANNELS * HALO_H * HALO_W; i += THREADS) {
        const int in_channel = i / (HALO_H * HALO_W), tile_row = i / HALO_W % HALO_H, tile_column = i % HALO_W;
        const bool inside = top + tile_row < HEIGHT && left + tile_column < WIDTH;  // a tile may reach beyond the edge
        tile[in_channel][tile_row][tile_column] =
            inside ? x[(in_channel * HEIGHT + top + tile_row) * WIDTH + left + tile_column] : 0.0f;
    }
    for (int first = 0; first < OUT_CHANNELS; first += GROUP) {
        __syncthreads();  // the previous channels' weights have been read
        for (int i = thread; i < GROUP * K; i += THREADS)
            filters[i / K][i % K] = first + i / K < OUT_CHANNELS ? weight[first * K + i] : 0.0f;
        __syncthreads();  // the tile and the weights are there
        for (int channel = first; channel < first + GROUP && channel < OUT_CHANNELS; channel++) {
            float sum = 0.0f;
            #pragma unroll
            for (int k = 0; k < K; k++)
                sum += tile[k / TAPS][threadIdx.y + k / KERNEL_SIZE % KERNEL_SIZE][threadIdx.x + k % KERNEL_SIZE]
                    * filters[channel - first][k];
            const float a = scaling_factor * gamma[channel] / sqrtf(running_var[channel] + eps);
            const float b = scaling_factor * beta[channel] + a * (bias[channel] - running_mean[channel]);
            if (row < OUT_HEIGHT && column < OUT_WIDTH)
                y[(channel * OUT_HEIGHT + row) * OUT_WIDTH + column] = a * sum + b;
        }
    }
}
