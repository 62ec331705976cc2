// y = a * (conv2d(x, weight) + shift) + b, with BatchNorm (running statistics) and the scale folded into a, shift and b,
// which belong to the channel:  a = scale * gamma / sqrt(var + eps)   shift = bias - mean   b = scale * beta
// (Not a * conv2d + b': an infinite a would then make inf - inf of what is infinite in torch.)
//
// Every size but the batch, which varies from call to call, is a compile-time constant, a -D option from fusedref/fused.py:
//   IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH GROUPS
//   KERNEL_HEIGHT KERNEL_WIDTH STRIDE_H STRIDE_W PAD_TOP PAD_LEFT DILATION_H DILATION_W    (padding is zeros)
//
// A unit of work is 256 consecutive outputs of one image and channel. Blocks take units until none is left, so a grid of
// any size will do; units and offsets are counted in 64 bits.
//
// Launch: block (256), grid (any number of blocks, at best one per unit).

constexpr int THREADS = 256;
constexpr int GROUP_IN = IN_CHANNELS / GROUPS;    // input channels that one output sees
constexpr int GROUP_OUT = OUT_CHANNELS / GROUPS;  // output channels that share them
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH;
constexpr long long OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
constexpr long long UNITS_PER_PLANE = (OUT_PLANE + THREADS - 1) / THREADS;

// A filter of up to 121 taps is unrolled whole; of a larger one, up to 16 taps of a row.
constexpr int UNROLL_ROWS = KERNEL_HEIGHT * KERNEL_WIDTH <= 121 ? KERNEL_HEIGHT : 1;
constexpr int UNROLL_COLUMNS = UNROLL_ROWS > 1 || KERNEL_WIDTH <= 16 ? KERNEL_WIDTH : 16;

// Whether some window reaches over an edge of the input; where none does, the compiler drops the checks.
constexpr bool PADDED = PAD_TOP > 0 || PAD_LEFT > 0
    || (OUT_HEIGHT - 1LL) * STRIDE_H + (KERNEL_HEIGHT - 1LL) * DILATION_H >= HEIGHT
    || (OUT_WIDTH - 1LL) * STRIDE_W + (KERNEL_WIDTH - 1LL) * DILATION_W >= WIDTH;

extern "C" __global__ void __launch_bounds__(THREADS) folded(
    const float* __restrict__ x,             // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const float* __restrict__ weight,        // [OUT_CHANNELS, GROUP_IN, KERNEL_HEIGHT, KERNEL_WIDTH]
    const float* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const float* __restrict__ running_mean,  // [OUT_CHANNELS]
    const float* __restrict__ running_var,   // [OUT_CHANNELS]
    const float* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const float* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor, float eps,
    float* __restrict__ y,                   // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    long long batch)
{
    const long long units = batch * OUT_CHANNELS * UNITS_PER_PLANE;
    for (long long unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const long long plane = unit / UNITS_PER_PLANE;  // image * OUT_CHANNELS + channel
        const int channel = plane % OUT_CHANNELS;
        const long long image = plane / OUT_CHANNELS;
        const long long pixel = unit % UNITS_PER_PLANE * THREADS + threadIdx.x;
        if (pixel >= OUT_PLANE) continue;

        const int top = int(pixel / OUT_WIDTH) * STRIDE_H - PAD_TOP;
        const int left = int(pixel % OUT_WIDTH) * STRIDE_W - PAD_LEFT;
        const float* window = x + (image * IN_CHANNELS + channel / GROUP_OUT * GROUP_IN) * IN_PLANE;
        const float* filter = weight + (long long)channel * GROUP_IN * KERNEL_HEIGHT * KERNEL_WIDTH;

        float sum = 0.0f;
        for (int in_channel = 0; in_channel < GROUP_IN; in_channel++) {
            #pragma unroll UNROLL_ROWS
            for (int i = 0; i < KERNEL_HEIGHT; i++) {
                #pragma unroll UNROLL_COLUMNS
                for (int j = 0; j < KERNEL_WIDTH; j++) {
                    const int row = top + i * DILATION_H;
                    const int column = left + j * DILATION_W;
                    // One comparison for both edges: a negative index is a huge unsigned one.
                    if (!PADDED || ((unsigned)row < HEIGHT && (unsigned)column < WIDTH)) {
                        sum += window[(long long)row * WIDTH + column] * filter[i * KERNEL_WIDTH + j];
                    } else {
                        sum += 0.0f * filter[i * KERNEL_WIDTH + j];  // a padded tap: zero times an infinite weight is NaN
                    }
                }
            }
            window += IN_PLANE;
            filter += KERNEL_HEIGHT * KERNEL_WIDTH;
        }

        const float a = scaling_factor * (gamma ? gamma[channel] : 1.0f) / sqrtf(running_var[channel] + eps);
        const float shift = (bias ? bias[channel] : 0.0f) - running_mean[channel];
        const float b = beta ? scaling_factor * beta[channel] : 0.0f;
        y[plane * OUT_PLANE + pixel] = a * (sum + shift) + b;
    }
}
