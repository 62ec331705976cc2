// 07 register_tile: a thread computes 8 channels x 4 pixels, so that each number it loads is used 4 or 8 times.
//
// New since 06: a thread keeps 32 sums in registers. For each tap and input channel it loads 4 pixels and 8 weights from
// shared memory, 12 numbers for 32 multiply-adds. A lane's pixels are 32 columns apart, so that the lanes of a warp read
// neighbouring words, without bank conflicts, and store neighbouring outputs. All lanes of a warp need the same 8
// weights: a request broadcasts four of them.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB, as 04; the blocks load 1.48 times x.
//
// Now the multiply-adds are the limit: 9.4 G of them take 280 us at the 67 TFLOP/s of an H200's data sheet, twice the
// time of the bytes. On the CUDA cores no kernel can be faster.
//
// Sizes are compile-time constants: IN_CHANNELS OUT_CHANNELS HEIGHT WIDTH KERNEL_SIZE (stride 1, no padding).
//
// Launch: block (32, 8), grid (ceil(out_width / 128), ceil(out_height / 4), batch * ceil(OUT_CHANNELS / 64)), shared
// memory for filters and tile. Warp w has channels 8 w to 8 w + 7 of the block's 64, and all of its 4 rows in turn.

constexpr int OUT_HEIGHT = HEIGHT - KERNEL_SIZE + 1, OUT_WIDTH = WIDTH - KERNEL_SIZE + 1;
constexpr int CHANNELS = 8, PIXELS = 4, WARPS = 8, THREADS = 32 * WARPS;
constexpr int TILE_H = 4, TILE_W = 32 * PIXELS, HALO_H = TILE_H + KERNEL_SIZE - 1, HALO_W = TILE_W + KERNEL_SIZE - 1;
constexpr int TAPS = KERNEL_SIZE * KERNEL_SIZE, K = IN_CHANNELS * TAPS;
constexpr int GROUP = CHANNELS * WARPS, GROUPS = (OUT_CHANNELS + GROUP - 1) / GROUP;  // a block computes a group
constexpr int FILTERS_W = GROUP + 4;  // 4 more, so that the lanes that copy neighbouring weights use 8 banks, not one

extern "C" __global__ void __launch_bounds__(THREADS) register_tile(
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
    extern __shared__ float4 memory[];
    auto filters = reinterpret_cast<float (*)[FILTERS_W]>(memory);         // [K][FILTERS_W]
    auto tile = reinterpret_cast<float (*)[HALO_H][HALO_W]>(filters + K);  // [IN_CHANNELS][HALO_H][HALO_W]
    const int lane = threadIdx.x, warp = threadIdx.y, thread = warp * 32 + lane;
    const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
    const int image = blockIdx.z / GROUPS, first = blockIdx.z % GROUPS * GROUP;
    x += (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
    y += (long long)image * OUT_CHANNELS * OUT_HEIGHT * OUT_WIDTH;

    for (int i = thread; i < GROUP * K; i += THREADS) {
        const int channel = i / K, k = i % K;
        filters[k][channel] = first + channel < OUT_CHANNELS ? weight[(first + channel) * K + k] : 0.0f;
    }
    for (int i = thread; i < IN_CHANNELS * HALO_H * HALO_W; i += THREADS) {
        const int in_channel = i / (HALO_H * HALO_W), tile_row = i / HALO_W % HALO_H, tile_column = i % HALO_W;
        const bool inside = top + tile_row < HEIGHT && left + tile_column < WIDTH;
        tile[in_channel][tile_row][tile_column] =
            inside ? x[(in_channel * HEIGHT + top + tile_row) * WIDTH + left + tile_column] : 0.0f;
    }
    __syncthreads();

    for (int row = top; row < top + TILE_H && row < OUT_HEIGHT; row++) {
        float sum[CHANNELS][PIXELS] = {};
        #pragma unroll 2
        for (int in_channel = 0; in_channel < IN_CHANNELS; in_channel++) {
            #pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                float pixels[PIXELS];
                #pragma unroll
                for (int p = 0; p < PIXELS; p++)
                    pixels[p] = tile[in_channel][row - top + tap / KERNEL_SIZE][lane + 32 * p + tap % KERNEL_SIZE];
                #pragma unroll
                for (int c = 0; c < CHANNELS; c += 4) {
                    const float4 w =
                        *reinterpret_cast<const float4*>(&filters[in_channel * TAPS + tap][warp * CHANNELS + c]);
                    #pragma unroll
                    for (int p = 0; p < PIXELS; p++) {
                        sum[c][p] += w.x * pixels[p];
                        sum[c + 1][p] += w.y * pixels[p];
                        sum[c + 2][p] += w.z * pixels[p];
                        sum[c + 3][p] += w.w * pixels[p];
                    }
                }
            }
        }
        #pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            const int channel = first + warp * CHANNELS + c;
            if (channel >= OUT_CHANNELS) break;
            const float a = scaling_factor * gamma[channel] / sqrtf(running_var[channel] + eps);
            const float b = scaling_factor * beta[channel] + a * (bias[channel] - running_mean[channel]);
            #pragma unroll
            for (int p = 0; p < PIXELS; p++) {
                const int column = left + lane + 32 * p;
                if (column < OUT_WIDTH) y[(channel * OUT_HEIGHT + row) * OUT_WIDTH + column] = a * sum[c][p] + b;
            }
        }
    }
}
