// The emulator's ptx.cuh: the functions of fusedref/csrc/common/ptx.cuh, with the same names, arguments and meaning.
// An asynchronous copy writes its data only in the wait for it, so a missing wait has visible consequences.
#pragma once

#include <cstdint>

#include "tensor_core.h"

#ifndef TENSOR_CORE  // how mma rounds: hopper, ampere or exact (tensor_core.h)
#define TENSOR_CORE hopper
#endif

namespace ptx {

// Only for kernels that compare two addresses: the functions here take pointers.
EMU_INLINE uint32_t shared_address(const void* shared) { return uint32_t(uintptr_t(shared)); }

// ---- ldmatrix ---------------------------------------------------------------------------------------------------------

namespace fragments {

struct Row {
    const void* row;     // whose address this lane passes
    uint32_t loaded[4];  // this lane's registers, one per matrix
};

// Lane l gets bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4 of each matrix.
EMU_UNWATCHED inline void load(void* const payload[32], uint32_t, const void*) {
    for (int matrix = 0; matrix < 4; matrix++) {
        uint32_t rows[8][4];
        for (int r = 0; r < 8; r++) __builtin_memcpy(rows[r], ((Row*)payload[8 * matrix + r])->row, 16);
        for (int lane = 0; lane < 32; lane++) ((Row*)payload[lane])->loaded[matrix] = rows[lane / 4][lane % 4];
    }
}

// The same transposed: lane l gets the two-byte elements of column l / 4 of rows 2 (l % 4) and the next.
EMU_UNWATCHED inline void load_transposed(void* const payload[32], uint32_t, const void*) {
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t rows[8][8];
        for (int r = 0; r < 8; r++) __builtin_memcpy(rows[r], ((Row*)payload[8 * matrix + r])->row, 16);
        for (int lane = 0; lane < 32; lane++) {
            const int column = lane / 4, r = 2 * (lane % 4);
            ((Row*)payload[lane])->loaded[matrix] = uint32_t(rows[r + 1][column]) << 16 | rows[r][column];
        }
    }
}

}  // namespace fragments

EMU_INLINE void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
    fragments::Row mine = {row, {}};
    emu_access(row, 16, 0);
    emu_warp_meet(0xffffffffu, &mine, fragments::load, 0);
    for (int matrix = 0; matrix < 4; matrix++) d[matrix] = mine.loaded[matrix];
}

EMU_INLINE void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row) {
    fragments::Row mine = {row, {}};
    emu_access(row, 16, 0);
    emu_warp_meet(0xffffffffu, &mine, fragments::load_transposed, 0);
    for (int matrix = 0; matrix < 4; matrix++) d[matrix] = mine.loaded[matrix];
}

// ---- mma --------------------------------------------------------------------------------------------------------------

