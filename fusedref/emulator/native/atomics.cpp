// Atomic operations on device memory.
#include "runtime.h"

namespace emu {

static inline void atomic_access(void* p, int bytes, void* pc) {
    Thread* t = self->current;
    if (++t->spins > 256) {  // it may wait for a lock that another thread holds
        t->spins = 0;
        t->pc = pc;
        emu_yield();
    }
    uint64_t offset = (uintptr_t)p - arena_base;
    if (!attention && offset < arena_size && (offset & 7) + bytes <= shadow[offset >> 3] && !(offset & (bytes - 1)))
        return;
    slow_access((uintptr_t)p, bytes, 1, ALIGNED | ATOMIC, pc);
}

template <class T>
static inline T combine(T old, T value, int operation) {
    switch (operation) {
        case 0:
            return old + value;
        case 1:
            return value;
        case 2:
            return value < old ? value : old;
        default:
            return value > old ? value : old;
    }
}

template <class T>
static inline T combine_integer(T old, T value, int operation) {
    switch (operation) {
        case 4:
            return old & value;
        case 5:
            return old | value;
        case 6:
            return old ^ value;
        case 7:
            return old >= value ? 0 : old + 1;
        case 8:
            return old == 0 || old > value ? value : old - 1;
        default:
            return combine(old, value, operation);
    }
}

}  // namespace emu

using namespace emu;

#define ATOMIC(NAME, T, COMBINE)                                                                       \
    T NAME(T* p, T value, int operation) {                                                             \
        atomic_access(p, sizeof(T), __builtin_return_address(0));                                      \
        T old, next;                                                                                   \
        __atomic_load(p, &old, __ATOMIC_RELAXED);                                                      \
        do next = COMBINE(old, value, operation);                                                      \
        while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)); \
        self->current->changed |= next != old;                                                         \
        return old;                                                                                    \
    }
ATOMIC(emu_atomic_u32, uint32_t, combine_integer)
ATOMIC(emu_atomic_i32, int32_t, combine_integer)
ATOMIC(emu_atomic_u64, uint64_t, combine_integer)
ATOMIC(emu_atomic_i64, int64_t, combine_integer)
ATOMIC(emu_atomic_f32, float, combine)
ATOMIC(emu_atomic_f64, double, combine)

#define COMPARE_AND_SWAP(NAME, T)                                                                      \
    T NAME(T* p, T compare, T value) {                                                                 \
        atomic_access(p, sizeof(T), __builtin_return_address(0));                                      \
        if (__atomic_compare_exchange(p, &compare, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) \
            self->current->changed |= compare != value;                                                \
        return compare;                                                                                \
    }
COMPARE_AND_SWAP(emu_atomic_cas16, uint16_t)
COMPARE_AND_SWAP(emu_atomic_cas32, uint32_t)
COMPARE_AND_SWAP(emu_atomic_cas64, uint64_t)
