// y = a * (z + shift) + b in place, where torch's convolution has written z = conv2d(x, weight) without its bias: BatchNorm
// (running statistics) and the scale, as three numbers for each channel, see affine.cuh.
//
// Reads z once and writes y once, 16 bytes of a thread at a time, beginning with what the convolution wrote last, which is
// still in the cache. Sizes are arguments, so a compiled kernel serves every shape.
//
// A block takes CHUNK consecutive numbers. In NCHW order these are of a few planes [image, channel], each with one channel;
// the block computes the three numbers for each of these planes, or for every channel if there are fewer.
// With channels last, a thread keeps the channels of its unit and goes down the pixels; see general.cuh.
#include "affine.cuh"
#include "general.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) affine(
    const Vector* __restrict__ bias,          // [channels] or null: zeros
    const Vector* __restrict__ running_mean,  // [channels]
    const Vector* __restrict__ running_var,   // [channels]
    const Vector* __restrict__ gamma,         // [channels] or null: ones
    const Vector* __restrict__ beta,          // [channels] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, channels, plane]: z before, y after
    long long batch, int channels, int plane) {
    const Units units(batch, channels, plane, gridDim.y - 1 - blockIdx.y);
    float a[OWN], shift[OWN], b[OWN];
    for (unsigned i = units.start; i < units.count; i += AHEAD * Units::STEP) {
        Unit unit[AHEAD];
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count)
                unit[k] = load(y + units.offset(units.count - 1 - (i + k * Units::STEP)));
        if (i == units.start) {
            #pragma unroll
            for (int own = 0; own < OWN; own++) {
                a[own] = affine_a(units.channel + own, running_var, gamma, scaling_factor, eps);
                shift[own] = affine_shift(units.channel + own, bias, running_mean);
                b[own] = affine_b(units.channel + own, beta, scaling_factor);
            }
        }
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count) {
                #pragma unroll
                for (int e = 0; e < UNIT; e++)
                    unit[k].value[e] = Element(a[e % OWN] * (float(unit[k].value[e]) + shift[e % OWN]) + b[e % OWN]);
                store(y + units.offset(units.count - 1 - (i + k * Units::STEP)), unit[k]);
            }
    }
}
