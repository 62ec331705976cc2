// The second term of the gradient of x = T - conv_transpose(offset + slope (W * x'), W), in place on T:
//   dx[c, pixel] = T[c, pixel] - constant[c] - sum over c', dh, dw of composite[c, c', dh, dw] x'[c', pixel + (dh, dw)]
// where x' = x - pivot, with zeros - pivot around x. Composites and constants are those of the taps that connect the pixel
// with outputs (input_gradient_borders.cuh, input_gradient_composites.cu).
//
// The sums are products on the tensor cores. mma: M = 8 channels c of two rows of pixels, one below the other; N = 8 pixels
// of these rows; K = two positions of the window by 8 channels c'. Shared memory has a row of 16 bytes per pixel of x', which
// is scaled by powers of two and split: x' scale = hi + lo, two numbers of fp16. Then ldmatrix reads a position of the window
// by an address offset. A product is lo hi' + hi lo' + hi hi' (with PIECES 1: hi hi'). The sums of a column of the
// window start from zero and are added in float32, since the tensor core truncates where an addition rounds.
//
// A block walks down a strip of rows, a chunk of rows at a time: it loads the next chunk of x and this chunk's T into
// registers, computes, and then stages the next chunk. A warp computes 16 columns of four rows, whose windows overlap.
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
//   BLOCKS                    resident blocks per multiprocessor that registers must allow
//   SHARED_BYTES              dynamic shared memory
//
// Launch: block (256), grid (batch * strips across an image, strips down an image).
#include "input_gradient_products.cuh"

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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) input_gradient(
    const Element* __restrict__ x,        // [batch, IN_CHANNELS, HEIGHT, WIDTH]
    const double* __restrict__ moments,   // p, M, pivot [8], scale [8]
    const uint4* __restrict__ fragments,  // from input_gradient_composites.cu
    const float* __restrict__ constants,  // from there, too
    Element* __restrict__ dx)             // [batch, IN_CHANNELS, HEIGHT, WIDTH]: T on entry
{
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const Strip strip;
    if (strip.rows <= 0) return;
    const Element* image = x + strip.image * IN_CHANNELS * PLANE;
    const int above = strip.row - (KERNEL_HEIGHT - 1);  // the ring's first row

    Pixel pixels[SHARE];
    {
        Pixel first[AHEAD][SHARE];  // all loads are in flight before the first is waited for
        #pragma unroll
        for (int chunk = 0; chunk < AHEAD; chunk++)
            load_chunk(first[chunk], image, above + chunk * CHUNK_ROWS, strip.column, thread);
        ptx::in_order();
        if (thread < 8) {
            const float scale = float(moments[SCALES + thread]);
            shared.scale[thread] = make_float2(scale, -float(moments[SCALES - 8 + thread]) * scale);  // exact
        }
        if (PairKinds::INNER < PairKinds::COUNT) {
            const int border = PairKinds::INNER * ColumnKinds::COUNT + INNER_COLUMNS;
            for (int k = thread; k < STEPS * PIECES * 32; k += THREADS) {
                const int step = k / (PIECES * 32);
                (&shared.composites[0][0][0])[k] = fragments[(border * STEPS + step) * 64 + k % (PIECES * 32)];
            }
        }
        __syncthreads();
        #pragma unroll
        for (int chunk = 0; chunk < AHEAD; chunk++)
            stage_chunk(shared, first[chunk], chunk * CHUNK_ROWS, chunk * CHUNK_ROWS, strip, thread);
    }
    if (ACROSS == 1 && REACH)  // the columns beside x
        for (int k = thread; k < EDGE_ROWS * 2 * REACH; k += THREADS) {
            const int row = k / (2 * REACH), place = k % (2 * REACH);
            Pixel{}.stage(shared, row % RING_ROWS, row, strip, place < REACH ? place - REACH : place - REACH + WIDTH);
        }
    __syncthreads();

    const Unit unit(warp, lane);
    const bool near_border = strip.column + unit.first < LEFT || strip.column + unit.first + 3 >= WIDTH - RIGHT;
    int edge_row = 0,
        edges_done = 0;  // where the next group of edge pixels begins; how many rows of edges are computed
    int staged_edge_row = AHEAD * CHUNK_ROWS;
    Element* image_dx = dx + strip.image * IN_CHANNELS * PLANE;
    for (int done = 0, ring_row = 0; done < strip.rows; done += CHUNK_ROWS) {
        const bool more = done + CHUNK_ROWS < strip.rows;
        const int row = strip.row + done + unit.row, pair = row / 2;
        const bool busy = warp < CHUNK_ROWS / 4 * UNITS && row < HEIGHT;
        Element* to = dx + (strip.image * IN_CHANNELS + unit.c) * PLANE + row * WIDTH + strip.column + unit.first;
        const auto inside = [&](int down) {  // how many of the thread's four pixels in this row
            const bool valid = busy && unit.c < IN_CHANNELS && row + down < HEIGHT && unit.first < TILE_COLUMNS;
            return valid ? WIDTH - (strip.column + unit.first) : 0;
        };
        Four t[4];
        #pragma unroll
        for (int down = 0; down < 4; down++) t[down].load(to + down * WIDTH, inside(down));
        if (more) load_chunk(pixels, image, above + done + AHEAD * CHUNK_ROWS, strip.column, thread);
        if (BORDERS && done - edges_done == GROUP_ROWS) {
            compute_edges(
                shared, fragments, constants, image_dx, strip.column, strip.row + edges_done, HEIGHT, edge_row, warp,
                lane);
            edges_done = done;
            edge_row = edge_row + GROUP_ROWS < EDGE_ROWS ? edge_row + GROUP_ROWS : edge_row + GROUP_ROWS - EDGE_ROWS;
        }
        ptx::in_order();
        if (busy) {
            const uint4* from[KERNEL_HEIGHT + 1];
            #pragma unroll
            for (int rows = 0; rows <= KERNEL_HEIGHT; rows++) {
                const int its = ring_row + unit.row + 2 * rows;
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
        if (!more) break;
        const int oldest = ring_row + AHEAD * CHUNK_ROWS;
        stage_chunk(shared, pixels, oldest < RING_ROWS ? oldest : oldest - RING_ROWS, staged_edge_row, strip, thread);
        staged_edge_row = staged_edge_row + CHUNK_ROWS < EDGE_ROWS ? staged_edge_row + CHUNK_ROWS : 0;
        ring_row = ring_row + CHUNK_ROWS < RING_ROWS ? ring_row + CHUNK_ROWS : 0;
        __syncthreads();
    }
    if (BORDERS) {
        __syncthreads();  // all have read T
        compute_edges(
            shared, fragments, constants, image_dx, strip.column, strip.row + edges_done, strip.rows - edges_done,
            edge_row, warp, lane);
    }
}
