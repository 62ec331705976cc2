// backward.cu: the warps that compute A' = sum over pixels of dy (x) patches of x - pivot.
#pragma once

#include "backward_tile.cuh"

// A warp computes 32 output channels and all columns, from half of a row's steps of 16 pixels.
struct Sums {
    float value[2][TAPS][4];
};  // [16 channels][tap], in the layout of mma's d: 16 channels x 8 input channels

__device__ __forceinline__ void sum_rows(
    Shared& shared, float* __restrict__ parts, long long batch, int warp, int lane) {
    const int half = warp % 2, part = warp / 2;  // of the channels, of the steps
    const int matrix = lane / 8, r = lane % 8;
    // Where this lane's row of ldmatrix is: dy, matrices (octet 0 and 1) of pixels 0 to 7, then of pixels 8 to 15.
    int dy_place[2];
    #pragma unroll
    for (int m = 0; m < 2; m++)
        dy_place[m] = place(HALO + matrix / 2 * 8 + r, half * 4 + m * 2 + matrix % 2) + part * 16 * 128;
    // x: matrices hi of pixels 0 to 7 and 8 to 15, then lo.
    const int x_place = (part * 16 + matrix % 2 * 8 + r) * 16 + (PIECES == 2 && matrix >= 2 ? X_LO : 0);
    Sums total = {};
    int x_slot = 0;  // of the row that this step staged
    Walk here(batch);
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        if (here.own()) {
            const float unscale = power_of_two(-shared.shift[s]);
            const unsigned char* row = shared.dy[s];
            const unsigned char* x_row[KERNEL_HEIGHT];
            #pragma unroll
            for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                const int back = x_slot - (KERNEL_HEIGHT - 1 - kh);
                x_row[kh] = shared.x[back < 0 ? back + X_ROWS : back] + x_place;
            }
            Sums chain;
            #pragma unroll
            for (int k = 0; k < (STEPS_OF_16 + 1) / 2; k++) {
                if (STEPS_OF_16 % 2 && k == STEPS_OF_16 / 2 && part == 1) break;
                uint32_t hi[2][4], lo[2][4];
                #pragma unroll
                for (int m = 0; m < 2; m++) {
                    ptx::ldmatrix_x4_trans(hi[m], row + dy_place[m] + k * 2 * 16 * 128);
                    if (PIECES == 2) ptx::ldmatrix_x4_trans(lo[m], row + dy_place[m] + k * 2 * 16 * 128 + LO);
                }
                #pragma unroll
                for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                    uint32_t b[KERNEL_WIDTH][4];
                    #pragma unroll
                    for (int kw = 0; kw < KERNEL_WIDTH; kw++)
                        ptx::ldmatrix_x4_trans(b[kw], x_row[kh] + (k * 2 * 16 + kw) * 16);
                    // The small products first: the tensor core truncates what it adds to a large sum.
                    float zero[4] = {};
                    #pragma unroll
                    for (int product = PIECES == 2 ? 0 : 2; product < 3; product++)
                        #pragma unroll
                        for (int kw = 0; kw < KERNEL_WIDTH; kw++)
                            #pragma unroll
                            for (int m = 0; m < 2; m++) {
                                float (&d)[4] = chain.value[m][kh * KERNEL_WIDTH + kw];
                                const uint32_t (&a)[4] = product == 0 ? lo[m] : hi[m];
                                const int piece = product == 1 ? 2 : 0;
                                const bool begins = k == 0 && product == (PIECES == 2 ? 0 : 2);
                                ptx::mma_m16n8k16_f16(
                                    d, a[0], a[1], a[2], a[3], b[kw][piece], b[kw][piece + 1], begins ? zero : d);
                            }
                }
            }
            #pragma unroll
            for (int m = 0; m < 2; m++)
                #pragma unroll
                for (int t = 0; t < TAPS; t++)
                    #pragma unroll
                    for (int i = 0; i < 4; i++)
                        total.value[m][t][i] = fmaf(chain.value[m][t][i], unscale, total.value[m][t][i]);
        }
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
        x_slot = x_slot == X_ROWS - 1 ? 0 : x_slot + 1;
    }
    // Add the sums of the other half of the steps.
    if (part == 1)
        #pragma unroll
        for (int m = 0; m < 2; m++)
            #pragma unroll
            for (int t = 0; t < TAPS; t++) {
                const float (&v)[4] = total.value[m][t];
                shared.sums[half][m * TAPS + t][lane] = make_float4(v[0], v[1], v[2], v[3]);
            }
    ptx::named_barrier_sync(2, SUMMERS * 32);
    if (part == 1) return;
    const int group = lane / 4, member = lane % 4;
    const float unscale[2] = {1.0f / shared.scale[2 * member], 1.0f / shared.scale[2 * member + 1]};
    #pragma unroll
    for (int m = 0; m < 2; m++)
        #pragma unroll
        for (int t = 0; t < TAPS; t++) {
            const float (&v)[4] = total.value[m][t];
            const float4 other = shared.sums[half][m * TAPS + t][lane];
            float* to = parts + ((long long)blockIdx.x * CHANNELS + half * 32 + m * 16 + group) * PART_COLUMNS + t * 8
                + member * 2;
            *reinterpret_cast<float2*>(to) = make_float2((v[0] + other.x) * unscale[0], (v[1] + other.y) * unscale[1]);
            *reinterpret_cast<float2*>(to + 8 * PART_COLUMNS) =
                make_float2((v[2] + other.z) * unscale[0], (v[3] + other.w) * unscale[1]);
        }
}
