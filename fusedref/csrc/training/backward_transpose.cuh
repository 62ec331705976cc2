// backward.cu: the warpgroup that computes T = conv_transpose(a dy, W).
#pragma once

#include "backward_tile.cuh"

// A warp takes 16 columns of dy of each block of 64, and computes what they add to 16 + HALO pixels of T: its own 16, which
// begin BEFORE columns to the left, and those beyond, which it gives to the next warp. A row of T sums KERNEL_HEIGHT rows of
// dy; the warp keeps what it has of the next rows as the rows of dy come.
constexpr int BEFORE = HALO - FIRST_LOADED;
static_assert(T_BLOCKS <= 2, "the products of at most two blocks are in flight");

// Columns of dy x (column of the filter, row of the filter, input channel): d of wgmma.
struct Products { float value[KERNEL_WIDTH * KERNEL_HEIGHT * 4]; };

// Of a row of T and a block: two of the warp's own pixels x two channels, then two channels of a pixel beyond.
struct Pixels { float value[6]; };

struct Columns { uint32_t piece[PIECES][4][4]; };  // 16 columns of dy x 64 channels: a of wgmma, four steps

// Starts the products of a block's columns, which this loads.
__device__ __forceinline__ void start_products(
    Products& products, Columns& columns, const unsigned char* dy, const ptx::Columns& filters, int dy_place) {
    constexpr int half = TAPS * 8 * 16;  // bytes of half a step
    #pragma unroll
    for (int k = 0; k < 4; k++)
        #pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
            ptx::ldmatrix_x4(columns.piece[piece][k], dy + (dy_place ^ k * 32) + piece * LO);
    ptx::wgmma_fence();
    // lo * hi' and hi * lo', then hi * hi': the tensor core truncates what it adds to a large sum.
    #pragma unroll
    for (int product = PIECES == 2 ? 0 : 2; product < 3; product++)
        #pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma(
                products.value, columns.piece[product == 0 ? PIECES - 1 : 0][k],
                filters.at((product == 1 ? FILTER_BYTES : 0) + k * 2 * half, half),
                (PIECES == 2 && product > 0) || k > 0);
    ptx::wgmma_commit();
}

// Returns the sum over the columns of the filter, for its row kh: pixel p gets what column p - kw has of column kw.
__device__ __forceinline__ Pixels combine(const Products& products, int kh, int lane) {
    Pixels sum = {};
    #pragma unroll
    for (int kw = 0; kw < KERNEL_WIDTH; kw++)
        #pragma unroll
        for (int c = 0; c < 2; c++) {
            float from[2];  // of columns 0 to 7 and 8 to 15, kw lane groups up; the last wrap around
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const float value = products.value[(kw * KERNEL_HEIGHT + kh) * 4 + 2 * h + c];
                from[h] = kw == 0 ? value : __shfl_sync(~0u, value, (lane - 4 * kw) & 31);
            }
            const bool wrapped = lane < 4 * kw;
            sum.value[c] += wrapped ? 0.0f : from[0];
            sum.value[2 + c] += wrapped ? from[0] : from[1];
            sum.value[4 + c] += wrapped ? from[1] : 0.0f;
        }
    return sum;
}

