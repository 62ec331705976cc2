// y = a * (conv2d(x, weight) + shift) + b, folded.cu's operator, on the asynchronous tensor cores of sm_90a.
//
// An implicit matrix product: M = output channels, N = positions of a tile, K = taps x input channels. wgmma reads both
// factors from shared memory. wgmma_gemm_prepare.cu, launched before, has written them to scratch as wgmma reads them: so a
// stage is one bulk copy, and a tap is an offset (wgmma_gemm_layout.cuh says how they lie there). Persistent blocks take
// tiles in turn; mbarriers pass the stages from the loading warp to the others and back:
//   one thread   loads stages of x (a chunk of input channels) and of weights (of one tap and chunk)
//   the others   multiply: DOWN x ACROSS warpgroups, 64 output channels by PIXELS positions each  wgmma_gemm_multiply.cuh
//                store: the epilogue, straight from the registers                                    wgmma_gemm_store.cuh
//
// Float32 from fp16: a product is hi hi' + (hi lo' + lo hi') / 4096. The tensor core truncates where an addition rounds. So the
// products hi hi' of each tap and chunk start from zero, and the FFMA that adds them also undoes the scales; the weights' lo
// makes up for the average loss. Numbers below 2^-28 of the largest lose bits: a sum that is so small that they may matter is
// recomputed in plain float32, and so is a sum that is not finite (NaN, infinity, scales outside float32's range).
// Products of fp16 or bf16 tensors are exact and need no scales.
//
// Bytes: beside what wgmma_gemm_prepare.cu moves, reads its x once for CHANNELS output channels, and writes y once.
//
// Serves one group. Sizes are compile-time constants, those of folded.cu and
//   PIECES                     fp16 numbers per number of x or weight: 2, or 1 for the precision of tf32
//   STRIP PITCH PLANE_ROWS MERGED
//                              the numbering of the positions, see wgmma_gemm_layout.cuh
//   CHUNK                      input channels at a time: 16, 32 or 64
//   DOWN ACROSS                warpgroups that share the output channels, and the positions, of a block
//   PIXELS                     positions of a warpgroup: 64 or 128
//   DIRECT                     1: the block itself converts x, see wgmma_gemm_convert.cuh
//   X_STAGES WEIGHT_STAGES RAW_STAGES
//                              of the rings in shared memory
//   SHARED_BYTES               dynamic shared memory
//
// Launch: block (128 (DOWN ACROSS + 1 + DIRECT)), grid (CHANNEL_BLOCKS, any number up to the tiles).
#include "affine.cuh"
#include "wgmma_gemm_convert.cuh"
#include "wgmma_gemm_multiply.cuh"
#include "wgmma_gemm_store.cuh"
#include "wgmma_gemm_tile.cuh"

// Fills the stages of weights, and those of x that wgmma_gemm_prepare has written, in the order in which they are used.
__device__ __forceinline__ void load(Shared& shared, const unsigned char* scratch, int tiles) {
    Ring of_x, of_weights;
    const auto load_x = [&](int tile, int chunk) {
        if (DIRECT || tile >= tiles) return;
        const int s = of_x.stage;
        ptx::mbarrier_wait(&shared.x_empty[s], of_x.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(&shared.x_full[s], X_STAGE);
        const long long stage = (long long)tile * CHUNKS + chunk;
        ptx::bulk_load(shared.x[s], scratch + BEFORE_X + stage * X_STAGE, X_STAGE, &shared.x_full[s]);
        of_x.advance<X_STAGES>();
    };
    const auto load_weights = [&](int chunk, int tap) {
        const int s = of_weights.stage;
        ptx::mbarrier_wait(&shared.weights_empty[s], of_weights.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(&shared.weights_full[s], WEIGHT_STAGE);
        const long long stage = ((long long)blockIdx.x * CHUNKS + chunk) * TAPS + tap;
        ptx::bulk_load(shared.weights[s], scratch + stage * WEIGHT_STAGE, WEIGHT_STAGE, &shared.weights_full[s]);
        of_weights.advance<WEIGHT_STAGES>();
    };
    load_x(blockIdx.y, 0);
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y)
        for (int chunk = 0; chunk < CHUNKS; chunk++)
            for (int tap = 0; tap < TAPS; tap++) {
                load_weights(chunk, tap);
                if (tap != TAPS / 2) continue;  // half a chunk ahead
                if (chunk + 1 < CHUNKS) load_x(tile, chunk + 1);
                else load_x(tile + gridDim.y, 0);
            }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) wgmma_gemm(
    const Element* __restrict__ x,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,       // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [OUT_CHANNELS]
    const Vector* __restrict__ running_var,   // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    long long batch,
    const unsigned char* __restrict__ scratch) {  // from wgmma_gemm_prepare
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const int tiles = tiles_of(int(batch));
    const Input in = {x, weight, int(batch), int(blockIdx.x) * CHANNELS};
    for (int c = threadIdx.x; c < CHANNELS; c += THREADS) {
        const int channel = min(in.first_channel + c, OUT_CHANNELS - 1);
        shared.a[c] = affine_a(channel, running_var, gamma, scaling_factor, eps);
        shared.shift[c] = affine_shift(channel, bias, running_mean);
        shared.b[c] = affine_b(channel, beta, scaling_factor);
        shared.notes[c] = reinterpret_cast<const Note*>(scratch + WEIGHT_BYTES)[in.first_channel + c];
    }
    if (threadIdx.x == 0) {
        for (int s = 0; s < X_STAGES; s++) {
            ptx::mbarrier_init(&shared.x_full[s], DIRECT ? CONVERTING : 1);
            ptx::mbarrier_init(&shared.x_empty[s], CONSUMERS);
        }
        for (int s = 0; s < WEIGHT_STAGES; s++) {
            ptx::mbarrier_init(&shared.weights_full[s], 1);
            ptx::mbarrier_init(&shared.weights_empty[s], CONSUMERS);
        }
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    if (warp >= CONSUMERS + 4) {
#if DIRECT
        ptx::fewer_registers<CONVERTING_REGISTERS>();
        convert(shared, in, tiles);
#endif
    } else if (warp >= CONSUMERS) {
        ptx::fewer_registers<LOADING_REGISTERS>();
        if (warp == CONSUMERS && ptx::elect()) load(shared, scratch, tiles);
    } else {
        ptx::more_registers<MULTIPLYING_REGISTERS>();
        const int across = warp / 4 / DOWN, channel = warp / 4 % DOWN * 64 + warp % 4 * 16 + lane / 4;
        Ring of_x, of_weights;
        for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
            Sums sum;
            float doubt[2];
            multiply_tile(sum, doubt, shared, of_x, of_weights, channel, across);
            store(shared, in, y, sum, doubt, channel, tile * TILE + across * PIXELS);
        }
    }
}
