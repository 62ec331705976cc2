// Step d of lesson 10: y = w x, a convolution by a 1x1 filter, by three trades: warps 0-3 multiply on the tensor cores,
// warp 4 loads, warp 5 stores. The numbers are rounded to fp16, the sums are float32.
//
// Launch: block (192), any number of blocks.
#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int CHANNELS = 64, IN_CHANNELS = 16, PIXELS = 32;  // of a tile
constexpr int STAGES = 2, PITCH = PIXELS + 8;                // the pitch avoids bank conflicts

struct Shared {
    alignas(128) uint4 stage[STAGES][2][PIXELS];  // input channels 0-7 of every pixel in fp16, then 8-15
    alignas(128) float buffer[CHANNELS][PITCH];   // a tile of y
    uint64_t full[STAGES], empty[STAGES];         // of the stages
    uint64_t staged, stored;                      // of the buffer
};

__device__ uint32_t pair(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ void load(Shared& shared, const float* x, int pixels, int lane) {
    for (int tile = blockIdx.x, step = 0; tile < pixels / PIXELS; tile += gridDim.x, step++) {
        const int s = step % STAGES;
        uint32_t two[IN_CHANNELS / 2];  // channels 2 c and 2 c + 1 of this lane's pixel
        for (int c = 0; c < IN_CHANNELS / 2; c++) {
            const float* from = x + (long long)2 * c * pixels + tile * PIXELS + lane;
            two[c] = pair(from[0], from[pixels]);
        }
        ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
        shared.stage[s][0][lane] = make_uint4(two[0], two[1], two[2], two[3]);
        shared.stage[s][1][lane] = make_uint4(two[4], two[5], two[6], two[7]);
        ptx::fence_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.full[s]);
    }
}

__device__ void multiply(Shared& shared, const float* w, int pixels, int warp, int lane) {
    const int group = lane / 4, member = lane % 4;
    uint32_t a[4];  // this lane's weights: two neighbours along k in each register
    for (int i = 0; i < 4; i++) {
        const float* from = w + (16 * warp + group + i % 2 * 8) * IN_CHANNELS + 2 * member + i / 2 * 8;
        a[i] = pair(from[0], from[1]);
    }
    for (int tile = blockIdx.x, step = 0; tile < pixels / PIXELS; tile += gridDim.x, step++) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        float sum[PIXELS / 2];
        ptx::wgmma_fence();
        ptx::wgmma_f16(sum, a[0], a[1], a[2], a[3], ptx::Columns(shared.stage[s]).at(0, PIXELS * 16), false);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);

        ptx::mbarrier_wait(&shared.stored, (step + 1) % 2);
        for (int j = 0; j < PIXELS / 8; j++)
            for (int h = 0; h < 2; h++) {
                float* to = &shared.buffer[16 * warp + group + 8 * h][8 * j + 2 * member];
                *reinterpret_cast<float2*>(to) = make_float2(sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]);
            }
        ptx::fence_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.staged);
    }
}

__device__ void store(Shared& shared, float* y, int pixels) {
    for (int tile = blockIdx.x, step = 0; tile < pixels / PIXELS; tile += gridDim.x, step++) {
        ptx::mbarrier_wait(&shared.staged, step % 2);
        for (int channel = 0; channel < CHANNELS; channel++)
            ptx::bulk_store(
                y + (long long)channel * pixels + tile * PIXELS, shared.buffer[channel], PIXELS * sizeof(float));
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
        ptx::mbarrier_arrive(&shared.stored);
    }
}

extern "C" __global__ void __launch_bounds__(192) product(
    const float* x,  // [IN_CHANNELS, pixels]
    const float* w,  // [CHANNELS, IN_CHANNELS]
    float* y,        // [CHANNELS, pixels]
    int pixels) {    // a multiple of PIXELS
    __shared__ Shared shared;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&shared.full[s], 1);   // the loading warp
            ptx::mbarrier_init(&shared.empty[s], 4);  // the four multiplying warps
        }
        ptx::mbarrier_init(&shared.staged, 4);
        ptx::mbarrier_init(&shared.stored, 1);
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < 4) multiply(shared, w, pixels, warp, lane);
    else if (warp == 4) load(shared, x, pixels, lane);
    else if (lane == 0) store(shared, y, pixels);
}
