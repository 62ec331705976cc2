// y = a * (conv2d(x, weight) + shift) + b, folded.cu's operator, on the tensor cores of sm_80 and later.
//
// An implicit matrix product: M = output channels, N = pixels of a tile, K = taps x input channels. In shared memory a row
// of 16 bytes holds the 8 input channels of a pixel (or, where there are few, those of several neighbouring taps). ldmatrix
// reads such rows: a tap is an offset and a lane passes the address of a pixel, so tile, stride and dilation only change
// addresses.
//   load       cp.async copies x and weights of a chunk of input channels during the products of the chunk before;
//              then find the largest magnitude of the chunk's x, and of each output channel's weights
//   prepare    scale by powers of two, split into two numbers of fp16 (split.cuh), write rows of 8
//   multiply   mma, 32 pixels per warp
//   store      the epilogue, through shared memory, so that a warp writes runs of neighbouring outputs
//
// Float32 from fp16: a product is hi hi' + (hi lo' + lo hi') / 4096. The tensor core truncates where an addition rounds, so
// each step of hi hi' starts from zero, and the FFMA that adds it to the sum also undoes the chunk's scales.
//
// Wide ranges: a scale serves magnitudes down to 2^-28 of the largest. Smaller ones of x are left for another pass over the
// chunk with a scale of their own, which takes as long as the chunk. Smaller weights (and x below 2^-140) lose bits, at most
// 2^-51 of the largest. Factors are scaled below 2^15, so a product of two is off by 2^-21 at most (with one piece by 2^-9). A
// sum that is no smaller than 8 times the number of its products is then off by 2^-24 of itself (2^-12, as the factors are);
// smaller ones are recomputed in plain float32. So are those that are not finite: NaN or infinity among their products, or a
// scale outside float32's range.
// Products of fp16 or bf16 tensors are exact and need no scales.
//
// Bytes: a block reads its tile of x, with the halo, once for CHANNELS output channels, and writes y once.
//
// Sizes are compile-time constants, those of folded.cu and
//   PIECES                     fp16 numbers per number of x or weight: 2, or 1 for the precision of tf32
//   TILE_ROWS TILE_COLUMNS     outputs of a tile, at most 32 WARPS_ACROSS
//   CHUNK                      input channels at a time: a multiple of 8, or all
//   SLOTS                      chunks of weights in shared memory: 1, or all; if all, each is loaded only once
//   WARP_CHANNELS              output channels of a warp: 16 or 32
//   WARPS_DOWN WARPS_ACROSS    warps that share the output channels, and the pixels, of a block
//   BLOCKS                     resident blocks per multiprocessor that registers must allow
//   FOLD PITCH WEIGHT_UNIT WEIGHT_PITCH X_UNIT RAW_COLUMNS RAW_PITCH Y_UNIT
//                              the rest of the geometry: see Geometry in fusedref/plans/implicit_gemm.py
//   SHARED_BYTES               dynamic shared memory
//
// Launch: block (32 WARPS_DOWN WARPS_ACROSS), grid (CHANNEL_BLOCKS GROUPS, any number up to the tiles).
#include "affine.cuh"
#include "implicit_gemm_load.cuh"
#include "implicit_gemm_multiply.cuh"
#include "implicit_gemm_prepare.cuh"
#include "implicit_gemm_store.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) implicit_gemm(
    const Element* __restrict__ x,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,       // [OUT_CHANNELS, GROUP_IN, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [OUT_CHANNELS]
    const Vector* __restrict__ running_var,   // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    long long batch) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int tiles = int(batch) * Tile::DOWN * Tile::ACROSS;
    const Input in = {x, weight, int(blockIdx.x) / CHANNEL_BLOCKS, int(blockIdx.x) % CHANNEL_BLOCKS * CHANNELS};
    int tile = blockIdx.y;
    if (tile >= tiles) return;
    load_x(shared, in, Tile(tile), 0);
    load_weights(shared, in, 0);
    ptx::cp_async_commit();

    for (int e = thread; e < ENTRIES; e += THREADS) shared.places[e] = entry_bytes(e);
    if (thread < CHANNELS) {
        const int channel = in.group * GROUP_OUT + min(in.first_channel + thread, GROUP_OUT - 1);
        shared.a[thread] = affine_a(channel, running_var, gamma, scaling_factor, eps);
        shared.shift[thread] = affine_shift(channel, bias, running_mean);
        shared.b[thread] = affine_b(channel, beta, scaling_factor);
    }

    const int first = warp % WARPS_DOWN * WARP_CHANNELS;
    Lane at;
    at.second = lane / 8 % 2;
    at.filter_second = lane / 16;
    #pragma unroll
    for (int q = 0; q < 2; q++) {
        const int pixel = warp / WARPS_DOWN * 32 + q * 16 + lane / 16 * 8 + lane % 8;
        const int mine = pixel < TILE_ROWS * TILE_COLUMNS ? pixel : 0;  // beyond the tile: any valid pixel; not stored
        const uint4* row = &shared.rows[0][0][mine / TILE_COLUMNS * STRIDE_H * PITCH + mine % TILE_COLUMNS];
        at.rows[q] = reinterpret_cast<const unsigned char*>(row);
    }
    for (; tile < tiles; tile += gridDim.y) {
        const bool later_tile = tile != blockIdx.y;
        Sums sum = {};
        float least = 0.0f;  // sums of a smaller magnitude may be off by more than a rounding
        #pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const bool new_weights = SLOTS < CHUNKS || !later_tile;  // these weights are not in their slot yet
            const int slot = SLOTS < CHUNKS ? 0 : chunk;
            ptx::cp_async_wait<0>();
            find_ranges(shared, new_weights);
            __syncthreads();      // the chunk has arrived, and the rows of the one before have been read
            unsigned left = ~0u;  // magnitudes of x below this are
            #pragma unroll 1
            do {
                left = prepare(shared, new_weights, slot, left);
                __syncthreads();
                if (left == 0 && (chunk + 1 < CHUNKS || tile + gridDim.y < tiles)) {
                    const int next = chunk + 1 < CHUNKS ? chunk + 1 : 0;
                    load_x(shared, in, Tile(next > 0 ? tile : tile + gridDim.y), next);
                    if (SLOTS < CHUNKS || (!later_tile && next > 0)) load_weights(shared, in, next);
                    ptx::cp_async_commit();
                }
                float unscale[M][2];
                if (SCALED) {
                    #pragma unroll
                    for (int m = 0; m < M; m++)
                        #pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const float of_x = shared.x_unscale;
                            const float of_weight = shared.weight_unscale[slot][first + m * 16 + half * 8 + lane / 4];
                            float& both = unscale[m][half];
                            both = fabsf(of_x * of_weight);
                            if (both == 0.0f) both = nanf("");
                            if (of_x < 0.0f || of_weight < 0.0f) least += 8.0f * CHUNK * TAPS * both;
                        }
                }
                at.filters = reinterpret_cast<const unsigned char*>(&shared.filters[slot][0][0][first + lane % 16]);
                multiply(sum, shared.places, at, unscale);
                if (left != 0) {
                    find_range_below(shared, left);
                    __syncthreads();  // the rows have been read
                }
            } while (left != 0);
        }
        store(shared, in, y, sum, least, Tile(tile), warp, lane);
    }
}
