// CUDA C for the emulator: included before a kernel's first line. Everything a kernel may use without an #include.
// Wrappers are always inlined, so that the debug information leads from an access to the line of the kernel's own source.
#pragma once
#define _GLIBCXX_BITS_SPECFUN_H 1  // half of the time to read <math.h> goes to Bessel functions and their like
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <utility>

#include "emulator_abi.h"

#define EMU_INLINE inline __attribute__((always_inline))
#define __CUDACC__ 1
#define __NVCC__ 1
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __managed__ __device__
#define warpSize 32

namespace emu {

extern "C" { __attribute__((visibility("default"))) Module emu_module; }

// ------------------------------------------------------------------------------------------------- registration

template <class T> constexpr uint32_t element_size() {
    if constexpr (std::is_pointer_v<T>) {
        using P = std::remove_pointer_t<T>;
        if constexpr (std::is_void_v<P>) return 1;
        else return sizeof(P);
    } else return sizeof(T);
}

template <class T> constexpr bool is_constant() {
    if constexpr (std::is_pointer_v<T>) return std::is_const_v<std::remove_pointer_t<T>>;
    else return true;
}

template <class T> constexpr bool is_opaque() {
    if constexpr (std::is_pointer_v<T>) {
        using P = std::remove_cv_t<std::remove_pointer_t<T>>;
        return std::is_pointer_v<P>;
    } else return std::is_class_v<T> || std::is_union_v<T>;
}

template <class... A> struct Layout {
    static constexpr uint32_t offset(size_t index) {
        constexpr size_t sizes[] = {sizeof(A)..., 0}, aligns[] = {alignof(A)..., 1};
        size_t at = 0;
        for (size_t i = 0;; i++) {
            at = (at + aligns[i] - 1) / aligns[i] * aligns[i];
            if (i == index) return at;
            at += sizes[i];
        }
    }
    template <size_t... I> static constexpr Parameter parameter(size_t index, std::index_sequence<I...>) {
        Parameter all[] = {Parameter{offset(I), sizeof(A), element_size<std::remove_cv_t<A>>(),
                                     std::is_pointer_v<A>, is_constant<std::remove_cv_t<A>>(),
                                     std::is_floating_point_v<A>, is_opaque<std::remove_cv_t<A>>()}...,
                           Parameter{}};
        return all[index];
    }
    template <size_t... I> static const Parameter* parameters(std::index_sequence<I...> sequence) {
        static const Parameter list[] = {parameter(I, sequence)..., Parameter{}};
        return list;
    }
    template <class T> EMU_UNWATCHED static T argument(const char* buffer, size_t index) {
        T value;
        __builtin_memcpy(&value, buffer + offset(index), sizeof(T));
        return value;
    }
    template <size_t... I>
    EMU_UNWATCHED static void call(void (*f)(A...), const char* b, std::index_sequence<I...>) {
        f(argument<A>(b, I)...);
    }
    EMU_UNWATCHED static void entry(void* function, const char* arguments) {
        call((void (*)(A...))function, arguments, std::index_sequence_for<A...>());
    }
};

struct Register {
    Kernel kernel;
    template <class... A> Register(const char* names, void (*function)(A...)) {
        using L = Layout<A...>;
        kernel = Kernel{emu_module.kernels, names, (void*)function, &L::entry,
                        L::parameters(std::index_sequence_for<A...>()), sizeof...(A), L::offset(sizeof...(A))};
        emu_module.kernels = &kernel;
    }
};

template <class Tag> struct SharedVariable {
    static Shared* enter() {
        static Shared s = {emu_module.shared, Tag::name(), Tag::owner(), Tag::size, Tag::align, Tag::element, 0, 0};
        emu_module.shared = &s;
        return &s;
    }
    static Shared* const registered;
};
template <class Tag> Shared* const SharedVariable<Tag>::registered = SharedVariable<Tag>::enter();

template <class Tag> EMU_INLINE void* shared_address() {
    return emu_shared_address(SharedVariable<Tag>::registered);
}

template <class T> struct Guarded {  // a variable of the module and the room behind it that nothing may touch
    T value;
    char gap[256 + sizeof(T) % 64];
};

struct RegisterVariable {
    Variable variable;
    template <class T> RegisterVariable(const char* name, T& value) {
        variable = Variable{emu_module.variables, name, (char*)&value, sizeof(T),
                            sizeof(std::remove_all_extents_t<T>), 0};
        emu_module.variables = &variable;
    }
};

// ------------------------------------------------------------------------------------------------- vector types

template <int BYTES> struct Chunk { typedef unsigned char V __attribute__((vector_size(BYTES), may_alias)); };

}  // namespace emu

