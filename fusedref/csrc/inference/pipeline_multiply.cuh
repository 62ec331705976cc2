// pipeline.cu: the multiplying warps keep the weights in registers and compute tiles of outputs from tiles of pixels.
#pragma once

#include "pipeline_product.cuh"

// Distributes the weights of the block's channels to the lanes that need them, through the output buffers. A filter has
// its even input channels first and a pitch of 2 modulo 16, which avoids bank conflicts if TAPS is odd.
struct Filters {
    static constexpr int FILTER = IN_CHANNELS * TAPS, PITCH = round_up(FILTER - 2, 16) + 2,
                         EVEN = (IN_CHANNELS + 1) / 2;
    static constexpr int ROUNDS = (FILTER + 31) / 32, SHARE = CHANNELS / CONSUMERS * ROUNDS;  // per thread
    static_assert(PITCH <= BUFFERS * RUN_PITCH, "they pass through the buffers");
    Element* place;
    __device__ __forceinline__ explicit Filters(Shared& shared) : place(shared.buffer[0]) {}

    __device__ __forceinline__ void fetch(
        Element (&mine)[SHARE], const Element* __restrict__ weight, int warp, int lane) const {
        #pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int channel = blockIdx.y * CHANNELS + warp * CHANNELS / CONSUMERS + i / ROUNDS;
            const int k = lane + i % ROUNDS * 32, slot = k / TAPS;
            const int in_channel = slot < EVEN ? 2 * slot : 2 * (slot - EVEN) + 1;
            const bool real = k < FILTER && channel < OUT_CHANNELS;
            mine[i] = real ? weight[((long long)channel * IN_CHANNELS + in_channel) * TAPS + k % TAPS] : Element(0.0f);
        }
    }
    __device__ __forceinline__ void put(const Element (&mine)[SHARE], int warp, int lane) const {
        #pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int k = lane + i % ROUNDS * 32;
            if (k < FILTER) place[(warp * CHANNELS / CONSUMERS + i / ROUNDS) * PITCH + k] = mine[i];
        }
    }
    // The weight of one of the block's channels at input channel 2 member + j.
    __device__ __forceinline__ float weight(int channel, int member, int j, int tap) const {
        return 2 * member + j < IN_CHANNELS ? float(place[channel * PITCH + (member + j * EVEN) * TAPS + tap]) : 0.0f;
    }
};

