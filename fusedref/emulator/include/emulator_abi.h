// What a compiled kernel and the emulator's runtime share. Both include it, and abi.py reads its structures.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__linux__) && defined(__GLIBC__)
#define EMU_TLS __thread __attribute__((tls_model("initial-exec")))  // one load; general TLS is a call
#else
#define EMU_TLS __thread
#endif
// Marks the emulator's own code in a kernel's thread: its accesses and branches do not count as the kernel's.
#ifdef __clang__
#define EMU_UNWATCHED __attribute__((no_sanitize("thread", "coverage")))
#else
#define EMU_UNWATCHED __attribute__((no_sanitize("thread"), no_sanitize_coverage))
#endif
#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
#define EMU_CONST __attribute__((const))  // never changes in one thread: calls may be hoisted, merged or dropped

namespace emu {

struct Parameter {
    uint32_t offset, size;                        // in the packed argument buffer
    uint32_t element;                             // size of what a pointer points to in bytes, 1 for void*
    uint8_t pointer, constant, floating, opaque;  // opaque: a struct, or a pointer to pointers
};

struct Kernel {
    Kernel* next;
    const char* parameter_names;  // "x,y,n"
    void* function;
    void (*entry)(void* function, const char* arguments);
    const Parameter* parameters;
    uint32_t parameter_count, argument_bytes;
};

struct Shared {  // one __shared__ variable
    Shared* next;
    const char *name, *owner;
    uint64_t size, align, element;  // size 0: dynamic
    uint64_t offset;                // in a worker's shared memory; set by the runtime
    uint32_t index;
};

struct Variable {  // one __constant__ or __device__ variable
    Variable* next;
    const char* name;
    char* address;
    uint64_t size, element;
    uint64_t shadow;  // the arena offset that stands for it in the shadow memories
};

typedef void (*Constructor)(void);

struct Module {
    Kernel* kernels;
    Shared* shared;
    Variable* variables;
    uintptr_t image_begin, image_end;
    uint32_t shared_count;
    const Constructor *constructors, *constructors_end;  // of global variables, those that have not run yet
};

// The lanes of a warp in `mask` meet; the last to arrive runs `action` on the payloads of all; then all go on.
typedef void (*WarpAction)(void* const payload[32], uint32_t present, const void* detail);

// A matrix in shared memory that a warp's share of a wgmma reads: `rows` rows of 16 bytes from `begin` on, and as many from
// begin + next on. No rows: the matrix lies in registers.
struct Matrix {
    const char* begin;
    uint32_t rows;
    int next;
};

}  // namespace emu

EMU_EXPORT EMU_CONST unsigned emu_thread_x(void);
EMU_EXPORT EMU_CONST unsigned emu_thread_y(void);
EMU_EXPORT EMU_CONST unsigned emu_thread_z(void);
EMU_EXPORT EMU_CONST unsigned emu_block_x(void);
EMU_EXPORT EMU_CONST unsigned emu_block_y(void);
EMU_EXPORT EMU_CONST unsigned emu_block_z(void);
EMU_EXPORT EMU_CONST unsigned emu_block_dim_x(void);
EMU_EXPORT EMU_CONST unsigned emu_block_dim_y(void);
EMU_EXPORT EMU_CONST unsigned emu_block_dim_z(void);
EMU_EXPORT EMU_CONST unsigned emu_grid_dim_x(void);
EMU_EXPORT EMU_CONST unsigned emu_grid_dim_y(void);
EMU_EXPORT EMU_CONST unsigned emu_grid_dim_z(void);
EMU_EXPORT EMU_CONST unsigned emu_lane(void);
EMU_EXPORT EMU_CONST void* emu_shared_address(const emu::Shared* variable);

