// moments.cu: the warps that sum over the interior of the images.
//
// A unit is GROUP rows by 4 STRIDE columns. In shared memory it lies with the KERNEL_HEIGHT - 1 rows below and the REACH
// columns to both sides. A fragment is 8 channels (lane / 4) by 4 pixels, STRIDE columns apart (lane % 4), of one row. A warp
// walks a quarter of STRIDE to the right, one column a step, with a window of fragments in registers.
#pragma once

#include "moments_tile.cuh"

// An odd number of lags would leave half a product empty. So lag (1, 0) is not taken from every row: the second and fourth
// row of a group take it together with lag (-1, 0), which is that of the row above.
constexpr bool SPLIT = LAGS % 2 == 1 && KERNEL_HEIGHT > 1;
constexpr int SINGLE = 2 * KERNEL_WIDTH - 1;  // the lag (1, 0)
constexpr int PAIRS = (LAGS - SPLIT + 1) / 2;
__host__ __device__ constexpr int paired(int i) { return SPLIT && i >= SINGLE ? i + 1 : i; }
using InteriorSums = Sums<PAIRS + SPLIT>;

// Whether lanes can stand on columns, or a group on rows, that are not of the interior; whether partners can be outside x.
constexpr bool RAGGED_COLUMNS = 4 * STRIDE * UNITS_ACROSS != INNER_COLUMNS;
constexpr bool RAGGED_ROWS = INNER_ROWS % GROUP != 0;
constexpr bool OPEN_COLUMNS = RAGGED_COLUMNS || LEFT < REACH || RIGHT < REACH;
constexpr bool OPEN_ROWS = RAGGED_ROWS || BOTTOM < KERNEL_HEIGHT - 1;

struct Unit {
    long long image;
    int row, column;  // of its first pixel
    __device__ __forceinline__ explicit Unit(int unit)
        : image(unit / UNITS_PER_IMAGE),
          row(TOP + unit % UNITS_PER_IMAGE / UNITS_ACROSS * GROUP),
          column(LEFT + unit % UNITS_PER_IMAGE % UNITS_ACROSS * 4 * STRIDE) {}
    // The columns in shared memory.
    __device__ __forceinline__ int first() const { return max(column - REACH, 0); }
    __device__ __forceinline__ int end() const { return min(column + 4 * STRIDE + REACH, WIDTH); }
    __device__ __forceinline__ const Element* start(const Element* x, int channel, int window_row) const {
        return x + ((image * IN_CHANNELS + channel) * HEIGHT + row + window_row) * WIDTH + first();
    }
};

// Elements from the last multiple of 16 bytes to `start`.
__device__ __forceinline__ int shift(const Element* start) {
    return int(reinterpret_cast<uintptr_t>(start) % 16 / sizeof(Element));
}

// Starts the copies of a unit: for each row, whole 16 bytes around it. The last bytes of x are copied one by one.
__device__ __forceinline__ void load_unit(
    unsigned char* stage, uint64_t* full, const Element* x, const Element* x_end, const Unit& unit, int lane) {
    constexpr int ROWS = IN_CHANNELS * WINDOW_ROWS, ATOM = 16 / sizeof(Element);
    uint32_t bytes[(ROWS + 31) / 32] = {}, total = 0;
    #pragma unroll
    for (int i = 0; i < (ROWS + 31) / 32; i++) {
        const int channel = (lane + i * 32) / WINDOW_ROWS, row = (lane + i * 32) % WINDOW_ROWS;
        if (lane + i * 32 >= ROWS || unit.row + row >= HEIGHT) continue;
        const Element* start = unit.start(x, channel, row);
        const int before = shift(start), count = before + unit.end() - unit.first();
        const bool last = start - before + round_up(count, ATOM) > x_end;
        const int copied = last ? count / ATOM * ATOM : round_up(count, ATOM);
        bytes[i] = copied * sizeof(Element);
        total += bytes[i];
        Element* to = reinterpret_cast<Element*>(stage + channel * CHANNEL_BYTES + row * ROW_BYTES);
        for (int k = copied; k < count; k++) to[k] = start[k - before];
    }
    ptx::mbarrier_arrive_expect_tx(full, total);
    #pragma unroll
    for (int i = 0; i < (ROWS + 31) / 32; i++) {
        const int channel = (lane + i * 32) / WINDOW_ROWS, row = (lane + i * 32) % WINDOW_ROWS;
        if (bytes[i] == 0) continue;
        const Element* start = unit.start(x, channel, row);
        ptx::bulk_load(stage + channel * CHANNEL_BYTES + row * ROW_BYTES, start - shift(start), bytes[i], full);
    }
}

