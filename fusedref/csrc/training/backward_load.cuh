// backward.cu: the loading warps bring rows of dy to shared memory, split into fp16 pieces, and sum them.
#pragma once

#include "backward_tile.cuh"

// Index in dy of the first element that a step loads of channel `channel`; it may lie before the row.
__device__ __forceinline__ long long first_element(const Walk& at, int channel) {
    return (at.image() * OUT_CHANNELS + channel) * OUT_PLANE + (long long)at.row * OUT_WIDTH + at.column() - LEFT
        + FIRST_LOADED;
}

// Elements from the atom that holds the first element to that element: the same for all channels if planes are whole
// atoms.
__device__ __forceinline__ int offset(const Walk& at, int warp, int o) {
    return int(first_element(at, OUT_PLANE % ATOM == 0 ? 0 : warp * 16 + o) & (ATOM - 1));
}

// Starts to copy the 16 channels of this warp of a row of dy. A warp reads only what it copied.
__device__ __forceinline__ void fetch(
    Element (&raw)[16][RAW_PITCH], const Element* __restrict__ dy, const Walk& at, long long elements, int warp,
    int lane) {
    constexpr bool certain = STRIPS == 1 && OUT_PLANE % ATOM == 0;  // an atom of a row lies in dy
    const long long first = first_element(at, warp * 16);
    #pragma unroll
    for (int i = 0; i < (ATOMS + 31) / 32; i++) {
        const int atom = lane + i * 32;
        #pragma unroll
        for (int o = 0; o < 16; o++) {
            const int before = offset(at, warp, o);
            const long long from = first + o * OUT_PLANE - before + atom * ATOM;
            const bool real = OUT_CHANNELS == CHANNELS || warp * 16 + o < OUT_CHANNELS;
            if (!real || atom * ATOM >= LOADED + before) continue;
            if (certain) ptx::cp_async_16(&raw[o][atom * ATOM], dy + from);
            else if (from >= 0 && from < elements)
                ptx::cp_async_16_partly(
                    &raw[o][atom * ATOM], dy + from, int(min(elements - from, (long long)ATOM)) * int(sizeof(Element)));
        }
    }
}

// What a thread holds of a row of dy: one pixel of each group of 32, the warp's 16 channels.
struct Values {
    float value[LANE_GROUPS][16];
    // Twice the bits of the largest finite magnitude, plus 2^24: so infinities and NaNs wrap around to the least.
    __device__ __forceinline__ unsigned load(const Element (&raw)[16][RAW_PITCH], const Walk& at, int warp, int lane) {
        unsigned largest = 0;
        const int common = offset(at, warp, 0);
        #pragma unroll
        for (int i = 0; i < LANE_GROUPS; i++) {
            const int pixel = i * 32 + lane;
            const bool inside = (LOADED % 32 == 0 || i < LOADED / 32 || pixel < LOADED)
                && (STRIPS == 1 || unsigned(at.column() - LEFT + pixel) < OUT_WIDTH);
            #pragma unroll
            for (int o = 0; o < 16; o++) {
                const Element* from = &raw[0][lane] + (OUT_PLANE % ATOM == 0 ? common : offset(at, warp, o));
                value[i][o] = inside ? float(from[o * RAW_PITCH + i * 32]) : 0.0f;
                largest = max(largest, __float_as_uint(value[i][o]) * 2 + (1u << 24));
            }
        }
        return largest;
    }
    __device__ __forceinline__ void stage(unsigned char* row, float scale, int warp, int lane) const {
        #pragma unroll
        for (int i = 0; i < LANE_GROUPS; i++) {
            const int column = FIRST_LOADED + i * 32 + lane;
            if (FIRST_LOADED + LANE_GROUPS * 32 > STAGED && column >= STAGED) continue;
            #pragma unroll
            for (int octet = 0; octet < 2; octet++) {
                uint32_t hi[4], lo[4];
                #pragma unroll
                for (int k = 0; k < 4; k++)
                    split_unscaled(
                        value[i][octet * 8 + 2 * k] * scale, value[i][octet * 8 + 2 * k + 1] * scale, hi[k], lo[k]);
                uint4* to = reinterpret_cast<uint4*>(row + place(column, warp * 2 + octet));
                *to = make_uint4(hi[0], hi[1], hi[2], hi[3]);
                if (PIECES == 2) to[LO / 16] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
            }
        }
    }
};

