// 13 backward: the gradients of scale(BatchNorm(conv(x))) from one pass over dy.
//
//   a = scale * gamma / sqrt(var + eps)   i = 1 / sqrt(var + eps)   P: a patch of x - pivot   m, C: mean and covariance of P
//   One pass over dy:   A = sum dy (x) P      q = sum dy      T = conv_transpose(a dy, W)
//   Then from A and q:  h = sum dy zhat = i (<W, A> - q <W, m>)   dbeta = scale q   dgamma = scale h
//                       dW = a (A - q m - h i W C)   dbias = 0      dx = T - k0 - composite(x)
//
// New since 12: gradients. By the book, BatchNorm's backward needs sum dy and sum dy zhat before it can send anything on,
// then dz for the convolution's two backwards: dy and z are read and dz is written and read, five tensors of half a
// gigabyte. But zhat = i W (P - m) is linear in the patches. So sum dy zhat is hidden in A, and what is subtracted from dy
// can be subtracted afterwards, from A and from T. z is needed nowhere: forward does not have to keep it.
//
// The pivot is a number per input channel, near its mean. It changes no result in real numbers (gradients do not depend on
// where x has its zero) and keeps the float32 sums small where the mean of x is large. Padding is -pivot.
//
// Byte ledger at problem 73: reads dy (520.2 MB), x, T, and x again; writes T and dx (67.1 MB each).
//
// Launch of backward: block (32, 8), grid (slices). Launch of finish_parameters: block (128), grid (OUT_CHANNELS).
// Launch of composite_kernels: block (256), grid (ROW_CLASSES * COLUMN_CLASSES).
// Launch of input_gradient: block (32, 8), grid (ceil(WIDTH / 32), ceil(HEIGHT / 8), batch).
// Compiled with -DIN_CHANNELS= -DOUT_CHANNELS= -DHEIGHT= -DWIDTH= -DKERNEL_SIZE= -DPADDING= (below KERNEL_SIZE).

constexpr unsigned EVERY_LANE = 0xffffffff;
constexpr int K = KERNEL_SIZE, REACH = K - 1;
constexpr int OUT_HEIGHT = HEIGHT + 2 * PADDING - REACH, OUT_WIDTH = WIDTH + 2 * PADDING - REACH;
constexpr int TAPS = IN_CHANNELS * K * K, SUMS = TAPS + 1;          // of an out_channel: its row of A, then q
constexpr int LINES = IN_CHANNELS * K, PASSES = (LINES + 31) / 32;  // of a patch, K numbers each; 32 lanes at a time
constexpr int TILE_H = 8, TILE_W = 32, GROUP = 8;  // pixels, and the out_channels that are in shared memory at once
constexpr int DOWN = ((HEIGHT > OUT_HEIGHT ? HEIGHT : OUT_HEIGHT) + TILE_H - 1) / TILE_H;
constexpr int ACROSS = ((WIDTH > OUT_WIDTH ? WIDTH : OUT_WIDTH) + TILE_W - 1) / TILE_W;
static_assert(PADDING < K, "a row of padding further out would see no input");

// A tile with its halo. The pitches are chosen so that number t of a patch lies in bank t mod 32, up to the pixel's own:
// rows are K apart and planes K * K, modulo 32. So 32 lanes that read 32 lines of one patch, K banks apart, meet no bank
// conflict if K is odd.
constexpr int HALO_H = TILE_H + REACH, HALO_W = TILE_W + REACH, PITCH = TILE_W + K;
constexpr int PLANE = HALO_H * PITCH + (K * K + 32 * K - HALO_H * PITCH % 32) % 32;

__device__ int place(int tap) { return tap / (K * K) * PLANE + tap / K % K * PITCH + tap % K; }

// Return x - pivot, with zeros around x.
__device__ float shifted(const float* image, const float* pivot, int channel, int row, int column) {
    const bool inside = row >= 0 && row < HEIGHT && column >= 0 && column < WIDTH;
    return (inside ? image[(channel * HEIGHT + row) * WIDTH + column] : 0) - pivot[channel];
}

