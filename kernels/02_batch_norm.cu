// 02 batch_norm: BatchNorm2d in evaluation mode, one thread per element.
//
//   y = (x - running_mean) / sqrt(running_var + eps) * gamma + beta      (four parameters per channel)
//
// New since 01: an elementwise kernel. A thread reads one number, computes with it and writes it: a few operations for
// eight bytes. Such a kernel is limited by memory bandwidth.
//
// Byte ledger at problem 73: reads 520.2 MB, writes 520.2 MB (the four vectors of 64 floats are negligible).
//
// Launch: block (256), grid (ceil(elements / 256)).

extern "C" __global__ void batch_norm(
    const float* x,             // [batch, channels, plane]   plane = height * width
    const float* running_mean,  // [channels]
    const float* running_var,   // [channels]
    const float* gamma,         // [channels]
    const float* beta,          // [channels]
    float eps,                  // added to the variance
    float* y,                   // [batch, channels, plane]
    int batch, int channels, int plane) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= batch * channels * plane) return;

    const int channel = index / plane % channels;
    const float normalised = (x[index] - running_mean[channel]) / sqrtf(running_var[channel] + eps);
    y[index] = normalised * gamma[channel] + beta[channel];
}