// The sums of the warp's 16 channels: each half of the warp keeps 8 of them.
struct ChannelSums {
    double sum[8] = {};
    __device__ __forceinline__ void add(const Values& values, int lane) {
        float row[16];
        #pragma unroll
        for (int o = 0; o < 16; o++) {
            #pragma unroll
            for (int i = 0; i < LANE_GROUPS; i++) {
                const bool own = STRIPS == 1 || unsigned(i * 32 + lane - LEFT) < STRIP_COLUMNS;  // not another strip's
                const float value = own ? values.value[i][o] : 0.0f;
                row[o] = i == 0 ? value : row[o] + value;
            }
        }
        #pragma unroll
        for (int o = 0; o < 8; o++) {
            const float other = __shfl_xor_sync(~0u, lane < 16 ? row[8 + o] : row[o], 16);
            sum[o] += (lane < 16 ? row[o] : row[8 + o]) + other;
        }
    }
    __device__ __forceinline__ void store(float* __restrict__ parts, int warp, int lane) {
        #pragma unroll
        for (int o = 0; o < 8; o++) {
            #pragma unroll
            for (int lanes = 8; lanes > 0; lanes /= 2) sum[o] += __shfl_xor_sync(~0u, sum[o], lanes);
            const int channel = warp * 16 + lane / 16 * 8 + o, column = lane % 16;
            float* row = parts + ((long long)blockIdx.x * CHANNELS + channel) * PART_COLUMNS + COLUMNS;
            if (column < 8) row[column] = column == 0 ? float(sum[o]) : 0.0f;
        }
    }
};

__device__ __forceinline__ void load_rows(
    Shared& shared, const Element* __restrict__ dy, float* __restrict__ parts, long long batch, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const long long elements = batch * OUT_CHANNELS * OUT_PLANE;
    Walk here(batch), ahead(batch);
    #pragma unroll
    for (int i = 0; i < RAW_ROWS - 1; i++) {
        if (!ahead.done()) {
            if (ahead.has_dy()) fetch(shared.raw[i][warp], dy, ahead, elements, warp, lane);
            ahead.advance();
        }
        ptx::cp_async_commit();
    }
    ChannelSums q;
    int slot = 0, turn = 0;
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        // The warp has read what the last step left in the slot that this copy fills.
        if (!ahead.done()) {
            if (ahead.has_dy())
                fetch(shared.raw[slot == 0 ? RAW_ROWS - 1 : slot - 1][warp], dy, ahead, elements, warp, lane);
            ahead.advance();
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<RAW_ROWS - 1>();
        __syncwarp();
        Values values;
        int shift = 0;
        if (here.has_dy()) {
            unsigned largest = values.load(shared.raw[slot][warp], here, warp, lane);
            largest = __reduce_max_sync(~0u, largest);
            if (lane == 0) shared.largest[turn][warp] = largest;
            ptx::named_barrier_sync(1, LOADING_THREADS);
            #pragma unroll
            for (int k = 0; k < LOADERS; k++) largest = max(largest, shared.largest[turn][k]);
            turn ^= 1;
            shift = min(14 + 127 + 1 - int(largest >> 24), 126);
            if (WITH_A && here.own()) q.add(values, lane);
        }
        __syncwarp();
        ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
        if (here.has_dy()) values.stage(shared.dy[s], power_of_two(shift), warp, lane);
        if (thread == 0) shared.shift[s] = shift;
        ptx::mbarrier_arrive(&shared.full[s]);
        slot = slot == RAW_ROWS - 1 ? 0 : slot + 1;
    }
    if (WITH_A) q.store(parts, warp, lane);
}
