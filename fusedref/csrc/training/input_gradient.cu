// The second term of the gradient of x = T - conv_transpose(offset + slope (W * x'), W), in place on T:
//   dx[c, pixel] = T[c, pixel] - constant[c] - sum over c', dh, dw of composite[c, c', dh, dw] x'[c', pixel + (dh, dw)]
// where x' = x - pivot, with zeros - pivot around x. Composites and constants are those of the taps that connect the pixel
// with outputs (input_gradient_borders.cuh, input_gradient_composites.cu).
//
// The sums are products on the tensor cores. mma: M = 8 channels c of two rows of pixels, one below the other; N = 8 pixels
// of these rows; K = two positions of the window by 8 channels c'. Shared memory has a row of 16 bytes per pixel of x', which
// is scaled by powers of two and split: x' scale = hi + lo, two numbers of fp16. Then ldmatrix reads a position of the window
// by an address offset. A product is lo hi' + hi lo' + hi hi' (with PIECES 1: hi hi'). The tensor core truncates where an
// addition rounds: so the sums of a column of the window start from zero, with the small products, and are added in float32.
//
// A block walks down a strip of rows, a chunk of rows at a time. mbarriers pass chunks between two kinds of warps:
//   warps 0-7    multiply: 16 columns of four rows each, whose windows overlap; subtract from T, store
//   warps 8-11  load: cp.async brings rows of x and T to shared memory, two chunks ahead; split x for the tensor cores
//                                                                                               input_gradient_load.cuh
//   warps 12-15 compute the columns near the border, if there are any
//
// All pixels of an mma have one composite. Pairs of rows near the border take those of their kind. A column near the border
// is computed later, 16 rows at a time, by mmas whose N pixels are those of 8 pairs of rows in this column.
//
// Bytes: reads T and x once from memory (rows that strips share come from the L2 cache), writes dx once.
//
// Sizes are compile-time constants:
//   IN_CHANNELS HEIGHT WIDTH OUT_HEIGHT OUT_WIDTH KERNEL_HEIGHT KERNEL_WIDTH PAD_TOP PAD_LEFT
//   ELEMENT                   the type, see elements.cuh (VECTOR is not used)
//   PIECES                    fp16 numbers per number of x' and of a composite: 2, or 1 for fp16, bf16 and tf32
//   TILE_COLUMNS              columns of a strip: a multiple of 4, or all
//   CHUNK_ROWS                a multiple of 4: at most 8 warps compute them
//   SHARED_BYTES              dynamic shared memory
//
// Launch: block (512; 384 where no columns are near the border), grid (batch * strips across an image, strips down an image).
#include "input_gradient_load.cuh"

// The longest run of pixels, up to four, that starts at a multiple of its length in every row.
constexpr int VECTOR_WIDTH = WIDTH % 4 == 0 ? 4 : WIDTH % 2 == 0 ? 2 : 1;
struct alignas(VECTOR_WIDTH * sizeof(Element)) Run { Element value[VECTOR_WIDTH]; };

// Four pixels of a row in one channel, of which `inside` are inside the image.
struct Four {
    Run run[4 / VECTOR_WIDTH];
    __device__ __forceinline__ void load(const Element* from, int inside) {
        #pragma unroll
        for (int k = 0; k < 4 / VECTOR_WIDTH; k++)
            if (k * VECTOR_WIDTH < inside) run[k] = reinterpret_cast<const Run*>(from)[k];
    }
    __device__ __forceinline__ void store(Element* to, int inside) const {
        #pragma unroll
        for (int k = 0; k < 4 / VECTOR_WIDTH; k++)
            if (k * VECTOR_WIDTH < inside) reinterpret_cast<Run*>(to)[k] = run[k];
    }
    __device__ __forceinline__ void subtract(const float (&term)[4]) {
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            Element& value = run[i / VECTOR_WIDTH].value[i % VECTOR_WIDTH];
            value = Element(float(value) - term[i]);
        }
    }
};

// The unit that a warp computes of each chunk. An mma takes two of a thread's four pixels, those of 4 lanes in all, and pixels
// whose rows of 16 bytes lie in different banks.
struct Unit {
    int row, column;  // of the first pixel: row in the chunk, column in the strip
    int c, first;     // the thread's channel, and the first of its four pixels
    int pixel;        // column of the lane's row for ldmatrix
    __device__ __forceinline__ Unit(int warp, int lane)
        : row(warp / UNITS * 4), column(warp % UNITS * 16), c(lane / 4), first(column + lane % 4 * 4) {
        const int member = lane % 8 / 2, second = (lane / 16) ^ (member / 2);
        pixel = min(column + 4 * member + 2 * second + lane % 2, TILE_COLUMNS - 1);
    }
};