// A vector of a power of two of bytes is loaded and stored by one instruction, as on the card.
#define EMU_VECTOR2(NAME, T)                                                                            \
    struct alignas(2 * sizeof(T)) NAME {                                                                \
        typedef typename emu::Chunk<2 * sizeof(T)>::V V;                                                \
        union { V chunk; struct { T x, y; }; };                                                         \
        NAME() = default;                                                                               \
        EMU_INLINE constexpr NAME(T a, T b) : x(a), y(b) {}                                             \
        EMU_INLINE NAME(const NAME& o) : chunk(o.chunk) {}                                              \
        EMU_INLINE NAME(const volatile NAME& o) : chunk(o.chunk) {}                                     \
        EMU_INLINE NAME& operator=(const NAME& o) { chunk = o.chunk; return *this; }                    \
        EMU_INLINE void operator=(const NAME& o) volatile { chunk = o.chunk; }                          \
    };                                                                                                  \
    EMU_INLINE NAME make_##NAME(T x, T y) { return NAME(x, y); }
#define EMU_VECTOR4(NAME, T, ALIGN)                                                                     \
    struct alignas(ALIGN) NAME {                                                                        \
        typedef typename emu::Chunk<ALIGN>::V V;                                                        \
        static constexpr int PARTS = 4 * sizeof(T) / ALIGN;                                             \
        union { V chunk[PARTS]; struct { T x, y, z, w; }; };                                            \
        NAME() = default;                                                                               \
        EMU_INLINE constexpr NAME(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}                       \
        EMU_INLINE NAME(const NAME& o) { for (int i = 0; i < PARTS; i++) chunk[i] = o.chunk[i]; }       \
        EMU_INLINE NAME& operator=(const NAME& o) {                                                     \
            for (int i = 0; i < PARTS; i++) chunk[i] = o.chunk[i];                                      \
            return *this;                                                                               \
        }                                                                                               \
    };                                                                                                  \
    EMU_INLINE NAME make_##NAME(T x, T y, T z, T w) { return NAME(x, y, z, w); }
#define EMU_VECTOR13(T, N)                                                                              \
    struct N##1 { T x; };                                                                               \
    struct N##3 { T x, y, z; };                                                                         \
    EMU_INLINE N##1 make_##N##1(T x) { return N##1{x}; }                                                \
    EMU_INLINE N##3 make_##N##3(T x, T y, T z) { return N##3{x, y, z}; }
#define EMU_VECTORS(T, N)                                                                               \
    EMU_VECTOR13(T, N)                                                                                  \
    EMU_VECTOR2(N##2, T)                                                                                \
    EMU_VECTOR4(N##4, T, (4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)))
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned int, uint)
EMU_VECTORS(long, long)
EMU_VECTORS(unsigned long, ulong)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)

struct dim3 {
    unsigned x, y, z;
    EMU_INLINE constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
    EMU_INLINE constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    EMU_INLINE constexpr operator uint3() const { return uint3{x, y, z}; }
};

namespace emu {
EMU_INLINE uint3 thread_index() { return uint3{emu_thread_x(), emu_thread_y(), emu_thread_z()}; }
EMU_INLINE uint3 block_index() { return uint3{emu_block_x(), emu_block_y(), emu_block_z()}; }
EMU_INLINE dim3 block_dim() { return dim3(emu_block_dim_x(), emu_block_dim_y(), emu_block_dim_z()); }
EMU_INLINE dim3 grid_dim() { return dim3(emu_grid_dim_x(), emu_grid_dim_y(), emu_grid_dim_z()); }
}  // namespace emu
#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())

// ------------------------------------------------------------------------------------------ barriers, fences, warps

