// y = a * (conv2d(x, weight) + shift) + b, folded.cu's operator, on the tensor cores of every card since sm_80.
//
// An implicit matrix product: M = output channels, N = pixels of a tile, K = taps x input channels. In shared memory a row
// of 16 bytes holds the 8 input channels of a pixel (or, where there are few, those of several neighbouring taps), and that
// is a row of ldmatrix: a tap is an offset, a lane names a pixel, and any shape of tile, stride and dilation is an address.
//   bring      x and weights of a chunk of input channels, as they are, by cp.async, while the chunk before is multiplied
//   measure    the largest magnitude of the chunk's x, and of each output channel's weights
//   prepare    scaled by powers of two and split into two numbers of fp16 (split.cuh), rows of 8
//   multiply   a warp has 32 pixels
//   store      through shared memory, so that a warp writes runs of neighbours
//
// Float32 from fp16: a product is hi hi' + (hi lo' + lo hi') / 4096. The tensor core truncates where an addition rounds, so
// each step of hi hi' starts from zero, and the FFMA that adds it to the sum also undoes the chunk's scales. What two
// pieces do not hold (a magnitude 2^28 under the largest beside it, NaN, infinity, scales beyond a float) has NaN for its
// scale, so its sums are NaN; and a sum that is not finite is computed again plainly, as folded.cu does.
// Products of fp16 or bf16 tensors are exact: those are neither measured nor scaled.
//
// Sizes are compile-time constants, those of folded.cu and
//   PIECES                     numbers of fp16 for one of x or weight: 2, or 1 for the precision of tf32
//   TILE_ROWS TILE_COLUMNS     outputs of a tile, at most 32 WARPS_ACROSS
//   CHUNK                      input channels at a time: a multiple of 8, or all, if fewer
//   SLOTS                      chunks of weights in shared memory: 1, or all, which then are brought but once
//   WARP_CHANNELS              output channels of a warp: 16 or 32
//   WARPS_DOWN WARPS_ACROSS    warps that share the output channels, and the pixels, of a block
//   BLOCKS                     blocks to a multiprocessor, by their registers
//   SHARED_BYTES               dynamic shared memory, as fusedref/planning.py reckons it
//
// Launch: block (32 WARPS_DOWN WARPS_ACROSS), grid (CHANNEL_BLOCKS, any number up to the tiles).
#include <cstdint>
#include "affine.cuh"
#include "elements.cuh"
#include "ptx.cuh"
#include "split.cuh"

constexpr int GROUP_IN = IN_CHANNELS / GROUPS;    // input channels that one output sees
constexpr int GROUP_OUT = OUT_CHANNELS / GROUPS;  // output channels that share them
constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int IN_PLANE = HEIGHT * WIDTH, OUT_PLANE = OUT_HEIGHT * OUT_WIDTH;

constexpr int WARPS = WARPS_DOWN * WARPS_ACROSS, THREADS = 32 * WARPS;
constexpr int CHANNELS = WARP_CHANNELS * WARPS_DOWN;                   // output channels of a block
constexpr int CHANNEL_BLOCKS = (GROUP_OUT + CHANNELS - 1) / CHANNELS;  // of a group
constexpr int M = WARP_CHANNELS / 16, N = 4;                           // matrices of a warp
constexpr int CHUNKS = (GROUP_IN + CHUNK - 1) / CHUNK;
constexpr int SLICES = (CHUNK + 7) / 8, SLICE = CHUNK < 8 ? CHUNK : 8;  // a slice of the chunk fills a row
static_assert((CHUNK % 8 == 0 || CHUNK == GROUP_IN) && (SLOTS == 1 || SLOTS == CHUNKS), "see above");
static_assert(TILE_ROWS * TILE_COLUMNS <= 32 * WARPS_ACROSS && CHANNELS <= THREADS, "see above");

constexpr bool SCALED = ELEMENT == 0;

// Taps of a row that share a row of 8. Zeros fill up the last, where it reaches over the window: zero times NaN is NaN,
// so the taps of what is not measured must come out even.
constexpr int fold() {
    int taps = 8 / SLICE < KERNEL_WIDTH ? 8 / SLICE : KERNEL_WIDTH;
    while (!SCALED && KERNEL_WIDTH % taps != 0) taps--;
    return taps;
}
constexpr int FOLD = fold(), FOLDS = (KERNEL_WIDTH + FOLD - 1) / FOLD;
constexpr int ENTRIES = SLICES * KERNEL_HEIGHT * FOLDS;  // of k = 8

