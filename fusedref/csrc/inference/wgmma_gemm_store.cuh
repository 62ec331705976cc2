// wgmma_gemm.cu: the epilogue. Apply a, shift and b, and write y; recompute sums that are not finite.
#pragma once

#include "wgmma_gemm_multiply.cuh"

// Computes one sum in plain float32; the warp's lanes share its products.
__device__ __forceinline__ float plain_sum(const Input& in, int channel, const Place& place) {
    const Element* image = in.x + (long long)place.image() * IN_CHANNELS * IN_PLANE;
    const Element* filter = in.weight + (long long)channel * IN_CHANNELS * TAPS;
    float sum = 0.0f;
    #pragma unroll 4
    for (int k = threadIdx.x % 32; k < IN_CHANNELS * TAPS; k += 32) {
        const int row = place.row * STRIDE_H - PAD_TOP + k / KERNEL_WIDTH % KERNEL_HEIGHT * DILATION_H;
        const int column = place.image_column() * STRIDE_W - PAD_LEFT + k % KERNEL_WIDTH * DILATION_W;
        const bool inside = (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
        sum = fmaf(inside ? float(image[place_in_x(k / TAPS, row, column)]) : 0.0f, float(filter[k]), sum);
    }
    #pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    return sum;
}

// Whether two neighbouring positions are neighbours in a row of y, at an even place.
constexpr bool PAIRS = !CHANNELS_LAST && OUT_WIDTH % 2 == 0 && STRIP % 2 == 0 && PITCH % 2 == 0;
struct alignas(2 * SIZE) Pair { Element value[2]; };

// Stores the sums of PIXELS positions from `first` on; `channel` as in multiply_tile.
__device__ __forceinline__ void store(
    const Shared& shared, const Input& in, Element* __restrict__ y, const Sums& sum, const float (&doubt)[2],
    int channel, int first) {
    const auto place_of = [&](int h, const Place& place) {
        return y + (long long)place.image() * OUT_CHANNELS * OUT_PLANE
            + place_in_y(in.first_channel + channel + 8 * h, place.row, place.image_column());
    };
    first += threadIdx.x % 4 * 2;
    float a[2], shift[2], b[2];
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int c = channel + 8 * h;
        a[h] = shared.a[c], shift[h] = shared.shift[c], b[h] = shared.b[c];
    }
    const auto output = [&](int h, float sum) { return Element(fmaf(a[h], sum + shift[h], b[h])); };
    const auto is_channel = [&](int h) {
        return OUT_CHANNELS % CHANNELS == 0 || in.first_channel + channel + 8 * h < OUT_CHANNELS;
    };
    const auto is_doubtful = [&](int k) {
        return !(fabsf(sum[k]) >= doubt[k / 2 % 2] && fabsf(sum[k]) < __int_as_float(0x7f800000));
    };
    bool any = false;
    Place place(first);
    #pragma unroll
    for (int j = 0; j < PIXELS / 8; j++) {
        if (j > 0) place.advance(PAIRS ? 8 : 7, first + j * 8);
        #pragma unroll
        for (int i = 0; i < (PAIRS ? 1 : 2); i++) {
            if (i > 0) place.advance(1, first + j * 8 + 1);
            const bool real = place.is_output(in.batch);
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const int k = 4 * j + 2 * h + i;
                any |= SCALED && (is_doubtful(k) || (PAIRS && is_doubtful(k + 1)));
                if (!real || !is_channel(h)) continue;
                if (PAIRS) {
                    const Pair pair = {output(h, sum[k]), output(h, sum[k + 1])};
                    *reinterpret_cast<Pair*>(place_of(h, place)) = pair;
                } else {
                    *place_of(h, place) = output(h, sum[k]);
                }
            }
        }
    }
    if (!__any_sync(~0u, any)) return;
    uint32_t doubtful[(PIXELS + 63) / 64] = {};  // bit k: sum[k]
    #pragma unroll
    for (int k = 0; k < PIXELS / 2; k++) doubtful[k / 32] |= uint32_t(is_doubtful(k)) << k % 32;
    #pragma unroll 1
    for (int k = 0; k < PIXELS / 2; k++) {
        const int h = k / 2 % 2, position = first + k / 4 * 8 + k % 2;
        const bool mine = doubtful[k / 32] >> k % 32 & 1 && Place(position).is_output(in.batch) && is_channel(h);
        // One after the other, by all lanes.
        for (uint32_t lanes = __ballot_sync(~0u, mine); lanes; lanes &= lanes - 1) {
            const int lane = __ffs(lanes) - 1;
            const Place there(__shfl_sync(~0u, position, lane));
            const int c = __shfl_sync(~0u, in.first_channel + channel + 8 * h, lane);
            const float value = plain_sum(in, c, there);
            if (int(threadIdx.x) % 32 == lane) *place_of(h, there) = output(h, value);
        }
    }
}