EMU_INLINE void __syncthreads() { emu_syncthreads(0, 0); }
EMU_INLINE int __syncthreads_count(int predicate) { return emu_syncthreads(1, predicate); }
EMU_INLINE int __syncthreads_and(int predicate) { return emu_syncthreads(2, predicate); }
EMU_INLINE int __syncthreads_or(int predicate) { return emu_syncthreads(3, predicate); }
EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu) { emu_syncwarp(mask); }
EMU_INLINE void __threadfence_block() { emu_fence(0); }
EMU_INLINE void __threadfence() { emu_fence(1); }
EMU_INLINE void __threadfence_system() { emu_fence(2); }
EMU_INLINE unsigned __activemask() { return emu_active_mask(); }
EMU_INLINE void __nanosleep(unsigned) { emu_yield(); }
EMU_INLINE void __trap() { emu_trap(); }
EMU_INLINE long long clock64() { return (long long)emu_clock(); }
EMU_INLINE int emu_clock32() { return (int)emu_clock(); }

namespace emu {

// Every warp operation moves 64 bits a lane and leaves its result there.
struct Lane {
    uint64_t value;
    int source;     // shuffles: the lane asked for
    uint32_t result;
};

inline EMU_UNWATCHED void do_shuffle(void* const payload[32], uint32_t present, const void*) {
    uint64_t values[32];
    for (int i = 0; i < 32; i++) values[i] = present >> i & 1 ? ((Lane*)payload[i])->value : 0;
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        Lane* lane = (Lane*)payload[i];
        // A lane that takes no part has nothing to give: on the card the result is undefined; here it is all ones.
        lane->value = present >> lane->source & 1 ? values[lane->source] : ~0ull;
    }
}

inline EMU_UNWATCHED void do_ballot(void* const payload[32], uint32_t present, const void*) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) votes |= (uint32_t)(((Lane*)payload[i])->value != 0) << i;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) {
            ((Lane*)payload[i])->result = votes;
            ((Lane*)payload[i])->value = present;
        }
}

inline EMU_UNWATCHED void do_match(void* const payload[32], uint32_t present, const void*) {
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        uint32_t same = 0;
        for (int j = 0; j < 32; j++)
            if (present >> j & 1) same |= (uint32_t)(((Lane*)payload[i])->value == ((Lane*)payload[j])->value) << j;
        ((Lane*)payload[i])->result = same;
        ((Lane*)payload[i])->source = same == present;
    }
}

template <class T, int OPERATION>
inline EMU_UNWATCHED void do_reduce(void* const payload[32], uint32_t present, const void*) {
    T total{};
    bool first = true;
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        T v = (T)((Lane*)payload[i])->value;
        if (first) total = v;
        else if (OPERATION == 0) total += v;
        else if (OPERATION == 2) total = v < total ? v : total;
        else if (OPERATION == 3) total = v > total ? v : total;
        else if (OPERATION == 4) total &= v;
        else if (OPERATION == 5) total |= v;
        else total ^= v;
        first = false;
    }
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) ((Lane*)payload[i])->value = (uint64_t)total;
}

template <class T> EMU_INLINE uint64_t to_bits(T v) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &v, sizeof v);
    return bits;
}
template <class T> EMU_INLINE T from_bits(uint64_t bits) {
    T v;
    __builtin_memcpy((void*)&v, &bits, sizeof v);
    return v;
}

template <class T> EMU_INLINE T exchange(unsigned mask, T v, int source) {
    Lane lane{to_bits(v), source, 0};
    emu_warp_meet(mask, &lane, do_shuffle, 0);
    return from_bits<T>(lane.value);
}

}  // namespace emu

