// backward.cu: its constants, shared memory, and the walk over the rows of dy.
#pragma once

#include "backward_filters.cuh"
#include "ptx.cuh"

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int COLUMNS = TAPS * 8;          // columns of A': tap * 8 + input channel
constexpr int PART_COLUMNS = COLUMNS + 8;  // and of a part, where column COLUMNS is q
constexpr int CHANNELS = 64;
constexpr int LOADERS = 4, SUMMERS = WITH_A ? 4 : 0, TRANSPOSERS = WITH_T ? 4 : 0;  // warps of each kind
constexpr int LOADING_THREADS = LOADERS * 32;
constexpr int THREADS = (LOADERS + SUMMERS + TRANSPOSERS) * 32;
constexpr long long IN_PLANE = (long long)HEIGHT * WIDTH;
constexpr long long OUT_PLANE = (long long)OUT_HEIGHT * OUT_WIDTH;

// fp16 and bf16 are multiplied as they are; then the tensor cores compute q, too, as products with ones.
constexpr bool AS_IS = ELEMENT != 0;
constexpr int X_PIECES = AS_IS ? 2 : PIECES;  // or else the rounding of x - pivot would show where dweight is small

constexpr int STAGES = 2;                 // rows of dy that the tensor cores can read
constexpr int ABOVE = KERNEL_HEIGHT - 1;  // rows of dy above a row that T reads too
constexpr int HALO = KERNEL_WIDTH - 1;    // and columns to the left
constexpr int X_ROWS = ABOVE + 2;         // rows of x in shared memory: those of a step and the next

// A strip has STRIP_COLUMNS columns of dy, and columns of T from the same column on. Staged column q is the strip's
// column q - LEFT of dy.
constexpr int LEFT = HALO - PAD_LEFT;
constexpr int FIRST_LOADED = STRIPS == 1 ? LEFT : 0;  // staged column; what is to the left of a single strip is zero
constexpr int LOADED = STRIPS == 1 ? OUT_WIDTH : STRIP_COLUMNS + HALO;
constexpr int LANE_GROUPS = (LOADED + 31) / 32;
constexpr int STEPS = (STRIP_COLUMNS + 15) / 16;  // of A': each 16 columns of a row
constexpr int STAGED = HALO + (WITH_T && T_BLOCKS * 64 > STEPS * 16 ? T_BLOCKS * 64 : STEPS * 16);
constexpr int X_COLUMNS = STEPS * 16 + HALO;
static_assert(LOADED <= 128 && STRIP_COLUMNS + HALO <= LOADING_THREADS, "one thread per pixel");

// dy is copied in atoms of 16 bytes, which start up to MOST_OFFSET elements before a row.
constexpr int gcd(long long a, int b) { return b == 0 ? int(a) : gcd(b, int(a % b)); }
constexpr int ATOM = 16 / sizeof(Element);
constexpr int MOST_OFFSET = ATOM - gcd(OUT_WIDTH, gcd(STRIPS == 1 ? ATOM : LEFT, ATOM));
constexpr int ATOMS = (LOADED + MOST_OFFSET + ATOM - 1) / ATOM;
constexpr int RAW_PITCH = ATOMS * ATOM;

constexpr int T_PITCH = (WITH_T ? T_BLOCKS * 64 : 0) + ATOM;  // the lanes of a warp write to different banks
constexpr bool BULK_STORES = WIDTH % ATOM == 0;

constexpr int LO = STAGED * 128;  // bytes from a pixel's hi to its lo
constexpr int X_LO = X_COLUMNS * 16;
constexpr int FILTER_BYTES = WITH_T ? TAPS * 8 * CHANNELS * 2 : 16;  // of a piece
constexpr float SHORTFALL = shortfall(STEPS);  // of a row's part of A'; the lo of x compensates it

