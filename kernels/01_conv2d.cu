// 01 conv2d: one thread computes one output of the convolution.
//
// The idea: the output consists of batch * out_channels * out_height * out_width independent numbers. Each has its own
// thread, which computes from its index which output it owns, then loops over the input window and the filter.
//
// Byte ledger at problem 73 (x [128, 8, 128, 128] fp32, 64 filters of 3x3), if every tensor crosses the memory bus once:
//   reads   x          67.1 MB
//   reads   weight      0.02 MB
//   writes  y         520.2 MB
// The threads load far more: every output needs 72 inputs and 72 weights. The caches serve the rest.
//
// Launch: block (256), grid (ceil(outputs / 256)).

extern "C" __global__ void conv2d(
    const float* x,       // [batch, in_channels, height, width]
    const float* weight,  // [out_channels, in_channels, kernel_size, kernel_size]
    const float* bias,    // [out_channels]
    float* y,             // [batch, out_channels, out_height, out_width]
    int batch, int in_channels, int height, int width, int out_channels, int kernel_size) {
    const int out_height = height - kernel_size + 1;
    const int out_width = width - kernel_size + 1;
    const int output = blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= batch * out_channels * out_height * out_width) return;  // the last block is rarely full

    // Split the index of the output into [image, channel, row, column]; the column changes fastest.
    const int column = output % out_width;
    const int row = output / out_width % out_height;
    const int channel = output / (out_width * out_height) % out_channels;
    const int image = output / (out_width * out_height * out_channels);

    float sum = bias[channel];
    for (int in_channel = 0; in_channel < in_channels; in_channel++) {
        for (int i = 0; i < kernel_size; i++) {
            for (int j = 0; j < kernel_size; j++) {
                sum += x[((image * in_channels + in_channel) * height + row + i) * width + column + j]
                    * weight[((channel * in_channels + in_channel) * kernel_size + i) * kernel_size + j];
            }
        }
    }
    y[output] = sum;
}