template <class T> EMU_INLINE T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    int lane = emu_lane();
    return emu::exchange(mask, v, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T> EMU_INLINE T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = emu_lane(), source = lane - (int)delta;
    return emu::exchange(mask, v, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T> EMU_INLINE T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = emu_lane(), source = lane + (int)delta;
    return emu::exchange(mask, v, source > (lane | (width - 1)) ? lane : source);
}
template <class T> EMU_INLINE T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
    int lane = emu_lane(), source = lane ^ lanes;
    return emu::exchange(mask, v, source > (lane | (width - 1)) ? lane : source);
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
    emu::Lane lane{(uint64_t)(predicate != 0), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_ballot, 0);
    return lane.result;
}
EMU_INLINE int __all_sync(unsigned mask, int predicate) {
    emu::Lane lane{(uint64_t)(predicate != 0), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_ballot, 0);
    return lane.result == (uint32_t)lane.value;
}
EMU_INLINE int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
EMU_INLINE int __uni_sync(unsigned mask, int predicate) {
    emu::Lane lane{(uint64_t)(predicate != 0), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_ballot, 0);
    return lane.result == 0 || lane.result == (uint32_t)lane.value;
}
template <class T> EMU_INLINE unsigned __match_any_sync(unsigned mask, T v) {
    emu::Lane lane{emu::to_bits(v), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_match, 0);
    return lane.result;
}
template <class T> EMU_INLINE unsigned __match_all_sync(unsigned mask, T v, int* predicate) {
    emu::Lane lane{emu::to_bits(v), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_match, 0);
    *predicate = lane.source;
    return lane.source ? lane.result : 0;
}
#define EMU_REDUCE(NAME, T, OPERATION)                                                                  \
    EMU_INLINE T __reduce_##NAME##_sync(unsigned mask, T v) {                                           \
        emu::Lane lane{(uint64_t)v, 0, 0};                                                              \
        emu_warp_meet(mask, &lane, emu::do_reduce<T, OPERATION>, 0);                                    \
        return (T)lane.value;                                                                           \
    }
EMU_REDUCE(add, unsigned, 0)
EMU_REDUCE(add, int, 0)
EMU_REDUCE(min, unsigned, 2)
EMU_REDUCE(min, int, 2)
EMU_REDUCE(max, unsigned, 3)
EMU_REDUCE(max, int, 3)
EMU_REDUCE(and, unsigned, 4)
EMU_REDUCE(or, unsigned, 5)
EMU_REDUCE(xor, unsigned, 6)

// -------------------------------------------------------------------------------------------------------- atomics