// A tile of x. Columns that are STRIDE_W apart are neighbours in shared memory, for they are those of neighbouring outputs.
constexpr int IN_ROWS = (TILE_ROWS - 1) * STRIDE_H + (KERNEL_HEIGHT - 1) * DILATION_H + 1;
constexpr int IN_COLUMNS = (TILE_COLUMNS - 1) * STRIDE_W + (KERNEL_WIDTH - 1) * DILATION_W + 1;
constexpr int IN_PIXELS = IN_ROWS * IN_COLUMNS;
constexpr int PHASE = (IN_COLUMNS + STRIDE_W - 1) / STRIDE_W;
// Rows of shared memory from one row of pixels to the next: such that 8 outputs that wrap around still have banks of
// their own, if there is such a pitch.
constexpr int pitch() {
    for (int p = STRIDE_W * PHASE; p < STRIDE_W * PHASE + 8; p++)
        if ((STRIDE_H * p - TILE_COLUMNS) % 8 == 0) return p;
    return STRIDE_W * PHASE;
}
constexpr int PITCH = pitch(), SLICE_ROWS = IN_ROWS * PITCH;
// What is as it came lies in units: as many bytes as can be copied at once, 16 at best, and from one channel of weights, or
// of x, or with channels last from one pixel to the next, an odd number of units: each has banks of its own.
constexpr int SIZE = ELEMENT == 0 ? 4 : 2;
__host__ __device__ constexpr int unit_of(int a, int b, int c)  // elements; a, b and c are to be whole units
{
    int unit = 16 / SIZE;
    while (a % unit + b % unit + c % unit > 0) unit /= 2;
    return unit;
}
__host__ __device__ constexpr int odd_units(int elements, int unit) {
    const int least = unit * SIZE < 4 ? 2 : unit;  // a bank has 4 bytes
    return ((elements + least - 1) / least | 1) * least;
}
constexpr int WEIGHT_UNIT = unit_of(GROUP_IN * TAPS, CHUNK* TAPS, 0);
constexpr int WEIGHT_PITCH = odd_units(CHUNK * TAPS, WEIGHT_UNIT);
constexpr int X_UNIT = CHANNELS_LAST ? unit_of(IN_CHANNELS, GROUP_IN, CHUNK)
                                     : unit_of(WIDTH, OUT_WIDTH > TILE_COLUMNS ? TILE_COLUMNS * STRIDE_W : 0, 0);
// NCHW: columns begin at a whole unit to the left of the tile's first.
constexpr int LEAD = CHANNELS_LAST ? 0 : (X_UNIT - PAD_LEFT % X_UNIT) % X_UNIT;
constexpr int RAW_COLUMNS = CHANNELS_LAST ? IN_COLUMNS : (LEAD + IN_COLUMNS + X_UNIT - 1) / X_UNIT * X_UNIT;
constexpr int RAW_PITCH = CHANNELS_LAST ? odd_units(CHUNK, X_UNIT) : IN_ROWS * RAW_COLUMNS;
constexpr int RAW_X = CHANNELS_LAST ? IN_PIXELS * RAW_PITCH : CHUNK * RAW_PITCH;
__host__ __device__ constexpr int raw_place(int channel, int row, int column) {
    return CHANNELS_LAST ? (row * IN_COLUMNS + column) * RAW_PITCH + channel
                         : channel * RAW_PITCH + row * RAW_COLUMNS + LEAD + column;
}
// Floats of a run on its way out: 8 channels of 32 pixels, or with channels last 8 pixels of all a warp's channels.
constexpr int RUN_PITCH = CHANNELS_LAST ? WARP_CHANNELS + 4 : 40;

#if ELEMENT == 0
using Raw = float;
#else
using Raw = uint16_t;
#endif

