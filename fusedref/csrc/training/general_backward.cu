// The gradients of BatchNorm, the scale and the convolution's bias, for any shape, from dy and z = conv2d(x, weight) without
// its bias. With zhat = (z + bias - mean) / sqrt(var + eps), a = scale * gamma / sqrt(var + eps), sums per channel over N
// pixels q = sum dy and r = sum dy zhat:
//   dgamma = scale * r    dbeta = scale * q
//   BATCH_STATISTICS 1:   dz = a * (dy - q / N - zhat * r / N)    dbias = sum dz = 0
//   BATCH_STATISTICS 0:   dz = a * dy                             dbias = a * q      (mean and var are constants)
//
//   reduce_gradient   reads dy and z, writes for each slice and channel q and r
//   apply_gradient    adds them, writes the gradients of the vectors, reads dy and z, writes dz
//
// Macros and launch: see general.cuh, and BATCH_STATISTICS. Both kernels have the same grid.
#include "general.cuh"

// zhat = ((z - high) - low) * inverse
struct Normalized {
    float high = 0.0f, low = 0.0f, inverse = 0.0f;
    Normalized() = default;
    __device__ __forceinline__
    Normalized(int channel, const Vector* bias, const float* mean, const float* var, double eps) {
        const double shift = double(mean[channel]) - element(bias, channel, 0.0);
        high = shift;
        low = shift - high;
        inverse = 1.0 / sqrt(double(var[channel]) + eps);
    }
    __device__ __forceinline__ float operator()(Element z) const { return ((float(z) - high) - low) * inverse; }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) reduce_gradient(
    const Element* __restrict__ dy,   // [batch, channels, plane]
    const Element* __restrict__ z,    // [batch, channels, plane], or null: r is 0
    const Vector* __restrict__ bias,  // [channels] or null: zeros
    const float* __restrict__ mean,   // [channels], of z + bias
    const float* __restrict__ var,    // [channels]
    double eps,                       // added to the variance
    double2* __restrict__ parts,      // [slices, channels]
    long long batch, int channels, int plane) {
    const Units units(batch, channels, plane, blockIdx.y);
    double q[OWN] = {}, r[OWN] = {};
    Normalized normalized[OWN];
    if (units.count && z)
        #pragma unroll
        for (int own = 0; own < OWN; own++) normalized[own] = Normalized(units.channel + own, bias, mean, var, eps);
    for (unsigned i = units.start; i < units.count; i += AHEAD * Units::STEP) {
        Unit gradient[AHEAD], value[AHEAD];
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count) {
                const long long at = units.offset(i + k * Units::STEP);
                gradient[k] = load(dy + at);
                if (z) value[k] = load(z + at);
            }
        float sum[OWN] = {}, products[OWN] = {};
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count)
                #pragma unroll
                for (int e = 0; e < UNIT; e++) {
                    const float d = float(gradient[k].value[e]);
                    sum[e % OWN] += d;
                    if (z) products[e % OWN] = fmaf(d, normalized[e % OWN](value[k].value[e]), products[e % OWN]);
                }
        #pragma unroll
        for (int own = 0; own < OWN; own++) {
            q[own] += sum[own];
            r[own] += products[own];
        }
    }
    put_parts(parts, units, q, r);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) apply_gradient(
    const Element* __restrict__ dy,     // [batch, channels, plane]
    const Element* __restrict__ z,      // [batch, channels, plane]; not read without BATCH_STATISTICS
    const double2* __restrict__ parts,  // [slices, channels]; not read without BATCH_STATISTICS if no vector is written
    const Vector* __restrict__ bias,    // [channels] or null: zeros
    const Vector* __restrict__ gamma,   // [channels] or null: ones
    const float* __restrict__ mean,     // [channels], of z + bias
    const float* __restrict__ var,      // [channels]
    double scaling_factor,              // of the forward pass
    double eps,                         // added to the variance
    Element* __restrict__ dz,           // [batch, channels, plane] or null: not needed
    Vector* __restrict__ dbias,         // [channels] or null
    Vector* __restrict__ dgamma,        // [channels] or null
    Vector* __restrict__ dbeta,         // [channels] or null
    long long batch, int channels, int plane) {
    // dz = a * ((dy - c1) - zhat * c2)
    __shared__ float a[BLOCK_CHANNELS], c1[BLOCK_CHANNELS], c2[BLOCK_CHANNELS];
    double2 sum = make_double2(0.0, 0.0);
    if (BATCH_STATISTICS || dbias || dgamma || dbeta) sum = sum_parts(parts, channels);
    const int channel = int(blockIdx.x) * BLOCK_CHANNELS + int(threadIdx.x);
    if (threadIdx.x < BLOCK_CHANNELS && channel < channels) {
        const double factor = scaling_factor * element(gamma, channel, 1.0) / sqrt(double(var[channel]) + eps);
        const double count = double(batch) * plane, q = sum.x, r = sum.y;
        a[threadIdx.x] = factor;
        c1[threadIdx.x] = q / count;
        c2[threadIdx.x] = r / count;
        if (blockIdx.y == 0) {
            // Zero, but NaN where the sum of dz would be.
            if (dbias) dbias[channel] = Vector(float(BATCH_STATISTICS ? factor * ((q - q) + (r - r)) : factor * q));
            if (dgamma) dgamma[channel] = Vector(float(scaling_factor * r));
            if (dbeta) dbeta[channel] = Vector(float(scaling_factor * q));
        }
    }
    if (!dz) return;
    __syncthreads();

    const Units units(batch, channels, plane, gridDim.y - 1 - blockIdx.y);
    const int mine = threadIdx.x % LANES * OWN;
    float my_a[OWN], my_c1[OWN], my_c2[OWN];
    Normalized normalized[OWN];
    #pragma unroll
    for (int own = 0; own < OWN; own++) {
        my_a[own] = a[mine + own], my_c1[own] = c1[mine + own], my_c2[own] = c2[mine + own];
        if (BATCH_STATISTICS && units.count) normalized[own] = Normalized(units.channel + own, bias, mean, var, eps);
    }
    // Backwards: what reduce_gradient read last is still in the cache.
    for (unsigned i = units.start; i < units.count; i += AHEAD * Units::STEP) {
        Unit gradient[AHEAD], value[AHEAD];
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count) {
                const long long at = units.offset(units.count - 1 - (i + k * Units::STEP));
                gradient[k] = load(dy + at);
                if (BATCH_STATISTICS) value[k] = load(z + at);
            }
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count) {
                #pragma unroll
                for (int e = 0; e < UNIT; e++) {
                    float d = float(gradient[k].value[e]);
                    if (BATCH_STATISTICS)
                        d = (d - my_c1[e % OWN]) - normalized[e % OWN](value[k].value[e]) * my_c2[e % OWN];
                    gradient[k].value[e] = Element(my_a[e % OWN] * d);
                }
                store(dz + units.offset(units.count - 1 - (i + k * Units::STEP)), gradient[k]);
            }
    }
}