__device__ __forceinline__ void consume(Shared& shared, const Input& in, int tiles, int thread) {
    const int warp = __shfl_sync(~0u, thread / 32, 0), lane = thread % 32, group = lane / 4, member = lane % 4;
    const int warpgroup = warp / 4;
    // Issue all loads from global memory first.
    const Filters filters(shared);
    Element fetched[Filters::SHARE];
    filters.fetch(fetched, in.weight, warp, lane);
    float slope[2];
    [[maybe_unused]] float lost[2];  // relative error of rounding the slope; the weights' lo compensates it
    Affine affine;
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int channel = blockIdx.y * CHANNELS + channel_of(warp, h, group);
        const bool real = channel < OUT_CHANNELS;
        const float var = real ? float(in.var[channel]) : 1.0f, mean = real ? float(in.mean[channel]) : 0.0f;
        const float bias = real && in.bias ? float(in.bias[channel]) : 0.0f;
        const float gamma = !real ? 0.0f : in.gamma ? float(in.gamma[channel]) : 1.0f;
        const float beta = real && in.beta ? float(in.beta[channel]) : 0.0f;
        const double a = in.scaling_factor * (double)gamma / sqrt((double)var + in.eps);
        slope[h] = a;
        lost[h] = slope[h] != 0.0f ? float(a / slope[h] - 1.0) : 0.0f;
        affine.b[h] = in.scaling_factor * (double)beta + a * ((double)bias - mean);
    }
    filters.put(fetched, warp, lane);
    setup_barrier();
    Weights w;
    int w_exponent[2];
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        float raw[TAPS][2];
        Range range;
        #pragma unroll
        for (int t = 0; t < TAPS; t++)
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                raw[t][j] = filters.weight(channel_of(warp, h, group), SHARED_ROWS ? member % 2 : member, j, t);
                range.add(raw[t][j]);
            }
        #pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {  // the group's four lanes share the channel
            range.largest = max(range.largest, __shfl_xor_sync(~0u, range.largest, lanes));
            range.smallest = min(range.smallest, __shfl_xor_sync(~0u, range.smallest, lanes));
        }
        w_exponent[h] = ELEMENT ? UNSCALED : exponent_of(range);
        const float scale = ELEMENT ? 1.0f : power_of_two(range.shift());
        #pragma unroll
        for (int t = 0; t < TAPS; t++) {
            const float v0 = raw[t][0] * scale, v1 = raw[t][1] * scale;
#if PIECES == 3
            const float more = lost[h] * CROSS_SCALE;
            split_in_three(v0, v1, w.hi[t][h], w.lo[t][h], w.rest[t][h], v0 * more, v1 * more);
            const float2 lo = __half22float2(*reinterpret_cast<const __half2*>(&w.lo[t][h]));
            w.small_lo[t][h] = pair(lo.x / CROSS_SCALE, lo.y / CROSS_SCALE);
            if (SHARED_ROWS && member >= 2) {
                w.rest[t][h] = w.small_lo[t][h];
                w.lo[t][h] = w.hi[t][h];
                w.hi[t][h] = 0;
            }
#elif PIECES == 2
            const float more = (SHORTFALL + lost[h]) * CROSS_SCALE;
            split(v0, v1, w.hi[t][h], w.lo[t][h], v0 * more, v1 * more);
#else
            w.hi[t][h] = pair(v0, v1);
#endif
        }
        if (!isfinite(slope[h]) || !isfinite(affine.b[h]) || (ELEMENT == 0 && !range.splits())) {
            atomicMax(&shared.most, PLAIN);
        } else if (ELEMENT == 0 && slope[h] != 0.0f && range.largest > 0) {
            const int exponent = w_exponent[h] + ilogbf(slope[h]);
            atomicMax(&shared.most, exponent);
            atomicMin(&shared.least, exponent);
        }
    }
    ptx::named_barrier_sync(2, CONSUMERS * 32);
    const int most = shared.most, least = shared.least;

    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, step++) {
        const Tile here(tile);
        const int s = step % STAGES, buffer = step % BUFFERS;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        const int exponent = shared.exponent[s] - 2 * UNSCALED;
        if (exponent + most > 126 || exponent + least < -126) {
            __syncwarp();  // all lanes have read the exponent
            if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
            ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);
            compute_plainly(shared.buffer[buffer], in, here, warp, lane);
        } else {
            const ptx::Columns columns(shared.stage[s]);
            // Of this unit and the next: wgmma computes one during the epilogue of the other.
            Sums<UNIT> sum[UNITS_IN_FLIGHT];
            Sums<TAIL == 16 ? 16 : 8> tail;
            const bool has_tail = TAIL && step % 2 == warpgroup;  // the warpgroups take turns
            multiply(sum[0], w, columns.at(warpgroup * UNIT * 16, 0));
            Element* staged[2];
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const int channel = channel_of(warp, h, group), e = exponent + w_exponent[h];
                staged[h] =
                    shared.buffer[buffer] + channel * RUN_PITCH + shift(here, channel, blockIdx.y * CHANNELS + channel);
                affine.a[h] = slope[h] * power_of_two(e / 2) * power_of_two(e - e / 2);  // 2^e may overflow
            }
            ptx::mbarrier_wait(&shared.stored[buffer], (step / BUFFERS + 1) % 2);
            #pragma unroll
            for (int unit = 0; unit < UNITS_PER_WARPGROUP; unit++) {
                if (UNITS_IN_FLIGHT == 2 && unit + 1 < UNITS_PER_WARPGROUP) {
                    multiply(
                        sum[(unit + 1) % UNITS_IN_FLIGHT], w, columns.at((warpgroup + 2 * unit + 2) * UNIT * 16, 0));
                    ptx::wgmma_wait<1>();
                } else {
                    if (UNITS_IN_FLIGHT == 1 && unit > 0)
                        multiply(sum[0], w, columns.at((warpgroup + 2 * unit) * UNIT * 16, 0));
                    if (unit + 1 == UNITS_PER_WARPGROUP && has_tail) multiply(tail, w, columns.at(BODY * 16, 0));
                    ptx::wgmma_wait<0>();
                    if (unit + 1 == UNITS_PER_WARPGROUP && lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);
                }
                finish(sum[unit % UNITS_IN_FLIGHT], affine, staged, (warpgroup + 2 * unit) * UNIT, member);
            }
            if (has_tail) finish(tail, affine, staged, BODY, member);
        }
        ptx::fence_async_shared();
        __syncwarp();
        if (ARRIVING_LANES == 32 || lane == 0) ptx::mbarrier_arrive(&shared.staged[buffer]);
    }
}
