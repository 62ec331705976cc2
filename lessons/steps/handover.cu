// Step b of lesson 10: y = factor * x by two trades. Warp 0 loads rows into the buffer, warp 1 stores them; two mbarriers
// hand the buffer over and back.
//
// Launch: block (64), any number of blocks.
#include "ptx.cuh"

constexpr int ROW = 1024;  // floats

struct Shared {
    alignas(128) float buffer[ROW];
    uint64_t full, empty;
};

__device__ void load(Shared& shared, const float* x, float factor, int rows, int lane) {
    for (int row = blockIdx.x, step = 0; row < rows; row += gridDim.x, step++) {
        ptx::mbarrier_wait(&shared.empty, (step + 1) % 2);
        for (int i = lane; i < ROW; i += 32) shared.buffer[i] = factor * x[(long long)row * ROW + i];
        ptx::fence_async_shared();
        __syncwarp();  // all lanes have written
        if (lane == 0) ptx::mbarrier_arrive(&shared.full);
    }
}

__device__ void store(Shared& shared, float* y, int rows) {
    for (int row = blockIdx.x, step = 0; row < rows; row += gridDim.x, step++) {
        ptx::mbarrier_wait(&shared.full, step % 2);
        ptx::bulk_store(y + (long long)row * ROW, shared.buffer, ROW * sizeof(float));
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
        ptx::mbarrier_arrive(&shared.empty);
    }
}

extern "C" __global__ void handover(const float* x, float* y, float factor, int rows) {  // as in step a
    __shared__ Shared shared;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&shared.full, 1);  // a phase ends with one arrival
        ptx::mbarrier_init(&shared.empty, 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();  // the last one of this kernel
    if (threadIdx.x < 32) load(shared, x, factor, rows, threadIdx.x);
    else if (threadIdx.x == 32) store(shared, y, rows);
}
