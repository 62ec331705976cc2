// y = a * (z + shift) + b in place, where a library has written z = conv2d(x, weight) without its bias: BatchNorm (running
// statistics) and the scale, as three numbers for each channel, see affine.cuh.
//
// Reads z once and writes y once, beginning with what was written last, which is still in the cache. A thread has AHEAD
// units of neighbouring numbers in flight, and loads them before anything else. Sizes are arguments, so that a compiled
// kernel serves every shape. The macros are
//   ELEMENT VECTOR   the types, see elements.cuh: of y and of the parameters
//   CHANNELS_LAST    1: y is [batch, pixel, channel] in memory, 0: [batch, channel, pixel]
//   UNIT             numbers of a unit; divides channels with channels last, else the numbers of an image
//   AHEAD            units that a thread has in flight
//   LANES            with channels last: neighbouring units of a pixel that a block reads, a power of two; else 1
//   WHOLE            else: 1 if every unit lies in one plane
//
// Launch: block (THREADS). With channels last, grid (channels / (UNIT * LANES) rounded up, any number of blocks); a thread
// keeps its channels and goes from pixel to pixel. Else grid (numbers of an image / (THREADS * AHEAD * UNIT) rounded up, any
// number of blocks), dynamic shared memory for three floats of each plane that a block reads a part of; a block keeps its
// place and goes from image to image.
#include "affine.cuh"

constexpr int THREADS = 256;

struct alignas(UNIT * sizeof(Element)) Unit { Element value[UNIT]; };

__device__ __forceinline__ Unit load(const Element* from) { return *reinterpret_cast<const Unit*>(from); }
__device__ __forceinline__ void store(Element* to, const Unit& unit) { *reinterpret_cast<Unit*>(to) = unit; }

extern "C" __global__ void __launch_bounds__(THREADS) affine(
    const Vector* __restrict__ bias,          // [channels] or null: zeros
    const Vector* __restrict__ running_mean,  // [channels]
    const Vector* __restrict__ running_var,   // [channels]
    const Vector* __restrict__ gamma,         // [channels] or null: ones
    const Vector* __restrict__ beta,          // [channels] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, channels, plane]: z before, y after
    long long batch, int channels, int plane) {
    bool begins = true;
    Unit unit[AHEAD];
#if CHANNELS_LAST
    constexpr int PIXELS = THREADS / LANES;  // that a block reads at a time
    const int channel = (int(blockIdx.x) * LANES + int(threadIdx.x) % LANES) * UNIT;
    if (channel >= channels) return;
    const long long pixels = batch * plane, step = (long long)gridDim.y * AHEAD * PIXELS;
    float a[UNIT], shift[UNIT], b[UNIT];
    long long pixel = (long long)(gridDim.y - 1 - blockIdx.y) * AHEAD * PIXELS + threadIdx.x / LANES;
    for (; pixel < pixels; pixel += step) {
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (pixel + k * PIXELS < pixels) unit[k] = load(y + (pixel + k * PIXELS) * channels + channel);
        if (begins)
            #pragma unroll
            for (int e = 0; e < UNIT; e++) {
                a[e] = affine_a(channel + e, running_var, gamma, scaling_factor, eps);
                shift[e] = affine_shift(channel + e, bias, running_mean);
                b[e] = affine_b(channel + e, beta, scaling_factor);
            }
        begins = false;
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (pixel + k * PIXELS < pixels) {
                #pragma unroll
                for (int e = 0; e < UNIT; e++)
                    unit[k].value[e] = Element(a[e] * (float(unit[k].value[e]) + shift[e]) + b[e]);
                store(y + (pixel + k * PIXELS) * channels + channel, unit[k]);
            }
    }
#else
    struct Numbers { float a, shift, b; };
    extern __shared__ Numbers table[];  // of the planes that the block reads a part of
    const unsigned size = unsigned(channels) * plane, first = (gridDim.x - 1 - blockIdx.x) * THREADS * AHEAD * UNIT;
    const unsigned channel = first / plane, begin = first - channel * plane;
    for (long long image = gridDim.y - 1 - blockIdx.y; image < batch; image += gridDim.y) {
        Element* const mine = y + image * size + first;
        #pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const unsigned place = (k * THREADS + threadIdx.x) * UNIT;
            if (first + place < size) unit[k] = load(mine + place);
        }
        if (begins) {
            const unsigned planes = min((begin + THREADS * AHEAD * UNIT - 1) / plane + 1, channels - channel);
            for (unsigned i = threadIdx.x; i < planes; i += THREADS)
                table[i] = {
                    affine_a(channel + i, running_var, gamma, scaling_factor, eps),
                    affine_shift(channel + i, bias, running_mean),
                    affine_b(channel + i, beta, scaling_factor),
                };
            __syncthreads();
        }
        begins = false;
        #pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const unsigned place = (k * THREADS + threadIdx.x) * UNIT;
            if (first + place < size) {
                unsigned entry = (begin + place) / plane, left = plane - (begin + place) % plane;
                Numbers numbers = table[entry];
                #pragma unroll
                for (int e = 0; e < UNIT; e++) {
                    unit[k].value[e] = Element(numbers.a * (float(unit[k].value[e]) + numbers.shift) + numbers.b);
                    if (!WHOLE && e + 1 < UNIT && --left == 0) numbers = table[++entry], left = plane;
                }
                store(mine + place, unit[k]);
            }
        }
    }
#endif
}