struct Shared {
    uint4 filters[SLOTS][ENTRIES][PIECES][CHANNELS];
    uint4 rows[PIECES][SLICES][SLICE_ROWS];
    float runs[WARPS][8][RUN_PITCH];
    float a[CHANNELS], shift[CHANNELS], b[CHANNELS];
    float weight_unit[SLOTS][CHANNELS], x_unit;  // what undoes the scales; NaN where two pieces do not hold the numbers
    Range weight_range[CHANNELS], x_range[WARPS];
    int places[ENTRIES];  // entry_bytes of each
    alignas(16) Raw raw_weight[CHANNELS][WEIGHT_PITCH];
    alignas(16) Raw raw_x[RAW_X];
};
static_assert((sizeof(Shared) + 15) / 16 * 16 == SHARED_BYTES, "the plan reckons otherwise");
constexpr int ENTRY_BYTES = PIECES * CHANNELS * 16, LO_WEIGHT = CHANNELS * 16, LO_ROW = SLICES * SLICE_ROWS * 16;

struct Input {
    const Element *x, *weight;
    int group, first_channel;  // of the block; the channel is counted within the group
};

// Where a tile lies: its first output.
struct Tile {
    static constexpr int DOWN = (OUT_HEIGHT + TILE_ROWS - 1) / TILE_ROWS;
    static constexpr int ACROSS = (OUT_WIDTH + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int image, row, column;
    __device__ __forceinline__ explicit Tile(int tile)
        : image(tile / (DOWN * ACROSS)), row(tile / ACROSS % DOWN * TILE_ROWS), column(tile % ACROSS * TILE_COLUMNS) {}
};

// An element of the group's input, as an offset from its image.
__device__ __forceinline__ int place_in_x(int group, int channel, int row, int column) {
    channel += group * GROUP_IN;
    return CHANNELS_LAST ? (row * WIDTH + column) * IN_CHANNELS + channel : channel * IN_PLANE + row * WIDTH + column;
}

__device__ __forceinline__ const Element* image_of(const Input& in, const Tile& tile) {
    return in.x + (long long)tile.image * IN_CHANNELS * IN_PLANE;
}

// ---- bring and measure ------------------------------------------------------------------------------------------------

// Copies a unit, or zeros where it is not valid. Only what is aligned and has 4 bytes can be copied without waiting.
template <int UNIT>
__device__ __forceinline__ void bring(Raw* to, const Element* from, bool valid, bool aligned) {
    if (UNIT * SIZE == 16 && aligned) ptx::cp_async_16(to, from, valid);
    else if (UNIT * SIZE == 8 && aligned) ptx::cp_async_8(to, from, valid);
    else if (UNIT * SIZE == 4 && aligned) ptx::cp_async_4(to, from, valid);
    else {
        #pragma unroll
        for (int e = 0; e < UNIT; e++) {
#if ELEMENT == 0
            ptx::cp_async_4(to + e, from + e, valid);
#else
            to[e] = valid ? __ldg(reinterpret_cast<const uint16_t*>(from) + e) : 0;
#endif
        }
    }
}

// Visits the thread's units of a chunk of x, with the channel (of the chunk), row and column of the first element.
template <typename Visit>
__device__ __forceinline__ void for_units_of_x(const Visit& visit) {
    constexpr int COLUMNS = CHANNELS_LAST ? IN_COLUMNS : RAW_COLUMNS / X_UNIT, PIXELS = IN_ROWS * COLUMNS;
    constexpr int CHANNEL_UNITS = CHANNELS_LAST ? CHUNK / X_UNIT : 1;
    constexpr int EACH = CHANNELS_LAST ? 1 : SLICE;  // channels that one place is good for
    #pragma unroll 1
    for (int i = threadIdx.x; i < PIXELS * CHANNEL_UNITS * (CHANNELS_LAST ? 1 : CHUNK / SLICE); i += THREADS) {
        const int pixel = CHANNELS_LAST ? i / CHANNEL_UNITS : i % PIXELS;
        const int channel = CHANNELS_LAST ? i % CHANNEL_UNITS * X_UNIT : i / PIXELS * SLICE;
        const int row = pixel / COLUMNS, column = pixel % COLUMNS * (CHANNELS_LAST ? 1 : X_UNIT) - LEAD;
        #pragma unroll
        for (int c = 0; c < EACH; c++) visit(channel + c, row, column);
    }
}

__device__ __forceinline__ void bring_x(Shared& shared, const Input& in, const Tile& tile, int chunk) {
    const Element* image = image_of(in, tile);
    const int top = tile.row * STRIDE_H - PAD_TOP, left = tile.column * STRIDE_W - PAD_LEFT, first = chunk * CHUNK;
    const bool aligned = reinterpret_cast<uintptr_t>(in.x) % (X_UNIT * SIZE) == 0;
    for_units_of_x([&](int channel, int row, int column) {
        const bool inside = (unsigned)(top + row) < HEIGHT && (unsigned)(left + column) < WIDTH;
        const bool valid = inside && (GROUP_IN % CHUNK == 0 || first + channel < GROUP_IN);
        const Element* from = valid ? image + place_in_x(in.group, first + channel, top + row, left + column) : in.x;
        bring<X_UNIT>(&shared.raw_x[raw_place(channel, row, column)], from, valid, aligned);
    });
}

// Visits the thread's units of a chunk of weights, a warp a channel, and calls `done` after each.
template <typename Visit, typename Done>
__device__ __forceinline__ void for_units_of_weights(const Visit& visit, const Done& done) {
    #pragma unroll 1
    for (int channel = threadIdx.x / 32; channel < CHANNELS; channel += WARPS) {
        #pragma unroll 4
        for (int i = threadIdx.x % 32 * WEIGHT_UNIT; i < CHUNK * TAPS; i += 32 * WEIGHT_UNIT) visit(channel, i);
        done(channel);
    }
}

__device__ __forceinline__ void bring_weights(Shared& shared, const Input& in, int chunk) {
    constexpr int ALL = GROUP_IN * TAPS;
    const bool aligned = reinterpret_cast<uintptr_t>(in.weight) % (WEIGHT_UNIT * SIZE) == 0;
    const int first = in.group * GROUP_OUT + in.first_channel, k = chunk * CHUNK * TAPS;
    for_units_of_weights(
        [&](int channel, int i) {
            const bool valid = in.first_channel + channel < GROUP_OUT && (GROUP_IN % CHUNK == 0 || k + i < ALL);
            const Element* from = valid ? in.weight + (long long)(first + channel) * ALL + k + i : in.weight;
            bring<WEIGHT_UNIT>(&shared.raw_weight[channel][i], from, valid, aligned);
        },
        [](int) {});
}

// Each thread looks at what it has brought itself, so nobody has to wait for the others.
__device__ __forceinline__ void measure(Shared& shared, bool fresh) {
#if ELEMENT == 0
    const int lane = threadIdx.x % 32;
    Range range;
    for_units_of_x(
        [&](int channel, int row, int column) { range.add<X_UNIT>(&shared.raw_x[raw_place(channel, row, column)]); });
    range = range.of_warp();
    if (lane == 0) shared.x_range[threadIdx.x / 32] = range;
    if (!fresh) return;
    range = Range();
    for_units_of_weights(
        [&](int channel, int i) { range.add<WEIGHT_UNIT>(&shared.raw_weight[channel][i]); },
        [&](int channel) {
            range = range.of_warp();
            if (lane == 0) shared.weight_range[channel] = range;
            range = Range();
        });
#endif
}

// ---- prepare ----------------------------------------------------------------------------------------------------------

// Eight numbers become a row of each piece.
__device__ __forceinline__ void put_row(uint4* hi, uint4* lo, const Raw (&v)[8], float scale) {
    uint32_t h[4], l[4] = {};
    #pragma unroll
    for (int c = 0; c < 4; c++) {
#if ELEMENT == 0
        split(v[2 * c] * scale, v[2 * c + 1] * scale, h[c], l[c]);
#else
        h[c] = v[2 * c] | uint32_t(v[2 * c + 1]) << 16;
#endif
    }
    *hi = make_uint4(h[0], h[1], h[2], h[3]);
    if (PIECES == 2) *lo = make_uint4(l[0], l[1], l[2], l[3]);
}

// Where a column of the tile lies in its row of shared memory.
__host__ __device__ constexpr int place_of(int column) { return column % STRIDE_W * PHASE + column / STRIDE_W; }

__device__ __forceinline__ void prepare(Shared& shared, bool fresh, int slot) {
    float scale = 1.0f;
    if (SCALED) {
        const int lane = threadIdx.x % 32;
        const Range range = (lane < WARPS ? shared.x_range[lane] : Range()).of_warp();
        scale = power_of_two(range.shift());
        if (threadIdx.x == 0) shared.x_unit = range.splits() ? power_of_two(-range.shift()) : nanf("");
    }
    #pragma unroll 1
    for (int i = threadIdx.x; i < SLICES * IN_PIXELS; i += THREADS) {
        const int slice = i / IN_PIXELS, row = i % IN_PIXELS / IN_COLUMNS, column = i % IN_COLUMNS;
        Raw v[8] = {};
        #pragma unroll
        for (int k = 0; k < FOLD * SLICE; k++)
            if (k < SLICE || column + k / SLICE * DILATION_W < IN_COLUMNS)
                v[k] = shared.raw_x[raw_place(slice * 8 + k % SLICE, row, column + k / SLICE * DILATION_W)];
        const int place = row * PITCH + place_of(column);
        put_row(&shared.rows[0][slice][place], &shared.rows[PIECES - 1][slice][place], v, scale);
    }
    if (!fresh) return;
    if (SCALED && threadIdx.x < CHANNELS) {
        const Range range = shared.weight_range[threadIdx.x];
        shared.weight_unit[slot][threadIdx.x] = range.splits() ? power_of_two(-range.shift()) : nanf("");
    }
    // So many channels' units fill all banks once; the lanes beyond take the entry after it.
    constexpr int TOGETHER = WEIGHT_UNIT * SIZE == 16 ? 8 : WEIGHT_UNIT * SIZE == 8 || CHANNELS == 16 ? 16 : 32;
    #pragma unroll 1
    for (int item = threadIdx.x; item < CHANNELS * ENTRIES; item += THREADS) {
        const int channel = item / (TOGETHER * ENTRIES) * TOGETHER + item % TOGETHER;
        const int entry = item / TOGETHER % ENTRIES;
        const int slice = entry / (KERNEL_HEIGHT * FOLDS), i = entry / FOLDS % KERNEL_HEIGHT, j = entry % FOLDS * FOLD;
        Raw v[8] = {};
        #pragma unroll
        for (int k = 0; k < FOLD * SLICE; k++) {
            const int place = ((slice * 8 + k % SLICE) * KERNEL_HEIGHT + i) * KERNEL_WIDTH + j + k / SLICE;
            if (k < SLICE || j + k / SLICE < KERNEL_WIDTH) v[k] = shared.raw_weight[channel][place];
        }
        uint4(&pieces)[PIECES][CHANNELS] = shared.filters[slot][entry];
        scale = SCALED ? power_of_two(shared.weight_range[channel].shift()) : 1.0f;
        put_row(&pieces[0][channel], &pieces[PIECES - 1][channel], v, scale);
    }
}

// ---- multiply ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_k16(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
#if ELEMENT == 2
    ptx::mma_m16n8k16_bf16(d, a[0], a[1], a[2], a[3], b0, b1, c);
#else
    ptx::mma_m16n8k16_f16(d, a[0], a[1], a[2], a[3], b0, b1, c);
#endif
}

