// y = a * conv2d(x, weight) + b, folded.cu's operator, as an asynchronous pipeline over the tensor cores of sm_90a.
//
// An implicit matrix product: M = 64 output channels, N = pixels of a tile, K = taps x 8 input channels. Persistent blocks
// of 16 specialised warps take tiles in turn; mbarriers pass the tiles from one kind of warp to the next:
//   warps 0-7    multiply: two warpgroups; wgmma with weights in registers (a) and pixels in shared memory (b; a tap is
//                an address offset)                                                              pipeline_multiply.cuh
//   warps 8-13   load: one lane per pixel, all channels; scale, split, write rows of 8 channels    pipeline_load.cuh
//   warps 14-15  store: half of the channels each, one bulk copy per channel                       pipeline_store.cuh
//
// Float32 from fp16: powers of two scale the tile of x, and each channel's weights, so that the largest magnitude lies in
// [2^14, 2^15). A number is then hi + lo / 4096 to 23 bits, and a product hi hi' + (hi lo' + lo hi') / 4096; both sums are
// accumulated in fp32. The tensor core truncates where an addition rounds; the weights' lo is corrected by the average loss.
// The split is accurate down to 2^-14, 2^-28 of the largest magnitude. A tile with a smaller nonzero magnitude, an infinity
// or a NaN, or with scales outside float32's range, is computed in plain float32 by the same warps, from global memory.
// With PIECES 1 only hi is used: fp16 has the 11 significant bits of tf32. fp16 and bf16 tensors need no split and no scale.
// A float32 sum of few products has smaller errors than those of two pieces. With PIECES 3 a number is
// hi + (lo + rest) / 2048 to 24 bits, where hi has so few bits that sums of hi hi' are exact. With the products of lo' and
// rest' too, what remains is the one rounding of hi hi' + the others / 2048.
//
// Memory writes whole sectors of 32 bytes much faster than parts of them. So a tile also computes a few outputs (EXTRA) of
// the next tile and stores each channel's run in whole sectors; the tile before it stores the outputs before its first
// whole sector.
//
// Bytes: reads x once from memory (rows that tiles share come from the L2 cache), writes y once.
//
// Serves stride 1, one group, up to 8 input channels and 9 taps, any padding and dilation. Sizes are compile-time constants:
//   IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH
//   PAD_TOP PAD_LEFT DILATION_H DILATION_W
//   ELEMENT VECTOR            the types, see elements.cuh
//   PIECES                    3: hi, lo and rest, 2: hi and lo, 1: hi alone (always so for fp16 and bf16)
//   TILE_ROWS TILE_COLUMNS    outputs of a tile; TILE_COLUMNS is OUT_WIDTH, or TILE_ROWS is 1
//   PIVOT                     index in `moments` of the input channels' pivots, which are subtracted from x; 0: none
//   TURN                      nanoseconds from one burst of reads to the next; 0: read as soon as a stage is free
//   STAGES GRAIN EXTRA RUN_PITCH TILES_IN_FLIGHT UNITS_PER_WARPGROUP TAIL
//                             the rest of the geometry: see Geometry in fusedref/plans/pipeline.py
//   SHARED_BYTES              dynamic shared memory
//
// Launch: block (512), grid (any number of blocks, at best one per multiprocessor; OUT_CHANNELS / 64, rounded up).
#include "pipeline_load.cuh"
#include "pipeline_multiply.cuh"
#include "pipeline_store.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) pipeline(
    const Element* __restrict__ x,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,       // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [OUT_CHANNELS]
    const Vector* __restrict__ running_var,   // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH], 32-byte aligned
    long long batch
#if PIVOT
    ,
    const double* __restrict__ moments  // of x, from moments.cu
#endif
) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int tiles = int(batch) * TILES_PER_PLANE;
#if !PIVOT
    const double* moments = nullptr;
#endif
    const Input in = {x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, moments};
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < CONSUMERS) {
        ptx::more_registers<168>();
        consume(shared, in, tiles, threadIdx.x);
    } else {
        ptx::fewer_registers<88>();
        if (warp < CONSUMERS + PRODUCERS) produce(shared, in, tiles, threadIdx.x - CONSUMERS * 32);
        else if (warp == CONSUMERS + PRODUCERS) store<0>(shared, y, tiles, threadIdx.x % 32);
        else store<1>(shared, y, tiles, threadIdx.x % 32);
    }
}
