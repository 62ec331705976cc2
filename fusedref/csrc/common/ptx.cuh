// PTX instructions without a CUDA C intrinsic, one small function each: the only inline PTX in this project.
// The emulator has a header of the same name with the same functions, so no kernel needs an #ifdef to run there.
//
// Shared memory is passed as an ordinary pointer. A function is declared only for the architectures that have its
// instruction (the lowest is in brackets): code that calls it does not compile for older ones.
#pragma once

// clang-format off: it breaks the operands of an asm statement badly.

#include <cstdint>

#define PTX_SINCE(architecture) (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= (architecture))

namespace ptx {

// ---- shared addresses -----------------------------------------------------------------------------------------------

// The 32-bit address of a byte in the shared state space, as the instructions below take it.
static __device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---- ldmatrix [sm_75]: the warp loads 4 matrices of 8 rows of 16 bytes ----------------------------------------------
// Lane 8 m + r passes the address of row r of matrix m (16-byte aligned).
// Lane l gets 4 bytes of each matrix, bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4: the fragment layout of mma.

static __device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(shared_address(row)) : "memory");
}

// The same with each matrix of 8 x 8 two-byte elements transposed: lane l gets column l / 4 of rows 2 (l % 4) and the next.
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(shared_address(row)) : "memory");
}

// ---- mma: the warp computes d[16, 8] = a[16, k] b[k, 8] + c[16, 8], accumulated in fp32 -----------------------------
// With group = lane / 4 and member = lane % 4, a lane holds
//   c, d  [0], [1]: row group, columns 2 member and 2 member + 1;  [2], [3]: the same columns of row group + 8
//   a     a0: row group, a1: row group + 8, both in the first half of k; a2, a3: the same rows, second half of k
//   b     b0: column group, first half of k; b1: second half
// 16-bit types: a register is elements k = 2 member (low half) and 2 member + 1 of an 8-wide half of k.
// tf32: a register is element k = member of a 4-wide half of k. d may be c.

// k = 8 in fp16 [sm_75]: k has one half only.
static __device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0,
                                                       const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

#if PTX_SINCE(800)

// k = 8 in bf16 [sm_80].
static __device__ __forceinline__ void mma_m16n8k8_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0,
                                                        const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// k = 16 in fp16 [sm_80].
static __device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                        uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// k = 16 in bf16 [sm_80].
static __device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                         uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// k = 8 in tf32 [sm_80]; the operands are results of to_tf32.
static __device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                        uint32_t a3, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Rounds x to tf32 (10 fraction bits; to nearest, ties away from zero), the format that mma takes [sm_80].
static __device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t d;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(x));
    return d;
}

// ---- cp.async [sm_80]: each thread copies 4, 8 or 16 bytes, global to shared, without waiting -----------------------
// Both addresses are aligned to the size. If `valid` is false, nothing is read and zeros are written.

static __device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 4 : 0) : "memory");
}

static __device__ __forceinline__ void cp_async_8(void* shared, const void* global, bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 8 : 0) : "memory");
}

static __device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

// Reads only the first `bytes` (1 to 16) of the 16 bytes and writes zeros for the rest.
static __device__ __forceinline__ void cp_async_16_partly(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}

// Commits this thread's cp.async copies so far as a group.
static __device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's latest groups are unfinished. Other threads see them after a barrier.
template <int pending>
static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
}

// ---- mbarrier [sm_80]: 8 bytes of shared memory that count the arrivals of one phase after another ------------------

// Called by one thread: a phase completes after `arrivals` arrivals. mbarrier_init_fence and a barrier must follow.
static __device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes the initialisation of barriers visible to the copy engine.
static __device__ __forceinline__ void mbarrier_init_fence() {
#if PTX_SINCE(900)
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// One arrival, with release semantics: threads that wait for the phase see what this thread wrote before.
static __device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }"
                 :: "r"(shared_address(barrier)) : "memory");
}

// Waits until the phase of this parity is complete: 0 for the first phase, 1 for the second, 0 for the third and so on.
// On a barrier that has just been initialised, parity 1 returns at once.
static __device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t done;
    do {
#if PTX_SINCE(900)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
#endif
    } while (!done);
}

#endif  // sm_80

#if PTX_SINCE(900)