__device__ __forceinline__ void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, const float (&c)[4]) {
#if ELEMENT == 2
    ptx::mma_m16n8k8_bf16(d, a0, a1, b0, c);
#else
    ptx::mma_m16n8k8_f16(d, a0, a1, b0, c);
#endif
}

// Bytes from a pixel's first row to that of an entry.
__host__ __device__ constexpr int entry_bytes(int entry) {
    const int slice = entry / (KERNEL_HEIGHT * FOLDS), i = entry / FOLDS % KERNEL_HEIGHT, j = entry % FOLDS * FOLD;
    return (slice * SLICE_ROWS + i * DILATION_H * PITCH + place_of(j * DILATION_W)) * 16;
}

using Sums = float[M][N][4];

// What a lane names of shared memory for ldmatrix, so that the registers which a product takes together are loaded together.
struct Lane {
    const unsigned char* filters;  // of the chunk: its channel in the warp's first matrix
    const unsigned char* rows[2];  // its pixels in the first two matrices of pixels, and in the others
    int second, filter_second;     // 1 where it names the second of two entries (or pieces) of pixels, of weights
};

// A step: two entries of k = 8, `filter` bytes from the first of weights and `row` from the first rows (those of the lane's
// entry); or the last of an odd number, and then the pieces stand side by side: lo, hi of weights with hi, lo of pixels.
template <bool TWO>
__device__ __forceinline__ void multiply_step(
    Sums& sum, Sums& cross, const Lane& at, int filter, int row, const float (&unit)[M][2]) {
    uint32_t x_hi[2][4], x_lo[2][4];  // of two matrices of pixels: first and second register of each
    #pragma unroll
    for (int q = 0; q < 2; q++) {
        ptx::ldmatrix_x4(x_hi[q], at.rows[q] + row);
        if (PIECES == 2 && TWO) ptx::ldmatrix_x4(x_lo[q], at.rows[q] + row + LO_ROW);
    }
    #pragma unroll
    for (int m = 0; m < M; m++) {
        uint32_t w_hi[4], w_lo[4];
        ptx::ldmatrix_x4(w_hi, at.filters + filter + m * 256);
        if (PIECES == 2 && TWO) ptx::ldmatrix_x4(w_lo, at.filters + filter + m * 256 + LO_WEIGHT);
        // Products that wait for one another are kept apart.
        float product[N][4] = {};
        #pragma unroll
        for (int n = 0; n < N; n++) {
            float (&d)[4] = PIECES == 2 ? product[n] : SCALED ? cross[m][n] : sum[m][n];
            const uint32_t (&x)[4] = x_hi[n / 2];
            if (TWO) mma_k16(d, w_hi, x[n % 2 * 2], x[n % 2 * 2 + 1], d);
            else mma_k8(d, w_hi[PIECES * 2 - 2], w_hi[PIECES * 2 - 1], x[n % 2 * 2], d);
        }
        if (PIECES == 2) {
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const uint32_t (&x)[4] = x_hi[n / 2];
                mma_k16(cross[m][n], TWO ? w_lo : w_hi, x[n % 2 * 2], x[n % 2 * 2 + 1], cross[m][n]);
            }
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const uint32_t (&x)[4] = x_lo[n / 2];
                if (TWO) mma_k16(cross[m][n], w_hi, x[n % 2 * 2], x[n % 2 * 2 + 1], cross[m][n]);
            }
            #pragma unroll
            for (int n = 0; n < N; n++)
                #pragma unroll
                for (int i = 0; i < 4; i++) sum[m][n][i] = fmaf(product[n][i], unit[m][i / 2], sum[m][n][i]);
        }
    }
}

