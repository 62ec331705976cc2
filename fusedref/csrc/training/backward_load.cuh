// backward.cu: the loading warps bring rows of dy to shared memory. They split float32 into fp16 pieces, and sum it.
#pragma once

#include "backward_tile.cuh"

// Index in dy of the first element that a step loads of a warp's first channel; it may lie before the row.
__device__ __forceinline__ long long first_element(const Walk& at, int warp) {
    return (at.image() * OUT_CHANNELS + warp * 16) * OUT_PLANE + (long long)at.row * OUT_WIDTH + at.column() - LEFT
        + FIRST_LOADED;
}

// Elements from an atom to `first`, which it holds, in the warp's channel o.
__device__ __forceinline__ int offset(long long first, int o) {
    return int(first + o * (OUT_PLANE % ATOM)) & (ATOM - 1);
}

// Starts to copy the 16 channels of this warp of a row of dy. A warp reads only what it copied.
__device__ __forceinline__ void fetch(
    Element (&raw)[16][RAW_PITCH], const Element* __restrict__ dy, const Walk& at, long long elements, int warp,
    int lane) {
    constexpr bool certain = STRIPS == 1 && OUT_CHANNELS * OUT_PLANE % ATOM == 0;  // an atom of a row lies in dy
    const long long first = first_element(at, warp);
    #pragma unroll
    for (int i = 0; i < (ATOMS + 31) / 32; i++) {
        const int atom = lane + i * 32;
        #pragma unroll
        for (int o = 0; o < 16; o++) {
            const int before = offset(first, o);
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

// A thread's share of a row of dy as it came: one pixel of each group of 32, the warp's 16 channels.
struct Share {
    Element value[LANE_GROUPS][16];
    int warp, lane;
    __device__ __forceinline__ Share(const Element (&raw)[16][RAW_PITCH], const Walk& at, int warp, int lane)
        : warp(warp), lane(lane) {
        const long long first = first_element(at, warp);
        #pragma unroll
        for (int i = 0; i < LANE_GROUPS; i++) {
            const int pixel = i * 32 + lane;
            const bool inside = (LOADED % 32 == 0 || i < LOADED / 32 || pixel < LOADED)
                && (STRIPS == 1 || unsigned(at.column() - LEFT + pixel) < OUT_WIDTH);
            #pragma unroll
            for (int o = 0; o < 16; o++) value[i][o] = inside ? raw[o][offset(first, o) + pixel] : Element(0.0f);
        }
    }
    // Writes the share to the row that the tensor cores read: split, or as it is.
    __device__ __forceinline__ void stage(unsigned char* row, float scale) const {
        #pragma unroll
        for (int i = 0; i < LANE_GROUPS; i++) {
            const int column = FIRST_LOADED + i * 32 + lane;
            if (FIRST_LOADED + LANE_GROUPS * 32 > STAGED && column >= STAGED) continue;
            #pragma unroll
            for (int octet = 0; octet < 2; octet++) {
                uint32_t hi[4], lo[4];
                #pragma unroll
                for (int k = 0; k < 4; k++) {
                    const Element v0 = value[i][octet * 8 + 2 * k], v1 = value[i][octet * 8 + 2 * k + 1];
#if ELEMENT == 0
                    split_unscaled(v0 * scale, v1 * scale, hi[k], lo[k]);
#else
                    hi[k] = *reinterpret_cast<const unsigned short*>(&v0)
                        | *reinterpret_cast<const unsigned short*>(&v1) << 16;
#endif
                }
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
    // Adds a row's share where `own`; returns its largest magnitude.
    __device__ __forceinline__ unsigned add(const Share& share, bool own) {
        unsigned largest = 0;
        float row[16];
        #pragma unroll
        for (int o = 0; o < 16; o++) {
            #pragma unroll
            for (int i = 0; i < LANE_GROUPS; i++) {
                const float value = share.value[i][o];
                largest = max(largest, magnitude_of(value));
                const bool counts =  // not another strip's
                    STRIPS == 1 || unsigned(i * 32 + share.lane - LEFT) < STRIP_COLUMNS;
                row[o] = (i == 0 ? 0.0f : row[o]) + (counts ? value : 0.0f);
            }
        }
        if (!WITH_A || !own) return largest;
        #pragma unroll
        for (int o = 0; o < 8; o++) {
            const float other = __shfl_xor_sync(~0u, share.lane < 16 ? row[8 + o] : row[o], 16);
            sum[o] += (share.lane < 16 ? row[o] : row[8 + o]) + other;
        }
        return largest;
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
        if (here.has_dy()) {
            const Share share(shared.raw[slot][warp], here, warp, lane);
            int shift = 0;
            if (!AS_IS) {
                unsigned largest = __reduce_max_sync(~0u, q.add(share, here.own()));
                if (lane == 0) shared.largest[turn][warp] = largest;
                ptx::named_barrier_sync(1, LOADING_THREADS);
                #pragma unroll
                for (int k = 0; k < LOADERS; k++) largest = max(largest, shared.largest[turn][k]);
                turn ^= 1;
                shift = shift_of(largest);
            }
            ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
            share.stage(shared.dy[s], power_of_two(shift));
            if (thread == 0) shared.shift[s] = shift;
        } else {
            ptx::mbarrier_wait(&shared.empty[s], (step / STAGES + 1) % 2);
        }
        __syncwarp();  // before the copy of the next row into this slot
        ptx::mbarrier_arrive(&shared.full[s]);
        slot = slot == RAW_ROWS - 1 ? 0 : slot + 1;
    }
    if (WITH_A && !AS_IS) q.store(parts, warp, lane);
}