#define EMU_ATOMIC(NAME, T, BASE, U, OPERATION)                                                         \
    EMU_INLINE T NAME(T* p, T v) { return (T)emu_atomic_##BASE((U*)p, (U)v, OPERATION); }               \
    EMU_INLINE T NAME##_block(T* p, T v) { return (T)emu_atomic_##BASE((U*)p, (U)v, OPERATION); }       \
    EMU_INLINE T NAME##_system(T* p, T v) { return (T)emu_atomic_##BASE((U*)p, (U)v, OPERATION); }
#define EMU_ATOMIC_ARITHMETIC(NAME, OPERATION)                                                          \
    EMU_ATOMIC(NAME, int, i32, int32_t, OPERATION)                                                      \
    EMU_ATOMIC(NAME, unsigned, u32, uint32_t, OPERATION)                                                \
    EMU_ATOMIC(NAME, unsigned long long, u64, uint64_t, OPERATION)
#define EMU_ATOMIC_LOGICAL(NAME, OPERATION)                                                             \
    EMU_ATOMIC(NAME, int, i32, int32_t, OPERATION)                                                      \
    EMU_ATOMIC(NAME, unsigned, u32, uint32_t, OPERATION)                                                \
    EMU_ATOMIC(NAME, unsigned long long, u64, uint64_t, OPERATION)
EMU_ATOMIC_ARITHMETIC(atomicAdd, 0)
EMU_ATOMIC(atomicAdd, float, f32, float, 0)
EMU_ATOMIC(atomicAdd, double, f64, double, 0)
EMU_ATOMIC_ARITHMETIC(atomicExch, 1)
EMU_ATOMIC(atomicExch, float, f32, float, 1)
EMU_ATOMIC_ARITHMETIC(atomicMin, 2)
EMU_ATOMIC(atomicMin, long long, i64, int64_t, 2)
EMU_ATOMIC_ARITHMETIC(atomicMax, 3)
EMU_ATOMIC(atomicMax, long long, i64, int64_t, 3)
EMU_ATOMIC_LOGICAL(atomicAnd, 4)
EMU_ATOMIC_LOGICAL(atomicOr, 5)
EMU_ATOMIC_LOGICAL(atomicXor, 6)
EMU_ATOMIC(atomicInc, unsigned, u32, uint32_t, 7)
EMU_ATOMIC(atomicDec, unsigned, u32, uint32_t, 8)
EMU_INLINE int atomicSub(int* p, int v) { return emu_atomic_i32((int32_t*)p, (int)(0u - (unsigned)v), 0); }
EMU_INLINE unsigned atomicSub(unsigned* p, unsigned v) { return emu_atomic_u32((uint32_t*)p, 0u - v, 0); }
EMU_INLINE int atomicCAS(int* p, int compare, int v) {
    return (int)emu_atomic_cas32((uint32_t*)p, (uint32_t)compare, (uint32_t)v);
}
EMU_INLINE unsigned atomicCAS(unsigned* p, unsigned compare, unsigned v) {
    return emu_atomic_cas32((uint32_t*)p, compare, v);
}
EMU_INLINE unsigned long long atomicCAS(unsigned long long* p, unsigned long long compare, unsigned long long v) {
    return emu_atomic_cas64((uint64_t*)p, compare, v);
}
EMU_INLINE unsigned short atomicCAS(unsigned short* p, unsigned short compare, unsigned short v) {
    return emu_atomic_cas16((uint16_t*)p, compare, v);
}

// --------------------------------------------------------------------------------------- cached loads and stores

// Macros: the access belongs to the line that asks for it.
#define __ldg(p) (*(p))
#define __ldcg(p) (*(p))
#define __ldca(p) (*(p))
#define __ldcs(p) (*(p))
#define __ldlu(p) (*(p))
#define __ldcv(p) (*(p))
#define __stwb(p, ...) ((void)(*(p) = (__VA_ARGS__)))
#define __stcg(p, ...) ((void)(*(p) = (__VA_ARGS__)))
#define __stcs(p, ...) ((void)(*(p) = (__VA_ARGS__)))
#define __stwt(p, ...) ((void)(*(p) = (__VA_ARGS__)))

#define __builtin_unreachable() emu_unreachable()

EMU_INLINE unsigned __cvta_generic_to_shared(const void* p) { return (unsigned)(uintptr_t)p; }

// A kernel's malloc and free are those of the device. Defined in the kernel's own image, they hide the host's from it.
#define EMU_HEAP __attribute__((always_inline, visibility("hidden"))) inline
extern "C" EMU_HEAP void* malloc(size_t bytes) noexcept { return emu_malloc(bytes); }
extern "C" EMU_HEAP void free(void* p) noexcept { emu_heap_free(p); }
EMU_HEAP void* operator new(size_t bytes) { return emu_malloc(bytes); }
EMU_HEAP void* operator new[](size_t bytes) { return emu_malloc(bytes); }
EMU_HEAP void operator delete(void* p) noexcept { emu_heap_free(p); }
EMU_HEAP void operator delete[](void* p) noexcept { emu_heap_free(p); }
EMU_HEAP void operator delete(void* p, size_t) noexcept { emu_heap_free(p); }
EMU_HEAP void operator delete[](void* p, size_t) noexcept { emu_heap_free(p); }

EMU_INLINE void* emu_memcpy(void* to, const void* from, size_t n) {
    emu_access(from, n, 0);
    emu_access(to, n, 1);
    return __builtin_memcpy(to, from, n);
}
EMU_INLINE void* emu_memset(void* to, int value, size_t n) {
    emu_access(to, n, 1);
    return __builtin_memset(to, value, n);
}
// compile/frontend.py renames calls of memcpy, memset, printf and clock to these: <cstring>, <cstdio> and <ctime> would
// undefine macros.
#include "assert.h"

// ----------------------------------------------------------------------------------------------------------- maths

namespace emu {
template <class A, class B> using Both = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                                                          std::common_type_t<A, B>>;
}
template <class A, class B> EMU_INLINE emu::Both<A, B> min(A a, B b) {
    using T = emu::Both<A, B>;
    if constexpr (std::is_same_v<T, float>) return fminf(a, b);
    else if constexpr (std::is_floating_point_v<T>) return fmin(a, b);
    else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> EMU_INLINE emu::Both<A, B> max(A a, B b) {
    using T = emu::Both<A, B>;
    if constexpr (std::is_same_v<T, float>) return fmaxf(a, b);
    else if constexpr (std::is_floating_point_v<T>) return fmax(a, b);
    else return (T)a < (T)b ? (T)b : (T)a;
}

EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
EMU_INLINE float rcbrtf(float x) { return 1.0f / cbrtf(x); }
EMU_INLINE float sinpif(float x) { return (float)sin(3.14159265358979323846 * fmod((double)x, 2.0)); }
EMU_INLINE float cospif(float x) { return (float)cos(3.14159265358979323846 * fmod((double)x, 2.0)); }
EMU_INLINE float normcdff(float x) { return (float)(0.5 * erfc(-(double)x * 0.70710678118654752440)); }
EMU_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
EMU_INLINE float __fdividef(float x, float y) { return x / y; }
EMU_INLINE float __expf(float x) { return expf(x); }
EMU_INLINE float __exp10f(float x) { return powf(10.0f, x); }
EMU_INLINE float __logf(float x) { return logf(x); }
EMU_INLINE float __log2f(float x) { return log2f(x); }
EMU_INLINE float __log10f(float x) { return log10f(x); }
EMU_INLINE float __sinf(float x) { return sinf(x); }
EMU_INLINE float __cosf(float x) { return cosf(x); }
EMU_INLINE float __tanf(float x) { return tanf(x); }
EMU_INLINE float __powf(float x, float y) { return powf(x, y); }
EMU_INLINE float __tanhf(float x) { return tanhf(x); }

// These round once and are never contracted with a neighbour: that is what they are for.
namespace emu {
template <class T> EMU_INLINE T opaque(T v) { asm("" : "+m"(v)); return v; }
}
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
EMU_INLINE float __fmul_rn(float a, float b) { return emu::opaque(emu::opaque(a) * b); }
EMU_INLINE float __fadd_rn(float a, float b) { return emu::opaque(a) + emu::opaque(b); }
EMU_INLINE float __fsub_rn(float a, float b) { return emu::opaque(a) - emu::opaque(b); }
EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMU_INLINE float __frcp_rn(float a) { return 1.0f / a; }
EMU_INLINE float __fsqrt_rn(float a) { return sqrtf(a); }
EMU_INLINE float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
EMU_INLINE double __dmul_rn(double a, double b) { return emu::opaque(emu::opaque(a) * b); }
EMU_INLINE double __dadd_rn(double a, double b) { return emu::opaque(a) + emu::opaque(b); }
EMU_INLINE double __dsub_rn(double a, double b) { return emu::opaque(a) - emu::opaque(b); }
EMU_INLINE double __ddiv_rn(double a, double b) { return a / b; }

EMU_INLINE int __float_as_int(float v) { return emu::from_bits<int>(emu::to_bits(v)); }
EMU_INLINE unsigned __float_as_uint(float v) { return emu::from_bits<unsigned>(emu::to_bits(v)); }
EMU_INLINE float __int_as_float(int v) { return emu::from_bits<float>(emu::to_bits(v)); }
EMU_INLINE float __uint_as_float(unsigned v) { return emu::from_bits<float>(emu::to_bits(v)); }
EMU_INLINE long long __double_as_longlong(double v) { return emu::from_bits<long long>(emu::to_bits(v)); }
EMU_INLINE double __longlong_as_double(long long v) { return emu::from_bits<double>(emu::to_bits(v)); }
EMU_INLINE int __float2int_rn(float x) { return (int)rintf(x); }
EMU_INLINE int __float2int_rz(float x) { return (int)x; }
EMU_INLINE int __float2int_rd(float x) { return (int)floorf(x); }
EMU_INLINE int __float2int_ru(float x) { return (int)ceilf(x); }
EMU_INLINE unsigned __float2uint_rn(float x) { return (unsigned)rintf(x); }
EMU_INLINE unsigned __float2uint_rz(float x) { return (unsigned)x; }
EMU_INLINE float __int2float_rn(int x) { return (float)x; }
EMU_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
EMU_INLINE float __double2float_rn(double x) { return (float)x; }

EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
EMU_INLINE int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_INLINE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
EMU_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> 4 * i & 15, byte = bytes >> 8 * (s & 7) & 255;
        result |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
}
EMU_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
EMU_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
EMU_INLINE int __mul24(int a, int b) { return (int)((unsigned)(a << 8 >> 8) * (unsigned)(b << 8 >> 8)); }
EMU_INLINE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
EMU_INLINE int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
EMU_INLINE unsigned __sad(int a, int b, unsigned c) { return (a > b ? (unsigned)a - b : (unsigned)b - a) + c; }
EMU_INLINE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