// Adds a chunk to the warp's sums; units undo the scales of a lane's channels.
__device__ __forceinline__ void multiply(
    Sums& sum, const int (&places)[ENTRIES], const Lane& at, const float (&unit)[M][2]) {
    Sums cross = {};  // 4096 times too large; or all of the chunk, of one piece
    Lane pairs = at;
    pairs.filters += at.filter_second * ENTRY_BYTES;
    // Unrolled, the compiler begins more products than it has registers for.
    #pragma unroll 1
    for (int e = 0; e < ENTRIES - 1; e += 2)
        multiply_step<true>(sum, cross, pairs, e * ENTRY_BYTES, places[e + at.second], unit);
    if (ENTRIES % 2 == 1) {
        Lane last = at;
        if (PIECES == 2) last.filters += (1 - at.filter_second) * LO_WEIGHT;
        const int row = entry_bytes(ENTRIES - 1) + (PIECES == 2 ? at.second * LO_ROW : 0);
        multiply_step<false>(sum, cross, last, (ENTRIES - 1) * ENTRY_BYTES, row, unit);
    }
    if (SCALED) {
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int n = 0; n < N; n++)
                #pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[m][n][i] =
                        fmaf(cross[m][n][i] * (PIECES == 2 ? 1 / LO_SCALE : 1.0f), unit[m][i / 2], sum[m][n][i]);
    }
}

