// pipeline.cu: the storing warps initialise the barriers, then copy finished runs of outputs to y.
#pragma once

#include "pipeline_tile.cuh"

// The part of a channel's run that its tile stores: whole sectors, except at the edges of the plane.
struct StoredRun {
    int begin, end;            // from the run's first output
    int bulk_begin, bulk_end;  // the part between multiples of 16 bytes, for bulk copies
    __device__ __forceinline__ StoredRun(const Tile& tile, int channel) {
        const unsigned run = tile.run(channel), count = tile.count();  // their low bits give the position in a sector
        begin = EXTRA && tile.row > 0 ? -run % SECTOR : 0;
        end = count + (EXTRA && !tile.last() ? -(run + count) % SECTOR : 0);
        bulk_begin = RAGGED ? min(end, begin + int(-(run + begin) % ATOM)) : begin;
        bulk_end = RAGGED ? max(bulk_begin, end - int((run + end) % ATOM)) : end;
    }
};

// Initialises what the block uses after setup_barrier().
__device__ __forceinline__ void prepare(Shared& shared, int lane) {
    if (lane == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&shared.full[s], PRODUCERS);
            ptx::mbarrier_init(&shared.empty[s], CONSUMERS);
        }
        for (int i = 0; i < BUFFERS; i++) {
            ptx::mbarrier_init(&shared.staged[i], CONSUMERS * ARRIVING_LANES);
            ptx::mbarrier_init(&shared.stored[i], STORERS * ARRIVING_LANES);
        }
        ptx::mbarrier_init_fence();
        shared.most = -300;
        shared.least = 300;
    }
    // Zero the pixels beyond a tile: products of whole units read them, for outputs that are not stored.
    for (int s = 0; s < STAGES; s++)
        for (int pixel = IN_PIXELS + lane; pixel < STAGED_PIXELS; pixel += 32)
            for (int half = 0; half < PLANES * LO; half += LO)
                *reinterpret_cast<uint4*>(&shared.stage[s][half + pixel * 16]) = make_uint4(0, 0, 0, 0);
    ptx::fence_async_shared();
}

// STORER is the number of the storing warp. It is a template parameter because the operands of bulk copies must be provably
// uniform: otherwise the compiler adds a loop over the lanes to each copy. Each warp stores its share of the channels.
template <int STORER>
__device__ __forceinline__ void store(Shared& shared, Element* __restrict__ y, int tiles, int lane) {
    constexpr int FIRST = STORER * CHANNELS / STORERS;  // this warp's first channel, within the block
    const int first_channel = blockIdx.y * CHANNELS + FIRST;
    const int channels =  // 0 or less: none
        OUT_CHANNELS % CHANNELS ? min(CHANNELS / STORERS, OUT_CHANNELS - first_channel) : CHANNELS / STORERS;
    const bool elected = ptx::elect();
    if (STORER == 0) prepare(shared, lane);
    setup_barrier();
    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, step++) {
        const Tile here(tile);
        const int buffer = step % BUFFERS;
        Element* plane = y + here.run(first_channel);
        const Element* staged = shared.buffer[buffer] + FIRST * RUN_PITCH;
        ptx::mbarrier_wait(&shared.staged[buffer], step / BUFFERS % 2);
        if (elected) {
            #pragma unroll 1
            for (int i = 0; i < PERIOD && i < channels; i++) {
                const StoredRun stored(here, first_channel + i);
                const int bytes = (stored.bulk_end - stored.bulk_begin) * int(sizeof(Element));
                if (RAGGED && bytes == 0) continue;
                Element* to = plane + i * OUT_PLANE + stored.bulk_begin;
                const Element* from =
                    staged + i * RUN_PITCH + shift(here, FIRST + i, first_channel + i) + stored.bulk_begin;
                #pragma unroll 8
                for (int channel = i; channel < channels; channel += PERIOD) {
                    ptx::bulk_store(to, from, bytes);
                    to += PERIOD * OUT_PLANE;
                    from += PERIOD * RUN_PITCH;
                }
            }
            ptx::bulk_commit();
        }
        if (RAGGED && lane < channels) {
            const StoredRun stored(here, first_channel + lane);
            const Element* run = staged + lane * RUN_PITCH + shift(here, FIRST + lane, first_channel + lane);
            Element* to = plane + lane * OUT_PLANE;
            for (int i = stored.begin; i < stored.bulk_begin; i++) to[i] = run[i];
            for (int i = stored.bulk_end; i < stored.end; i++) to[i] = run[i];
        }
        if (elected) ptx::bulk_wait_read<0>();
        __syncwarp();
        if (ARRIVING_LANES == 32 || lane == 0) ptx::mbarrier_arrive(&shared.stored[buffer]);
    }
}
