// BatchNorm with the statistics of the batch, and the scale, of z = conv2d(x, weight) without its bias, for any shape:
//   y = scale * (gamma * (z - mean(z)) / sqrt(var(z) + eps) + beta)      var: biased
// The bias moves z and its mean alike, so only the mean that the kernel reports has it.
//
//   channel_statistics   reads z, writes for each slice and channel the sums of z - pivot and (z - pivot)^2, where the pivot
//                        is the channel's first element
//   normalize            adds them, updates the running statistics, reads z, writes y
//
// Accuracy: a thread subtracts from a few neighbouring elements the first of them, sums differences and their squares in
// float32, and moves both to the pivot in float64. The pivot is one of the data, so (pivot - mean)^2 <= N var: of 53 bits
// at most log2 N cancel, whatever the data are.
//
// Macros and launch: see general.cuh. Both kernels have the same grid.
#include "general.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) channel_statistics(
    const Element* __restrict__ z,    // [batch, channels, plane]
    double2* __restrict__ parts,      // [slices, channels]
    long long* __restrict__ batches,  // [1], counted up, or null
    long long batch, int channels, int plane) {
    const Units units(batch, channels, plane, blockIdx.y);
    double first[OWN] = {}, second[OWN] = {}, pivot[OWN];
    #pragma unroll
    for (int own = 0; own < OWN; own++)
        pivot[own] = units.count ? float(z[(units.channel + own) * (CHANNELS_LAST ? 1LL : plane)]) : 0.0f;
    for (unsigned i = units.start; i < units.count; i += AHEAD * Units::STEP) {
        Unit unit[AHEAD];
        int elements = 0;  // of a channel
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count) {
                unit[k] = load(z + units.offset(i + k * Units::STEP));
                elements += UNIT / OWN;
            }
        float sum[OWN] = {}, squares[OWN] = {};
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count)
                #pragma unroll
                for (int e = 0; e < UNIT; e++) {
                    const float difference = float(unit[k].value[e]) - float(unit[0].value[e % OWN]);
                    sum[e % OWN] += difference;
                    squares[e % OWN] = fmaf(difference, difference, squares[e % OWN]);
                }
        #pragma unroll
        for (int own = 0; own < OWN; own++) {
            const double shift = float(unit[0].value[own]) - pivot[own], moved = elements * shift;
            first[own] += moved + sum[own];
            second[own] += squares[own] + shift * (2.0 * sum[own] + moved);
        }
    }
    put_parts(parts, units, first, second);
    if (batches && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) batches[0]++;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) normalize(
    const Element* __restrict__ z,          // [batch, channels, plane]
    const double2* __restrict__ parts,      // [slices, channels]
    const Vector* __restrict__ bias,        // [channels] or null: zeros
    const Vector* __restrict__ gamma,       // [channels] or null: ones
    const Vector* __restrict__ beta,        // [channels] or null: zeros
    Vector* __restrict__ running_mean,      // [channels] or null
    Vector* __restrict__ running_var,       // [channels] or null
    const long long* __restrict__ batches,  // [1], this one counted, or null
    double momentum,                        // the share of this batch in the running statistics; negative: 1 / batches
    double scaling_factor,                  // multiplies everything
    double eps,                             // added to the variance
    Element* __restrict__ y,                // [batch, channels, plane]
    float* __restrict__ mean,               // [channels], of z + bias
    float* __restrict__ var,                // [channels], biased
    long long batch, int channels, int plane) {
    // y = a ((z - high) - low) + b
    __shared__ float a[BLOCK_CHANNELS], high[BLOCK_CHANNELS], low[BLOCK_CHANNELS], b[BLOCK_CHANNELS];
    const double2 sum = sum_parts(parts, channels);
    const int channel = int(blockIdx.x) * BLOCK_CHANNELS + int(threadIdx.x);
    if (threadIdx.x < BLOCK_CHANNELS && channel < channels) {
        const double count = double(batch) * plane;
        const double pivot = float(z[channel * (CHANNELS_LAST ? 1LL : plane)]);
        const double mean_of_z = pivot + sum.x / count, squares = sum.y - sum.x * sum.x / count;
        const double variance = squares < 0.0 ? 0.0 : squares / count;  // not max(): NaN must stay
        const double shift = element(bias, channel, 0.0);
        a[threadIdx.x] = scaling_factor * element(gamma, channel, 1.0) / sqrt(variance + eps);
        high[threadIdx.x] = mean_of_z;
        low[threadIdx.x] = mean_of_z - high[threadIdx.x] + (shift - shift);  // NaN where the bias is not finite
        b[threadIdx.x] = beta ? scaling_factor * element(beta, channel, 0.0) : 0.0;
        if (blockIdx.y == 0) {
            mean[channel] = mean_of_z + shift;
            var[channel] = variance;
            const double share = momentum < 0.0 ? 1.0 / batches[0] : momentum;
            if (running_mean) {
                const double before = element(running_mean, channel, 0.0);
                running_mean[channel] = Vector(float((1.0 - share) * before + share * (mean_of_z + shift)));
            }
            if (running_var) {
                const double before = element(running_var, channel, 0.0), unbiased = variance * count / (count - 1.0);
                running_var[channel] = Vector(float((1.0 - share) * before + share * unbiased));
            }
        }
    }
    __syncthreads();

    const Units units(batch, channels, plane, gridDim.y - 1 - blockIdx.y);
    const int mine = threadIdx.x % LANES * OWN;
    float my_a[OWN], my_high[OWN], my_low[OWN], my_b[OWN];
    #pragma unroll
    for (int own = 0; own < OWN; own++) {
        my_a[own] = a[mine + own], my_b[own] = b[mine + own];
        my_high[own] = high[mine + own], my_low[own] = low[mine + own];
    }
    // Backwards: what channel_statistics read last is still in the cache.
    for (unsigned i = units.start; i < units.count; i += AHEAD * Units::STEP) {
        Unit unit[AHEAD];
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count)
                unit[k] = load(z + units.offset(units.count - 1 - (i + k * Units::STEP)));
        #pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * Units::STEP < units.count) {
                #pragma unroll
                for (int e = 0; e < UNIT; e++) {
                    const float centered = (float(unit[k].value[e]) - my_high[e % OWN]) - my_low[e % OWN];
                    unit[k].value[e] = Element(fmaf(my_a[e % OWN], centered, my_b[e % OWN]));
                }
                store(y + units.offset(units.count - 1 - (i + k * Units::STEP)), unit[k]);
            }
    }
}