// ---- store ------------------------------------------------------------------------------------------------------------

// One sum in plain float32, as folded.cu computes it.
__device__ __forceinline__ float plain_sum(const Input& in, const Tile& tile, int channel, int row, int column) {
    const Element* image = image_of(in, tile);
    const Element* filter =
        in.weight + ((long long)in.group * GROUP_OUT + in.first_channel + channel) * GROUP_IN * TAPS;
    float sum = 0.0f;
    #pragma unroll 1
    for (int k = 0; k < GROUP_IN * TAPS; k++) {
        const int r = row * STRIDE_H - PAD_TOP + k / KERNEL_WIDTH % KERNEL_HEIGHT * DILATION_H;
        const int c = column * STRIDE_W - PAD_LEFT + k % KERNEL_WIDTH * DILATION_W;
        const bool inside = (unsigned)r < HEIGHT && (unsigned)c < WIDTH;
        sum = fmaf(inside ? float(image[place_in_x(in.group, k / TAPS, r, c)]) : 0.0f, float(filter[k]), sum);
    }
    return sum;
}

// Outputs that a lane stores at once: neighbours in a row, or with channels last neighbouring channels.
constexpr int Y_UNIT = CHANNELS_LAST ? unit_of(OUT_CHANNELS, GROUP_OUT, 4) : unit_of(OUT_WIDTH, TILE_COLUMNS, 4);
struct alignas(4 * Y_UNIT) SumUnit { float value[Y_UNIT]; };
struct alignas(SIZE* Y_UNIT) OutputUnit { Element value[Y_UNIT]; };

