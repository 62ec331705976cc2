// CUDA C for the emulator, included before a kernel's first line: everything that a kernel may use without an #include.
// Wrappers are always inlined, so that the debug information leads from an access to a line of the kernel's own source.
#pragma once
#define _GLIBCXX_BITS_SPECFUN_H 1  // leaves out special functions, which take half of the time to parse <math.h>
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

extern "C" {
// The constructors of global variables. The runtime runs them after loading the library, in a launch of their own,
// which can be interrupted (compile/constructors.py renames their section; the linker adds these symbols).
extern const Constructor __start_emu_startup[] __attribute__((weak, visibility("hidden")));
extern const Constructor __stop_emu_startup[] __attribute__((weak, visibility("hidden")));
__attribute__((visibility("default"))) Module emu_module = {0, 0, 0, 0, 0, 0, __start_emu_startup, __stop_emu_startup};
}

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
        Parameter all[] = {
            Parameter{
                offset(I), sizeof(A), element_size<std::remove_cv_t<A>>(), std::is_pointer_v<A>,
                is_constant<std::remove_cv_t<A>>(), std::is_floating_point_v<A>, is_opaque<std::remove_cv_t<A>>()}...,
            Parameter{}};
        return all[index];
    }
    template <size_t... I> static const Parameter* parameters(std::index_sequence<I...> sequence) {
        static const Parameter list[] = {parameter(I, sequence)..., Parameter{}};
        return list;
    }
    template <class T, size_t I> EMU_UNWATCHED static T argument(const char* buffer) {
        constexpr uint32_t at = offset(I);
        T value;
        __builtin_memcpy(&value, buffer + at, sizeof(T));
        return value;
    }
    template <size_t... I>
    EMU_UNWATCHED static void call(void (*f)(A...), const char* b, std::index_sequence<I...>) {
        f(argument<A, I>(b)...);
    }
    EMU_UNWATCHED static void entry(void* function, const char* arguments) {
        call((void (*)(A...))function, arguments, std::index_sequence_for<A...>());
    }
};

struct Register {
    Kernel kernel;
    template <class... A> Register(const char* names, void (*function)(A...)) {
        using L = Layout<A...>;
        kernel = Kernel{emu_module.kernels,
                        names,
                        (void*)function,
                        &L::entry,
                        L::parameters(std::index_sequence_for<A...>()),
                        sizeof...(A),
                        L::offset(sizeof...(A))};
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

template <class Tag> EMU_INLINE void* shared_address() { return emu_shared_address(SharedVariable<Tag>::registered); }

template <class T> struct Guarded {  // a variable of the module, and a gap after it that no access may touch
    T value;
    char gap[256 + sizeof(T) % 64];
};

struct RegisterVariable {
    Variable variable;
    template <class T> RegisterVariable(const char* name, T& value) {
        variable =
            Variable{emu_module.variables, name, (char*)&value, sizeof(T), sizeof(std::remove_all_extents_t<T>), 0};
        emu_module.variables = &variable;
    }
};

}  // namespace emu

#include "emulator_vectors.h"

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

#include "emulator_warps.h"

// -------------------------------------------------------------------------------------------------------- atomics

#define EMU_ATOMIC(NAME, T, BASE, U, OPERATION)                                                   \
    EMU_INLINE T NAME(T* p, T v) { return (T)emu_atomic_##BASE((U*)p, (U)v, OPERATION); }         \
    EMU_INLINE T NAME##_block(T* p, T v) { return (T)emu_atomic_##BASE((U*)p, (U)v, OPERATION); } \
    EMU_INLINE T NAME##_system(T* p, T v) { return (T)emu_atomic_##BASE((U*)p, (U)v, OPERATION); }
#define EMU_ATOMIC_ARITHMETIC(NAME, OPERATION)           \
    EMU_ATOMIC(NAME, int, i32, int32_t, OPERATION)       \
    EMU_ATOMIC(NAME, unsigned, u32, uint32_t, OPERATION) \
    EMU_ATOMIC(NAME, unsigned long long, u64, uint64_t, OPERATION)
#define EMU_ATOMIC_LOGICAL(NAME, OPERATION)              \
    EMU_ATOMIC(NAME, int, i32, int32_t, OPERATION)       \
    EMU_ATOMIC(NAME, unsigned, u32, uint32_t, OPERATION) \
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

// Macros, so that the access belongs to the line that calls them.
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
#ifdef __clang__  // which has declared operator new and delete with default visibility
#define EMU_OPERATOR __attribute__((always_inline)) inline
#else
#define EMU_OPERATOR EMU_HEAP
#endif
extern "C" EMU_HEAP void* malloc(size_t bytes) noexcept { return emu_malloc(bytes); }
extern "C" EMU_HEAP void free(void* p) noexcept { emu_heap_free(p); }
EMU_OPERATOR void* operator new(size_t bytes) { return emu_malloc(bytes); }
EMU_OPERATOR void* operator new[](size_t bytes) { return emu_malloc(bytes); }
EMU_OPERATOR void operator delete(void* p) noexcept { emu_heap_free(p); }
EMU_OPERATOR void operator delete[](void* p) noexcept { emu_heap_free(p); }
EMU_OPERATOR void operator delete(void* p, size_t) noexcept { emu_heap_free(p); }
EMU_OPERATOR void operator delete[](void* p, size_t) noexcept { emu_heap_free(p); }

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

#include "emulator_math.h"