// Rows of T pass through shared memory: so the copy engine, or neighbouring lanes, store runs of pixels. The warps write row
// `row` of T, counted in the padded input, to one of two buffers in turn, then store it.
struct Stores {
    int turn = 0;
    __device__ __forceinline__ void row(
        Shared& shared, Element* __restrict__ dx, const Pixels (&out)[T_BLOCKS], const Walk& at, int row, int warp,
        int lane) {
        const int in_row = row - PAD_TOP, group = lane / 4, member = lane % 4;
        if ((unsigned)in_row >= HEIGHT) return;
        const int end = STRIPS == 1 || at.column() + STRIP_COLUMNS >= OUT_WIDTH ? WIDTH : at.column() + STRIP_COLUMNS;
        const int columns = end - at.column();
        #pragma unroll
        for (int i = 0; i < T_BLOCKS; i++)
            if (group < HALO)
                *reinterpret_cast<float2*>(&shared.beyond[i * 4 + warp][group][2 * member]) =
                    make_float2(out[i].value[4], out[i].value[5]);
        const bool starts = warp == 0 && ptx::elect();
        if (BULK_STORES && starts) ptx::bulk_wait_read<0>();  // so the other buffer, which the next row takes, is free
        ptx::named_barrier_sync(2, TRANSPOSERS * 32);
        Element(&staged)[8][T_PITCH] = shared.t[turn];
        #pragma unroll
        for (int i = 0; i < T_BLOCKS; i++) {
            float2 more = {};
            if (group < HALO && i * 4 + warp > 0)
                more = *reinterpret_cast<const float2*>(&shared.beyond[i * 4 + warp - 1][group][2 * member]);
            #pragma unroll
            for (int j = 0; j < 4; j++) {
                const int column = i * 64 + warp * 16 + group + 8 * (j / 2) - BEFORE;
                const float value = out[i].value[j] + (j == 0 ? more.x : j == 1 ? more.y : 0.0f);
                if (BEFORE == 0 || column >= 0) staged[2 * member + j % 2][column] = Element(value);
            }
        }
        if (BULK_STORES) ptx::fence_async_shared();
        ptx::named_barrier_sync(2, TRANSPOSERS * 32);
        Element* to = dx + at.image() * IN_CHANNELS * IN_PLANE + (long long)in_row * WIDTH + at.column();
        if (!BULK_STORES) {
            for (int column = warp * 32 + lane; column < columns; column += TRANSPOSERS * 32)
                #pragma unroll
                for (int c = 0; c < IN_CHANNELS; c++) to[c * IN_PLANE + column] = staged[c][column];
        } else if (starts) {
            #pragma unroll
            for (int c = 0; c < IN_CHANNELS; c++)
                ptx::bulk_store(to + c * IN_PLANE, staged[c], columns * int(sizeof(Element)));
            ptx::bulk_commit();
        }
        turn ^= 1;
    }
    __device__ __forceinline__ void finish(int warp) const {
        if (BULK_STORES && warp == 0 && ptx::elect()) ptx::bulk_wait_read<0>();
    }
};

// What the filters of T are made of, see backward_filters.cuh.
struct Parameters {
    const Element* weight;  // [OUT_CHANNELS, IN_CHANNELS, KERNEL_HEIGHT, KERNEL_WIDTH]
    const float* var;
    const Vector* gamma;
    float scaling_factor, eps;
};

// Writes the filters to shared memory.
__device__ __forceinline__ void prepare_filters(Shared& shared, const Parameters& of, int thread) {
    constexpr int threads = TRANSPOSERS * 32;
    if (thread < OUT_CHANNELS) shared.slopes[thread] = slope_of(thread, of.var, of.gamma, of.scaling_factor, of.eps);
    ptx::named_barrier_sync(2, threads);
    // Neighbouring lanes find the scale of an input channel.
    constexpr int lanes = threads / 8;
    unsigned magnitude = 0;
    const int channel = thread / lanes;
    #pragma unroll 12
    for (int i = thread % lanes; i < OUT_CHANNELS * TAPS; i += lanes) {
        const int o = i / TAPS, tap = i % TAPS;
        if (channel < IN_CHANNELS) {
            const float weight = of.weight[(o * IN_CHANNELS + channel) * TAPS + tap];
            magnitude = max(magnitude, magnitude_of(float(shared.slopes[o] * weight)));
        }
    }
    magnitude = __reduce_max_sync(lanes == 32 ? ~0u : 0xffffu << (thread & 16), magnitude);
    if (thread % lanes == 0) shared.shifts[channel] = shift_of(magnitude);
    ptx::named_barrier_sync(2, threads);
    #pragma unroll 6
    for (int i = thread; i < FILTER_BYTES / 4; i += threads) {  // of two output channels
        const int c = i / 4 % 8, kh = i / 32 % KERNEL_HEIGHT, kw = i / 32 / KERNEL_HEIGHT % KERNEL_WIDTH;
        const int first = i / 32 / TAPS * 8 + i % 4 * 2;
        uint32_t hi[2], lo[2];
        #pragma unroll
        for (int k = 0; k < 2; k++) {
            const int o = first + k;
            float product = 0.0f;
            if (o < OUT_CHANNELS && c < IN_CHANNELS)
                product =
                    float(shared.slopes[o] * float(of.weight[(o * IN_CHANNELS + c) * TAPS + kh * KERNEL_WIDTH + kw]));
            const Filter filter(product * power_of_two(shared.shifts[c]));
            hi[k] = *reinterpret_cast<const unsigned short*>(&filter.hi);
            lo[k] = *reinterpret_cast<const unsigned short*>(&filter.lo);
        }
        reinterpret_cast<uint32_t*>(shared.filters[0])[i] = hi[0] | hi[1] << 16;
        if (PIECES == 2) reinterpret_cast<uint32_t*>(shared.filters[PIECES - 1])[i] = lo[0] | lo[1] << 16;
    }
    ptx::fence_async_shared();
    ptx::named_barrier_sync(2, threads);
}