// ---- mma in float64 [sm_90]: d[16, 8] = a[16, 4] b[4, 8] + c[16, 8] -------------------------------------------------
// c and d as above. a0: row group, a1: row group + 8, both element k = member. b: column group, k = member. d may be c.

static __device__ __forceinline__ void mma_m16n8k4_f64(double (&d)[4], double a0, double a1, double b,
                                                       const double (&c)[4]) {
    asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=d"(d[0]), "=d"(d[1]), "=d"(d[2]), "=d"(d[3])
        : "d"(a0), "d"(a1), "d"(b), "d"(c[0]), "d"(c[1]), "d"(c[2]), "d"(c[3]));
}

// ---- bulk copies [sm_90]: one thread starts a copy of any length; the copy engine does the rest ---------------------
// Addresses and `bytes` are multiples of 16.

// One arrival; the current phase also waits for `bytes` of bulk loads.
static __device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }"
                 :: "r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Global to shared; counts its bytes on `barrier` when they have arrived.
static __device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

// Shared to global. After ordinary stores to `shared`: fence_async_shared in the storing threads, then a barrier.
static __device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 :: "l"(global), "r"(shared_address(shared)), "r"(bytes) : "memory");
}

// Commits this thread's bulk stores so far as a group.
static __device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's latest groups still have to read shared memory, which may then be
// overwritten. The writes to global memory are complete when the kernel ends.
template <int pending>
static __device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(pending) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before later ones by the copy engine.
static __device__ __forceinline__ void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// True in one lane of a converged warp, always the same one. The compiler knows that it is a single lane; it
// cannot infer that from lane == 0.
static __device__ __forceinline__ bool elect() {
    uint32_t chosen;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(chosen));
    return chosen;
}

#endif  // sm_90

// Makes the compiler compute the number here, not in a later branch that uses it.
static __device__ __forceinline__ void keep(float& number) { asm volatile("" : "+f"(number)); }

// Keeps the compiler from moving memory accesses across this point.
static __device__ __forceinline__ void in_order() { asm volatile("" ::: "memory"); }

// The low 32 bits of the GPU's clock, the same on all multiprocessors; they wrap around every 4.3 seconds.
static __device__ __forceinline__ uint32_t nanoseconds() {
    uint32_t now;
    asm volatile("mov.u32 %0, %globaltimer_lo;" : "=r"(now) :: "memory");
    return now;
}

// ---- wgmma [sm_90a]: a warpgroup (four consecutive warps) multiplies asynchronously ---------------------------------
// d[64, N] = a[64, 16] b[16, N] + (accumulate ? d : 0), fp16 or bf16 in, fp32 accumulated. N is 8, 16, 24 or 32 with a in
// registers, a multiple of 8 from 64 to 128 with a in shared memory.
// Warp w of the group holds rows 16 w to 16 w + 15 of a and d: a in the layout of mma_m16n8k16_f16's a; d[4 j] to
// d[4 j + 3] in the layout of its d, for columns 8 j to 8 j + 7.
// Call wgmma_fence before the first. Until wgmma_wait, do not touch d and a, and do not write b's shared memory.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

// Orders earlier accesses to the registers before the products that follow.
static __device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Commits this warpgroup's products so far as a group.
static __device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `pending` of its latest groups are unfinished.
template <int pending>
static __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(pending) : "memory");
}

// b in shared memory: column n is the 16 bytes at rows + 16 n (first half of k) and the 16 bytes `next` bytes after
// them (second half); rows and next >= 0 are multiples of 16. And so are the 64 rows of a.
struct Columns {
    uint64_t descriptor;  // 8 rows of 16 bytes are one of wgmma's matrices, 128 bytes from the next along n
    __device__ __forceinline__ explicit Columns(const void* rows)
        : descriptor((uint64_t)(128 >> 4) << 32 | shared_address(rows) >> 4) {}
    // The columns at rows + bytes, with the second halves `next` bytes after the first.
    __device__ __forceinline__ Columns at(int bytes, int next) const {
        Columns there = *this;
        there.descriptor += (uint32_t)bytes >> 4 | (uint32_t)next >> 4 << 16;
        return there;
    }
};

