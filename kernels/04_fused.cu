// 04 fused: convolution, BatchNorm and scale in one kernel. The sum stays in a register until it is finished.
//
// New since 03: one launch, and no intermediate result in memory.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB. This is the floor: no kernel can move less. From
// here on the ladder improves how the data get from the caches to the arithmetic, not the bytes on the bus.
//
// `fused`        block (256), grid (ceil(outputs / 256)): one thread per output, as in 01.
// `fused_block`  block (out_width, out_height), grid (out_channels, batch): the obvious geometry, a block per
//                image and channel. A block holds at most 1024 threads, so it launches only on planes of up to
//                1024 pixels. At problem 73 a block would need 126 * 126 = 15876 and the launch fails.

__device__ float conv_bn_scale(
    const float* x, const float* weight, const float* bias, const float* running_mean, const float* running_var,
    const float* gamma, const float* beta, float scaling_factor, float eps, int in_channels, int height, int width,
    int kernel_size, int image, int channel, int row, int column) {
    float sum = bias[channel];
    for (int in_channel = 0; in_channel < in_channels; in_channel++) {
        for (int i = 0; i < kernel_size; i++) {
            for (int j = 0; j < kernel_size; j++) {
                sum += x[((image * in_channels + in_channel) * height + row + i) * width + column + j]
                    * weight[((channel * in_channels + in_channel) * kernel_size + i) * kernel_size + j];
            }
        }
    }
    const float normalised = (sum - running_mean[channel]) / sqrtf(running_var[channel] + eps);
    return (normalised * gamma[channel] + beta[channel]) * scaling_factor;
}

extern "C" __global__ void fused(
    const float* x,             // [batch, in_channels, height, width]
    const float* weight,        // [out_channels, in_channels, kernel_size, kernel_size]
    const float* bias,          // [out_channels]
    const float* running_mean,  // [out_channels]
    const float* running_var,   // [out_channels]
    const float* gamma,         // [out_channels]
    const float* beta,          // [out_channels]
    float scaling_factor,       // multiplies everything
    float eps,                  // added to the variance
    float* y,                   // [batch, out_channels, out_height, out_width]
    int batch, int in_channels, int height, int width, int out_channels, int kernel_size) {
    const int out_height = height - kernel_size + 1;
    const int out_width = width - kernel_size + 1;
    const int output = blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= batch * out_channels * out_height * out_width) return;

    const int column = output % out_width;
    const int row = output / out_width % out_height;
    const int channel = output / (out_width * out_height) % out_channels;
    const int image = output / (out_width * out_height * out_channels);
    y[output] = conv_bn_scale(
        x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, in_channels, height, width,
        kernel_size, image, channel, row, column);
}

extern "C" __global__ void fused_block(
    const float* x,             // [batch, in_channels, height, width]
    const float* weight,        // [out_channels, in_channels, kernel_size, kernel_size]
    const float* bias,          // [out_channels]
    const float* running_mean,  // [out_channels]
    const float* running_var,   // [out_channels]
    const float* gamma,         // [out_channels]
    const float* beta,          // [out_channels]
    float scaling_factor,       // multiplies everything
    float eps,                  // added to the variance
    float* y,                   // [batch, out_channels, out_height, out_width]
    int batch, int in_channels, int height, int width, int out_channels, int kernel_size) {
    const int column = threadIdx.x;
    const int row = threadIdx.y;
    const int channel = blockIdx.x;
    const int image = blockIdx.y;
    y[((image * out_channels + channel) * blockDim.y + row) * blockDim.x + column] = conv_bn_scale(
        x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, in_channels, height, width,
        kernel_size, image, channel, row, column);
}