// Adds the products of the pixels in the middle of the window. rows: how many of the GROUP rows are of the interior.
__device__ __forceinline__ void add_step(
    InteriorSums& sums, const double (&window)[WINDOW_ROWS][WINDOW_COLUMNS], bool inside, int rows) {
    double pixel[GROUP];
    #pragma unroll
    for (int row = 0; row < GROUP; row++) {
        const double middle = window[row][REACH];
        pixel[row] = (RAGGED_COLUMNS && !inside) || (RAGGED_ROWS && row >= rows) ? 0.0 : middle;
        sums.pixels += pixel[row];
    }
    #pragma unroll
    for (int row = 0; row < 2; row++)  // and row + 2, the second half of k
        #pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int a = paired(2 * i), b = paired(2 * i + 1);
            const bool both = 2 * i + 1 < LAGS - SPLIT;
            ptx::mma_m16n8k8_f64(
                sums.products[i], window[row + down(a)][REACH + right(a)],
                both ? window[row + down(b)][REACH + right(b)] : 0.0, window[row + 2 + down(a)][REACH + right(a)],
                both ? window[row + 2 + down(b)][REACH + right(b)] : 0.0, pixel[row], pixel[row + 2], sums.products[i]);
        }
    if constexpr (SPLIT) {
        double other[GROUP];  // (1, 0) from the second row, (-1, 0) from it, and the same of the fourth
        #pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const int row = i / 2 * 2 + 1 - i % 2;  // the upper row of the two
            other[i] = RAGGED_ROWS && row >= rows ? 0.0 : window[i % 2 ? row : row + 1][REACH];
        }
        const double second = RAGGED_COLUMNS && !inside ? 0.0 : window[1][REACH];
        const double fourth = RAGGED_COLUMNS && !inside ? 0.0 : window[3][REACH];
        ptx::mma_m16n8k8_f64(
            sums.products[PAIRS], other[0], other[1], other[2], other[3], second, fourth, sums.products[PAIRS]);
    }
}

// Adds a quarter of a unit.
__device__ __forceinline__ void add_quarter(
    InteriorSums& sums, const unsigned char* stage, const Element* x, const Unit& unit, int quarter, int lane) {
    const int begin = STRIDE * quarter / 4, steps = STRIDE * (quarter + 1) / 4 - begin;
    const int channel = lane / 4, held = min(channel, IN_CHANNELS - 1);
    const int column = unit.column + lane % 4 * STRIDE + begin;
    const Element* from[WINDOW_ROWS];
    #pragma unroll
    for (int row = 0; row < WINDOW_ROWS; row++) {
        const Element* start = unit.start(x, held, row);
        from[row] = reinterpret_cast<const Element*>(stage + held * CHANNEL_BYTES + row * ROW_BYTES) + shift(start)
            + column - unit.first();
    }
    double window[WINDOW_ROWS][WINDOW_COLUMNS];
    const auto fetch = [&](int row, int place, int offset) {
        const bool there = (IN_CHANNELS == 8 || channel < IN_CHANNELS) && (!OPEN_ROWS || unit.row + row < HEIGHT)
            && (!OPEN_COLUMNS || (unsigned)(column + offset) < WIDTH);
        window[row][place] = there ? number(from[row][offset]) : 0.0;
    };
    #pragma unroll
    for (int i = 0; i < WINDOW_COLUMNS - 1; i++)
        #pragma unroll
        for (int row = 0; row < WINDOW_ROWS; row++) fetch(row, i, i - REACH);
    #pragma unroll 1
    for (int step = 0; step < steps; step++) {
        #pragma unroll
        for (int row = 0; row < WINDOW_ROWS; row++) fetch(row, WINDOW_COLUMNS - 1, step + REACH);
        add_step(sums, window, column + step < WIDTH - RIGHT, HEIGHT - BOTTOM - unit.row);
        #pragma unroll
        for (int row = 0; row < WINDOW_ROWS; row++)
            #pragma unroll
            for (int i = 0; i < WINDOW_COLUMNS - 1; i++) window[row][i] = window[row][i + 1];
    }
}

