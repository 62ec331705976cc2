// Step a of lesson 10: y = factor * x, whose rows the copy engine writes. A block takes rows in turn, one at a time.
//
// Launch: block (128), any number of blocks.
#include "ptx.cuh"

constexpr int ROW = 1024;  // floats

extern "C" __global__ void bulk_store(
    const float* x,  // [rows, ROW]
    float* y,        // [rows, ROW], 16-byte aligned
    float factor, int rows) {
    __shared__ __align__(128) float buffer[ROW];
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        for (int i = threadIdx.x; i < ROW; i += blockDim.x) buffer[i] = factor * x[(long long)row * ROW + i];
        ptx::fence_async_shared();  // the copy engine will see what this thread has written,
        __syncthreads();            // and all threads have written
        if (threadIdx.x == 0) {
            ptx::bulk_store(y + (long long)row * ROW, buffer, ROW * sizeof(float));
            ptx::bulk_commit();
            ptx::bulk_wait_read<0>();  // the engine has read the buffer
        }
        __syncthreads();  // now it may be filled again
    }
}