namespace fragments {

struct Operands {
    uint32_t a[4], b[2];
    float c[4], d[4];
};

enum Type { f16, bf16, tf32 };

// The warp's d[16, 8] = a[16, K] b[K, 8] + c[16, 8]; fusedref/csrc/common/ptx.cuh documents the lanes' fragments.
template <Type TYPE, int K>
EMU_UNWATCHED void multiply(void* const payload[32], uint32_t, const void*) {
    using namespace tensor_core;
    constexpr Format format = TYPE == f16 ? tensor_core::fp16
        : TYPE == Type::bf16              ? tensor_core::bf16
                                          : tensor_core::tf32;
    constexpr int packed = TYPE == Type::tf32 ? 1 : 2;  // elements per register
    constexpr int halves = K / (4 * packed);            // registers of a row along k
    Number a[16][K], b[8][K];
    for (int lane = 0; lane < 32; lane++) {
        const Operands& mine = *(const Operands*)payload[lane];
        for (int half = 0; half < halves; half++)
            for (int e = 0; e < packed; e++) {
                const int k = half * 4 * packed + lane % 4 * packed + e;
                const int shift = packed == 1 ? 13 : 16 * e;  // take_apart ignores the bits above the format's
                a[lane / 4][k] = take_apart(mine.a[2 * half] >> shift, format);
                a[lane / 4 + 8][k] = take_apart(mine.a[2 * half + 1] >> shift, format);
                b[lane / 4][k] = take_apart(mine.b[half] >> shift, format);
            }
    }
    for (int lane = 0; lane < 32; lane++) {
        Operands& mine = *(Operands*)payload[lane];
        for (int i = 0; i < 4; i++)
            mine.d[i] = dot(a[lane / 4 + i / 2 * 8], b[lane % 4 * 2 + i % 2], K, format, mine.c[i], TENSOR_CORE);
    }
}

template <Type TYPE, int K>
EMU_INLINE void mma(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    Operands mine = {{a0, a1, a2, a3}, {b0, b1}, {c[0], c[1], c[2], c[3]}, {}};
    emu_warp_meet(0xffffffffu, &mine, multiply<TYPE, K>, 0);
    for (int i = 0; i < 4; i++) d[i] = mine.d[i];
}

}  // namespace fragments

EMU_INLINE void mma_m16n8k8_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, const float (&c)[4]) {
    fragments::mma<fragments::f16, 8>(d, a0, a1, 0, 0, b0, 0, c);
}
EMU_INLINE void mma_m16n8k8_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, const float (&c)[4]) {
    fragments::mma<fragments::bf16, 8>(d, a0, a1, 0, 0, b0, 0, c);
}
EMU_INLINE void mma_m16n8k16_f16(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    fragments::mma<fragments::f16, 16>(d, a0, a1, a2, a3, b0, b1, c);
}
EMU_INLINE void mma_m16n8k16_bf16(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    fragments::mma<fragments::bf16, 16>(d, a0, a1, a2, a3, b0, b1, c);
}
EMU_INLINE void mma_m16n8k8_tf32(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    fragments::mma<fragments::tf32, 8>(d, a0, a1, a2, a3, b0, b1, c);
}

// x rounded to tf32, ties away from zero: adds half of the last kept bit and clears the bits below.
EMU_INLINE uint32_t to_tf32(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    if ((bits & 0x7fffffffu) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & 0xffffe000u;
}

// ---- mma in float64 ---------------------------------------------------------------------------------------------------

namespace fragments {

struct Doubles { double a[2], b, c[4], d[4]; };

// The warp's d[16, 8] = a[16, 4] b[4, 8] + c[16, 8], as the chain of FMAs in the order of k that an H100 computes.
EMU_UNWATCHED inline void multiply_doubles(void* const payload[32], uint32_t, const void*) {
    for (int lane = 0; lane < 32; lane++) {
        Doubles& mine = *(Doubles*)payload[lane];
        for (int i = 0; i < 4; i++) {
            mine.d[i] = mine.c[i];
            for (int k = 0; k < 4; k++) {
                const Doubles& row = *(const Doubles*)payload[lane / 4 * 4 + k];
                const Doubles& column = *(const Doubles*)payload[(lane % 4 * 2 + i % 2) * 4 + k];
                mine.d[i] = __builtin_fma(row.a[i / 2], column.b, mine.d[i]);
            }
        }
    }
}

}  // namespace fragments

EMU_INLINE void mma_m16n8k4_f64(double (&d)[4], double a0, double a1, double b, const double (&c)[4]) {
    fragments::Doubles mine = {{a0, a1}, b, {c[0], c[1], c[2], c[3]}, {}};
    emu_warp_meet(0xffffffffu, &mine, fragments::multiply_doubles, 0);
    for (int i = 0; i < 4; i++) d[i] = mine.d[i];
}

// ---- cp.async ---------------------------------------------------------------------------------------------------------

EMU_INLINE void cp_async_4(void* shared, const void* global, bool valid = true) {
    emu_async_copy(shared, global, 4, valid ? 4 : 0);
}
EMU_INLINE void cp_async_8(void* shared, const void* global, bool valid = true) {
    emu_async_copy(shared, global, 8, valid ? 8 : 0);
}
EMU_INLINE void cp_async_16(void* shared, const void* global, bool valid = true) {
    emu_async_copy(shared, global, 16, valid ? 16 : 0);
}
EMU_INLINE void cp_async_16_partly(void* shared, const void* global, int bytes) {
    emu_async_copy(shared, global, 16, bytes);
}
EMU_INLINE void cp_async_commit() { emu_async_commit(); }
template <int pending> EMU_INLINE void cp_async_wait() { emu_async_wait(pending); }

// ---- mbarrier and bulk copies -----------------------------------------------------------------------------------------

EMU_INLINE void mbarrier_init(uint64_t* barrier, uint32_t arrivals) { emu_mbarrier_init(barrier, arrivals); }
EMU_INLINE void mbarrier_init_fence() { emu_fence_proxy(); }
EMU_INLINE void mbarrier_arrive(uint64_t* barrier) { emu_mbarrier_arrive(barrier, 0); }
EMU_INLINE void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) { emu_mbarrier_arrive(barrier, bytes); }
EMU_INLINE void mbarrier_wait(uint64_t* barrier, uint32_t parity) { emu_mbarrier_wait(barrier, parity); }

