// 09 split_fp32: fp32's accuracy from the tensor cores. Every number is split into two fp16 numbers, and the sums are
// ordered so that the tensor cores' truncation does not add up.
//
//   v * 2^s = hi + lo / 4096                                  hi, lo in fp16: 11 bits and 11 more
//   w x     = w_hi x_hi + (w_lo x_hi + w_hi x_lo) / 4096      (w_lo x_lo / 4096^2 is below fp32's last bit)
//
// New since 08: three products instead of one, but of 16-bit numbers, of which mma takes twice as many at a time. A
// tensor core truncates where an addition in fp32 rounds, so long sums drift. The cross terms, 4096 times smaller, may
// accumulate in the tensor core; each hi hi product starts from zero, and an ordinary, rounding addition accumulates it.
//
// fp16 ends at 65504. Powers of two, which are exact, scale the largest magnitude of a tile, and of each output
// channel's weights, below 2^15, and scale the sums back: x and weight may have any scale. Magnitudes below 2^-28 of the
// largest lose digits. This rung does not serve infinity and NaN: in x they spoil the whole tile, in the weights the
// channel.
//
// The scattered sums pass through shared memory, so that a store of a warp is again 32 neighbouring outputs, as in 07.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB, as 04; the blocks load 1.33 times x. In shared memory
// the 8 input channels of a pixel take 32 bytes, as in tf32: a row of hi, a row of lo.
//
// Sizes are compile-time constants: IN_CHANNELS OUT_CHANNELS HEIGHT WIDTH KERNEL_SIZE (stride 1, no padding).
//
// Launch: block (256), grid (ceil(out_width / 64), ceil(out_height / 6), batch * ceil(OUT_CHANNELS / 64)), shared
// memory for tile, filters and runs. Warp w has 16 channels, from 16 (w % 4) on, and the left or right half of every
// row.

#include <cuda_fp16.h>
#include "ptx.cuh"

constexpr int OUT_HEIGHT = HEIGHT - KERNEL_SIZE + 1, OUT_WIDTH = WIDTH - KERNEL_SIZE + 1;
constexpr int TILE_H = 6, TILE_W = 64, HALO_H = TILE_H + KERNEL_SIZE - 1, HALO_W = TILE_W + KERNEL_SIZE - 1;
constexpr int TAPS = KERNEL_SIZE * KERNEL_SIZE, K = IN_CHANNELS * TAPS;
constexpr int CHUNKS = (IN_CHANNELS + 7) / 8;  // of 8 input channels; zeros fill up the last
constexpr int PIXELS = HALO_H * HALO_W, STEPS = CHUNKS * TAPS;
constexpr int GROUP = 64, GROUPS = (OUT_CHANNELS + GROUP - 1) / GROUP, WARPS = 8, THREADS = 32 * WARPS;
constexpr int FILTERS_W = 2 * GROUP + 1;  // rows; one more, so that the lanes that copy weights use different banks
constexpr int WARP_W = TILE_W / 2, RUN_W = WARP_W + 8;  // a warp's pixels of a row; 8 more, to avoid bank conflicts
constexpr float LO_SCALE = 4096.0f;

// The bits of |v|; as integers they are in the order of the magnitudes.
__device__ __forceinline__ unsigned magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

// The s for which 2^s scales a magnitude into [2^14, 2^15), limited so that 2^s is finite.
__device__ __forceinline__ int shift_of(unsigned magnitude) { return min(14 + 127 - int(magnitude >> 23), 126); }

__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// v = hi + lo / LO_SCALE, except for the last bit or two.
__device__ __forceinline__ void split(float v, __half& hi, __half& lo) {
    hi = __float2half_rn(v);
    lo = __float2half_rn((v - __half2float(hi)) * LO_SCALE);
}