// Sums the block's share of the units and writes the part.
__device__ __forceinline__ void sum_interior(
    Shared& shared, const Element* x, double* part, long long batch, int warp, int lane) {
    const long long units = batch * UNITS_PER_IMAGE;
    const int first = int(units * blockIdx.x / gridDim.x);
    const int count = int(units * (blockIdx.x + 1) / gridDim.x) - first;
    const Element* x_end = x + batch * IN_CHANNELS * HEIGHT * WIDTH;
    InteriorSums sums = {};
    if constexpr (UNITS_PER_IMAGE > 0) {
        const auto load = [&](int i) {
            load_unit(
                shared.stage + i % STAGES * STAGE_BYTES, &shared.full[i % STAGES], x, x_end, Unit(first + i), lane);
        };
        for (int i = warp; i < min(STAGES, count); i += INTERIOR_WARPS) load(i);
        // Four warps, one on each tensor core, share a unit; the other four have the next one.
        for (int i = warp / 4; i < count; i += 2) {
            ptx::mbarrier_wait(&shared.full[i % STAGES], i / STAGES % 2);
            add_quarter(sums, shared.stage + i % STAGES * STAGE_BYTES, x, Unit(first + i), (warp + i / 2) % 4, lane);
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(&shared.empty[i % STAGES]);
            // One of them refills the stage of their last unit, which the other three have left by now, or nearly.
            const int done = i - 2;
            if (done >= 0 && done + STAGES < count && warp % 4 == i / 2 % 4) {
                ptx::mbarrier_wait(&shared.empty[done % STAGES], done / STAGES % 2);
                load(done + STAGES);
            }
        }
    }
    ptx::named_barrier_sync(1, INTERIOR_WARPS * 32);
    double* region = shared.interior[warp];
    #pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        put(region + paired(2 * i) * 64, sums.products[i][0], sums.products[i][1], lane);
        if (2 * i + 1 < LAGS - SPLIT)
            put(region + paired(2 * i + 1) * 64, sums.products[i][2], sums.products[i][3], lane);
    }
    if constexpr (SPLIT) {
        put(region + SINGLE * 64, sums.products[PAIRS][0], sums.products[PAIRS][1], lane);
        put(region + SUMS, sums.products[PAIRS][2], sums.products[PAIRS][3], lane);
    }
    put_pixels(region, sums.pixels, lane);
    ptx::named_barrier_sync(1, INTERIOR_WARPS * 32);
    for (int i = warp * 32 + lane; i < SUMS; i += INTERIOR_WARPS * 32) {
        double sum = 0.0;
        #pragma unroll
        for (int k = 0; k < INTERIOR_WARPS; k++) {
            sum += shared.interior[k][i];
            if (SPLIT && i / 64 == SINGLE) sum += shared.interior[k][SUMS + i % 8 * 8 + i / 8 % 8];
        }
        part[i] = sum;
    }
}
