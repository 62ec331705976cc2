// The hooks that a kernel calls before every load and store and in every basic block: it is compiled with
// -fsanitize=thread -fsanitize-coverage=trace-pc and linked without the sanitizers' own libraries.
#include "runtime.h"

#include <string.h>

namespace emu {

static Variable* variable_at(Module* m, uintptr_t address) {  // or in the gap after it
    for (Variable* v = m->variables; v; v = v->next)
        if (address - (uintptr_t)v->address < v->size + v->size % 64 + 256) return v;
    return 0;
}

// Everything that the fast check does not settle: local memory, variables of the module, misaligned and bad accesses.
__attribute__((noinline)) void slow_access(uintptr_t address, uint64_t bytes, int write, int flags, void* pc) {
    Worker* w = self;
    if (!w || !w->current) return;  // a constructor of the module
    if (w->launch->cancel) escape();
    uint64_t offset = address - arena_base;
    if (offset < arena_size) {
        if ((flags & ALIGNED) && offset % bytes) fail(MISALIGNED, address, bytes, write, pc, 0);
        uint64_t outside = first_outside(offset, bytes);
        if (outside != offset + bytes) {
            if (bytes > 16) address = arena_base + outside;  // a bulk copy: where it leaves the allocation
            fail(OUT_OF_BOUNDS, address, bytes, write, pc, 0);
        }
    } else {
        Thread* t = w->current;
        if (address - (uintptr_t)t->coroutine->stack < STACK_BYTES) {
            if (watching && w->products[t->linear / 32]) watch_sums(w, address, write, pc);
            return;
        }
        Module* m = w->launch->module;
        if (address < m->image_begin || address >= m->image_end) fail(OUT_OF_BOUNDS, address, bytes, write, pc, 0);
        Variable* v = variable_at(m, address);
        if (!v) return;
        if (address + bytes > (uintptr_t)v->address + v->size) fail(OUT_OF_BOUNDS, address, bytes, write, pc, 0);
        if ((flags & ALIGNED) && address % bytes) fail(MISALIGNED, address, bytes, write, pc, 0);
        offset = v->shadow + (address - (uintptr_t)v->address);
    }
    if ((flags & VOLATILE) && !write && ++w->current->spins > 256) {  // it may wait for another thread
        w->current->spins = 0;
        w->current->pc = pc;
        emu_yield();
    }
    if (watching) watch_access(w, offset, bytes, write, flags, pc);
}

template <int N, int WRITE>
static inline __attribute__((always_inline)) void access(void* p, void* pc) {
    uint64_t offset = (uintptr_t)p - arena_base;
    if (__builtin_expect(!attention && offset < arena_size, 1)) {
        if (N <= 8) {
            if (__builtin_expect((offset & 7) + N <= shadow[offset >> 3] && !(offset & (N - 1)), 1)) return;
        } else {
            uint16_t pair;
            memcpy(&pair, shadow + (offset >> 3), 2);
            if (__builtin_expect(pair == 0x0808 && !(offset & 15), 1)) return;
        }
    }
    slow_access((uintptr_t)p, N, WRITE, ALIGNED, pc);
}

// The compiler copies a struct as a range if its size is not a power of two. The card moves it in pieces of 4 bytes or
// less.
static void range(const void* p, size_t bytes, int write, void* pc) {
    uintptr_t a = (uintptr_t)p;
    size_t piece = a % 4 == 0 && bytes % 4 == 0 ? 4 : 1;
    for (size_t i = 0; i < bytes; i += piece) slow_access(a + i, piece, write, 0, pc);
}

__attribute__((noinline)) static void block_of_code(void* pc) {
    Worker* w = self;
    if (!w || !w->current) return;
    if (w->launch->cancel) escape();
    if (watching) watch_block_of_code(w, pc);
}

}  // namespace emu

using namespace emu;

#define CALLER __builtin_return_address(0)
#define HOOKS(N)                                                                                                       \
    EMU_EXPORT void __tsan_read##N(void* p) { access<N, 0>(p, CALLER); }                                               \
    EMU_EXPORT void __tsan_write##N(void* p) { access<N, 1>(p, CALLER); }                                              \
    EMU_EXPORT void __tsan_unaligned_read##N(void* p) { slow_access((uintptr_t)p, N, 0, 0, CALLER); }                  \
    EMU_EXPORT void __tsan_unaligned_write##N(void* p) { slow_access((uintptr_t)p, N, 1, 0, CALLER); }                 \
    EMU_EXPORT void __tsan_volatile_read##N(void* p) { slow_access((uintptr_t)p, N, 0, ALIGNED | VOLATILE, CALLER); }  \
    EMU_EXPORT void __tsan_volatile_write##N(void* p) { slow_access((uintptr_t)p, N, 1, ALIGNED | VOLATILE, CALLER); } \
    EMU_EXPORT void __tsan_unaligned_volatile_read##N(void* p) { slow_access((uintptr_t)p, N, 0, VOLATILE, CALLER); }  \
    EMU_EXPORT void __tsan_unaligned_volatile_write##N(void* p) { slow_access((uintptr_t)p, N, 1, VOLATILE, CALLER); } \
    EMU_EXPORT void __tsan_read_write##N(void* p) {                                                                    \
        access<N, 0>(p, CALLER);                                                                                       \
        access<N, 1>(p, CALLER);                                                                                       \
    }                                                                                                                  \
    EMU_EXPORT void __tsan_unaligned_read_write##N(void* p) {                                                          \
        slow_access((uintptr_t)p, N, 0, 0, CALLER);                                                                    \
        slow_access((uintptr_t)p, N, 1, 0, CALLER);                                                                    \
    }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

EMU_EXPORT void __tsan_read_range(void* p, size_t n) { range(p, n, 0, CALLER); }
EMU_EXPORT void __tsan_write_range(void* p, size_t n) { range(p, n, 1, CALLER); }
EMU_EXPORT void* __tsan_memcpy(void* to, const void* from, size_t n) {
    range(from, n, 0, CALLER);
    range(to, n, 1, CALLER);
    return memcpy(to, from, n);
}
EMU_EXPORT void* __tsan_memmove(void* to, const void* from, size_t n) {
    range(from, n, 0, CALLER);
    range(to, n, 1, CALLER);
    return memmove(to, from, n);
}
EMU_EXPORT void* __tsan_memset(void* to, int value, size_t n) {
    range(to, n, 1, CALLER);
    return memset(to, value, n);
}
EMU_EXPORT void __sanitizer_cov_trace_pc(void) {
    if (__builtin_expect(attention, 0)) block_of_code(CALLER);
}
EMU_EXPORT void __tsan_init(void) {}
EMU_EXPORT void __tsan_func_entry(void*) {}
EMU_EXPORT void __tsan_func_exit(void) {}
EMU_EXPORT void __tsan_vptr_read(void**) {}
EMU_EXPORT void __tsan_vptr_update(void**, void*) {}

void emu_access(const void* p, size_t bytes, int write) {
    if (bytes > 16) range(p, bytes, write, CALLER);
    else slow_access((uintptr_t)p, bytes, write, ALIGNED, CALLER);
}
