// 08 tensor_cores: the multiply-adds as products of small matrices, on the tensor cores, in tf32.
//
// New since 07: one instruction of a warp, mma, multiplies a 16 x 8 matrix of weights (16 channels, 8 input channels
// of one tap) by an 8 x 8 matrix of inputs (the same input channels of 8 neighbouring pixels, shifted by the tap).
// That is 1024 multiply-adds; an ordinary instruction of a warp does 32. The price is tf32, which keeps 10 bits of the
// fraction: errors of 2e-4, compared with 1e-7 in fp32. This rung validates in tf32.
//
// Both matrices are in shared memory as rows of 16 bytes: 4 input channels of a pixel, or of a tap of a filter.
// ldmatrix loads four pieces of 8 rows at once; each lane passes the address of a row. 8 neighbouring rows are 128
// bytes: every bank once. The sums are scattered over the lanes: a store of the warp goes to 8 channels, 32 bytes each.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB, as 04; the blocks load 1.33 times x.
//
// Sizes are compile-time constants: IN_CHANNELS OUT_CHANNELS HEIGHT WIDTH KERNEL_SIZE (stride 1, no padding).
//
// Launch: block (256), grid (ceil(out_width / 64), ceil(out_height / 6), batch * ceil(OUT_CHANNELS / 64)), shared
// memory for tile and filters. Warp w has 16 channels, from 16 (w % 4) on, and every second of the block's 6 rows.

#include "ptx.cuh"

constexpr int OUT_HEIGHT = HEIGHT - KERNEL_SIZE + 1, OUT_WIDTH = WIDTH - KERNEL_SIZE + 1;
constexpr int TILE_H = 6, TILE_W = 64, HALO_H = TILE_H + KERNEL_SIZE - 1, HALO_W = TILE_W + KERNEL_SIZE - 1;
constexpr int TAPS = KERNEL_SIZE * KERNEL_SIZE, K = IN_CHANNELS * TAPS;
constexpr int CHUNKS = (IN_CHANNELS + 7) / 8;  // mma takes 8 input channels; zeros fill up the last chunk
constexpr int PIXELS = HALO_H * HALO_W, STEPS = CHUNKS * TAPS;
constexpr int GROUP = 64, GROUPS = (OUT_CHANNELS + GROUP - 1) / GROUP, THREADS = 256;
constexpr int FILTERS_W = 2 * GROUP + 1;  // rows; one more, so that the lanes that copy weights use different banks

extern "C" __global__ void __launch_bounds__(THREADS) tensor_cores(
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
    extern __shared__ uint4 memory[];                                     // rows of 4 input channels, in tf32
    auto tile = reinterpret_cast<uint4(*)[2][PIXELS]>(memory);            // [CHUNKS][2][PIXELS]
    auto filters = reinterpret_cast<uint4(*)[FILTERS_W]>(tile + CHUNKS);  // [STEPS][two times GROUP, and one]
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, group = lane / 4, member = lane % 4;
    const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
    const int image = blockIdx.z / GROUPS, first = blockIdx.z % GROUPS * GROUP;
    x += (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
    y += (long long)image * OUT_CHANNELS * OUT_HEIGHT * OUT_WIDTH;

    for (int i = thread; i < GROUP * STEPS * 8; i += THREADS) {
        const int channel = i / (STEPS * 8), k = i % (STEPS * 8), in_channel = k / TAPS;
        const bool real = first + channel < OUT_CHANNELS && k < K;
        uint4* row = &filters[in_channel / 8 * TAPS + k % TAPS][in_channel / 4 % 2 * GROUP + channel];
        reinterpret_cast<uint32_t*>(row)[in_channel % 4] =
            ptx::to_tf32(real ? weight[(first + channel) * K + k] : 0.0f);
    }
    #pragma unroll 4
    for (int i = thread; i < CHUNKS * 2 * PIXELS; i += THREADS) {
        const int quad = i / PIXELS, pixel = i % PIXELS, row = top + pixel / HALO_W, column = left + pixel % HALO_W;
        uint32_t v[4];
        #pragma unroll
        for (int c = 0; c < 4; c++) {
            const bool real = quad * 4 + c < IN_CHANNELS && row < HEIGHT && column < WIDTH;
            v[c] = ptx::to_tf32(real ? x[((quad * 4 + c) * HEIGHT + row) * WIDTH + column] : 0.0f);
        }
        tile[quad / 2][quad % 2][pixel] = make_uint4(v[0], v[1], v[2], v[3]);
    }
    __syncthreads();

    const int warp_first = warp % 4 * 16;  // of the block's channels
    float a[2], b[2];                      // this lane has two channels, 8 apart
    #pragma unroll
    for (int half = 0; half < 2; half++) {
        const int channel = min(first + warp_first + group + half * 8, OUT_CHANNELS - 1);
        a[half] = scaling_factor * gamma[channel] / sqrtf(running_var[channel] + eps);
        b[half] = scaling_factor * beta[channel] + a[half] * (bias[channel] - running_mean[channel]);
    }
    for (int line = warp / 4; line < TILE_H && top + line < OUT_HEIGHT; line += 2) {
        float sum[TILE_W / 8][4] = {};  // 8 times 8 pixels of 16 channels, distributed over the lanes
        #pragma unroll(TAPS <= 9 ? TAPS : 1)
        for (int step = 0; step < STEPS; step++) {
            const int chunk = step / TAPS, tap = step % TAPS;
            const int corner = (line + tap / KERNEL_SIZE) * HALO_W + tap % KERNEL_SIZE;
            uint32_t w[4];  // lanes 0 to 15 address 16 channels at input channels 0 to 3; the others, at 4 to 7
            ptx::ldmatrix_x4(w, &filters[step][lane / 16 * GROUP + warp_first + lane % 16]);
            #pragma unroll
            for (int n = 0; n < TILE_W / 8; n += 2) {
                uint32_t v[4];  // 8 pixels, input channels 0 to 3, then 4 to 7; and the same of the next 8 pixels
                ptx::ldmatrix_x4(v, &tile[chunk][lane / 8 % 2][corner + n * 8 + lane / 16 * 8 + lane % 8]);
                ptx::mma_m16n8k8_tf32(sum[n], w[0], w[1], w[2], w[3], v[0], v[1], sum[n]);
                ptx::mma_m16n8k8_tf32(sum[n + 1], w[0], w[1], w[2], w[3], v[2], v[3], sum[n + 1]);
            }
        }
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            const int channel = first + warp_first + group + half * 8;
            if (channel >= OUT_CHANNELS) break;
            float* out = y + (channel * OUT_HEIGHT + top + line) * OUT_WIDTH;
            #pragma unroll
            for (int n = 0; n < TILE_W / 8; n++) {
                const int column = left + n * 8 + member * 2;
                const float even = a[half] * sum[n][half * 2] + b[half], odd = a[half] * sum[n][half * 2 + 1] + b[half];
                if (OUT_WIDTH % 2 == 0) {
                    // __stwb is an ordinary store. For an assignment to *out, nvcc would split the float2 into two stores.
                    if (column < OUT_WIDTH) __stwb(reinterpret_cast<float2*>(out + column), make_float2(even, odd));
                } else {  // the rows of an odd width do not all start at a multiple of 8 bytes
                    if (column < OUT_WIDTH) out[column] = even;
                    if (column + 1 < OUT_WIDTH) out[column + 1] = odd;
                }
            }
        }
    }
}
