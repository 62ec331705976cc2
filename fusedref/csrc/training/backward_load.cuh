// backward.cu: the loading warps bring rows of dy and x to shared memory, split into fp16 pieces, and sum dy.
#pragma once

#include "backward_tile.cuh"

// Copies CHUNK elements from global to shared memory, or writes zeros.
__device__ __forceinline__ void copy_chunk(Element* to, const Element* from, bool real) {
    if constexpr (CHUNK_BYTES == 16) ptx::cp_async_16(to, from, real);
    else if constexpr (CHUNK_BYTES == 8) ptx::cp_async_8(to, from, real);
    else if constexpr (CHUNK_BYTES == 4) ptx::cp_async_4(to, from, real);
    else *to = real ? *from : Element(0.0f);
}

// Starts to copy the 16 channels of this warp of a row of dy. A warp reads only what it copied.
__device__ __forceinline__ void fetch(
    Element (&raw)[16][RAW_PITCH], const Element* __restrict__ dy, const Walk& at, int warp, int lane) {
    constexpr int chunks = LOADED / CHUNK, rounds = (chunks + 31) / 32;
    const int start = at.column() - HALO + FIRST_LOADED;  // column of dy
    const Element* row =
        dy + (at.image() * OUT_CHANNELS + warp * 16) * OUT_PLANE + (long long)at.row * OUT_WIDTH + start;
    #pragma unroll
    for (int i = 0; i < rounds; i++) {
        const int chunk = lane + i * 32;
        const bool inside = STRIPS == 1 || unsigned(start + chunk * CHUNK) < OUT_WIDTH;
        if (chunks % 32 == 0 || chunk < chunks) {
            #pragma unroll
            for (int o = 0; o < 16; o++) {
                const bool real = inside && (OUT_CHANNELS == CHANNELS || warp * 16 + o < OUT_CHANNELS);
                const Element* from = row + o * OUT_PLANE + chunk * CHUNK;
                copy_chunk(&raw[o][chunk * CHUNK], real ? from : dy, real);
            }
        }
    }
}

// One pixel of x: the row that a step stages, in the column of this thread.
struct Pixel {
#if ELEMENT == 0
    float value[IN_CHANNELS];
#else
    unsigned short value[IN_CHANNELS];
#endif
    bool inside;
    __device__ __forceinline__ void load(const Element* __restrict__ x, const Walk& at, int thread) {
        const int row = at.row + ABOVE - PAD_TOP, column = at.column() + thread - PAD_LEFT;
        inside = (unsigned)row < HEIGHT && (unsigned)column < WIDTH;
        const Element* from = x + at.image() * IN_CHANNELS * IN_PLANE + (long long)row * WIDTH + column;
        #pragma unroll
        for (int c = 0; c < IN_CHANNELS; c++) {
#if ELEMENT == 0
            value[c] = inside ? __ldg(from + c * IN_PLANE) : 0.0f;
#else
            value[c] = inside ? __ldg(reinterpret_cast<const unsigned short*>(from) + c * IN_PLANE) : (unsigned short)0;
#endif
        }
    }
    __device__ __forceinline__ float at(int c) const {
#if ELEMENT == 0
        return value[c];
#elif ELEMENT == 1
        return __half2float(__ushort_as_half(value[c]));
#else
        return __uint_as_float((unsigned)value[c] << 16);
#endif
    }
    // Writes (x - pivot) * scale.
    __device__ __forceinline__ void stage(unsigned char* row, const Shared& shared, int thread) const {
        if (X_COLUMNS < LOADING_THREADS && thread >= X_COLUMNS) return;
        uint32_t hi[4], lo[4];
        #pragma unroll
        for (int c = 0; c < 8; c += 2) {
            float v[2];
            #pragma unroll
            for (int e = 0; e < 2; e++)
                v[e] = c + e < IN_CHANNELS
                    ? (at(min(c + e, IN_CHANNELS - 1)) - shared.pivot[c + e]) * shared.scale[c + e]
                    : 0.0f;
            split_unscaled(v[0], v[1], hi[c / 2], lo[c / 2], SHORTFALL);
        }
        uint4* to = reinterpret_cast<uint4*>(row + thread * 16);
        *to = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        if (PIECES == 2) to[X_LO / 16] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
    }
};

// What a thread holds of a row of dy: one pixel of each group of 32, the warp's 16 channels.
struct Values {
    float value[LANE_GROUPS][16];
    // Twice the bits of the largest finite magnitude, plus 2^24: so infinities and NaNs wrap around to the least.
    __device__ __forceinline__ unsigned load(const Element (&raw)[16][RAW_PITCH], int lane) {
        unsigned largest = 0;
        #pragma unroll
        for (int i = 0; i < LANE_GROUPS; i++)
            #pragma unroll
            for (int o = 0; o < 16; o++) {
                value[i][o] = float(raw[o][i * 32 + lane]);
                largest = max(largest, __float_as_uint(value[i][o]) * 2 + (1u << 24));
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
            row[o] = STRIPS == 1 || lane >= HALO ? values.value[0][o] : 0.0f;  // the halo is another strip's
            #pragma unroll
            for (int i = 1; i < LANE_GROUPS; i++) row[o] += values.value[i][o];
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
    Shared& shared, const Element* __restrict__ dy, const Element* __restrict__ x, float* __restrict__ parts,
    long long batch, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    Walk here(batch), ahead(batch), next(batch);
    #pragma unroll
    for (int i = 0; i < RAW_ROWS - 1; i++) {
        if (!ahead.done()) {
            if (ahead.has_dy()) fetch(shared.raw[i][warp], dy, ahead, warp, lane);
            ahead.advance();
        }
        ptx::cp_async_commit();
    }
    Pixel pixel;
    if (WITH_A) pixel.load(x, next, thread);
    ChannelSums q;
    int slot = 0, x_slot = 0, turn = 0;
    for (int step = 0; !here.done(); step++, here.advance()) {
        const int s = step % STAGES;
        // The warp has read what the last step left in the slot that this copy fills.
        if (!ahead.done()) {
            if (ahead.has_dy()) fetch(shared.raw[slot == 0 ? RAW_ROWS - 1 : slot - 1][warp], dy, ahead, warp, lane);
            ahead.advance();
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<RAW_ROWS - 1>();
        __syncwarp();
        Values values;
        int shift = 0;
        if (here.has_dy()) {
            unsigned largest = values.load(shared.raw[slot][warp], lane);
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
        if (WITH_A) {
            pixel.stage(shared.x[x_slot], shared, thread);
            next.advance();
            if (!next.done()) pixel.load(x, next, thread);
        }
        if (here.has_dy()) values.stage(shared.dy[s], power_of_two(shift), warp, lane);
        if (thread == 0) shared.shift[s] = shift;
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.full[s]);
        slot = slot == RAW_ROWS - 1 ? 0 : slot + 1;
        x_slot = x_slot == X_ROWS - 1 ? 0 : x_slot + 1;
    }
    if (WITH_A) q.store(parts, warp, lane);
}