// b in shared memory, the other way round: row k is the 16 bytes (8 columns) at rows + 16 k, columns 8 j to 8 j + 7 are
// 16 j bytes after them. So the rows of consecutive j overlap: b[k][8 j + c] = row k + j, element c.
struct Windows {
    uint64_t descriptor;  // matrices of 8 rows of 16 bytes, 128 bytes apart along k, 16 bytes along n
    __device__ __forceinline__ explicit Windows(const void* rows)
        : descriptor((uint64_t)(16 >> 4) << 32 | (128 >> 4) << 16 | shared_address(rows) >> 4) {}
    // The windows that begin `bytes` further on.
    __device__ __forceinline__ Windows at(int bytes) const {
        Windows there = *this;
        there.descriptor += (uint32_t)bytes >> 4;
        return there;
    }
};

#define PTX_WGMMA(name, type, n, b_type, transposed, d_names, a_names, b_name, accumulate_name, ...)                     \
    static __device__ __forceinline__ void name(float (&d)[n / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,   \
                                                b_type b, bool accumulate)                                               \
    {                                                                                                                    \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " accumulate_name ", 0;\n"                                          \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " "                                        \
            "{" d_names "}, {" a_names "}, " b_name ", p, 1, 1, " #transposed "; }"                                      \
            : __VA_ARGS__ : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b.descriptor), "r"((int)accumulate));                \
    }
#define PTX_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_WGMMAS(name, type, b_type, transposed)                                                                       \
    PTX_WGMMA(name, type, 8, b_type, transposed, "%0,%1,%2,%3", "%4,%5,%6,%7", "%8", "%9", PTX_FOUR(0))                  \
    PTX_WGMMA(name, type, 16, b_type, transposed, "%0,%1,%2,%3,%4,%5,%6,%7", "%8,%9,%10,%11", "%12", "%13",              \
              PTX_FOUR(0), PTX_FOUR(4))                                                                                  \
    PTX_WGMMA(name, type, 24, b_type, transposed, "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11", "%12,%13,%14,%15", "%16",     \
              "%17", PTX_FOUR(0), PTX_FOUR(4), PTX_FOUR(8))                                                              \
    PTX_WGMMA(name, type, 32, b_type, transposed, "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15",               \
              "%16,%17,%18,%19", "%20", "%21", PTX_FOUR(0), PTX_FOUR(4), PTX_FOUR(8), PTX_FOUR(12))                         \
    PTX_WGMMA(name, type, 48, b_type, transposed,                                                                        \
              "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23",                   \
              "%24,%25,%26,%27", "%28", "%29", PTX_FOUR(0), PTX_FOUR(4), PTX_FOUR(8), PTX_FOUR(12), PTX_FOUR(16),        \
              PTX_FOUR(20))                                                                                              \
    PTX_WGMMA(name, type, 72, b_type, transposed,                                                                        \
              "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
              "%28,%29,%30,%31,%32,%33,%34,%35", "%36,%37,%38,%39", "%40", "%41", PTX_FOUR(0), PTX_FOUR(4), PTX_FOUR(8), \
              PTX_FOUR(12), PTX_FOUR(16), PTX_FOUR(20), PTX_FOUR(24), PTX_FOUR(28), PTX_FOUR(32))
PTX_WGMMAS(wgmma_f16, f16, Columns, 0)
PTX_WGMMAS(wgmma_bf16, bf16, Columns, 0)
PTX_WGMMAS(wgmma_f16, f16, Windows, 1)
PTX_WGMMAS(wgmma_bf16, bf16, Windows, 1)
#undef PTX_WGMMAS
#undef PTX_WGMMA

#define PTX_WGMMA(name, type, n, d_names, a_name, b_name, accumulate_name, ...)                                          \
    static __device__ __forceinline__ void name(float (&d)[n / 2], Columns a, Columns b, bool accumulate)                \
    {                                                                                                                    \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " accumulate_name ", 0;\n"                                          \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " "                                        \
            "{" d_names "}, " a_name ", " b_name ", p, 1, 1, 0, 0; }"                                                    \
            : __VA_ARGS__ : "l"(a.descriptor), "l"(b.descriptor), "r"((int)accumulate));                                 \
    }
#define PTX_NAMES_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PTX_NAMES_36 PTX_NAMES_32 ",%32,%33,%34,%35"
#define PTX_NAMES_40 PTX_NAMES_36 ",%36,%37,%38,%39"
#define PTX_NAMES_44 PTX_NAMES_40 ",%40,%41,%42,%43"
#define PTX_NAMES_48 PTX_NAMES_44 ",%44,%45,%46,%47"
#define PTX_NAMES_52 PTX_NAMES_48 ",%48,%49,%50,%51"
#define PTX_NAMES_56 PTX_NAMES_52 ",%52,%53,%54,%55"
#define PTX_NAMES_60 PTX_NAMES_56 ",%56,%57,%58,%59"
#define PTX_NAMES_64 PTX_NAMES_60 ",%60,%61,%62,%63"
#define PTX_SUMS_32 PTX_FOUR(0), PTX_FOUR(4), PTX_FOUR(8), PTX_FOUR(12), PTX_FOUR(16), PTX_FOUR(20), PTX_FOUR(24), PTX_FOUR(28)
#define PTX_SUMS_36 PTX_SUMS_32, PTX_FOUR(32)
#define PTX_SUMS_40 PTX_SUMS_36, PTX_FOUR(36)
#define PTX_SUMS_44 PTX_SUMS_40, PTX_FOUR(40)
#define PTX_SUMS_48 PTX_SUMS_44, PTX_FOUR(44)
#define PTX_SUMS_52 PTX_SUMS_48, PTX_FOUR(48)
#define PTX_SUMS_56 PTX_SUMS_52, PTX_FOUR(52)
#define PTX_SUMS_60 PTX_SUMS_56, PTX_FOUR(56)
#define PTX_SUMS_64 PTX_SUMS_60, PTX_FOUR(60)
#define PTX_WGMMAS(name, type)                                                                                           \
    PTX_WGMMA(name, type, 64, PTX_NAMES_32, "%32", "%33", "%34", PTX_SUMS_32)                                            \
    PTX_WGMMA(name, type, 72, PTX_NAMES_36, "%36", "%37", "%38", PTX_SUMS_36)                                            \
    PTX_WGMMA(name, type, 80, PTX_NAMES_40, "%40", "%41", "%42", PTX_SUMS_40)                                            \
    PTX_WGMMA(name, type, 88, PTX_NAMES_44, "%44", "%45", "%46", PTX_SUMS_44)                                            \
    PTX_WGMMA(name, type, 96, PTX_NAMES_48, "%48", "%49", "%50", PTX_SUMS_48)                                            \
    PTX_WGMMA(name, type, 104, PTX_NAMES_52, "%52", "%53", "%54", PTX_SUMS_52)                                           \
    PTX_WGMMA(name, type, 112, PTX_NAMES_56, "%56", "%57", "%58", PTX_SUMS_56)                                           \
    PTX_WGMMA(name, type, 120, PTX_NAMES_60, "%60", "%61", "%62", PTX_SUMS_60)                                           \
    PTX_WGMMA(name, type, 128, PTX_NAMES_64, "%64", "%65", "%66", PTX_SUMS_64)
PTX_WGMMAS(wgmma_f16, f16)
PTX_WGMMAS(wgmma_bf16, bf16)
#undef PTX_WGMMAS
#undef PTX_SUMS_64
#undef PTX_NAMES_64
#undef PTX_SUMS_60
#undef PTX_NAMES_60
#undef PTX_SUMS_56
#undef PTX_NAMES_56
#undef PTX_SUMS_52
#undef PTX_NAMES_52
#undef PTX_SUMS_48
#undef PTX_NAMES_48
#undef PTX_SUMS_44
#undef PTX_NAMES_44
#undef PTX_SUMS_40
#undef PTX_NAMES_40
#undef PTX_SUMS_36
#undef PTX_NAMES_36
#undef PTX_SUMS_32
#undef PTX_NAMES_32
#undef PTX_FOUR
#undef PTX_WGMMA

// ---- setmaxnreg [sm_90a]: sets the registers per thread of this warpgroup, which come from the block's pool ---------

template <int registers>
static __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(registers));
}

template <int registers>
static __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(registers));
}

#endif  // sm_90a

// ---- named barriers: a barrier for part of a block ------------------------------------------------------------------

// Waits until `threads` threads (a multiple of 32) have arrived at barrier `id` (1 to 15; __syncthreads uses 0).
static __device__ __forceinline__ void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

}  // namespace ptx
