// moments.cu: the warps that sum over the interior of the images.
//
// A unit is GROUP rows by UNIT_PAIRS pairs of columns. In shared memory it lies with the KERNEL_HEIGHT - 1 rows below and the
// columns that windows have to its sides. A warp walks along a quarter of the pairs with a window in registers.
#pragma once

#include "moments_products.cuh"

// Whether a group can stand on rows that are not of the interior; whether windows can reach below x.
constexpr bool RAGGED_ROWS = INNER_ROWS % GROUP != 0;
constexpr bool OPEN_ROWS = RAGGED_ROWS || BOTTOM < KERNEL_HEIGHT - 1;

struct Unit {
    long long image;
    int row, column;  // of its first pixel
    __device__ __forceinline__ explicit Unit(int unit)
        : image(unit / UNITS_PER_IMAGE),
          row(TOP + unit % UNITS_PER_IMAGE / UNITS_ACROSS * GROUP),
          column(LEFT + unit % UNITS_PER_IMAGE % UNITS_ACROSS * 2 * UNIT_PAIRS) {}
    // Its pairs of columns, and the columns in shared memory.
    __device__ __forceinline__ int pairs() const { return min(UNIT_PAIRS, (WIDTH - RIGHT - column) / 2); }
    __device__ __forceinline__ int first() const { return max(column - MARGIN, 0); }
    __device__ __forceinline__ int end() const { return min(column + 2 * pairs() + MARGIN, WIDTH); }
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

// A sum of float32 numbers with its rounding errors. A DADD for each number would hold up the tensor cores.
struct ExactSum {
    float sum = 0.0f, error = 0.0f;
    __device__ __forceinline__ void add(float value) {
        const float next = sum + value, part = next - sum;
        error += (sum - (next - part)) + (value - part);
        sum = next;
    }
};

// Adds the pixels of `pairs` pairs of columns, along which a warp walks with a window in registers.
// value(down, pair): the lane's numbers in a pair, `down` rows below its row of pixels; zero where there are none.
// rounds: how many times three steps have no branch between them.
template <int rounds, class Value>
__device__ __forceinline__ void add_pairs(Shared& shared, Sums& sums, int pairs, Value value) {
    if (pairs == 0) return;
    Window window = {};
    ExactSum pixels;
    float2 next[KERNEL_HEIGHT];  // the pair to come, loaded a step ahead
    const auto load = [&](int pair) {
        const bool wanted = MARGIN > 0 ? pair <= pairs : pair >= 0 && pair < pairs;
        #pragma unroll
        for (int down = 0; down < KERNEL_HEIGHT; down++)
            next[down] = wanted ? value(down, pair) : make_float2(0.0f, 0.0f);
    };
    const auto take = [&](int slot, bool own) {
        #pragma unroll
        for (int down = 0; down < KERNEL_HEIGHT; down++) {
            window[down][slot][0] = double(next[down].x);
            window[down][slot][1] = double(next[down].y);
        }
        pixels.add(own ? next[0].x : 0.0f);
        pixels.add(own ? next[0].y : 0.0f);
    };
    load(-1);
    take(0, false);
    load(0);
    take(1, true);
    load(1);
    int pair = 0;
    // Without a branch between them, the loads and conversions of a step run beside the products of the one before.
    #pragma unroll rounds
    for (; pair + 3 <= pairs; pair += 3) {
        take(2, true);
        load(pair + 2);
        add_products<0>(sums, window);
        take(0, true);
        load(pair + 3);
        add_products<1>(sums, window);
        take(1, pair + 3 < pairs);
        load(pair + 4);
        add_products<2>(sums, window);
    }
    if (pair < pairs) {
        take(2, pair + 1 < pairs);
        load(pair + 2);
        add_products<0>(sums, window);
    }
    if (pair + 1 < pairs) {
        take(0, false);
        add_products<1>(sums, window);
    }
    double sum = double(pixels.sum) + double(pixels.error);
    if (!isfinite(pixels.sum)) {  // an infinity, a NaN, or a sum beyond float32
        sum = 0.0;
        #pragma unroll 1
        for (pair = 0; pair < pairs; pair++) sum += double(value(0, pair).x) + double(value(0, pair).y);
    }
    shared.pixels[0][threadIdx.x] += sum;
}

// Adds a quarter of a unit. paired: see has_pairs.
template <bool paired>
__device__ __forceinline__ void add_quarter(
    Shared& shared, Sums& sums, const unsigned char* stage, const Element* x, const Unit& unit, int quarter, int lane) {
    const int begin = unit.pairs() * quarter / 4, end = unit.pairs() * (quarter + 1) / 4;
    const int channel = lane / 4, held = min(channel, IN_CHANNELS - 1), first = unit.column + 2 * begin;
    const Element* from[KERNEL_HEIGHT];  // the lane's number in column `first`, in its row of pixels and in those below
    bool there[KERNEL_HEIGHT];
    #pragma unroll
    for (int down = 0; down < KERNEL_HEIGHT; down++) {
        const int row = lane % 4 + down;
        from[down] = reinterpret_cast<const Element*>(stage + held * CHANNEL_BYTES + row * ROW_BYTES)
            + shift(unit.start(x, held, row)) + first - unit.first();
        there[down] = (IN_CHANNELS == 8 || channel < IN_CHANNELS)
            && (!OPEN_ROWS || unit.row + row < (down == 0 ? HEIGHT - BOTTOM : HEIGHT));
    }
    add_pairs<paired ? 5 : 1>(shared, sums, end - begin, [&](int down, int pair) {
        const int column = first + 2 * pair;
        const Element* two = from[down] + 2 * pair;
        const bool left = there[down] && (!OPEN_COLUMNS || (unsigned)column < WIDTH);
        const bool right = there[down] && (!OPEN_COLUMNS || (unsigned)(column + 1) < WIDTH);
        if (paired) return left ? both(two) : make_float2(0.0f, 0.0f);
        return make_float2(left ? float(two[0]) : 0.0f, right ? float(two[1]) : 0.0f);
    });
}

// Sums the block's share of the units and writes the part.
__device__ __forceinline__ void sum_interior(
    Shared& shared, const Element* x, double* part, long long batch, int warp, int lane) {
    const long long units = batch * UNITS_PER_IMAGE;
    const int first = int(units * blockIdx.x / gridDim.x);
    const int count = int(units * (blockIdx.x + 1) / gridDim.x) - first;
    const Element* x_end = x + batch * IN_CHANNELS * HEIGHT * WIDTH;
    const bool paired = has_pairs(x);
    Sums sums = {};
    shared.pixels[0][threadIdx.x] = shared.pixels[1][threadIdx.x] = 0.0;
    if constexpr (UNITS_PER_IMAGE > 0) {
        const auto load = [&](int i) {
            load_unit(
                shared.stage + i % STAGES * STAGE_BYTES, &shared.full[i % STAGES], x, x_end, Unit(first + i), lane);
        };
        for (int i = warp; i < min(STAGES, count); i += INTERIOR_WARPS) load(i);
        // Four warps, one on each tensor core, share a unit; the other four have the next one.
        for (int i = warp / 4; i < count; i += 2) {
            ptx::mbarrier_wait(&shared.full[i % STAGES], i / STAGES % 2);
            const unsigned char* stage = shared.stage + i % STAGES * STAGE_BYTES;
            if (EVEN && paired) add_quarter<EVEN>(shared, sums, stage, x, Unit(first + i), (warp + i / 2) % 4, lane);
            else add_quarter<false>(shared, sums, stage, x, Unit(first + i), (warp + i / 2) % 4, lane);
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(&shared.empty[i % STAGES]);
            // One of them refills the stage of their last unit, which the other three have left, or soon will.
            const int done = i - 2;
            if (done >= 0 && done + STAGES < count && warp % 4 == i / 2 % 4) {
                ptx::mbarrier_wait(&shared.empty[done % STAGES], done / STAGES % 2);
                load(done + STAGES);
            }
        }
    }
    ptx::named_barrier_sync(1, INTERIOR_WARPS * 32);
    put_sums(shared, shared.interior[warp], sums, -1, lane);
    ptx::named_barrier_sync(1, INTERIOR_WARPS * 32);
    for (int i = warp * 32 + lane; i < SUMS; i += INTERIOR_WARPS * 32) {
        double sum = 0.0;
        #pragma unroll
        for (int k = 0; k < INTERIOR_WARPS; k++) sum += shared.interior[k][i];
        part[i] = sum;
    }
}
