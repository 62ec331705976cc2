// wgmma_gemm.cu and wgmma_gemm_prepare.cu: the constants of the product, and where its factors lie.
//
// Positions. The outputs of all images are numbered in one row: those of a strip of STRIP columns row by row, PITCH positions
// a row and PLANE_ROWS rows a strip, then the next strip, then the next image. PITCH and PLANE_ROWS leave room for the zeros
// of the padding, one copy of which serves two neighbours; a few positions are no outputs. Then every tap reads at a fixed
// distance from the position of its output, so that a tile of consecutive positions is a plain matrix.
// With strides, x falls into phases, of which each has these positions: row r and column c of the padded x lie in the phase
// (r % STRIDE_H, c % STRIDE_W), at row r / STRIDE_H and column c / STRIDE_W.
//
// Runs. A tile needs runs of consecutive positions: one per phase that taps read (MERGED), or one per phase of the columns
// and row of the filter, without the positions between two rows.
//
// Scratch. Factors lie in global memory as wgmma reads them from shared memory, in rows of 16 bytes, 8 input channels each:
//   weights      [block of output channels][chunk of input channels][tap][slice of 8][piece][output channel]
//   notes        [output channel] Note
//   x            [tile][chunk]: [run][slice][piece][position], then a Note and 8 bytes of nothing
// So one bulk copy fetches a stage of either.
#pragma once

#include <cstdint>

#include "elements.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int IN_PLANE = HEIGHT * WIDTH, OUT_PLANE = OUT_HEIGHT * OUT_WIDTH;
constexpr bool SCALED = ELEMENT == 0;
constexpr int SIZE = ELEMENT == 0 ? 4 : 2;

constexpr int CHANNELS = 64 * DOWN;    // output channels of a block
constexpr int TILE = PIXELS * ACROSS;  // positions of a tile
constexpr int CHANNEL_BLOCKS = (OUT_CHANNELS + CHANNELS - 1) / CHANNELS;
constexpr int CHUNKS = (IN_CHANNELS + CHUNK - 1) / CHUNK;
constexpr int SLICES = CHUNK / 8, STEPS = CHUNK / 16;  // of 8 input channels; of 16, which one wgmma multiplies
static_assert(CHUNK % 16 == 0 && PIXELS % 8 == 0 && PIXELS >= 64 && PIXELS <= 128, "see wgmma_gemm.cu");

constexpr int STRIPS = (OUT_WIDTH + STRIP - 1) / STRIP;
constexpr int STRIP_POSITIONS = PLANE_ROWS * PITCH, IMAGE_POSITIONS = STRIPS * STRIP_POSITIONS;

constexpr int common_divisor(int a, int b) { return b == 0 ? a : common_divisor(b, a % b); }
constexpr int smaller(int a, int b) { return a < b ? a : b; }
// The taps of a filter's row, or column, fall into this many phases, in turn.
constexpr int ROW_PHASES = smaller(KERNEL_HEIGHT, STRIDE_H / common_divisor(STRIDE_H, DILATION_H));
constexpr int COLUMN_PHASES = smaller(KERNEL_WIDTH, STRIDE_W / common_divisor(STRIDE_W, DILATION_W));
constexpr int RUNS = (MERGED ? ROW_PHASES : KERNEL_HEIGHT) * COLUMN_PHASES;

// The run that a tap reads, and the distance in it from an output's position to the one that the tap reads.
__host__ __device__ constexpr int run_of(int i, int j) {
    return (MERGED ? i % ROW_PHASES : i) * COLUMN_PHASES + j % COLUMN_PHASES;
}
__host__ __device__ constexpr int distance(int i, int j) {
    return (MERGED ? i * DILATION_H / STRIDE_H * PITCH : 0) + j * DILATION_W / STRIDE_W;
}
constexpr int RUN = TILE + distance(KERNEL_HEIGHT - 1, KERNEL_WIDTH - 1);

// What is known of a stage of x, or of an output channel's weights.
struct alignas(8) Note {
    float unscale;  // undoes the scale; NaN if two pieces do not serve
    float tiny;     // how many numbers two pieces represent only to 2^-52 of the largest
};

constexpr int PIECE_OF_X = RUN * 16, X_BYTES = RUNS * SLICES * PIECES * PIECE_OF_X, X_STAGE = X_BYTES + 16;
constexpr int PIECE_OF_WEIGHTS = CHANNELS * 16, WEIGHT_STAGE = SLICES * PIECES * PIECE_OF_WEIGHTS;
constexpr long long WEIGHT_BYTES = (long long)CHANNEL_BLOCKS * CHUNKS * TAPS * WEIGHT_STAGE;
constexpr long long BEFORE_X = WEIGHT_BYTES + CHANNEL_BLOCKS * CHANNELS * sizeof(Note);  // bytes

// Where a position lies: an output, or an element of a phase of x.
struct Place {
    int strip, row, column;  // strip: counted over all images; column: in the strip
    __device__ __forceinline__ explicit Place(int position)
        : strip(position / STRIP_POSITIONS),
          row(position % STRIP_POSITIONS / PITCH),
          column(position % STRIP_POSITIONS % PITCH) {}
    // Goes on by at most 8 positions, to `position`.
    __device__ __forceinline__ void advance(int by, int position) {
        if (PITCH < 8) *this = Place(position);
        else if ((column += by) >= PITCH) {
            column -= PITCH;
            if (++row == PLANE_ROWS) row = 0, strip++;
        }
    }
    __device__ __forceinline__ int image() const { return strip / STRIPS; }
    __device__ __forceinline__ int image_column() const { return strip % STRIPS * STRIP + column; }
    // Whether it is an output of an image below `batch`.
    __device__ __forceinline__ bool is_output(int batch) const {
        return strip < batch * STRIPS && row < OUT_HEIGHT && column < STRIP && image_column() < OUT_WIDTH;
    }
};

__device__ __forceinline__ int tiles_of(int batch) { return (batch * IMAGE_POSITIONS + TILE - 1) / TILE; }

constexpr int ITEMS = RUNS * SLICES * RUN;  // of a stage of x: 8 input channels at a position

// What an item of a tile's stage is in x.
struct Source {
    int image, row, column;
    bool inside;  // or it is zero
    __device__ __forceinline__ Source(int item, int tile, int batch) {
        const int run = item / (SLICES * RUN);
        const int filter_row = run / COLUMN_PHASES, filter_column = run % COLUMN_PHASES;  // of the run's first tap
        const int first = tile * TILE + (MERGED ? 0 : filter_row * DILATION_H / STRIDE_H * PITCH);
        const Place place(first + item % RUN);
        image = place.image();
        row = place.row * STRIDE_H + filter_row * DILATION_H % STRIDE_H - PAD_TOP;
        column = place.image_column() * STRIDE_W + filter_column * DILATION_W % STRIDE_W - PAD_LEFT;
        inside = item < ITEMS && image < batch && (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
    }
};

// The offset of an element of an image of x, or of y.
__device__ __forceinline__ int place_in_x(int channel, int row, int column) {
    const int pixel = row * WIDTH + column;
    return CHANNELS_LAST ? pixel * IN_CHANNELS + channel : channel * IN_PLANE + pixel;
}
__device__ __forceinline__ int place_in_y(int channel, int row, int column) {
    const int pixel = row * OUT_WIDTH + column;
    return CHANNELS_LAST ? pixel * OUT_CHANNELS + channel : channel * OUT_PLANE + pixel;
}
