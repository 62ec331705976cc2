// pipeline.cu: wgmma products of a warpgroup, and the epilogue that writes their sums to an output buffer.
#pragma once

#include "affine.cuh"
#include "pipeline_tile.cuh"

// Bytes in shared memory from a window's first tap to tap t.
__host__ __device__ constexpr int tap_bytes(int t) {
    return (t / KERNEL_WIDTH * DILATION_H * PITCH + t % KERNEL_WIDTH * DILATION_W) * 16;
}

struct Weights {
    uint32_t hi[TAPS][2], lo[PIECES >= 2 ? TAPS : 1][2];
    uint32_t rest[PIECES == 3 ? TAPS : 1][2], small_lo[PIECES == 3 ? TAPS : 1][2];  // small_lo: lo / CROSS_SCALE
};  // of two channels, input channels 2 member and 2 member + 1
// With SHARED_ROWS those with lo of x are in the second half of a row: hi is hi and zeros, lo is lo and hi, rest is rest and
// small_lo.

template <int N> struct Sums { float main[N / 2], cross[PIECES >= 2 ? N / 2 : 1]; };  // of N pixels

// The block's channel in row `group` + 8 h of the warp's matrix: even channels first, which avoids bank conflicts in the
// staged runs.
__device__ __forceinline__ int channel_of(int warp, int h, int group) { return warp % 4 * 16 + 2 * group + h; }

template <int N>
__device__ __forceinline__ void product(
    float (&sum)[N], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, ptx::Columns b, bool begun) {
#if ELEMENT == 2
    ptx::wgmma_bf16(sum, a0, a1, a2, a3, b, begun);
#else
    ptx::wgmma_f16(sum, a0, a1, a2, a3, b, begun);
#endif
}

// Starts the products of the weights and N pixels, with the pixels' first tap at `here`.
template <int N>
__device__ __forceinline__ void multiply(Sums<N>& sum, const Weights& w, ptx::Columns here) {
    ptx::wgmma_fence();
    #pragma unroll
    for (int t = 0; t < TAPS; t += 2) {
        const int tap = tap_bytes(t);
        if (t + 1 < TAPS) {
            const int next = tap_bytes(t + 1) - tap;
            product(sum.main, w.hi[t][0], w.hi[t][1], w.hi[t + 1][0], w.hi[t + 1][1], here.at(tap, next), t > 0);
            if constexpr (PIECES >= 2) {
                product(sum.cross, w.lo[t][0], w.lo[t][1], w.lo[t + 1][0], w.lo[t + 1][1], here.at(tap, next), t > 0);
                product(
                    sum.cross, w.hi[t][0], w.hi[t][1], w.hi[t + 1][0], w.hi[t + 1][1], here.at(tap + LO, next), true);
            }
            if constexpr (PIECES == 3) {
                const auto add = [&](const uint32_t (&a)[TAPS][2], int piece) {
                    product(sum.cross, a[t][0], a[t][1], a[t + 1][0], a[t + 1][1], here.at(tap + piece, next), true);
                };
                add(w.rest, 0);
                if constexpr (!SHARED_ROWS) {
                    add(w.small_lo, LO);
                    add(w.hi, 2 * LO);
                }
            }
        } else {  // the last of an odd number of taps: half of k is zero in hi * hi, two other products fit one step
            product(sum.main, w.hi[t][0], w.hi[t][1], 0, 0, here.at(tap, 0), t > 0);
            if constexpr (PIECES >= 2)
                product(sum.cross, w.lo[t][0], w.lo[t][1], w.hi[t][0], w.hi[t][1], here.at(tap, LO), t > 0);
            if constexpr (SHARED_ROWS) {
                product(sum.cross, w.rest[t][0], w.rest[t][1], 0, 0, here.at(tap, 0), true);
            } else if constexpr (PIECES == 3) {
                product(sum.cross, w.small_lo[t][0], w.small_lo[t][1], 0, 0, here.at(tap + LO, 0), true);
                product(sum.cross, w.rest[t][0], w.rest[t][1], w.hi[t][0], w.hi[t][1], here.at(tap, 2 * LO), true);
            }
        }
    }
    ptx::wgmma_commit();
}

struct Affine { float a[2], b[2]; };  // of two channels: y = a * conv + b

