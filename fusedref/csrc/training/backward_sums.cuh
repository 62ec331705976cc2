// backward.cu: the warpgroup that computes A' = sum over pixels of dy (x) patches of x - pivot.
#pragma once

#include "backward_tile.cuh"

// A warp computes 16 output channels and all columns. Sums of a row of the filter: in the layout of wgmma's d, 16 channels x
// (tap of the row, input channel).
struct Sums { float value[KERNEL_HEIGHT][KERNEL_WIDTH * 4]; };

struct Fragments { uint32_t piece[PIECES][STEPS][4]; };  // of a row of dy: 16 channels x 16 pixels, a of wgmma

__device__ __forceinline__ void multiply(
    Sums& sum, const Fragments& dy, const unsigned char* const (&x)[KERNEL_HEIGHT], int piece, int x_piece,
    bool begun) {
    #pragma unroll
    for (int k = 0; k < STEPS; k++)
        #pragma unroll
        for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
            const uint32_t (&a)[4] = dy.piece[piece][k];
            const ptx::Windows b = ptx::Windows(x[kh]).at(x_piece * X_LO + k * 16 * 16);
            ptx::wgmma_f16(sum.value[kh], a[0], a[1], a[2], a[3], b, begun || k > 0);
        }
}

__device__ __forceinline__ void sum_rows(
    Shared& shared, float* __restrict__ parts, long long batch, int warp, int lane) {
    const int matrix = lane / 8;
    // This lane's row of ldmatrix: channels 0 to 7 and 8 to 15 of the warp's at pixels 0 to 7, then at pixels 8 to 15.
    const int dy_place = place(LEFT + matrix / 2 * 8 + lane % 8, warp * 2 + matrix % 2);
    Sums total = {};
    int x_slot = 0;  // of the row that this step staged
    Walk here(batch);
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        if (here.own()) {
            const float unscale = power_of_two(-shared.shift[s]);
            Fragments dy;
            #pragma unroll
            for (int k = 0; k < STEPS; k++)
                #pragma unroll
                for (int piece = 0; piece < PIECES; piece++)
                    ptx::ldmatrix_x4_trans(dy.piece[piece][k], shared.dy[s] + dy_place + piece * LO + k * 16 * 128);
            const unsigned char* x[KERNEL_HEIGHT];
            #pragma unroll
            for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                const int slot = x_slot - (ABOVE - kh);
                x[kh] = shared.x[slot < 0 ? slot + X_ROWS : slot];
            }
            Sums sum;
            ptx::wgmma_fence();
            if (PIECES == 2) {  // the small products first: the tensor core truncates what it adds to a large sum
                multiply(sum, dy, x, PIECES - 1, 0, false);
                multiply(sum, dy, x, 0, PIECES - 1, true);
            }
            multiply(sum, dy, x, 0, 0, PIECES == 2);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            #pragma unroll
            for (int kh = 0; kh < KERNEL_HEIGHT; kh++)
                #pragma unroll
                for (int i = 0; i < KERNEL_WIDTH * 4; i++)
                    total.value[kh][i] = fmaf(sum.value[kh][i], unscale, total.value[kh][i]);
        }
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
        x_slot = x_slot == X_ROWS - 1 ? 0 : x_slot + 1;
    }
    const int group = lane / 4, member = lane % 4;
    const float unscale[2] = {1.0f / shared.scale[2 * member], 1.0f / shared.scale[2 * member + 1]};
    float* row = parts + ((long long)blockIdx.x * CHANNELS + warp * 16 + group) * PART_COLUMNS + member * 2;
    #pragma unroll
    for (int t = 0; t < TAPS; t++)
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            const float* v = &total.value[t / KERNEL_WIDTH][t % KERNEL_WIDTH * 4 + 2 * h];
            *reinterpret_cast<float2*>(row + 8 * h * PART_COLUMNS + t * 8) =
                make_float2(v[0] * unscale[0], v[1] * unscale[1]);
        }
}
