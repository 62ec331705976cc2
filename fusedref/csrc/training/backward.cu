// The one pass over dy, for the gradients of y = a * conv2d(x, weight) + b with batch statistics:
//   A'[o, (tap, c)] = sum over pixels of dy[o, pixel] x'[c, pixel + tap]      x' = x - pivot, padding too
//   q[o]            = sum over pixels of dy[o, pixel]
//   T               = conv_transpose(a dy, weight)               the part of x's gradient that is linear in dy
//
// Persistent blocks of specialised warps share the rows of dy evenly: a block walks down the rows of an image (or of a
// strip of it, where rows are wide), then of the next. mbarriers pass a row of dy from the loading warps to the others:
//   warps 0-3   load: cp.async brings rows of dy to shared memory, RAW_ROWS - 1 ahead; scale, split into fp16, write
//               [column][channel]; q in float64                                                backward_load.cuh
//   warps 4-7   A': stage rows of x; wgmma over the pixels of a row, with dy in registers (a) and windows of x in
//               shared memory (b)                                                              backward_sums.cuh
//   warps 8-11  T: prepare the filters; wgmma over the channels, with dy in registers (a) and the filters in shared
//               memory (b); the sum over the columns of a filter moves across lanes, that over its rows rolls down with
//               the rows of dy; rows of T go to memory by bulk copies                      backward_transpose.cuh
//
// Float32 from fp16: a power of two scales a row of dy so that its largest magnitude lies in [2^14, 2^15). A number is
// then hi + lo, both fp16, to 2^-39 of the largest; a product is hi hi' + hi lo' + lo hi'. The tensor cores sum one row
// at most, then float32 adds it, and float64 the sums of a few rows of A'. They truncate where an addition rounds: the lo
// of x and of the filters compensate the average loss. With PIECES 1 only hi is used. fp16 and bf16 are multiplied as they
// are, x - pivot is split for bf16, too; then q is a product with ones.
//
// A block that starts inside an image reads the KERNEL_HEIGHT - 1 rows above its first row too, for T alone.
// Each block writes its own part of A' and q, so the same bits come out of every run.
// NaN and infinity in dy make NaN or infinity of what they reach.
//
// Serves stride 1, dilation 1, one group, up to 8 input and 64 output channels, kernel sides up to 3. Macros:
//   IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH PAD_TOP PAD_LEFT ELEMENT VECTOR
//   PIECES                  2: hi and lo, 1: hi alone
//   WITH_A WITH_T           whether to compute A' and q, and T
//   STRIPS STRIP_COLUMNS T_BLOCKS RAW_ROWS     see Geometry in fusedref/plans/backward.py
//   SHARED_BYTES            dynamic shared memory
//
// Launch: block (128 (1 + WITH_A + WITH_T)), grid (blocks, at best one per multiprocessor).
#include "backward_load.cuh"
#if WITH_A
#include "backward_sums.cuh"
#endif
#if WITH_T
#include "backward_transpose.cuh"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward(
    const Element* __restrict__ dy,      // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH], 16-byte aligned
    const Element* __restrict__ x,       // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const double* __restrict__ moments,  // of x: [COLUMNS + COLUMNS * COLUMNS + 16], the last 16: pivot and scale
    const Element* __restrict__ weight,  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const float* __restrict__ var,       // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,    // [OUT_CHANNELS] or null: ones
    float scaling_factor,                // multiplies everything
    float eps,                           // added to the variance
    float* __restrict__ parts,           // [blocks, 64, COLUMNS + 8] of A' and q (column COLUMNS); unused without A'
    Element* __restrict__ dx,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]: T; unused without T
    long long batch) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    // What no row covers is zero: columns beyond the image, channels that do not exist.
    for (int i = threadIdx.x; i < offsetof(Shared, full) / 16; i += THREADS)
        reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
    if (threadIdx.x < 8) {
        shared.pivot[threadIdx.x] = WITH_A ? float(moments[COLUMNS + COLUMNS * COLUMNS + threadIdx.x]) : 0.0f;
        shared.scale[threadIdx.x] =  // bf16 needs none
            !WITH_A        ? 0.0f
            : ELEMENT == 2 ? 1.0f
                           : float(moments[COLUMNS + COLUMNS * COLUMNS + 8 + threadIdx.x]);
    }
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx::mbarrier_init(&shared.full[s], LOADERS * 32);
            ptx::mbarrier_init(&shared.empty[s], (SUMMERS + TRANSPOSERS) * 32);
        }
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    if (warp < LOADERS) {
        load_rows(shared, dy, parts, batch, threadIdx.x);
    } else if (WITH_A && warp < LOADERS + SUMMERS) {
#if WITH_A
        sum_rows(shared, x, parts, batch, warp - LOADERS, lane);
#endif
    } else {
#if WITH_T
        transpose_rows(shared, {weight, var, gamma, scaling_factor, eps}, dx, batch, warp - LOADERS - SUMMERS, lane);
#endif
    }
}
