// The launch before wgmma_gemm.cu: write x and the weights to scratch as that kernel's products read them
// (wgmma_gemm_layout.cuh), scaled by powers of two and split into numbers of fp16 (split.cuh).
//
// A scale belongs to an output channel's weights, and to a tile and chunk of x: each brings the largest magnitude into
// [2^14, 2^15). Two pieces represent numbers from 2^-28 of that on. A note with the inverse scale says how many are smaller, so
// that wgmma_gemm.cu can tell which sums are in doubt. Tensors of fp16 and bf16 are only rearranged.
//
// Bytes: reads x once from memory (positions that tiles share come from the caches), writes PIECES * 2 for each of its numbers.
//
// Sizes are those of wgmma_gemm.cu.
//
// Launch: block (256), grid (CHANNEL_BLOCKS * CHANNELS + CHUNKS * tiles).
#include "wgmma_gemm_rows.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int SHARE = (ITEMS + THREADS - 1) / THREADS;

// The average relative loss of the sum of one chunk and tap: each step truncates. The weights' lo makes up for it.
constexpr float SHORTFALL = PIECES == 2 ? (STEPS + 1) * 0.36f / 16777216 : 0.0f;

#if ELEMENT == 0
// Returns the range over all threads of the block.
__device__ __forceinline__ Range range_of_block(Range range) {
    __shared__ Range ranges[WARPS];
    range = range.of_warp();
    if (threadIdx.x % 32 == 0) ranges[threadIdx.x / 32] = range;
    __syncthreads();
    return (threadIdx.x % 32 < WARPS ? ranges[threadIdx.x % 32] : Range()).of_warp();
}

__device__ __forceinline__ int tiny_of_block(int mine) {
    __shared__ int sums[WARPS];
    return sum_of_block(mine, sums, WARPS, [] { __syncthreads(); });
}
#endif

__device__ __forceinline__ void prepare_weights(
    const Element* __restrict__ weight, unsigned char* __restrict__ scratch, int channel) {
    const bool real = channel < OUT_CHANNELS;
    const Element* filter = weight + (long long)channel * IN_CHANNELS * TAPS;
    Note note = {1.0f, 0.0f};
    float scale = 1.0f;
#if ELEMENT == 0
    const int count = real ? IN_CHANNELS * TAPS : 0;
    Range range;
    for (int k = threadIdx.x; k < count; k += THREADS) range.add(filter[k]);
    range = range_of_block(range);
    scale = power_of_two(range.shift());
    int tiny = 0;
    if (!range.splits()) {
        for (int k = threadIdx.x; k < count; k += THREADS) tiny += is_tiny(filter[k], scale);
        tiny = tiny_of_block(tiny);
    }
    note = note_of(range, tiny, count);
#endif
    if (threadIdx.x == 0) reinterpret_cast<Note*>(scratch + WEIGHT_BYTES)[channel] = note;
    unsigned char* stages = scratch + (long long)(channel / CHANNELS) * CHUNKS * TAPS * WEIGHT_STAGE;
    #pragma unroll 1
    for (int item = threadIdx.x; item < CHUNKS * SLICES * TAPS; item += THREADS) {
        const int tap = item % TAPS, slice = item / TAPS % SLICES, chunk = item / TAPS / SLICES;
        Element v[8];
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            const int in_channel = chunk * CHUNK + slice * 8 + c;
            v[c] = real && in_channel < IN_CHANNELS ? filter[in_channel * TAPS + tap] : Element(0.0f);
        }
        unsigned char* stage = stages + (chunk * TAPS + tap) * WEIGHT_STAGE;
        put_row(
            stage + slice * PIECES * PIECE_OF_WEIGHTS + channel % CHANNELS * 16, PIECE_OF_WEIGHTS, v, scale, SHORTFALL);
    }
}

__device__ __forceinline__ void prepare_x(
    const Element* __restrict__ x, unsigned char* __restrict__ scratch, int stage, int batch) {
    const int tile = stage / CHUNKS, chunk = stage % CHUNKS;
    Element v[SHARE][8];
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int item = threadIdx.x + i * THREADS;
        const int slice = item / RUN % SLICES;
        const Source at(item, tile, batch);
        const Element* image = x + (at.inside ? (long long)at.image * IN_CHANNELS * IN_PLANE : 0);
        #pragma unroll
        for (int c = 0; c < 8; c++) {
            const int channel = chunk * CHUNK + slice * 8 + c;
            const bool real = at.inside && (IN_CHANNELS % CHUNK == 0 || channel < IN_CHANNELS);
            v[i][c] = real ? image[place_in_x(channel, at.row, at.column)] : Element(0.0f);
        }
    }
    unsigned char* rows = scratch + BEFORE_X + (long long)stage * X_STAGE;
    Note note = {1.0f, 0.0f};
    float scale = 1.0f;
#if ELEMENT == 0
    Range range;
    #pragma unroll
    for (int i = 0; i < SHARE; i++)
        #pragma unroll
        for (int c = 0; c < 8; c++) range.add(v[i][c]);
    range = range_of_block(range);
    scale = power_of_two(range.shift());
    int tiny = 0;
    if (!range.splits()) {
        #pragma unroll
        for (int i = 0; i < SHARE; i++)
            #pragma unroll
            for (int c = 0; c < 8; c++) tiny += is_tiny(v[i][c], scale);
        tiny = tiny_of_block(tiny);
    }
    note = note_of(range, tiny, ITEMS * 8);
#endif
    if (threadIdx.x == 0) *reinterpret_cast<float4*>(rows + X_BYTES) = make_float4(note.unscale, note.tiny, 0.0f, 0.0f);
    #pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int item = threadIdx.x + i * THREADS;
        if (ITEMS % THREADS == 0 || item < ITEMS)
            put_row(rows + item / RUN * PIECES * PIECE_OF_X + item % RUN * 16, PIECE_OF_X, v[i], scale, 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) wgmma_gemm_prepare(
    const Element* __restrict__ x,        // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const Element* __restrict__ weight,   // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    unsigned char* __restrict__ scratch,  // see wgmma_gemm_layout.cuh
    long long batch) {
    const int stage = blockIdx.x - CHANNEL_BLOCKS * CHANNELS;
    if (stage < 0) prepare_weights(weight, scratch, blockIdx.x);
    else prepare_x(x, scratch, stage, int(batch));
}