EMU_INLINE void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
    emu_bulk_load(shared, global, bytes, barrier);
}
EMU_INLINE void bulk_store(void* global, const void* shared, uint32_t bytes) { emu_bulk_store(global, shared, bytes); }
EMU_INLINE void bulk_commit() { emu_bulk_commit(); }
template <int pending> EMU_INLINE void bulk_wait_read() { emu_bulk_wait(pending); }
EMU_INLINE void fence_async_shared() { emu_fence_proxy(); }

// ---- wgmma ------------------------------------------------------------------------------------------------------------

namespace fragments {

struct Share {
    uint32_t a[4];
    const char* a_rows;  // a's first row for this warp; null: a lies in registers
    int a_next;
    const char* rows;
    int next;
    float* d;
    bool accumulate;
};

// A warp's 16 rows of d[64, N] = a[64, 16] b[16, N] + (accumulate ? d : 0), with Columns or Windows as b.
template <int N, bool brain, bool windows>
EMU_UNWATCHED void multiply_share(void* const payload[32], uint32_t, const void*) {
    using namespace tensor_core;
    constexpr Format format = brain ? tensor_core::bf16 : tensor_core::fp16;
    Number a[16][16], b[16];
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            for (int e = 0; e < 2; e++)
                a[lane / 4 + r % 2 * 8][r / 2 * 8 + lane % 4 * 2 + e] =
                    take_apart(((const Share*)payload[lane])->a[r] >> 16 * e & 0xffff, format);
    const Share& first = *(const Share*)payload[0];
    for (int i = 0; first.a_rows && i < 16 * 16; i++) {
        uint16_t bits;
        __builtin_memcpy(&bits, first.a_rows + i / 16 * 16 + i % 16 / 8 * first.a_next + i % 8 * 2, 2);
        a[i / 16][i % 16] = take_apart(bits, format);
    }
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < 16; k++) {
            uint16_t bits;
            const int column = windows ? (n / 8 + k % 8) * 16 + n % 8 * 2 : n * 16 + k % 8 * 2;
            __builtin_memcpy(&bits, first.rows + k / 8 * first.next + column, 2);
            b[k] = take_apart(bits, format);
        }
        for (int m = 0; m < 16; m++) {
            float& d = ((const Share*)payload[m % 8 * 4 + n % 8 / 2])->d[n / 8 * 4 + m / 8 * 2 + n % 2];
            d = dot(a[m], b, 16, format, first.accumulate ? d : 0.0f, TENSOR_CORE);
        }
    }
}

}  // namespace fragments

