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

// How many outputs lie before a position, over all images.
__device__ __forceinline__ int outputs_before(int position) {
    const Place place(position);
    const int row = min(place.row, OUT_HEIGHT), column = row < OUT_HEIGHT ? min(place.column, STRIP) : 0;
    return (place.strip * OUT_HEIGHT + row) * STRIP + column;
}

// Writes the outputs of 8 channels at PIXELS positions from `first` on; a warp calls it.
__device__ __forceinline__ void store_run(
    const Run& run, Element* __restrict__ y, int first_channel, int first, int batch) {
    const int begin = outputs_before(first), end = outputs_before(first + PIXELS);
    constexpr int SECTOR = 32 / SIZE;
    #pragma unroll 1
    for (int n = begin / SECTOR * SECTOR + int(threadIdx.x) % 32; n < end; n += 32) {
        Place place(0);
        place.strip = n / (OUT_HEIGHT * STRIP);
        place.row = n / STRIP % OUT_HEIGHT;
        place.column = n % STRIP;
        if (n < begin || !place.is_output(batch)) continue;
        const int position = place.strip * STRIP_POSITIONS + place.row * PITCH + place.column;
        Element* to = y + (long long)place.image() * OUT_CHANNELS * OUT_PLANE
            + place_in_y(first_channel, place.row, place.image_column());
        #pragma unroll
        for (int c = 0; c < (STAGED ? 8 : 1); c++)
            if (OUT_CHANNELS % CHANNELS == 0 || first_channel + c < OUT_CHANNELS)
                to[c * OUT_PLANE] = Element(run[c][position - first]);
    }
}

struct alignas(2 * SIZE) Pair { Element value[2]; };

// Stores the sums of PIXELS positions from `first` on; `channel` as in multiply_tile.
__device__ __forceinline__ void store(
    Shared& shared, const Input& in, Element* __restrict__ y, const Sums& sum, const float (&doubt)[2], int channel,
    int first) {
    const int lane = threadIdx.x % 32, member = lane % 4;
    const auto place_of = [&](int h, const Place& place) {
        return y + (long long)place.image() * OUT_CHANNELS * OUT_PLANE
            + place_in_y(in.first_channel + channel + 8 * h, place.row, place.image_column());
    };
    const auto is_channel = [&](int h) {
        return OUT_CHANNELS % CHANNELS == 0 || in.first_channel + channel + 8 * h < OUT_CHANNELS;
    };
    const auto is_doubtful = [&](int k) {
        return !(fabsf(sum[k]) >= doubt[k / 2 % 2] && fabsf(sum[k]) < __int_as_float(0x7f800000));
    };
    bool any = false;
    #pragma unroll
    for (int k = 0; SCALED && k < PIXELS / 2; k++) any |= is_doubtful(k);
    float a[2], shift[2], b[2];
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int c = channel + 8 * h;
        a[h] = shared.a[c], shift[h] = shared.shift[c], b[h] = shared.b[c];
    }
    const auto output = [&](int k) { return fmaf(a[k / 2 % 2], sum[k] + shift[k / 2 % 2], b[k / 2 % 2]); };
    if (STAGED) {
        Run& run = shared.runs[threadIdx.x / 32];
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            #pragma unroll
            for (int j = 0; j < PIXELS / 8; j++) {
                const float2 two = make_float2(output(4 * j + 2 * h), output(4 * j + 2 * h + 1));
                *reinterpret_cast<float2*>(&run[lane / 4][8 * j + 2 * member]) = two;
            }
            __syncwarp();
            store_run(run, y, in.first_channel + channel - lane / 4 + 8 * h, first, in.batch);
            __syncwarp();
        }
    } else {
        Place place(first + 2 * member);
        #pragma unroll
        for (int j = 0; j < PIXELS / 8; j++) {
            if (j > 0) place.advance(CHANNELS_LAST ? 7 : 8, first + 2 * member + j * 8);
            #pragma unroll
            for (int i = 0; i < (CHANNELS_LAST ? 2 : 1); i++) {
                if (i > 0) place.advance(1, first + 2 * member + j * 8 + 1);
                const bool real = place.is_output(in.batch);
                #pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int k = 4 * j + 2 * h + i;
                    if (!real || !is_channel(h)) continue;
                    if (CHANNELS_LAST) {
                        *place_of(h, place) = Element(output(k));
                    } else {
                        const Pair pair = {Element(output(k)), Element(output(k + 1))};
                        *reinterpret_cast<Pair*>(place_of(h, place)) = pair;
                    }
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
        const int h = k / 2 % 2, position = first + 2 * member + k / 4 * 8 + k % 2;
        const bool mine = doubtful[k / 32] >> k % 32 & 1 && Place(position).is_output(in.batch) && is_channel(h);
        // One after the other, by all lanes.
        for (uint32_t lanes = __ballot_sync(~0u, mine); lanes; lanes &= lanes - 1) {
            const int owner = __ffs(lanes) - 1;
            const Place there(__shfl_sync(~0u, position, owner));
            const int c = __shfl_sync(~0u, in.first_channel + channel + 8 * h, owner);
            const float value = plain_sum(in, c, there);
            if (lane == owner) *place_of(h, there) = Element(fmaf(a[h], value + shift[h], b[h]));
        }
    }
}