extern "C" __global__ void backward(
    const float* dy,       // [batch, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH]
    const float* x,        // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const float* pivot,    // [IN_CHANNELS]
    const float* weight,   // [OUT_CHANNELS, TAPS]
    const float* gamma,    // [OUT_CHANNELS]
    const float* var,      // [OUT_CHANNELS]   biased, of the batch
    float scaling_factor,  // multiplies y
    float eps,             // added to the variance
    float* parts,          // [slices, OUT_CHANNELS, SUMS]
    float* t,              // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    int batch) {
    __shared__ __align__(16) float filters[GROUP][K * K][IN_CHANNELS];
    __shared__ float x_tile[IN_CHANNELS * PLANE], dy_tile[GROUP * PLANE], sums[OUT_CHANNELS][SUMS];
    const int lane = threadIdx.x, warp = threadIdx.y, thread = warp * 32 + lane;
    for (int i = thread; i < OUT_CHANNELS * SUMS; i += 256) sums[i / SUMS][i % SUMS] = 0;

    for (int index = blockIdx.x; index < batch * DOWN * ACROSS; index += gridDim.x) {
        const int image = index / (DOWN * ACROSS), top = index / ACROSS % DOWN * TILE_H, left = index % ACROSS * TILE_W;
        const float* x_image = x + (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
        const float* dy_image = dy + (long long)image * OUT_CHANNELS * OUT_HEIGHT * OUT_WIDTH;
        float* t_image = t + (long long)image * IN_CHANNELS * HEIGHT * WIDTH;
        __syncthreads();  // nobody reads the last tile any more
        for (int i = thread; i < IN_CHANNELS * HALO_H * HALO_W; i += 256) {
            const int channel = i / (HALO_H * HALO_W), row = i / HALO_W % HALO_H, column = i % HALO_W;
            x_tile[channel * PLANE + row * PITCH + column] =
                shifted(x_image, pivot, channel, top + row - PADDING, left + column - PADDING);
        }

        float into[IN_CHANNELS] = {};  // T at this thread's pixel
        for (int first = 0; first < OUT_CHANNELS; first += GROUP) {
            __syncthreads();  // nor the last group
            for (int i = thread; i < GROUP * HALO_H * HALO_W; i += 256) {
                const int channel = i / (HALO_H * HALO_W), row = i / HALO_W % HALO_H, column = i % HALO_W;
                const int out_row = top + row + PADDING - REACH, out_column = left + column + PADDING - REACH;
                const bool inside = first + channel < OUT_CHANNELS && out_row >= 0 && out_row < OUT_HEIGHT
                    && out_column >= 0 && out_column < OUT_WIDTH;
                dy_tile[channel * PLANE + row * PITCH + column] =
                    inside ? dy_image[((first + channel) * OUT_HEIGHT + out_row) * OUT_WIDTH + out_column] : 0;
            }
            for (int i = thread; i < GROUP * TAPS; i += 256) {
                const int channel = first + i / TAPS, tap = i % TAPS;
                const float a =
                    channel < OUT_CHANNELS ? scaling_factor * gamma[channel] / sqrtf(var[channel] + eps) : 0;
                filters[i / TAPS][tap % (K * K)][tap / (K * K)] =
                    channel < OUT_CHANNELS ? a * weight[channel * TAPS + tap] : 0;
            }
            __syncthreads();

            // T: a pixel of x for each thread. It takes from every output whose window it lies in, by the tap it has there.
            for (int k = 0; k < GROUP; k++) {
                for (int i = 0; i < K; i++) {
                    for (int j = 0; j < K; j++) {
                        const float d = dy_tile[k * PLANE + (warp + REACH - i) * PITCH + lane + REACH - j];
                        for (int c = 0; c < IN_CHANNELS; c++) into[c] += d * filters[k][i * K + j][c];
                    }
                }
            }

            // A and q: an out_channel for each warp, and for each lane a line of the patch, K numbers. The lane walks along
            // the rows of the tile with a window of K numbers of x: for each pixel one new x and one dy, and K sums.
            if (first + warp >= OUT_CHANNELS) continue;  // as a whole warp
            const float* own =
                dy_tile + warp * PLANE + (REACH - PADDING) * (PITCH + 1);  // dy of the tile without its halo
            float a[PASSES][K] = {}, q = 0;
            for (int row = 0; row < TILE_H; row++) {
                q += own[row * PITCH + lane];
                for (int pass = 0; pass < PASSES; pass++) {
                    const float* line = x_tile + place(min(lane + 32 * pass, LINES - 1) * K) + row * PITCH;
                    float window[K];
                    for (int j = 1; j < K; j++) window[j] = line[j - 1];
#pragma unroll
                    for (int column = 0; column < TILE_W; column++) {
                        for (int j = 0; j < K - 1; j++) window[j] = window[j + 1];
                        window[K - 1] = line[column + K - 1];
                        const float d = own[row * PITCH + column];
                        for (int j = 0; j < K; j++) a[pass][j] += d * window[j];
                    }
                }
            }
            for (int offset = 16; offset > 0; offset /= 2) q += __shfl_down_sync(EVERY_LANE, q, offset);
            for (int pass = 0; pass < PASSES; pass++) {
                if (lane + 32 * pass >= LINES) break;
                for (int j = 0; j < K; j++) sums[first + warp][(lane + 32 * pass) * K + j] += a[pass][j];
            }
            if (lane == 0) sums[first + warp][TAPS] += q;
        }
        if (top + warp >= HEIGHT || left + lane >= WIDTH) continue;
        for (int c = 0; c < IN_CHANNELS; c++) t_image[(c * HEIGHT + top + warp) * WIDTH + left + lane] = into[c];
    }
    __syncthreads();
    for (int i = thread; i < OUT_CHANNELS * SUMS; i += 256) {
        parts[blockIdx.x * OUT_CHANNELS * SUMS + i] = sums[i / SUMS][i % SUMS];
    }
}

extern "C" __global__ void finish_parameters(
    const float* parts,        // [slices, OUT_CHANNELS, SUMS]
    const double* patch_mean,  // [TAPS]         of x, without the pivot
    const double* patch_cov,   // [TAPS, TAPS]
    const float* pivot,        // [IN_CHANNELS]
    const float* weight,       // [OUT_CHANNELS, TAPS]
    const float* gamma,        // [OUT_CHANNELS]
    const float* var,          // [OUT_CHANNELS]
    float scaling_factor,      // multiplies y
    float eps,                 // added to the variance
    double count,              // N = batch * OUT_HEIGHT * OUT_WIDTH
    float* dweight,            // [OUT_CHANNELS, TAPS]
    float* dbias,              // [OUT_CHANNELS]
    float* dgamma,             // [OUT_CHANNELS]
    float* dbeta,              // [OUT_CHANNELS]
    double* corrections,  // [2, OUT_CHANNELS]   of dx, for composite_kernels: what is constant, and what multiplies W x
    int slices) {
    __shared__ double a[SUMS], mean[TAPS], dot[2];
    const int channel = blockIdx.x;
    const float* filter = weight + channel * TAPS;
    for (int k = threadIdx.x; k < SUMS; k += blockDim.x) {
        a[k] = 0;
        for (int slice = 0; slice < slices; slice++) a[k] += parts[(slice * OUT_CHANNELS + channel) * SUMS + k];
        if (k < TAPS) mean[k] = patch_mean[k] - pivot[k / (K * K)];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        dot[0] = dot[1] = 0;
        for (int k = 0; k < TAPS; k++) {
            dot[0] += filter[k] * a[k];     // <W, A>
            dot[1] += filter[k] * mean[k];  // <W, m>
        }
    }
    __syncthreads();
    const double inverse = 1 / sqrt((double)var[channel] + eps), factor = scaling_factor * gamma[channel] * inverse;
    const double q = a[TAPS], h = inverse * (dot[0] - q * dot[1]);  // h = sum dy zhat
    for (int k = threadIdx.x; k < TAPS; k += blockDim.x) {
        double along = 0;  // (W C)[k]
        for (int j = 0; j < TAPS; j++) along += filter[j] * patch_cov[j * TAPS + k];
        dweight[channel * TAPS + k] = factor * (a[k] - q * mean[k] - h * inverse * along);
    }
    if (threadIdx.x > 0) return;
    dbias[channel] = 0 * factor * (q + h);  // the mean that dz has not; NaN where dz has it
    dgamma[channel] = scaling_factor * h;
    dbeta[channel] = scaling_factor * q;
    corrections[channel] = factor * (q - h * inverse * dot[1]) / count;
    corrections[OUT_CHANNELS + channel] = factor * h * inverse / count;
}

// A pixel near the border lies in fewer windows: some taps of it exist, some would belong to outputs that do not. Rows with
// the same taps are a class: MARGIN at each border, one for all between (columns likewise).
constexpr int MARGIN = REACH - PADDING, SPAN = 2 * K - 1;  // SPAN: the side of a composite kernel
constexpr int ROW_CLASSES = HEIGHT < 2 * MARGIN + 1 ? HEIGHT : 2 * MARGIN + 1;
constexpr int COLUMN_CLASSES = WIDTH < 2 * MARGIN + 1 ? WIDTH : 2 * MARGIN + 1;

__device__ int class_of(int place, int size, int classes) {
    return place < MARGIN ? place : max(MARGIN, place - size + classes);
}

extern "C" __global__ void composite_kernels(
    const double* corrections,  // [2, OUT_CHANNELS]
    const float* weight,        // [OUT_CHANNELS, IN_CHANNELS, K, K]
    float* constants,           // [ROW_CLASSES, COLUMN_CLASSES, IN_CHANNELS]
    float* composites) {        // [ROW_CLASSES, COLUMN_CLASSES, IN_CHANNELS (of x), SPAN, SPAN, IN_CHANNELS (of dx)]
    const int row_class = blockIdx.x / COLUMN_CLASSES, column_class = blockIdx.x % COLUMN_CLASSES;
    const int row = row_class <= MARGIN ? row_class : row_class + HEIGHT - ROW_CLASSES;  // a pixel of this class
    const int column = column_class <= MARGIN ? column_class : column_class + WIDTH - COLUMN_CLASSES;
    const int top = max(0, row + PADDING - OUT_HEIGHT + 1), bottom = min(REACH, row + PADDING);  // its taps
    const int left = max(0, column + PADDING - OUT_WIDTH + 1), right = min(REACH, column + PADDING);

    for (int index = threadIdx.x; index < IN_CHANNELS * SPAN * SPAN * IN_CHANNELS; index += blockDim.x) {
        const int to = index % IN_CHANNELS, from = index / (SPAN * SPAN * IN_CHANNELS);
        const int across = index / IN_CHANNELS % SPAN - REACH, down = index / (SPAN * IN_CHANNELS) % SPAN - REACH;
        double sum = 0;
        for (int i = max(top, -down); i <= min(bottom, REACH - down); i++) {
            for (int j = max(left, -across); j <= min(right, REACH - across); j++) {
                for (int out = 0; out < OUT_CHANNELS; out++) {
                    const float* filter = weight + out * TAPS;
                    sum += corrections[OUT_CHANNELS + out] * filter[(to * K + i) * K + j]
                        * filter[(from * K + i + down) * K + j + across];
                }
            }
        }
        composites[blockIdx.x * (IN_CHANNELS * SPAN * SPAN * IN_CHANNELS) + index] = sum;
    }
    for (int to = threadIdx.x; to < IN_CHANNELS; to += blockDim.x) {
        double sum = 0;
        for (int i = top; i <= bottom; i++) {
            for (int j = left; j <= right; j++) {
                for (int out = 0; out < OUT_CHANNELS; out++) {
                    sum += corrections[out] * weight[((out * IN_CHANNELS + to) * K + i) * K + j];
                }
            }
        }
        constants[blockIdx.x * IN_CHANNELS + to] = sum;
    }
}

extern "C" __global__ void input_gradient(
    const float* x,           // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const float* pivot,       // [IN_CHANNELS]
    const float* constants,   // [ROW_CLASSES, COLUMN_CLASSES, IN_CHANNELS]
    const float* composites,  // [ROW_CLASSES, COLUMN_CLASSES, IN_CHANNELS, SPAN, SPAN, IN_CHANNELS]
    float* dx) {              // [batch, IN_CHANNELS, HEIGHT, WIDTH]   holds T before
    __shared__ float tile[IN_CHANNELS][TILE_H + 2 * REACH][TILE_W + 2 * REACH];
    const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
    const long long image = (long long)blockIdx.z * IN_CHANNELS * HEIGHT * WIDTH;
    for (int i = threadIdx.y * 32 + threadIdx.x; i < sizeof(tile) / sizeof(float); i += 256) {
        const int channel = i / ((TILE_H + 2 * REACH) * (TILE_W + 2 * REACH));
        const int row = i / (TILE_W + 2 * REACH) % (TILE_H + 2 * REACH), column = i % (TILE_W + 2 * REACH);
        tile[channel][row][column] = shifted(x + image, pivot, channel, top + row - REACH, left + column - REACH);
    }
    __syncthreads();

    const int row = top + threadIdx.y, column = left + threadIdx.x;
    if (row >= HEIGHT || column >= WIDTH) return;
    const int border = class_of(row, HEIGHT, ROW_CLASSES) * COLUMN_CLASSES + class_of(column, WIDTH, COLUMN_CLASSES);
    const float* composite = composites + border * (IN_CHANNELS * SPAN * SPAN * IN_CHANNELS);
    float sums[IN_CHANNELS];
    for (int to = 0; to < IN_CHANNELS; to++) sums[to] = constants[border * IN_CHANNELS + to];
    for (int from = 0; from < IN_CHANNELS; from++) {
        for (int i = 0; i < SPAN; i++) {
            for (int j = 0; j < SPAN; j++) {
                const float value = tile[from][threadIdx.y + i][threadIdx.x + j];
                for (int to = 0; to < IN_CHANNELS; to++) {
                    sums[to] += value * composite[((from * SPAN + i) * SPAN + j) * IN_CHANNELS + to];
                }
            }
        }
    }
    for (int to = 0; to < IN_CHANNELS; to++) dx[image + (to * HEIGHT + row) * WIDTH + column] -= sums[to];
}
