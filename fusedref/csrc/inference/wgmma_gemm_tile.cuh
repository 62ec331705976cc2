// wgmma_gemm.cu: its threads, shared memory and rings of stages.
#pragma once

#include "ptx.cuh"
#include "wgmma_gemm_rows.cuh"

constexpr int WARPGROUPS = DOWN * ACROSS, CONSUMERS = 4 * WARPGROUPS;  // warps that multiply
// Of the warpgroups after them, one loads and one converts (with DIRECT). They leave registers to those that multiply.
constexpr int THREADS = 128 * (WARPGROUPS + 1 + DIRECT);
constexpr int LOADING_REGISTERS = 24, CONVERTING_REGISTERS = 56, MULTIPLYING_REGISTERS = DIRECT ? 216 : 240;
static_assert(WARPGROUPS == 2, "the registers of a multiprocessor are shared out for two");

using Raw = Element[RUNS * CHUNK][RUN];  // x of a tile and chunk, not yet converted

struct Shared {
#if DIRECT
    alignas(16) Raw raw[RAW_STAGES];
#endif
    alignas(16) unsigned char x[X_STAGES][X_STAGE];
    alignas(16) unsigned char weights[WEIGHT_STAGES][WEIGHT_STAGE];
    float a[CHANNELS], shift[CHANNELS], b[CHANNELS];  // see affine.cuh
    Note notes[CHANNELS];                             // of the weights
    uint64_t x_full[X_STAGES], x_empty[X_STAGES], weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES];
#if DIRECT && ELEMENT == 0
    Range ranges[2][4];  // of the converting warps; used in turn
    int tiny[4];
#endif
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the plan computes another size");

// The stage whose turn it is, and the parity of its phase.
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    template <int STAGES>
    __device__ __forceinline__ void advance() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

struct Input {
    const Element *x, *weight;
    int batch, first_channel;  // first_channel: of the block
};