extern "C" __global__ void __launch_bounds__(THREADS) split_fp32(
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
    extern __shared__ uint4 memory[];                                     // rows of 8 input channels, in fp16
    auto tile = reinterpret_cast<uint4(*)[2][PIXELS]>(memory);            // [CHUNKS][hi, lo][PIXELS]
    auto filters = reinterpret_cast<uint4(*)[FILTERS_W]>(tile + CHUNKS);  // [STEPS][GROUP of hi, GROUP of lo, and one]
    auto runs = reinterpret_cast<float (*)[8][RUN_W]>(filters + STEPS);   // [WARPS][8 channels][RUN_W]
    __shared__ float a[GROUP], b[GROUP];
    __shared__ int w_shift[GROUP];
    __shared__ unsigned largest;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, group = lane / 4, member = lane % 4;
    const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
    const int image = blockIdx.z / GROUPS, first = blockIdx.z % GROUPS * GROUP;
    x += (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
    y += (long long)image * OUT_CHANNELS * OUT_HEIGHT * OUT_WIDTH;
    if (thread == 0) largest = 0;
    __syncthreads();

    // Copy x unchanged, 8 numbers of 4 bytes per pixel: exactly the space that hi and lo need.
    unsigned most = 0;
    #pragma unroll 2
    for (int i = thread; i < CHUNKS * PIXELS; i += THREADS) {
        const int chunk = i / PIXELS, pixel = i % PIXELS, row = top + pixel / HALO_W, column = left + pixel % HALO_W;
        uint32_t v[8];
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            const bool real = chunk * 8 + c < IN_CHANNELS && row < HEIGHT && column < WIDTH;
            v[c] = __float_as_uint(real ? x[((chunk * 8 + c) * HEIGHT + row) * WIDTH + column] : 0.0f);
            most = max(most, v[c] & 0x7fffffffu);
        }
        tile[chunk][0][pixel] = make_uint4(v[0], v[1], v[2], v[3]);
        tile[chunk][1][pixel] = make_uint4(v[4], v[5], v[6], v[7]);
    }
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) atomicMax(&largest, most);

    // The weights: a warp takes a channel, finds its largest magnitude and splits it.
    for (int c = warp; c < GROUP; c += WARPS) {
        const int channel = min(first + c, OUT_CHANNELS - 1);  // channels beyond the last are computed, but not stored
        most = 0;
        for (int k = lane; k < K; k += 32) most = max(most, magnitude(weight[channel * K + k]));
        const int shift = shift_of(__reduce_max_sync(~0u, most));
        for (int k = lane; k < STEPS * 8; k += 32) {
            const int in_channel = k / TAPS;
            uint4* row = &filters[in_channel / 8 * TAPS + k % TAPS][c];
            __half hi, lo;
            split(k < K ? weight[channel * K + k] * power_of_two(shift) : 0.0f, hi, lo);
            reinterpret_cast<__half*>(row)[in_channel % 8] = hi;
            reinterpret_cast<__half*>(row + GROUP)[in_channel % 8] = lo;
        }
        if (lane == 0) {
            w_shift[c] = shift;
            a[c] = scaling_factor * gamma[channel] / sqrtf(running_var[channel] + eps);
            b[c] = scaling_factor * beta[channel] + a[c] * (bias[channel] - running_mean[channel]);
        }
    }
    __syncthreads();

    // Split x in place: each pixel by the thread that copied it.
    const int x_shift = shift_of(largest);
    #pragma unroll 1
    for (int i = thread; i < CHUNKS * PIXELS; i += THREADS) {
        uint4* rows[2] = {&tile[i / PIXELS][0][i % PIXELS], &tile[i / PIXELS][1][i % PIXELS]};
        const uint4 front = *rows[0], back = *rows[1];
        const uint32_t v[8] = {front.x, front.y, front.z, front.w, back.x, back.y, back.z, back.w};
        union {
            __half numbers[2][8];
            uint4 rows[2];
        } pixel;
        #pragma unroll
        for (int c = 0; c < 8; c++)
            split(__uint_as_float(v[c]) * power_of_two(x_shift), pixel.numbers[0][c], pixel.numbers[1][c]);
        *rows[0] = pixel.rows[0];
        *rows[1] = pixel.rows[1];
    }
    __syncthreads();

    const int warp_first = warp % 4 * 16, warp_left = warp / 4 * WARP_W;  // of the block's channels and columns
    for (int line = 0; line < TILE_H && top + line < OUT_HEIGHT; line++) {
        float sum[WARP_W / 8][4] = {}, cross[WARP_W / 8][4] = {};
        #pragma unroll(TAPS <= 9 ? TAPS : 1)
        for (int step = 0; step < STEPS; step += 2) {
            const bool two = step + 1 < STEPS;
            uint32_t w[2][4];  // of this step and the next: hi of the lane's two channels, then lo
            const uint4* corner[2];
            #pragma unroll
            for (int s = 0; s < 1 + two; s++) {
                const int chunk = (step + s) / TAPS, tap = (step + s) % TAPS;
                ptx::ldmatrix_x4(w[s], &filters[step + s][lane / 16 * GROUP + warp_first + lane % 16]);
                corner[s] =
                    tile[chunk][lane / 8 % 2] + (line + tap / KERNEL_SIZE) * HALO_W + warp_left + tap % KERNEL_SIZE;
            }
            #pragma unroll
            for (int n = 0; n < WARP_W / 8; n += 2) {
                uint32_t v[2][4];  // of both: 8 pixels' hi, then their lo; and the same of the next 8 pixels
                #pragma unroll
                for (int s = 0; s < 1 + two; s++) ptx::ldmatrix_x4(v[s], corner[s] + n * 8 + lane / 16 * 8 + lane % 8);
                #pragma unroll
                for (int m = 0; m < 2; m++) {
                    const int hi = m * 2, lo = hi + 1;
                    #pragma unroll
                    for (int s = 0; s < 1 + two; s++)  // k = 16: w_lo x_hi of 8 channels, w_hi x_lo of the same
                        ptx::mma_m16n8k16_f16(
                            cross[n + m], w[s][2], w[s][3], w[s][0], w[s][1], v[s][hi], v[s][lo], cross[n + m]);
                    float product[4] = {};
                    if (two)
                        ptx::mma_m16n8k16_f16(product, w[0][0], w[0][1], w[1][0], w[1][1], v[0][hi], v[1][hi], product);
                    else ptx::mma_m16n8k8_f16(product, w[0][0], w[0][1], v[0][hi], product);
                    #pragma unroll
                    for (int i = 0; i < 4; i++) sum[n + m][i] += product[i];
                }
            }
        }
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            const int mine = warp_first + half * 8 + group, back = -x_shift - w_shift[mine];
            const float unit = power_of_two(back / 2), rest = power_of_two(back - back / 2);  // 2^back may overflow
            #pragma unroll
            for (int n = 0; n < WARP_W / 8; n++) {
                float v[2];
                #pragma unroll
                for (int i = 0; i < 2; i++) {
                    v[i] = fmaf(cross[n][half * 2 + i], 1 / LO_SCALE, sum[n][half * 2 + i]);
                    v[i] = a[mine] * (v[i] * unit * rest) + b[mine];
                }
                *reinterpret_cast<float2*>(&runs[warp][group][n * 8 + member * 2]) = make_float2(v[0], v[1]);
            }
            __syncwarp();
            for (int c = 0; c < 8; c++) {
                const int channel = first + warp_first + half * 8 + c;
                if (channel >= OUT_CHANNELS) break;
                const int column = left + warp_left + lane;
                if (column < OUT_WIDTH)
                    y[(channel * OUT_HEIGHT + top + line) * OUT_WIDTH + column] = runs[warp][c][lane];
            }
            __syncwarp();  // before the next sums overwrite these
        }
    }
}