__device__ __forceinline__ void transpose_rows(
    Shared& shared, const Parameters& parameters, Element* __restrict__ dx, long long batch, int warp, int lane) {
    prepare_filters(shared, parameters, warp * 32 + lane);
    const float unscales[2] = {
        power_of_two(-shared.shifts[lane % 4 * 2]), power_of_two(-shared.shifts[lane % 4 * 2 + 1])};
    const ptx::Columns filters(shared.filters);
    // This lane's row of ldmatrix: columns 0 to 7 and 8 to 15 of an octet of channels, then of the next.
    const int matrix = lane / 8;
    const int dy_place = place(FIRST_LOADED + warp * 16 + matrix % 2 * 8 + lane % 8, matrix / 2);
    Pixels rolling[ABOVE > 0 ? ABOVE : 1][T_BLOCKS] = {};  // rows of T that need more rows of dy
    Stores stores;
    Walk here(batch);
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        Pixels out[T_BLOCKS];
        if (here.has_dy()) {
            if (here.row == max(here.first - ABOVE, 0)) {
                #pragma unroll
                for (int a = 0; a < ABOVE; a++)
                    #pragma unroll
                    for (int i = 0; i < T_BLOCKS; i++) rolling[a][i] = {};
            }
            const float unscale = AS_IS ? 1.0f : power_of_two(-shared.shift[s]);
            Products products[T_BLOCKS];
            Columns columns;
            start_products(products[0], columns, shared.dy[s], filters, dy_place);
            ptx::wgmma_wait<0>();
            #pragma unroll
            for (int i = 0; i < T_BLOCKS; i++) {
                // The next block's products are computed while this block's sums are.
                if (i + 1 < T_BLOCKS)
                    start_products(products[i + 1], columns, shared.dy[s] + (i + 1) * 64 * 128, filters, dy_place);
                if (i == T_BLOCKS - 1) {
                    ptx::wgmma_wait<0>();
                    ptx::mbarrier_arrive(&shared.empty[s]);
                }
                #pragma unroll
                for (int kh = 0; kh < KERNEL_HEIGHT; kh++) {
                    const Pixels sum = combine(products[i], kh, lane);
                    #pragma unroll
                    for (int j = 0; j < 6; j++) {
                        const float scaled = sum.value[j] * unscales[j % 2];
                        float& to = kh == 0 ? out[i].value[j] : rolling[kh - 1][i].value[j];
                        to = kh < ABOVE ? fmaf(scaled, unscale, rolling[kh][i].value[j]) : scaled * unscale;
                    }
                }
            }
        } else {
            ptx::mbarrier_arrive(&shared.empty[s]);
        }
        if (here.own()) {
            stores.row(shared, dx, out, here, here.row, warp, lane);
            if (here.row == OUT_HEIGHT - 1)
                #pragma unroll
                for (int a = 0; a < ABOVE; a++) stores.row(shared, dx, rolling[a], here, OUT_HEIGHT + a, warp, lane);
        }
    }
    stores.finish(warp);
}
