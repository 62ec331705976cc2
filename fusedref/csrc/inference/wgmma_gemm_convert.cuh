// wgmma_gemm.cu with DIRECT: four warps turn raw tiles of x into the stages that wgmma reads.
//
// cp.async copies x to shared memory, some chunks ahead. A thread converts the numbers that it has copied itself: with the others
// it finds their largest magnitude; then it scales and splits them, and writes them as rows of 8 input channels.
#pragma once

#include "wgmma_gemm_rows.cuh"
#include "wgmma_gemm_tile.cuh"

constexpr int CONVERTING = 4, CONVERTING_THREADS = 32 * CONVERTING;  // warps, threads

#if DIRECT
constexpr int SHARE = (ITEMS + CONVERTING_THREADS - 1) / CONVERTING_THREADS;

// Starts copying the thread's items of a chunk.
__device__ __forceinline__ void gather(Raw& raw, const Input& in, int tile, int chunk, int thread) {
    #pragma unroll 2
    for (int item = thread; item < ITEMS; item += CONVERTING_THREADS) {
        const Source at(item, tile, in.batch);
        const Element* image = in.x + (at.inside ? (long long)at.image * IN_CHANNELS * IN_PLANE : 0);
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            const int channel = chunk * CHUNK + item / RUN % SLICES * 8 + c;
            const bool real = at.inside && (IN_CHANNELS % CHUNK == 0 || channel < IN_CHANNELS);
            const Element* from = image + (real ? place_in_x(channel, at.row, at.column) : 0);
            Element& to = raw[item / RUN * 8 + c][item % RUN];
#if ELEMENT == 0
            ptx::cp_async_4(&to, from, real);
#else
            to = real ? *from : Element(0.0f);
#endif
        }
    }
    ptx::cp_async_commit();
}

// Converts the chunks of the block's tiles.
__device__ __forceinline__ void convert(Shared& shared, const Input& in, int tiles) {
    const int thread = threadIdx.x % CONVERTING_THREADS, warp = thread / 32, lane = thread % 32;
    const auto barrier = [] { ptx::named_barrier_sync(1, CONVERTING_THREADS); };
    Ring of_x;
    int stage = 0;                  // of the raw chunk
    [[maybe_unused]] int turn = 0;  // of the ranges
    int next_tile = blockIdx.y, next_chunk = 0;
    const auto gather_next = [&](int stage) {
        if (next_tile < tiles) gather(shared.raw[stage], in, next_tile, next_chunk, thread);
        else ptx::cp_async_commit();  // so that every chunk has its group
        if (++next_chunk < CHUNKS) return;
        next_chunk = 0;
        next_tile += gridDim.y;
    };
    for (int s = 0; s < RAW_STAGES; s++) gather_next(s);
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        #pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            Raw& raw = shared.raw[stage];
            ptx::cp_async_wait<RAW_STAGES - 1>();  // a thread converts what it has copied itself
            const auto number = [&](int item, int c) { return raw[item / RUN * 8 + c][item % RUN]; };
            unsigned char* rows = shared.x[of_x.stage];
            float scale = 1.0f;
#if ELEMENT == 0
            Range range;
            #pragma unroll 2
            for (int item = thread; item < ITEMS; item += CONVERTING_THREADS)
                #pragma unroll
                for (int c = 0; c < 8; c++) range.add(number(item, c));
            range = range.of_warp();
            Range(&ranges)[CONVERTING] = shared.ranges[turn ^= 1];
            if (lane == 0) ranges[warp] = range;
            barrier();
            range = ranges[lane % CONVERTING].of_warp();
            scale = power_of_two(range.shift());
            int tiny = 0;
            if (!range.splits()) {
                #pragma unroll 1
                for (int item = thread; item < ITEMS; item += CONVERTING_THREADS)
                    #pragma unroll 1
                    for (int c = 0; c < 8; c++) tiny += is_tiny(number(item, c), scale);
                tiny = sum_of_block(tiny, shared.tiny, CONVERTING, barrier);
            }
#endif
            ptx::mbarrier_wait(&shared.x_empty[of_x.stage], of_x.parity ^ 1);
#if ELEMENT == 0
            if (thread == 0) *reinterpret_cast<Note*>(rows + X_BYTES) = note_of(range, tiny, ITEMS * 8);
#endif
            #pragma unroll 2
            for (int item = thread; item < ITEMS; item += CONVERTING_THREADS) {
                Element v[8];
                #pragma unroll
                for (int c = 0; c < 8; c++) v[c] = number(item, c);
                put_row(rows + item / RUN * PIECES * PIECE_OF_X + item % RUN * 16, PIECE_OF_X, v, scale, 0.0f);
            }
            ptx::fence_async_shared();
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(&shared.x_full[of_x.stage]);
            gather_next(stage);
            if (++stage == RAW_STAGES) stage = 0;
            of_x.advance<X_STAGES>();
        }
    }
}

#endif
