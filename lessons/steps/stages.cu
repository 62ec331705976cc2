// Step c of lesson 10: step b with STAGES buffers, so that rows are loaded while others are stored.
//
// Launch: block (64), any number of blocks. STAGES: 1 to 8.
#include "ptx.cuh"

constexpr int ROW = 1024;  // floats

struct Shared {
    alignas(128) float buffer[STAGES][ROW];
    uint64_t full[STAGES], empty[STAGES];
};

__device__ void load(Shared& shared, const float* x, float factor, int rows, int lane) {
    for (int row = blockIdx.x, step = 0; row < rows; row += gridDim.x, step++) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
        for (int i = lane; i < ROW; i += 32) shared.buffer[s][i] = factor * x[(long long)row * ROW + i];
        ptx::fence_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.full[s]);
    }
}

__device__ void store(Shared& shared, float* y, int rows) {
    for (int row = blockIdx.x, step = 0; row < rows; row += gridDim.x, step++) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        ptx::bulk_store(y + (long long)row * ROW, shared.buffer[s], ROW * sizeof(float));
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
        ptx::mbarrier_arrive(&shared.empty[s]);
    }
}

extern "C" __global__ void stages(const float* x, float* y, float factor, int rows) {  // as in step a
    __shared__ Shared shared;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&shared.full[s], 1);
            ptx::mbarrier_init(&shared.empty[s], 1);
        }
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 32) load(shared, x, factor, rows, threadIdx.x);
    else if (threadIdx.x == 32) store(shared, y, rows);
}
