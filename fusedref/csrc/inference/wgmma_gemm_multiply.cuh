// wgmma_gemm.cu: the products of a warpgroup, 64 output channels by PIXELS positions.
#pragma once

#include "wgmma_gemm_tile.cuh"

using Sums = float[PIXELS / 2];  // a thread's: [4 j + 2 h + i] is its channel h at position 8 j + 2 member + i

__device__ __forceinline__ void product(Sums& sum, ptx::Columns a, ptx::Columns b, bool begun) {
#if ELEMENT == 2
    ptx::wgmma_bf16(sum, a, b, begun);
#else
    ptx::wgmma_f16(sum, a, b, begun);
#endif
}

// Starts the products of one tap and chunk, of piece `piece_a` of the weights and `piece_b` of x.
__device__ __forceinline__ void multiply(
    Sums& sum, ptx::Columns weights, ptx::Columns positions, int piece_a, int piece_b, bool begun) {
    #pragma unroll
    for (int k = 0; k < STEPS; k++)
        product(
            sum, weights.at((2 * k * PIECES + piece_a) * PIECE_OF_WEIGHTS, PIECES * PIECE_OF_WEIGHTS),
            positions.at((2 * k * PIECES + piece_b) * PIECE_OF_X, PIECES * PIECE_OF_X), begun || k > 0);
}

// A scaled number that is tiny may be off by 2^-37, and is multiplied by less than 2^15. A sum is in doubt if all that together
// may exceed 2^-26 of it: a float32 sum rounds by 2^-24 of the sum and more.
constexpr float DOUBT = 16;

// Computes the sums of a tile from the stages as they arrive; those below `doubt` in magnitude are in doubt. `channel` is the
// thread's first of the block, the other is 8 further on.
__device__ __forceinline__ void multiply_tile(
    Sums& sum, float (&doubt)[2], Shared& shared, Ring& of_x, Ring& of_weights, int channel, int across) {
    const bool first_lane = threadIdx.x % 32 == 0;
    #pragma unroll
    for (int i = 0; i < PIXELS / 2; i++) sum[i] = 0.0f;
    doubt[0] = doubt[1] = 0.0f;
    Sums cross;                  // hi lo' + lo hi', LO_SCALE times too large; with one piece, the sum of the chunk
    [[maybe_unused]] Sums main;  // hi hi' of one tap
    #pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        unsigned char* stage = shared.x[of_x.stage];
        ptx::mbarrier_wait(&shared.x_full[of_x.stage], of_x.parity);
        float undo[2] = {1.0f, 1.0f};
        if (SCALED) {
            const Note x = *reinterpret_cast<const Note*>(stage + X_BYTES);
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const Note weights = shared.notes[channel + 8 * h];
                undo[h] = x.unscale * weights.unscale;
                if (undo[h] == 0.0f) undo[h] = nanf("");
                doubt[h] = fmaf(x.tiny + weights.tiny, undo[h] * DOUBT, doubt[h]);
            }
        }
        const ptx::Columns positions(stage + across * PIXELS * 16);
        uint64_t* last = nullptr;  // of the products in flight
        #pragma unroll 1
        for (int tap = 0; tap < TAPS; tap++) {
            const int i = tap / KERNEL_WIDTH, j = tap % KERNEL_WIDTH;
            const ptx::Columns here =
                positions.at(run_of(i, j) * SLICES * PIECES * PIECE_OF_X + distance(i, j) * 16, 0);
            const ptx::Columns weights(shared.weights[of_weights.stage] + channel / 64 * 64 * 16);
            ptx::mbarrier_wait(&shared.weights_full[of_weights.stage], of_weights.parity);
            ptx::wgmma_fence();
            if constexpr (PIECES == 2) {
                // hi hi' starts from zero for every tap, because the tensor core truncates where an FFMA rounds.
                // The cross terms keep the tensor cores busy during the FFMAs.
                multiply(main, weights, here, 0, 0, false);
                ptx::wgmma_commit();
                multiply(cross, weights, here, 0, 1, tap > 0);
                multiply(cross, weights, here, 1, 0, true);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>();
                #pragma unroll
                for (int e = 0; e < PIXELS / 2; e++) sum[e] = fmaf(main[e], undo[e / 2 % 2], sum[e]);
            } else {
                multiply(SCALED ? cross : sum, weights, here, 0, 0, !SCALED || tap > 0);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>();
            }
            if (first_lane && last) ptx::mbarrier_arrive(last);
            last = &shared.weights_empty[of_weights.stage];
            of_weights.advance<WEIGHT_STAGES>();
        }
        ptx::wgmma_wait<0>();
        if (SCALED) {
            #pragma unroll
            for (int e = 0; e < PIXELS / 2; e++)
                sum[e] = fmaf(cross[e] * (PIECES == 2 ? 1 / LO_SCALE : 1.0f), undo[e / 2 % 2], sum[e]);
        }
        __syncwarp();  // all lanes have read the note
        if (first_lane) {
            ptx::mbarrier_arrive(last);
            ptx::mbarrier_arrive(&shared.x_empty[of_x.stage]);
        }
        of_x.advance<X_STAGES>();
    }
}
