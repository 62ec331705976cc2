// The sum of number i of all parts, where a block (32, lanes) shares the parts between its rows of threads.
#pragma once

// Returns the sum to the threads of row 0. The order of the additions depends on `count` and the block alone.
template <class T>
__device__ __forceinline__ double sum_of_parts(const T* __restrict__ parts, int count, int size, int i) {
    __shared__ double sums[32][32];
    double sum = 0.0;
    if (i < size)
        #pragma unroll 4
        for (int part = threadIdx.y; part < count; part += blockDim.y) sum += parts[(long long)part * size + i];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0)
        for (int lane = 1; lane < blockDim.y; lane++) sum += sums[lane][threadIdx.x];
    return sum;
}