__device__ __forceinline__ void store(
    Shared& shared, const Input& in, Element* __restrict__ y, const Sums& sum, const Tile& tile, int warp, int lane) {
    const int group = lane / 4, member = lane % 4, first = warp % WARPS_DOWN * WARP_CHANNELS;
    float (&run)[8][RUN_PITCH] = shared.runs[warp];
    y += (long long)tile.image * OUT_CHANNELS * OUT_PLANE;
    // The output of a lane in the plane, given its pixel of the warp's 32.
    const auto row_of = [&](int pixel) {
        pixel += warp / WARPS_DOWN * 32;
        const bool real = pixel < TILE_ROWS * TILE_COLUMNS && tile.column + pixel % TILE_COLUMNS < OUT_WIDTH;
        return real ? tile.row + pixel / TILE_COLUMNS : OUT_HEIGHT;  // which is no row
    };
    const auto column_of = [&](int pixel) { return tile.column + (warp / WARPS_DOWN * 32 + pixel) % TILE_COLUMNS; };

    // Computes sums again that are not finite; finishes and stores them.
    const auto repair = [&](float* sums, int channel, int row, int column) {
        if (row >= OUT_HEIGHT || in.first_channel + channel >= GROUP_OUT) return;
        #pragma unroll 1
        for (int i = 0; i < Y_UNIT; i++)
            if (!isfinite(sums[i]))
                sums[i] = plain_sum(in, tile, channel + (CHANNELS_LAST ? i : 0), row, column + (CHANNELS_LAST ? 0 : i));
    };
    const auto put = [&](const float* sums, int channel, int row, int column) {
        if (row >= OUT_HEIGHT || in.first_channel + channel >= GROUP_OUT) return;
        const SumUnit values = *reinterpret_cast<const SumUnit*>(sums);
        OutputUnit output;
        #pragma unroll
        for (int i = 0; i < Y_UNIT; i++) {
            const int c = channel + (CHANNELS_LAST ? i : 0);
            output.value[i] = Element(fmaf(shared.a[c], values.value[i] + shared.shift[c], shared.b[c]));
        }
        const int out_channel = in.group * GROUP_OUT + in.first_channel + channel, place = row * OUT_WIDTH + column;
        Element* to = y + (CHANNELS_LAST ? place * OUT_CHANNELS + out_channel : out_channel * OUT_PLANE + place);
        *reinterpret_cast<OutputUnit*>(to) = output;
    };

    float spoilt = 0.0f;  // becomes NaN with any sum that is not finite
    #pragma unroll
    for (int m = 0; m < M; m++)
        #pragma unroll
        for (int n = 0; n < N; n++)
            #pragma unroll
            for (int i = 0; i < 4; i++) spoilt = fmaf(sum[m][n][i], 0.0f, spoilt);
    const bool plain = SCALED && __any_sync(~0u, spoilt != 0.0f);
#if CHANNELS_LAST
    #pragma unroll
    for (int n = 0; n < N; n++) {
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int i = 0; i < 4; i++) run[member * 2 + i % 2][m * 16 + i / 2 * 8 + group] = sum[m][n][i];
        __syncwarp();
        const auto each = [&](const auto& what, int i) {
            const int pixel = i / (WARP_CHANNELS / Y_UNIT), c = i % (WARP_CHANNELS / Y_UNIT) * Y_UNIT;
            what(&run[pixel][c], first + c, row_of(n * 8 + pixel), column_of(n * 8 + pixel));
        };
        #pragma unroll 1
        for (int i = lane; plain && i < 8 * WARP_CHANNELS / Y_UNIT; i += 32) each(repair, i);
        #pragma unroll 1
        for (int i = lane; i < 8 * WARP_CHANNELS / Y_UNIT; i += 32) each(put, i);
        __syncwarp();
    }
