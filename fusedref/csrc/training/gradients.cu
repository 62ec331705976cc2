// The gradients of weight, gamma, beta and bias from the sums of the pass over dy (backward.cu), in float64.
//
//   z = conv2d(x, weight) + bias, zhat = (z - mean) i, y = s (gamma zhat + beta), i = 1 / sqrt(var + eps), a = s gamma i
//   P' is an output pixel's patch of x - pivot, N the number of output pixels. The pass gives, for each channel,
//   A = sum dy P' and q = sum dy; moments.cu gives p = sum P and M = sum P P' of the patches of x.
//
// With batch statistics (TRAINING 1), where pbar = p / N - pivot and Cov = M / N - (p / N) (p / N)':
//   sum dy zhat = i (<W, A> - q <W, pbar>)         dweight = a (A - q pbar - (sum dy zhat) i W Cov)       dbias = 0
// With running statistics (TRAINING 0), where B = A + q pivot is the sum of dy P:
//   sum dy zhat = i (<W, B> + (bias - mean) q)     dweight = a B                                          dbias = a q
// Both: dgamma = s sum dy zhat, dbeta = s q.
//
// The gradient of x then is T - conv_transpose(a (offset + slope (W * P')), W), where T = conv_transpose(a dy, W) and
//   slope = i (sum dy zhat) / N                    offset = q / N - slope <W, pbar>
// (input_gradient.cu computes it.)
//
// A column is tap * 8 + input channel. Sizes are compile-time constants:
//   IN_CHANNELS OUT_CHANNELS OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH
//   ELEMENT VECTOR   the types, see elements.cuh
//   PARTIAL_SUMS     the number of partial sums, which are added in this order
//   TRAINING         1: batch statistics, 0: running statistics
//
// Launch: block (576), grid (OUT_CHANNELS).
#include "elements.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH, COLUMNS = TAPS * 8, ROW = COLUMNS + 8;
constexpr int PIVOTS = COLUMNS + COLUMNS * COLUMNS;  // their place in `moments`
constexpr int THREADS = 576;
constexpr int QUADS = ROW / 4, GROUPS = THREADS / QUADS;     // a group of threads reads a row, each thread four numbers
constexpr int SHARE = (PARTIAL_SUMS + GROUPS - 1) / GROUPS;  // parts that a group adds
constexpr int SLICES = THREADS / COLUMNS < COLUMNS ? THREADS / COLUMNS : COLUMNS;  // threads that share a column of M

// Weight `column` of an output channel.
static __device__ __forceinline__ double weight_at(const Element* __restrict__ weight, int channel, int column) {
    const int c = column % 8;
    return c < IN_CHANNELS ? double(float(weight[(channel * IN_CHANNELS + c) * TAPS + column / 8])) : 0.0;
}