EMU_EXPORT void emu_warp_meet(uint32_t mask, void* payload, emu::WarpAction action, const void* detail);
EMU_EXPORT void emu_syncwarp(uint32_t mask);
EMU_EXPORT uint32_t emu_active_mask(void);
EMU_EXPORT int emu_syncthreads(int mode, int predicate);                   // mode 0 plain, 1 count, 2 and, 3 or
EMU_EXPORT void emu_barrier(uint32_t number, uint32_t threads, int wait);  // bar.sync / bar.arrive number, threads
EMU_EXPORT void emu_yield(void);                                           // lets the block's other threads run
EMU_EXPORT void emu_fence(int scope);                                      // 0 block, 1 device, 2 system
EMU_EXPORT uint64_t emu_clock(void);
EMU_EXPORT int emu_printf(const char* format, ...) __attribute__((format(printf, 1, 2)));
EMU_EXPORT void emu_assert_fail(const char* expression, const char* file, int line, const char* function);
EMU_EXPORT void emu_trap(void);
EMU_EXPORT void emu_unreachable(void) __attribute__((noreturn));
EMU_EXPORT void* emu_malloc(size_t bytes);  // of device memory
EMU_EXPORT void emu_heap_free(void* address);

// Declares an access that the compiler cannot see, such as one by a copy instruction.
EMU_EXPORT void emu_access(const void* address, size_t bytes, int write);

// Atomics. `operation`: 0 add, 1 exchange, 2 min, 3 max, 4 and, 5 or, 6 xor, 7 inc, 8 dec. They return the old value.
EMU_EXPORT uint32_t emu_atomic_u32(uint32_t* address, uint32_t value, int operation);
EMU_EXPORT int32_t emu_atomic_i32(int32_t* address, int32_t value, int operation);
EMU_EXPORT uint64_t emu_atomic_u64(uint64_t* address, uint64_t value, int operation);
EMU_EXPORT int64_t emu_atomic_i64(int64_t* address, int64_t value, int operation);
EMU_EXPORT float emu_atomic_f32(float* address, float value, int operation);
EMU_EXPORT double emu_atomic_f64(double* address, double value, int operation);
EMU_EXPORT uint16_t emu_atomic_cas16(uint16_t* address, uint16_t compare, uint16_t value);
EMU_EXPORT uint32_t emu_atomic_cas32(uint32_t* address, uint32_t compare, uint32_t value);
EMU_EXPORT uint64_t emu_atomic_cas64(uint64_t* address, uint64_t compare, uint64_t value);

// Asynchronous copies take effect when a thread waits for them (copies.cpp).
EMU_EXPORT void emu_async_copy(void* shared, const void* global, uint32_t bytes, uint32_t source_bytes);
EMU_EXPORT void emu_async_commit(void);
EMU_EXPORT void emu_async_wait(uint32_t groups_left);  // cp.async.wait_group n
EMU_EXPORT void emu_bulk_load(void* shared, const void* global, uint32_t bytes, void* mbarrier);
EMU_EXPORT void emu_bulk_store(void* global, const void* shared, uint32_t bytes);
EMU_EXPORT void emu_bulk_commit(void);
EMU_EXPORT void emu_bulk_wait(uint32_t groups_left);  // cp.async.bulk.wait_group.read n
EMU_EXPORT void emu_fence_proxy(void);                // the copy engine and wgmma see this thread's accesses so far
EMU_EXPORT void emu_mbarrier_init(void* mbarrier, uint32_t arrivals);
EMU_EXPORT void emu_mbarrier_arrive(void* mbarrier, uint32_t bytes);  // and expects these bytes of bulk loads
EMU_EXPORT void emu_mbarrier_wait(void* mbarrier, uint32_t parity);

// A warp's share of a wgmma (products.cpp). All lanes call it together; `run` gets a copy of each lane's operands when
// the warp waits for the product.
EMU_EXPORT void emu_product(
    void* operands, uint32_t bytes, emu::Matrix a, emu::Matrix b, float* sums, uint32_t sum_count, emu::WarpAction run);
EMU_EXPORT void emu_product_commit(void);
EMU_EXPORT void emu_product_wait(uint32_t groups_left);  // wgmma.wait_group n
