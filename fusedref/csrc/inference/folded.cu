// y = a * (conv2d(x, weight) + shift) + b, with BatchNorm (running statistics) and the scale folded into a, shift and b
// of each channel:  a = scale * gamma / sqrt(var + eps)   shift = bias - mean   b = scale * beta
// (Not a * conv2d + b': with an infinite a, that would be inf - inf where torch returns infinity.)
//
// Every size except the batch, which varies from call to call, is a compile-time constant, a -D option from
// fusedref/plans/folded.py:
//   IN_CHANNELS HEIGHT WIDTH OUT_CHANNELS OUT_HEIGHT OUT_WIDTH GROUPS
//   KERNEL_HEIGHT KERNEL_WIDTH STRIDE_H STRIDE_W PAD_TOP PAD_LEFT DILATION_H DILATION_W    (padding is zeros)
//   ELEMENT VECTOR    the types, see elements.cuh; sums are float32 for all
//   CHANNELS_LAST     1: x and y are [batch, row, column, channel] in memory, 0: [batch, channel, row, column]
//
// A unit of work is 256 outputs that are consecutive in memory: of one image and channel or, with channels last, of one
// image. Blocks take units until none is left, so a grid of any size works; units and offsets are 64-bit.
//
// Launch: block (256), grid (any number of blocks, at best one per unit).
#include "affine.cuh"
#include "elements.cuh"

constexpr int THREADS = 256;
constexpr int GROUP_IN = IN_CHANNELS / GROUPS;    // input channels that one output sees
constexpr int GROUP_OUT = OUT_CHANNELS / GROUPS;  // output channels that share them
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH;
constexpr long long OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;
constexpr long long RUN =
    CHANNELS_LAST ? OUT_PLANE * OUT_CHANNELS : OUT_PLANE;  // consecutive outputs, divided into units
constexpr long long UNITS_PER_RUN = (RUN + THREADS - 1) / THREADS;
constexpr int RUNS_PER_IMAGE = CHANNELS_LAST ? 1 : OUT_CHANNELS;
// Elements from an input to its neighbour in the next column, and to that in the next channel.
constexpr int COLUMN_STEP = CHANNELS_LAST ? IN_CHANNELS : 1;
constexpr long long CHANNEL_STEP = CHANNELS_LAST ? 1 : IN_PLANE;

// A filter of up to 121 taps is unrolled completely; in a larger one, up to 16 taps of a row are unrolled.
constexpr int UNROLL_ROWS = KERNEL_HEIGHT * KERNEL_WIDTH <= 121 ? KERNEL_HEIGHT : 1;
constexpr int UNROLL_COLUMNS = UNROLL_ROWS > 1 || KERNEL_WIDTH <= 16 ? KERNEL_WIDTH : 16;

// Whether some window reaches beyond an edge of the input; if none does, the compiler drops the checks.
constexpr bool PADDED = PAD_TOP > 0 || PAD_LEFT > 0
    || (OUT_HEIGHT - 1LL) * STRIDE_H + (KERNEL_HEIGHT - 1LL) * DILATION_H >= HEIGHT
    || (OUT_WIDTH - 1LL) * STRIDE_W + (KERNEL_WIDTH - 1LL) * DILATION_W >= WIDTH;

extern "C" __global__ void __launch_bounds__(THREADS) folded(
    const Element* __restrict__ x,            // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,       // [OUT_CHANNELS, GROUP_IN, KERNEL_HEIGHT, KERNEL_WIDTH]
    const Vector* __restrict__ bias,          // [OUT_CHANNELS] or null: zeros
    const Vector* __restrict__ running_mean,  // [OUT_CHANNELS]
    const Vector* __restrict__ running_var,   // [OUT_CHANNELS]
    const Vector* __restrict__ gamma,         // [OUT_CHANNELS] or null: ones
    const Vector* __restrict__ beta,          // [OUT_CHANNELS] or null: zeros
    float scaling_factor,                     // multiplies everything
    float eps,                                // added to the variance
    Element* __restrict__ y,                  // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    long long batch) {
    const long long units = batch * RUNS_PER_IMAGE * UNITS_PER_RUN;
    for (long long unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const long long run = unit / UNITS_PER_RUN;  // NCHW: image * OUT_CHANNELS + channel
        const long long place = unit % UNITS_PER_RUN * THREADS + threadIdx.x;
        if (place >= RUN) continue;
        const int channel = CHANNELS_LAST ? place % OUT_CHANNELS : run % OUT_CHANNELS;
        const long long image = run / RUNS_PER_IMAGE;
        const long long pixel = CHANNELS_LAST ? place / OUT_CHANNELS : place;

        const int top = int(pixel / OUT_WIDTH) * STRIDE_H - PAD_TOP;
        const int left = int(pixel % OUT_WIDTH) * STRIDE_W - PAD_LEFT;
        const Element* window = x + image * IN_CHANNELS * IN_PLANE + channel / GROUP_OUT * GROUP_IN * CHANNEL_STEP;
        const Element* filter = weight + (long long)channel * GROUP_IN * KERNEL_HEIGHT * KERNEL_WIDTH;

        float sum = 0.0f;
        for (int in_channel = 0; in_channel < GROUP_IN; in_channel++) {
            #pragma unroll UNROLL_ROWS
            for (int i = 0; i < KERNEL_HEIGHT; i++) {
                #pragma unroll UNROLL_COLUMNS
                for (int j = 0; j < KERNEL_WIDTH; j++) {
                    const int row = top + i * DILATION_H;
                    const int column = left + j * DILATION_W;
                    // One comparison for both edges: a negative index becomes a huge unsigned number.
                    const bool inside = !PADDED || ((unsigned)row < HEIGHT && (unsigned)column < WIDTH);
                    // Multiply padding too: zero times an infinite weight is NaN, as in torch.
                    const float value = inside ? float(window[((long long)row * WIDTH + column) * COLUMN_STEP]) : 0.0f;
                    sum += value * float(filter[i * KERNEL_WIDTH + j]);
                }
            }
            window += CHANNEL_STEP;
            filter += KERNEL_HEIGHT * KERNEL_WIDTH;
        }

        const float a = affine_a(channel, running_var, gamma, scaling_factor, eps);
        const float shift = affine_shift(channel, bias, running_mean);
        const float b = affine_b(channel, beta, scaling_factor);
        y[run * RUN + place] = Element(a * (sum + shift) + b);
    }
}
