// Sums of products of pixels at a distance, from which the second moments of the patches of a convolution follow:
//   sum[lag][c'][c] = sum over pixels q of x[c'][q + lag] x[c][q]       and       sum[c] = sum over q of x[c][q]
//
// The patches' 72 x 72 moments (8 channels, 9 taps) depend on the two taps only by their distance, up to the borders of the
// images, where some taps reach no pixel. So 13 lags of 8 x 8 products suffice, kept apart for the interior and for each row
// and column near a border. Float64 tensor cores compute them: the products of two float32 are exact in float64, and so no
// number of input data is too badly conditioned for the variance.
//
// A product is m16n8k4: two lags, each 8 channels of the partner, by 8 channels of the pixel, over 4 pixels; see
// moments_products.cuh.
//   warps 0-7    the interior, from shared memory, in units of 4 rows                              moments_interior.cuh
//   warps 8-11   the borders, from global memory                                                   moments_border.cuh
//
// Bytes: reads x once from memory (1.5 times from the L2 cache), writes a part per block, and those of the borders.
//
// Serves stride 1, dilation 1, one group, up to 8 input channels, kernels up to 3 x 3, padding below the kernel's size.
// Sizes are compile-time constants:
//   IN_CHANNELS HEIGHT WIDTH OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH PAD_TOP PAD_LEFT
//   ELEMENT          the type, see elements.cuh (VECTOR is not used)
//   MOST_BLOCKS UNIT_PAIRS UNITS_ACROSS STAGES SHARES
//                    the rest of the geometry: see Geometry in fusedref/plans/moments.py
//   SHARED_BYTES     dynamic shared memory
//
// Launch: block (384), grid (blocks_of(batch)).
#include "moments_border.cuh"
#include "moments_interior.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) moments(
    const Element* __restrict__ x,    // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    double* __restrict__ parts,       // [BORDER_PARTS + gridDim.x, SUMS], see moments_layout.cuh
    unsigned* __restrict__ finished,  // [1]: set to zero, for statistics.cu
    long long batch) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        if (blockIdx.x == 0) *finished = 0;
        for (int i = 0; i < STAGES; i++) {
            ptx::mbarrier_init(&shared.full[i], 32);
            ptx::mbarrier_init(&shared.empty[i], INTERIOR_WARPS / 2);
        }
        ptx::mbarrier_init_fence();
    }
    __syncthreads();
    // 8 x 176 + 4 x 152 registers are 12 x 168, which the launch gives.
    if (warp < INTERIOR_WARPS) {
        ptx::more_registers<176>();
        sum_interior(shared, x, parts + (BORDER_PARTS + blockIdx.x) * SUMS, batch, warp, lane);
    } else {
        ptx::fewer_registers<152>();
        sum_border(shared, x, parts, batch, warp - INTERIOR_WARPS, lane);
    }
}