struct Shared {
    alignas(128) Element raw[RAW_ROWS][LOADERS][16][RAW_PITCH];
    alignas(128) unsigned char dy[STAGES][PIECES * LO];     // [hi, lo][staged column][64 channels], chunks swizzled
    alignas(128) unsigned char x[X_ROWS][X_PIECES * X_LO];  // [hi, lo][column of the padded input][8 channels]
    alignas(128) Piece ones[AS_IS ? 16 : 1][8];
    // [piece][step of 16 output channels][half of it][column of the filter][row of the filter][input channel] of 8
    // output channels: b of wgmma, in the layout of ptx::Columns.
    alignas(128) unsigned char filters[PIECES][FILTER_BYTES];
    alignas(16) Element t[2][8][T_PITCH];     // rows of T on their way to memory
    float beyond[4 * T_BLOCKS][2][8];         // what a warp of T has for the two pixels after its own
    double sums[WITH_A ? TAPS * 4 : 1][128];  // of A', of each thread
    double slopes[CHANNELS];                  // a of the output channels
    uint64_t full[STAGES];
    uint64_t empty[STAGES];
    float pivot[8], scale[8];      // of the input channels
    unsigned largest[2][LOADERS];  // of the row, its largest magnitude
    int shifts[8];                 // input channel c of the filters is multiplied by 2^shifts[c]
    int shift[STAGES];             // the row is multiplied by 2^shift
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan computes another size");

// The position in a block's share of the rows, the same in every warp. A block computes whole rows of strips, in order.
// ABOVE steps go before its first row in a strip: they fetch rows of x, and rows of dy that T needs.
struct Walk {
    int strip;  // image * STRIPS + strip of the image
    int row;    // of dy; negative in steps above an image's first row
    int first;  // row of the block in this strip
    int left;   // rows of the block from here on
    __device__ __forceinline__ explicit Walk(long long batch) {
        const long long rows = batch * STRIPS * OUT_HEIGHT;
        const long long begin = rows * blockIdx.x / gridDim.x;
        left = int(rows * (blockIdx.x + 1) / gridDim.x - begin);
        strip = int(begin / OUT_HEIGHT);
        first = int(begin % OUT_HEIGHT);
        row = first - ABOVE;
    }
    __device__ __forceinline__ bool done() const { return left == 0; }
    __device__ __forceinline__ bool own() const { return row >= first; }
    __device__ __forceinline__ bool has_dy() const { return row >= (WITH_T ? 0 : first); }
    __device__ __forceinline__ long long image() const { return STRIPS == 1 ? strip : strip / STRIPS; }
    __device__ __forceinline__ int column() const { return STRIPS == 1 ? 0 : strip % STRIPS * STRIP_COLUMNS; }
    __device__ __forceinline__ void advance() {
        if (own()) left--;
        if (++row == OUT_HEIGHT) {
            strip++;
            first = 0;
            row = -ABOVE;
        }
    }
};

template <class Two> __device__ __forceinline__ uint32_t bits(Two h) { return *reinterpret_cast<uint32_t*>(&h); }

// Rounds two numbers to a pair of type Piece, the first in the low half, and subtracts the pair from them.
__device__ __forceinline__ uint32_t take(float& v0, float& v1) {
#if ELEMENT == 2
    const __nv_bfloat162 pair = __floats2bfloat162_rn(v0, v1);
    const float2 taken = __bfloat1622float2(pair);
#else
    const __half2 pair = __floats2half2_rn(v0, v1);
    const float2 taken = __half22float2(pair);
#endif
    v0 -= taken.x;
    v1 -= taken.y;
    return bits(pair);
}

// Splits two scaled numbers into hi + lo, of the same scale: v0 goes to the low halves. Adds more * v to lo.
__device__ __forceinline__ void split_unscaled(float v0, float v1, uint32_t& hi, uint32_t& lo, float more = 0.0f) {
    float rest0 = v0, rest1 = v1;
    hi = take(rest0, rest1);
    if (more != 0.0f) {
        rest0 = fmaf(more, v0, rest0);
        rest1 = fmaf(more, v1, rest1);
    }
    lo = take(rest0, rest1);
}

// d += a b, or d = a b, for numbers of type Piece.
template <int COUNT, class B>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], const uint32_t (&a)[4], B b, bool accumulate) {
#if ELEMENT == 2
    ptx::wgmma_bf16(d, a[0], a[1], a[2], a[3], b, accumulate);
#else
    ptx::wgmma_f16(d, a[0], a[1], a[2], a[3], b, accumulate);
#endif
}

// Byte of channels 8 octet to 8 octet + 7 of a staged column: swizzled, so that eight columns of an octet do not share
// banks.
__device__ __forceinline__ int place(int column, int octet) { return column * 128 + ((octet ^ (column & 7)) << 4); }
