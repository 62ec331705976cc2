// Step e of lesson 10: y = factor * x in runs whose length is no multiple of a sector. With WHOLE 1 each run is stored in
// whole sectors: a block computes the first outputs of the next run too, and leaves its own first ones to the run before.
//
// Launch: block (128), any number of blocks. RUN: floats of a run, a multiple of 4.
#include "ptx.cuh"

constexpr int SECTOR = 8;  // floats

__device__ int next_sector(int place) { return (place + SECTOR - 1) / SECTOR * SECTOR; }

extern "C" __global__ void sectors(const float* x, float* y, float factor, int runs) {  // x, y: [runs, RUN]
    __shared__ __align__(128) float buffer[RUN + 2 * SECTOR];
    for (int run = blockIdx.x; run < runs; run += gridDim.x) {
        const int first = run * RUN, after = first + RUN;
        const int begin = WHOLE ? next_sector(first) : first, end = WHOLE ? min(next_sector(after), runs * RUN) : after;
        float* place = buffer + begin % SECTOR;  // where the copy engine finds a sector's numbers at their own places
        for (int i = begin + threadIdx.x; i < end; i += blockDim.x) place[i - begin] = factor * x[i];
        ptx::fence_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::bulk_store(y + begin, place, (end - begin) * sizeof(float));
            ptx::bulk_commit();
            ptx::bulk_wait_read<0>();
        }
        __syncthreads();
    }
}