struct Columns {
    const char* rows;
    int next = 0;
    EMU_INLINE explicit Columns(const void* first) : rows((const char*)first) {}
    EMU_INLINE Columns at(int bytes, int next_half) const {
        Columns there(rows + bytes);
        there.next = next_half;
        return there;
    }
};

struct Windows {
    const char* rows;
    EMU_INLINE explicit Windows(const void* first) : rows((const char*)first) {}
    EMU_INLINE Windows at(int bytes) const { return Windows(rows + bytes); }
};

namespace fragments {

template <bool brain, bool windows, int SUMS>
EMU_INLINE void wgmma(
    float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, const char* rows, int next, bool accumulate) {
    constexpr int N = 2 * SUMS;
    Share mine = {{a0, a1, a2, a3}, 0, 0, rows, next, d, accumulate};
    const uint32_t read = windows ? 8 + N / 8 - 1 : N;  // rows of 16 bytes in each half of k
    emu_product(&mine, sizeof mine, {}, {rows, read, next}, d, SUMS, multiply_share<N, brain, windows>);
}

template <bool brain, int SUMS> EMU_INLINE void wgmma(float (&d)[SUMS], Columns a, Columns b, bool accumulate) {
    const char* a_rows = a.rows + emu_thread_x() / 32 % 4 * 16 * 16;
    Share mine = {{}, a_rows, a.next, b.rows, b.next, d, accumulate};
    const emu::Matrix share_of_a = {a_rows, 16, a.next}, all_of_b = {b.rows, 2 * SUMS, b.next};
    emu_product(&mine, sizeof mine, share_of_a, all_of_b, d, SUMS, multiply_share<2 * SUMS, brain, false>);
}

}  // namespace fragments

EMU_INLINE void wgmma_fence() {}
EMU_INLINE void wgmma_commit() { emu_product_commit(); }
template <int pending> EMU_INLINE void wgmma_wait() { emu_product_wait(pending); }
template <int SUMS>
EMU_INLINE void wgmma_f16(
    float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, Columns b, bool accumulate) {
    fragments::wgmma<false, false>(d, a0, a1, a2, a3, b.rows, b.next, accumulate);
}
template <int SUMS>
EMU_INLINE void wgmma_bf16(
    float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, Columns b, bool accumulate) {
    fragments::wgmma<true, false>(d, a0, a1, a2, a3, b.rows, b.next, accumulate);
}

template <int SUMS>
EMU_INLINE void wgmma_f16(
    float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, Windows b, bool accumulate) {
    fragments::wgmma<false, true>(d, a0, a1, a2, a3, b.rows, 128, accumulate);
}
template <int SUMS>
EMU_INLINE void wgmma_bf16(
    float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, Windows b, bool accumulate) {
    fragments::wgmma<true, true>(d, a0, a1, a2, a3, b.rows, 128, accumulate);
}

template <int SUMS> EMU_INLINE void wgmma_f16(float (&d)[SUMS], Columns a, Columns b, bool accumulate) {
    fragments::wgmma<false>(d, a, b, accumulate);
}
template <int SUMS> EMU_INLINE void wgmma_bf16(float (&d)[SUMS], Columns a, Columns b, bool accumulate) {
    fragments::wgmma<true>(d, a, b, accumulate);
}

// ---- hints ------------------------------------------------------------------------------------------------------------

EMU_INLINE void in_order() {}
EMU_INLINE uint32_t nanoseconds() { return (uint32_t)emu_clock(); }
EMU_INLINE void keep(float&) {}
EMU_INLINE bool elect() { return emu_lane() == 0; }
template <int registers> EMU_INLINE void more_registers() {}
template <int registers> EMU_INLINE void fewer_registers() {}

EMU_INLINE void named_barrier_sync(int id, int threads) { emu_barrier(id, threads, 1); }

}  // namespace ptx