static __device__ __forceinline__ void multiply_chunks(
    Shared& shared, const uint4* __restrict__ fragments, const float* __restrict__ constants, Element* dx,
    const Strip& strip, int warp, int lane) {
    const Unit unit(warp, lane);
    const bool near_border = strip.column + unit.first < LEFT || strip.column + unit.first + 3 >= WIDTH - RIGHT;
    for (int number = 0; number < strip.chunks; number++) {
        const int row = strip.row + number * CHUNK_ROWS + unit.row, pair = row / 2;
        const bool busy = warp < CHUNK_ROWS / 4 * UNITS && row < HEIGHT;
        Element* to = dx + (strip.image * IN_CHANNELS + unit.c) * PLANE + row * WIDTH + strip.column + unit.first;
        const auto inside = [&](int down) {  // how many of the thread's four pixels in this row
            const bool valid = busy && unit.c < IN_CHANNELS && row + down < HEIGHT && unit.first < TILE_COLUMNS;
            return valid ? WIDTH - (strip.column + unit.first) : 0;
        };
        Four t[4];
        const auto load = [&](const Element* from, int pitch) {
            #pragma unroll
            for (int down = 0; down < 4; down++) t[down].load(from + down * pitch, inside(down));
        };
        if (!ALIGNED) load(to, WIDTH);
        const int last = number + AHEAD - 1;  // chunk that the windows reach
        ptx::mbarrier_wait(&shared.staged[last % RING_CHUNKS], last / RING_CHUNKS % 2);
        if (busy) {
            const uint4* from[KERNEL_HEIGHT + 1];
            #pragma unroll
            for (int rows = 0; rows <= KERNEL_HEIGHT; rows++) {
                const int its = number % RING_CHUNKS * CHUNK_ROWS + unit.row + 2 * rows;
                from[rows] = &shared.ring[0][(its < RING_ROWS ? its : its - RING_ROWS) + lane / 8 % 2][unit.pixel];
            }
            const int kinds[2] = {PairKinds::of(pair), PairKinds::of(min(pair + 1, (HEIGHT - 1) / 2))};
            #pragma unroll 1
            for (int first = 0; first < 2; first++) {  // computes pairs `first` to 1, or just `first`
                const bool both = kinds[0] == kinds[1];
                if (first && both) break;
                const int kind = first ? kinds[1] : kinds[0];
                const bool inner = kind == PairKinds::INNER;
                float sums[2][2][4] = {};
                compute_sums(
                    sums, from,
                    inner ? &shared.composites[0][0][lane]
                          : fragments + (kind * ColumnKinds::COUNT + INNER_COLUMNS) * (STEPS * 64) + lane,
                    inner ? 32 * (PIECES - 1) : 32);
                if (ALIGNED)
                    load(
                        &shared.t[number % RING_CHUNKS][unit.row][min(unit.c, IN_CHANNELS - 1)][unit.first],
                        IN_CHANNELS * T_PITCH);
                #pragma unroll
                for (int down = 0; down < 4; down++) {
                    if (!both && down / 2 != first) continue;
                    const float (&its)[2][4] = sums[down / 2];
                    float term[4];
                    #pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int k = down % 2 * 2 + i % 2;
                        const float sum = lane % 4 < 2 ? its[i / 2][k] : its[1 - i / 2][k];
                        term[i] = subtrahend(sum, constants, kind, INNER_COLUMNS, down % 2, unit.c);
                    }
                    if (!near_border) {
                        t[down].subtract(term);
                        t[down].store(to + down * WIDTH, inside(down));
                        continue;
                    }
                    #pragma unroll
                    for (int i = 0; i < 4; i++)  // compute_edges() computes the others
                        if (i < inside(down) && ColumnKinds::of(strip.column + unit.first + i) == ColumnKinds::INNER) {
                            const Element value = t[down].run[i / VECTOR_WIDTH].value[i % VECTOR_WIDTH];
                            to[down * WIDTH + i] = Element(float(value) - term[i]);
                        }
                }
            }
        }
        ptx::mbarrier_arrive(&shared.computed[number % RING_CHUNKS]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) input_gradient(
    const Element* __restrict__ x,        // [batch, IN_CHANNELS, HEIGHT, WIDTH], 16-byte aligned, like dx
    const double* __restrict__ moments,   // p, M, pivot [8], scale [8]
    const uint4* __restrict__ fragments,  // from input_gradient_composites.cu
    const float* __restrict__ constants,  // from there, too
    Element* dx)                          // [batch, IN_CHANNELS, HEIGHT, WIDTH]: T on entry
{
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = __shfl_sync(~0u, thread / 32, 0), lane = thread % 32;
    const Strip strip;
    if (strip.rows <= 0) return;
    const Copies copies(x, dx, strip, warp - MULTIPLIERS, lane);
    if (warp >= MULTIPLIERS && warp < MULTIPLIERS + LOADERS) copies.start_first(shared);
    if (thread < 8) {
        const float scale = float(moments[SCALES + thread]);
        shared.scale[thread] = make_float2(scale, -float(moments[SCALES - 8 + thread]) * scale);  // exact
    }
    if (thread == 0) {
        for (int i = 0; i < RING_CHUNKS; i++) {
            ptx::mbarrier_init(&shared.staged[i], LOADING_THREADS);
            ptx::mbarrier_init(&shared.computed[i], MULTIPLIERS * 32);
        }
        ptx::mbarrier_init(&shared.edges_staged, LOADING_THREADS);
        ptx::mbarrier_init(&shared.edges_computed, BORDERERS ? BORDERERS * 32 : 1);
        ptx::mbarrier_init_fence();
    }
    if (PairKinds::INNER < PairKinds::COUNT) {
        const int border = PairKinds::INNER * ColumnKinds::COUNT + INNER_COLUMNS;
        for (int k = thread; k < STEPS * PIECES * 32; k += THREADS) {
            const int step = k / (PIECES * 32);
            (&shared.composites[0][0][0])[k] = fragments[(border * STEPS + step) * 64 + k % (PIECES * 32)];
        }
    }
    __syncthreads();
    if (warp < MULTIPLIERS) multiply_chunks(shared, fragments, constants, dx, strip, warp, lane);
    else if (warp < MULTIPLIERS + LOADERS) load_chunks(shared, copies, strip, warp - MULTIPLIERS, lane);
    else compute_borders(shared, fragments, constants, dx, strip, warp - MULTIPLIERS - LOADERS, lane);
}
