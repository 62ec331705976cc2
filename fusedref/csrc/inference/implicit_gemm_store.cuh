// implicit_gemm.cu: the epilogue. Recompute sums that are wrong, apply a, shift and b, and write runs of y.
#pragma once

#include "implicit_gemm_multiply.cuh"

// Computes one sum in plain float32, the lanes of the warp a share of the products each.
__device__ __forceinline__ float plain_sum(const Input& in, const Tile& tile, int channel, int row, int column) {
    const Element* image = image_of(in, tile);
    const Element* filter =
        in.weight + ((long long)in.group * GROUP_OUT + in.first_channel + channel) * GROUP_IN * TAPS;
    float sum = 0.0f;
    #pragma unroll 2
    for (int k = threadIdx.x % 32; k < GROUP_IN * TAPS; k += 32) {
        const int r = row * STRIDE_H - PAD_TOP + k / KERNEL_WIDTH % KERNEL_HEIGHT * DILATION_H;
        const int c = column * STRIDE_W - PAD_LEFT + k % KERNEL_WIDTH * DILATION_W;
        const bool inside = (unsigned)r < HEIGHT && (unsigned)c < WIDTH;
        sum = fmaf(inside ? float(image[place_in_x(in.group, k / TAPS, r, c)]) : 0.0f, float(filter[k]), sum);
    }
    #pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    return sum;
}

// Outputs that a lane stores at once: neighbours in a row, or with channels last neighbouring channels.
static_assert(4 % Y_UNIT == 0 && (CHANNELS_LAST ? GROUP_OUT : OUT_WIDTH) % Y_UNIT == 0, "the plan's geometry");
struct alignas(4 * Y_UNIT) SumUnit { float value[Y_UNIT]; };
struct alignas(Y_UNIT* SIZE) OutputUnit { Element value[Y_UNIT]; };

__device__ __forceinline__ void store(
    Shared& shared, const Input& in, Element* __restrict__ y, Sums& sum, float least, const Tile& tile, int warp,
    int lane) {
    const int group = lane / 4, member = lane % 4, first = warp % WARPS_DOWN * WARP_CHANNELS;
    float (&run)[8][RUN_PITCH] = shared.runs[warp];
    y += (long long)tile.image * OUT_CHANNELS * OUT_PLANE;
    // Row and column in the plane of y of one of the warp's 32 pixels.
    const auto row_of = [&](int pixel) {
        pixel += warp / WARPS_DOWN * 32;
        const bool real = pixel < TILE_ROWS * TILE_COLUMNS && tile.column + pixel % TILE_COLUMNS < OUT_WIDTH;
        return real ? tile.row + pixel / TILE_COLUMNS : OUT_HEIGHT;  // beyond the last row: not stored
    };
    const auto column_of = [&](int pixel) { return tile.column + (warp / WARPS_DOWN * 32 + pixel) % TILE_COLUMNS; };

    // recompute: replace sums that are not finite; the whole warp calls it. put: compute the outputs and store them.
    const auto recompute = [&](float* sums, int channel, int row, int column) {
        const bool stored = row < OUT_HEIGHT && in.first_channel + channel < GROUP_OUT;
        #pragma unroll 1
        for (int i = 0; i < Y_UNIT; i++)
            for (unsigned left = __ballot_sync(~0u, stored && !isfinite(sums[i])); left != 0; left &= left - 1) {
                const int owner = __ffs(left) - 1;
                const auto owners = [&](int value) { return __shfl_sync(~0u, value, owner); };
                const int c = owners(channel) + (CHANNELS_LAST ? i : 0), q = owners(column) + (CHANNELS_LAST ? 0 : i);
                const float again = plain_sum(in, tile, c, owners(row), q);
                if (lane == owner) sums[i] = again;
            }
    };
    const auto put = [&](const float* sums, int channel, int row, int column) {
        if (row >= OUT_HEIGHT || in.first_channel + channel >= GROUP_OUT) return;
        const SumUnit values = *reinterpret_cast<const SumUnit*>(sums);
        OutputUnit output;
        #pragma unroll
        for (int i = 0; i < Y_UNIT; i++) {
            const int c = channel + (CHANNELS_LAST ? i : 0);
            output.value[i] = Element(fmaf(shared.a[c], values.value[i] + shared.shift[c], shared.b[c]));
        }
        const int out_channel = in.group * GROUP_OUT + in.first_channel + channel, place = row * OUT_WIDTH + column;
        Element* to = y + (CHANNELS_LAST ? place * OUT_CHANNELS + out_channel : out_channel * OUT_PLANE + place);
        *reinterpret_cast<OutputUnit*>(to) = output;
    };

    if (SCALED && least != 0.0f)
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int n = 0; n < N; n++)
                #pragma unroll
                for (int i = 0; i < 4; i++)
                    if (fabsf(sum[m][n][i]) < least) sum[m][n][i] = nanf("");
    float not_finite = 0.0f;  // becomes NaN with any sum that is not finite
    #pragma unroll
    for (int m = 0; m < M; m++)
        #pragma unroll
        for (int n = 0; n < N; n++)
            #pragma unroll
            for (int i = 0; i < 4; i++) not_finite = fmaf(sum[m][n][i], 0.0f, not_finite);
    const bool plain = SCALED && __any_sync(~0u, not_finite != 0.0f);
#if CHANNELS_LAST
    #pragma unroll
    for (int n = 0; n < N; n++) {
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int i = 0; i < 4; i++) run[member * 2 + i % 2][m * 16 + i / 2 * 8 + group] = sum[m][n][i];
        __syncwarp();
        const auto each = [&](const auto& what, int i) {
            const int pixel = i / (WARP_CHANNELS / Y_UNIT), c = i % (WARP_CHANNELS / Y_UNIT) * Y_UNIT;
            what(&run[pixel][c], first + c, row_of(n * 8 + pixel), column_of(n * 8 + pixel));
        };
        #pragma unroll 1
        for (int i = lane; plain && i < 8 * WARP_CHANNELS / Y_UNIT; i += 32) each(recompute, i);
        #pragma unroll 1
        for (int i = lane; i < 8 * WARP_CHANNELS / Y_UNIT; i += 32) each(put, i);
        __syncwarp();
    }
#else
    constexpr int TOGETHER = 32 / Y_UNIT;  // lanes of one channel
    const int pixel = lane % TOGETHER * Y_UNIT, row = row_of(pixel), column = column_of(pixel);
    #pragma unroll
    for (int m = 0; m < M; m++)
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 two = make_float2(sum[m][n][half * 2], sum[m][n][half * 2 + 1]);
                *reinterpret_cast<float2*>(&run[group][n * 8 + member * 2]) = two;
            }
            __syncwarp();
            const int channel = first + m * 16 + half * 8;
            #pragma unroll 1
            for (int c = lane / TOGETHER; plain && c < 8; c += Y_UNIT)
                recompute(&run[c][pixel], channel + c, row, column);
            #pragma unroll 4
            for (int c = lane / TOGETHER; c < 8; c += Y_UNIT) put(&run[c][pixel], channel + c, row, column);
            __syncwarp();
        }
#endif
}
