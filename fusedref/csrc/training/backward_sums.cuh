// backward.cu: the warpgroup that computes A' = sum over pixels of dy (x) patches of x - pivot.
#pragma once

#include "backward_tile.cuh"

// One pixel of x: of the last row that a step reads, in the column of this thread.
struct Pixel {
#if ELEMENT == 0
    float value[IN_CHANNELS];
#else
    unsigned short value[IN_CHANNELS];
#endif
    bool inside;
    __device__ __forceinline__ void load(const Element* __restrict__ x, const Walk& at, int thread) {
        const int row = at.row + ABOVE - PAD_TOP, column = at.column() + thread - PAD_LEFT;
        inside = (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
        const Element* from = x + at.image() * IN_CHANNELS * IN_PLANE + (long long)row * WIDTH + column;
        #pragma unroll
        for (int c = 0; c < IN_CHANNELS; c++) {
#if ELEMENT == 0
            value[c] = inside ? __ldg(from + c * IN_PLANE) : 0.0f;
#else
            value[c] = inside ? __ldg(reinterpret_cast<const unsigned short*>(from) + c * IN_PLANE) : (unsigned short)0;
#endif
        }
    }
    __device__ __forceinline__ float at(int c) const {
#if ELEMENT == 0
        return value[c];
#elif ELEMENT == 1
        return __half2float(__ushort_as_half(value[c]));
#else
        return __uint_as_float((unsigned)value[c] << 16);
#endif
    }
    // Writes (x - pivot) * scale.
    __device__ __forceinline__ void stage(unsigned char* row, const Shared& shared, int thread) const {
        if (X_COLUMNS < LOADING_THREADS && thread >= X_COLUMNS) return;
        uint32_t hi[4], lo[4];
        #pragma unroll
        for (int c = 0; c < 8; c += 2) {
            float v[2];
            #pragma unroll
            for (int e = 0; e < 2; e++)
                v[e] = c + e < IN_CHANNELS
                    ? (at(min(c + e, IN_CHANNELS - 1)) - shared.pivot[c + e]) * shared.scale[c + e]
                    : 0.0f;
            split_unscaled(v[0], v[1], hi[c / 2], lo[c / 2], SHORTFALL);
        }
        uint4* to = reinterpret_cast<uint4*>(row + thread * 16);
        *to = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        if (X_PIECES == 2) to[X_LO / 16] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
    }
};

// A warp computes 16 output channels and all columns. Sums of a row of the filter: in the layout of wgmma's d, 16
// channels x (tap of the row, input channel).
struct Sums {
    float value[KERNEL_HEIGHT][KERNEL_WIDTH * 4];
    // Moves the sums to the float64 ones, so that they stay short.
    __device__ __forceinline__ void move(double (&to)[TAPS * 4][128], int thread) {
        #pragma unroll
        for (int i = 0; i < TAPS * 4; i++) {
            float& sum = value[i / (KERNEL_WIDTH * 4)][i % (KERNEL_WIDTH * 4)];
            to[i][thread] += sum;
            sum = 0.0f;
        }
    }
};
constexpr int ROWS_IN_FLOAT32 = 8;

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
            wgmma(sum.value[kh], a, b, begun || k > 0);
        }
}

__device__ __forceinline__ void sum_rows(
    Shared& shared, const Element* __restrict__ x, float* __restrict__ parts, long long batch, int warp, int lane) {
    const int matrix = lane / 8, thread = warp * 32 + lane;
    // This lane's row of ldmatrix: channels 0 to 7 and 8 to 15 of the warp's at pixels 0 to 7, then at pixels 8 to 15.
    const int dy_place = place(LEFT + matrix / 2 * 8 + lane % 8, warp * 2 + matrix % 2);
    Sums total = {};
    int rows_in_total = 0;
    double q[2] = {};  // of two channels
    if (AS_IS) (&shared.ones[0][0])[thread] = Piece(1.0f);
    int x_slot = 0;  // of the row that this step stages
    Walk here(batch), next(batch);
    Pixel pixel;
    pixel.load(x, next, thread);
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        // The row that was here is four steps old, and all warps have passed the barrier of the last step.
        pixel.stage(shared.x[x_slot], shared, thread);
        ptx::fence_async_shared();
        ptx::named_barrier_sync(3, SUMMERS * 32);
        next.advance();
        if (!next.done()) pixel.load(x, next, thread);  // after the fence, which waits for loads too
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        if (here.own()) {
            const float unscale = AS_IS ? 1.0f : power_of_two(-shared.shift[s]);
            Fragments dy;
            #pragma unroll
            for (int k = 0; k < STEPS; k++)
                #pragma unroll
                for (int piece = 0; piece < PIECES; piece++)
                    ptx::ldmatrix_x4_trans(dy.piece[piece][k], shared.dy[s] + dy_place + piece * LO + k * 16 * 128);
            const unsigned char* rows[KERNEL_HEIGHT];
            #pragma unroll
            for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                const int slot = x_slot - (ABOVE - kh);
                rows[kh] = shared.x[slot < 0 ? slot + X_ROWS : slot];
            }
            Sums sum;
            float sum_of_dy[4];
            ptx::wgmma_fence();
            // The small products first: the tensor core truncates what it adds to a large sum.
            if (PIECES == 2) multiply(sum, dy, rows, PIECES - 1, 0, false);
            if (X_PIECES == 2) multiply(sum, dy, rows, 0, X_PIECES - 1, PIECES == 2);
            multiply(sum, dy, rows, 0, 0, X_PIECES == 2);
            if (AS_IS)
                #pragma unroll
                for (int k = 0; k < STEPS; k++) wgmma(sum_of_dy, dy.piece[0][k], ptx::Windows(shared.ones), k > 0);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            if (AS_IS) {
                q[0] += sum_of_dy[0] * (1.0 + SHORTFALL);
                q[1] += sum_of_dy[2] * (1.0 + SHORTFALL);
            }
            #pragma unroll
            for (int kh = 0; kh < KERNEL_HEIGHT; kh++)
                #pragma unroll
                for (int i = 0; i < KERNEL_WIDTH * 4; i++)
                    total.value[kh][i] = fmaf(sum.value[kh][i], unscale, total.value[kh][i]);
            if (++rows_in_total == ROWS_IN_FLOAT32) {
                total.move(shared.sums, thread);
                rows_in_total = 0;
            }
        }
        ptx::mbarrier_arrive(&shared.empty[s]);
        x_slot = x_slot == X_ROWS - 1 ? 0 : x_slot + 1;
    }
    total.move(shared.sums, thread);
    const int group = lane / 4, member = lane % 4;
    const float unscale[2] = {1.0f / shared.scale[2 * member], 1.0f / shared.scale[2 * member + 1]};
    float* row = parts + ((long long)blockIdx.x * CHANNELS + warp * 16 + group) * PART_COLUMNS + member * 2;
    #pragma unroll
    for (int t = 0; t < TAPS; t++)
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            const double v[2] = {shared.sums[4 * t + 2 * h][thread], shared.sums[4 * t + 2 * h + 1][thread]};
            *reinterpret_cast<float2*>(row + 8 * h * PART_COLUMNS + t * 8) =
                make_float2(v[0] * unscale[0], v[1] * unscale[1]);
        }
    if (AS_IS)
        #pragma unroll
        for (int h = 0; h < 2; h++)
            *reinterpret_cast<float2*>(row + 8 * h * PART_COLUMNS + COLUMNS) =
                make_float2(member == 0 ? float(q[h]) : 0.0f, 0.0f);
}