// The epilogue of the N pixels from `first` on: computes the outputs and writes them to their runs in the buffer.
template <int N>
__device__ __forceinline__ void finish(
    const Sums<N>& sum, const Affine& affine, Element* const (&staged)[2], int first, int member) {
    constexpr bool whole = PITCH % N == 0 && N == UNIT;  // all in one row
    #pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const int pixel = first + member * 2 + j * 8;
        const int row = whole ? first / PITCH : pixel / PITCH;
        const int column = whole ? first % PITCH + member * 2 + j * 8 : pixel % PITCH;
        const int next_row = (pixel + 1) / PITCH, next_column = (pixel + 1) % PITCH;
        // Known at compile time in most units, so that few stores need a condition.
        const bool certain = whole && PITCH - UNIT + j * 8 + 8 <= TILE_COLUMNS && TILE_ROWS * PITCH == BODY;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float out[2];
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                const int k = j * 4 + h * 2 + i;
                float dot = sum.main[k];
                if constexpr (PIECES >= 2) dot = fmaf(sum.cross[k], 1.0f / CROSS_SCALE, dot);
                out[i] = fmaf(dot, affine.a[h], affine.b[h]);
                ptx::keep(out[i]);
            }
            const int place = row * TILE_COLUMNS + column, next_place = next_row * TILE_COLUMNS + next_column;
            if (IN_PAIRS) {
                if (certain || (column < TILE_COLUMNS && place < RUN + EXTRA)) {
#if ELEMENT == 0
                    *reinterpret_cast<float2*>(staged[h] + place) = make_float2(out[0], out[1]);
#else
                    *reinterpret_cast<uint32_t*>(staged[h] + place) = pair(out[0], out[1]);
#endif
                }
            } else {
                if (column < TILE_COLUMNS && place < RUN + EXTRA) staged[h][place] = Element(out[0]);
                if (next_column < TILE_COLUMNS && next_place < RUN + EXTRA) staged[h][next_place] = Element(out[1]);
            }
        }
    }
}

// Computes a tile in plain float32, as folded.cu does: 8 channels per warp, two pixels per lane.
__device__ __forceinline__ void compute_plainly(
    Element* buffer, const Input& in, const Tile& tile, int warp, int lane) {
    const Element* image = in.x + tile.image * IN_CHANNELS * IN_PLANE;
    const int first = blockIdx.y * CHANNELS + warp * 8;
    const int count = tile.count() + (tile.last() ? 0 : EXTRA);
    #pragma unroll 1
    for (int pixel = lane; pixel < count; pixel += 64) {
        int top[2], left[2];
        #pragma unroll
        for (int p = 0; p < 2; p++) {
            top[p] = tile.row + (pixel + p * 32) / TILE_COLUMNS - PAD_TOP;
            left[p] = tile.column + (pixel + p * 32) % TILE_COLUMNS - PAD_LEFT;
        }
        float sum[8][2] = {};
        const Element* filter = in.weight + (long long)first * IN_CHANNELS * TAPS;
        #pragma unroll 1
        for (int k = 0; k < IN_CHANNELS * KERNEL_HEIGHT; k++) {
            const Element* plane = image + k / KERNEL_HEIGHT * IN_PLANE;
            const float pivot = in.pivot(k / KERNEL_HEIGHT);
            #pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; j++, filter++) {
                float value[2];
                #pragma unroll
                for (int p = 0; p < 2; p++) {
                    const int row = top[p] + k % KERNEL_HEIGHT * DILATION_H, column = left[p] + j * DILATION_W;
                    const bool inside = (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
                    value[p] = (inside ? float(plane[(long long)row * WIDTH + column]) : 0.0f) - pivot;
                }
                #pragma unroll
                for (int c = 0; c < 8; c++) {
                    const float tap = first + c < OUT_CHANNELS ? float(filter[c * IN_CHANNELS * TAPS]) : 0.0f;
                    #pragma unroll
                    for (int p = 0; p < 2; p++) sum[c][p] = fmaf(value[p], tap, sum[c][p]);
                }
            }
        }
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            if (first + c >= OUT_CHANNELS) continue;
            const float a = affine_a(first + c, in.var, in.gamma, in.scaling_factor, in.eps);
            const float offset = affine_shift(first + c, in.bias, in.mean);
            const float b = affine_b(first + c, in.beta, in.scaling_factor);
            Element* staged = buffer + (warp * 8 + c) * RUN_PITCH + shift(tile, warp * 8 + c, first + c);
            #pragma unroll
            for (int p = 0; p < 2; p++)
                if (pixel + p * 32 < count) staged[pixel + p * 32] = Element(a * (sum[c][p] + offset) + b);
        }
    }
}