#else
    constexpr int TOGETHER = 32 / Y_UNIT;  // lanes of one channel
    const int pixel = lane % TOGETHER * Y_UNIT, row = row_of(pixel), column = column_of(pixel);
    #pragma unroll
    for (int m = 0; m < M; m++)
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 two = make_float2(sum[m][n][half * 2], sum[m][n][half * 2 + 1]);
                *reinterpret_cast<float2*>(&run[group][n * 8 + member * 2]) = two;
            }
            __syncwarp();
            const int channel = first + m * 16 + half * 8;
            #pragma unroll 1
            for (int c = lane / TOGETHER; plain && c < 8; c += Y_UNIT) repair(&run[c][pixel], channel + c, row, column);
            #pragma unroll 4
            for (int c = lane / TOGETHER; c < 8; c += Y_UNIT) put(&run[c][pixel], channel + c, row, column);
            __syncwarp();
        }
#endif
}

// ---- the kernel -------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) implicit_gemm(
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
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int tiles = int(batch) * Tile::DOWN * Tile::ACROSS;
    const Input in = {x, weight, int(blockIdx.x) / CHANNEL_BLOCKS, int(blockIdx.x) % CHANNEL_BLOCKS * CHANNELS};
    int tile = blockIdx.y;
    if (tile >= tiles) return;
    bring_x(shared, in, Tile(tile), 0);
    bring_weights(shared, in, 0);
    ptx::cp_async_commit();

    for (int e = thread; e < ENTRIES; e += THREADS) shared.places[e] = entry_bytes(e);
    if (thread < CHANNELS) {
        const int channel = in.group * GROUP_OUT + min(in.first_channel + thread, GROUP_OUT - 1);
        shared.a[thread] = affine_a(channel, running_var, gamma, scaling_factor, eps);
        shared.shift[thread] = affine_shift(channel, bias, running_mean);
        shared.b[thread] = affine_b(channel, beta, scaling_factor);
    }

    const int first = warp % WARPS_DOWN * WARP_CHANNELS;
    Lane at;
    at.second = lane / 8 % 2;
    at.filter_second = lane / 16;
    #pragma unroll
    for (int q = 0; q < 2; q++) {
        const int pixel = warp / WARPS_DOWN * 32 + q * 16 + lane / 16 * 8 + lane % 8;
        const int mine = pixel < TILE_ROWS * TILE_COLUMNS ? pixel : 0;  // there is an output to every column but those
        const uint4* row = &shared.rows[0][0][mine / TILE_COLUMNS * STRIDE_H * PITCH + mine % TILE_COLUMNS];
        at.rows[q] = reinterpret_cast<const unsigned char*>(row);
    }
    for (; tile < tiles; tile += gridDim.y) {
        const bool begun = tile != blockIdx.y;
        Sums sum = {};
        #pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const bool fresh = SLOTS < CHUNKS || !begun;  // these weights are not in their slot yet
            const int slot = SLOTS < CHUNKS ? 0 : chunk;
            ptx::cp_async_wait<0>();
            measure(shared, fresh);
            __syncthreads();  // the chunk is here, and the rows of the last are read
            prepare(shared, fresh, slot);
            __syncthreads();
            if (chunk + 1 < CHUNKS || tile + gridDim.y < tiles) {
                const int next = chunk + 1 < CHUNKS ? chunk + 1 : 0;
                bring_x(shared, in, Tile(next > 0 ? tile : tile + gridDim.y), next);
                if (SLOTS < CHUNKS || (!begun && next > 0)) bring_weights(shared, in, next);
                ptx::cp_async_commit();
            }
            float unit[M][2];
            if (SCALED) {
                #pragma unroll
                for (int m = 0; m < M; m++)
                    #pragma unroll
                    for (int half = 0; half < 2; half++) {
                        unit[m][half] = shared.x_unit * shared.weight_unit[slot][first + m * 16 + half * 8 + lane / 4];
                        if (unit[m][half] == 0.0f) unit[m][half] = nanf("");
                    }
            }
            at.filters = reinterpret_cast<const unsigned char*>(&shared.filters[slot][0][0][first + lane % 16]);
            multiply(sum, shared.places, at, unit);
        }
        store(shared, in, y, sum, Tile(tile), warp, lane);
    }
}