// The sum of u[j] v[j] over the columns, the same in all lanes.
static __device__ __forceinline__ double dot(const double (&u)[COLUMNS], const double (&v)[COLUMNS], int lane) {
    double sum = 0.0;
    #pragma unroll
    for (int first = 0; first < COLUMNS; first += 32)
        if (first + lane < COLUMNS) sum += u[first + lane] * v[first + lane];
    #pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) finish_backward(
    const float* __restrict__ parts,     // [PARTIAL_SUMS, 64, ROW]: A, and q in column COLUMNS
    const double* __restrict__ moments,  // p [COLUMNS], M [COLUMNS, COLUMNS], pivot [8], scale [8]
    const Element* __restrict__ weight,  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,     // [OUT_CHANNELS] or null: zeros
    const Vector* __restrict__ gamma,    // [OUT_CHANNELS] or null: ones
    const float* __restrict__ mean,      // [OUT_CHANNELS]
    const float* __restrict__ var,       // [OUT_CHANNELS]
    float scaling_factor,                // s
    float eps,                           // added to the variance
    long long batch,
    Element* __restrict__ dweight,  // like weight, or null, as the gradients below: not wanted
    Vector* __restrict__ dgamma,    // [OUT_CHANNELS]
    Vector* __restrict__ dbeta,     // [OUT_CHANNELS]
    Vector* __restrict__ dbias,     // [OUT_CHANNELS]
    double* __restrict__ slopes)    // [2, OUT_CHANNELS]: offset and slope
{
    __shared__ double group_sums[GROUPS][ROW], products[SLICES][COLUMNS];
    __shared__ double sums[ROW], w[COLUMNS], first[COLUMNS], pbar[COLUMNS], covariance[COLUMNS], a_row[COLUMNS];
    __shared__ double scalars[3];  // 1 / N, i, a
    const int channel = blockIdx.x, thread = threadIdx.x, lane = thread % 32;
    // One warp computes what does not depend on the sums, while the others wait for theirs.
    if (thread == THREADS - 32) {
        const double i = 1.0 / sqrt(double(var[channel]) + double(eps));
        scalars[0] = 1.0 / (double(batch) * (OUT_HEIGHT * OUT_WIDTH));
        scalars[1] = i;
        scalars[2] = scaling_factor * (gamma ? double(float(gamma[channel])) : 1.0) * i;
    }
    if (thread < GROUPS * QUADS) {
        const int quad = thread % QUADS, group = thread / QUADS;
        double sum[4] = {};
        #pragma unroll 8
        for (int k = 0; k < SHARE; k++) {
            const int part = group + k * GROUPS;
            const bool real = PARTIAL_SUMS % GROUPS == 0 || part < PARTIAL_SUMS;
            const float4* from = reinterpret_cast<const float4*>(parts) + (part * 64LL + channel) * QUADS + quad;
            const float4 four = real ? __ldg(from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            sum[0] += four.x, sum[1] += four.y, sum[2] += four.z, sum[3] += four.w;
        }
        #pragma unroll
        for (int i = 0; i < 4; i++) group_sums[group][quad * 4 + i] = sum[i];
    }
    if (thread < COLUMNS) {
        w[thread] = weight_at(weight, channel, thread);
        first[thread] = TRAINING ? moments[thread] : 0.0;
        pbar[thread] = moments[PIVOTS + thread % 8];
    }
    if (TRAINING && thread < SLICES * COLUMNS) {
        const int column = thread % COLUMNS, slice = thread / COLUMNS;
        double sum = 0.0;
        #pragma unroll
        for (int k = 0; k < (COLUMNS + SLICES - 1) / SLICES; k++) {
            const int j = slice + k * SLICES;
            if (COLUMNS % SLICES == 0 || j < COLUMNS)
                sum += weight_at(weight, channel, j) * moments[COLUMNS + j * COLUMNS + column];
        }
        products[slice][column] = sum;
    }
    __syncthreads();
    if (thread < ROW) {
        double sum = 0.0;
        for (int group = 0; group < GROUPS; group++) sum += group_sums[group][thread];
        sums[thread] = sum;
    }
    __syncthreads();
    const double q = sums[COLUMNS], per_pixel = scalars[0], i = scalars[1], a = scalars[2], s = scaling_factor;
    if (thread < COLUMNS) {
        first[thread] *= per_pixel;
        pbar[thread] = first[thread] - pbar[thread];
        // With running statistics pbar is -pivot, so that this is B.
        a_row[thread] = sums[thread] - q * pbar[thread];
        double sum = 0.0;
        if (TRAINING)
            for (int slice = 0; slice < SLICES; slice++) sum += products[slice][thread];
        covariance[thread] = sum * per_pixel;
    }
    __syncthreads();

    double dyzhat = i * dot(w, a_row, lane);
    if (!TRAINING) dyzhat += i * ((bias ? double(float(bias[channel])) : 0.0) - double(mean[channel])) * q;
    const double projected = TRAINING ? dot(w, first, lane) : 0.0;
    if (dweight && thread < COLUMNS && thread % 8 < IN_CHANNELS) {
        double gradient = a_row[thread];
        if (TRAINING) gradient -= dyzhat * i * (covariance[thread] - projected * first[thread]);
        const int place = (channel * IN_CHANNELS + thread % 8) * TAPS + thread / 8;
        dweight[place] = Element(float(a * gradient));
    }
    if (thread == 0) {
        if (dgamma) dgamma[channel] = Vector(float(s * dyzhat));
        if (dbeta) dbeta[channel] = Vector(float(s * q));
        if (dbias) dbias[channel] = Vector(float(TRAINING ? a * (q - q) : a * q));  // q - q: NaN unless q is finite
    }
    if (slopes && thread < 32) {
        const double slope = i * dyzhat * per_pixel, offset = q * per_pixel - slope * dot(w, pbar, lane);
        if (thread == 0) {
            slopes[channel] = offset;
            slopes[OUT_CHANNELS + channel] = slope;
        }
    }
}
