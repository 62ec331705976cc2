// The emulator's runtime: device memory, the threads of a block as fibers, barriers and warps, and the hooks that every
// load and store of a kernel calls before it happens (kernels are compiled with -fsanitize=thread, linked without it).
//
// Device memory is one reserved range of addresses. A shadow byte stands for each 8 bytes of it: how many of them, from
// the first, belong to an allocation. So an access is checked exactly, to the byte, with one subtraction and one load.
// Shared memory lives in the same range, each variable with a gap around it.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define _XOPEN_SOURCE 700
#define _DARWIN_C_SOURCE
#include "runtime.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#if defined(__linux__)
#include <link.h>
#endif
#include <dlfcn.h>

namespace emu {

EMU_TLS Worker* self;
EMU_TLS int watching;

// ---------------------------------------------------------------------------------------------------- device memory

uintptr_t arena_base;
uint64_t arena_size;
uint8_t* shadow;                                   // of each 8 bytes: how many are allocated, counted from the first
static uint64_t arena_first, arena_next;           // offsets: where allocations may begin; where the next one is tried
static uint64_t capacity, used;

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation* allocations;                    // sorted by address
static uint64_t allocation_count, allocation_room;
static uint64_t virtual_next;                      // for module variables: addresses that only shadows know

static void* reserve(uint64_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANON;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    void* p = mmap(0, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) return 0;
#ifdef MADV_DONTDUMP
    madvise(p, bytes, MADV_DONTDUMP);
#endif
    return p;
}

void* reserve_pages(uint64_t bytes) { return reserve(bytes); }
void release_pages(void* begin, uint64_t bytes) { munmap(begin, bytes); }

void clear_pages(void* begin, uint64_t bytes) {  // zeros, and the whole pages go back to the system
    char *p = (char*)begin, *end = p + bytes;
#if defined(__linux__)
    char* first = (char*)(((uintptr_t)p + 65535) & ~(uintptr_t)65535);
    char* last = (char*)((uintptr_t)end & ~(uintptr_t)65535);
    if (first < last) {
        memset(p, 0, first - p);
        madvise(first, last - first, MADV_DONTNEED);
        p = last;
    }
#endif
    memset(p, 0, end - p);
}

static void set_shadow(uint64_t offset, uint64_t bytes, bool allocated) {
    uint8_t* s = shadow + offset / 8;
    if (allocated) memset(s, 8, bytes / 8);
    else clear_pages(s, bytes / 8);
    if (bytes % 8) s[bytes / 8] = allocated ? bytes % 8 : 0;
}

static Allocation* find_allocation(uint64_t offset) {  // the last that begins at or before offset
    uint64_t low = 0, high = allocation_count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (allocations[middle].offset <= offset) low = middle + 1; else high = middle;
    }
    return low ? &allocations[low - 1] : 0;
}

EMU_EXPORT int emu_init(uint64_t memory) {
    pthread_mutex_lock(&memory_lock);
    if (!arena_base) {
        for (uint64_t size = 1ull << 40; size >= 1ull << 32 && !arena_base; size /= 2) {
            void* a = reserve(size);
            void* s = a ? reserve(size / 8) : 0;
            if (a && !s) munmap(a, size);
            if (!s) continue;
            arena_base = (uintptr_t)a;
            shadow = (uint8_t*)s;
            arena_size = size;
        }
        arena_first = arena_next = VARIABLES_BEGIN + VARIABLE_ROOM;
        virtual_next = VARIABLES_BEGIN;
        capacity = memory;
        if (arena_base && !watch_init()) arena_base = 0;
    }
    pthread_mutex_unlock(&memory_lock);
    return arena_base != 0;
}

EMU_EXPORT uint64_t emu_alloc(uint64_t bytes) {
    uint64_t result = 0;
    pthread_mutex_lock(&memory_lock);
    if (bytes && bytes <= capacity - used) {
        // As much free room behind an allocation as it is long: an index that is wrong by a stride lands in the gap.
        uint64_t room = (bytes + 4095) / 4096 * 4096;
        uint64_t span = room + (room < (1u << 30) ? room : (1u << 30)) + 65536;
        for (int attempt = 0; attempt < 2 && !result; attempt++) {
            uint64_t at = arena_next;
            if (attempt) {  // the end was reached: look between the living
                at = arena_first;
                for (uint64_t i = 0; i < allocation_count; i++) {
                    if (at + span <= allocations[i].offset) break;
                    at = allocations[i].offset + allocations[i].span;
                }
            }
            if (at + span > arena_size) continue;
            if (allocation_count == allocation_room) {
                allocation_room = allocation_room ? 2 * allocation_room : 64;
                allocations = (Allocation*)realloc(allocations, allocation_room * sizeof(Allocation));
            }
            Allocation* before = find_allocation(at);
            uint64_t index = before ? before - allocations + 1 : 0;
            memmove(allocations + index + 1, allocations + index, (allocation_count - index) * sizeof(Allocation));
            allocation_count++;
            allocations[index] = Allocation{at, bytes, span, 0};
            if (!attempt) arena_next = at + span;
            used += bytes;
            set_shadow(at, bytes, true);
            result = arena_base + at;
        }
    }
    pthread_mutex_unlock(&memory_lock);
    if (result) memset((void*)result, 0xFF, bytes);  // NaN, and an index that is far off every array
    return result;
}

EMU_EXPORT int emu_free(uint64_t address) {
    int found = 0;
    pthread_mutex_lock(&memory_lock);
    uint64_t offset = address - arena_base;
    Allocation* a = offset < arena_size ? find_allocation(offset) : 0;
    if (a && a->offset == offset) {
        found = 1;
        set_shadow(offset, a->bytes, false);
        watch_forget(offset, a->bytes);
        madvise((void*)(arena_base + offset), (a->bytes + 4095) / 4096 * 4096, MADV_DONTNEED);
        used -= a->bytes;
        uint64_t index = a - allocations;
        memmove(a, a + 1, (allocation_count - index - 1) * sizeof(Allocation));
        allocation_count--;
    }
    pthread_mutex_unlock(&memory_lock);
    return found;
}

EMU_EXPORT uint64_t emu_memory_used(void) { return used; }

// The allocation that holds address, or the last one before it: {address, bytes}. 1 when there is one.
EMU_EXPORT int emu_allocation(uint64_t address, uint64_t* out) {
    pthread_mutex_lock(&memory_lock);
    uint64_t offset = address - arena_base;
    Allocation* a = offset < arena_size ? find_allocation(offset) : 0;
    if (a) { out[0] = arena_base + a->offset; out[1] = a->bytes; }
    pthread_mutex_unlock(&memory_lock);
    return a != 0;
}

// {address, bytes} of the first `room` allocations; gives back how many there are.
EMU_EXPORT uint64_t emu_allocations(uint64_t* out, uint64_t room) {
    pthread_mutex_lock(&memory_lock);
    for (uint64_t i = 0; i < allocation_count && i < room; i++) {
        out[2 * i] = arena_base + allocations[i].offset;
        out[2 * i + 1] = allocations[i].bytes;
    }
    uint64_t count = allocation_count;
    pthread_mutex_unlock(&memory_lock);
    return count;
}

static uint64_t first_outside(uint64_t offset, uint64_t bytes) {  // the first byte that is not allocated, or the end
    if (offset >= arena_size || bytes > arena_size - offset) return offset;
    uint64_t at = offset, end = offset + bytes;
    while (at < end) {
        uint64_t next = (at | 7) + 1, last = next < end ? next : end, live = at / 8 * 8 + shadow[at / 8];
        if (last > live) return live > at ? live : at;
        at = last;
    }
    return end;
}

static bool in_arena(uint64_t offset, uint64_t bytes) { return first_outside(offset, bytes) == offset + bytes; }

EMU_EXPORT int emu_valid(uint64_t address, uint64_t bytes) { return in_arena(address - arena_base, bytes); }

// -------------------------------------------------------------------------------------------------------- modules

#if defined(__linux__)
static int find_image(struct dl_phdr_info* info, size_t, void* data) {
    Module* m = (Module*)data;
    uintptr_t low = ~(uintptr_t)0, high = 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            if (begin < low) low = begin;
            if (begin + info->dlpi_phdr[i].p_memsz > high) high = begin + info->dlpi_phdr[i].p_memsz;
        }
    if ((uintptr_t)m < low || (uintptr_t)m >= high) return 0;
    m->image_begin = low;
    m->image_end = high;
    return 1;
}
#endif

EMU_EXPORT void emu_module_loaded(Module* m) {
#if defined(__linux__)
    dl_iterate_phdr(find_image, m);
#else
    m->image_begin = 4096;  // elsewhere every host address but null counts as the module's
    m->image_end = ~(uintptr_t)0;
#endif
    uint64_t offset = DYNAMIC_ROOM;
    uint32_t index = 0;
    for (Shared* s = m->shared; s; s = s->next) {
        s->index = index++;
        if (!s->size) continue;  // dynamic: at the beginning
        uint64_t align = s->align > 1024 ? s->align : 1024;
        offset = (offset + align - 1) / align * align;
        s->offset = offset;
        offset += s->size + (s->size > 1024 ? s->size : 1024);
    }
    m->shared_count = index;
    pthread_mutex_lock(&memory_lock);
    for (Variable* v = m->variables; v; v = v->next) {
        v->shadow = virtual_next;
        virtual_next += (v->size + 1023) / 1024 * 1024 + 1024;
    }
    pthread_mutex_unlock(&memory_lock);
}

EMU_EXPORT const char* emu_symbol(void* function) {
    Dl_info info;
    return dladdr(function, &info) && info.dli_saddr == function ? info.dli_sname : 0;
}

// ---------------------------------------------------------------------------------------------------------- errors

[[noreturn]] static void escape() {
    self->launch->cancel = 1;
    _longjmp(self->escape, 1);
}

static void where(Error* e) {
    Thread* t = self->current;
    memcpy(e->block, self->block_index, sizeof e->block);
    if (t) memcpy(e->thread, t->index, sizeof e->thread);
}

[[noreturn]] void fail(int kind, uint64_t address, uint64_t bytes, int write, void* pc, const char* text) {
    Launch* launch = self->launch;
    pthread_mutex_lock(&launch->lock);
    if (!launch->error.kind) {
        Error* e = &launch->error;
        e->kind = kind;
        e->address = address;
        e->bytes = bytes;
        e->write = write;
        e->pc = (uint64_t)pc;
        e->worker = self->index;
        where(e);
        if (text) snprintf(e->text, sizeof e->text, "%s", text);
    }
    pthread_mutex_unlock(&launch->lock);
    escape();
}

// ----------------------------------------------------------------------------------------------------------- hooks

// All that the fast check does not settle: local memory, variables of the module, misaligned and bad accesses.
__attribute__((noinline)) void slow_access(uintptr_t address, uint64_t bytes, int write, int flags, void* pc) {
    Worker* w = self;
    if (!w || !w->current) return;  // the module's own initialisation
    if (w->launch->cancel) escape();
    uint64_t offset = address - arena_base;
    if (offset < arena_size) {
        if ((flags & ALIGNED) && offset % bytes) fail(MISALIGNED, address, bytes, write, pc, 0);
        if (!in_arena(offset, bytes)) {
            if (bytes > 16) address = arena_base + first_outside(offset, bytes);  // of a bulk copy: where it leaves
            fail(OUT_OF_BOUNDS, address, bytes, write, pc, 0);
        }
    } else {
        Coroutine* c = w->current->coroutine;
        if (address - (uintptr_t)c->stack < STACK_BYTES) {
            if (watching && w->products[w->current->linear / 32]) watch_sums(w, address, write, pc);
            return;
        }
        Module* m = w->launch->module;
        if (address < m->image_begin || address >= m->image_end) fail(OUT_OF_BOUNDS, address, bytes, write, pc, 0);
        Variable* inside = 0;
        for (Variable* v = m->variables; v && !inside; v = v->next)
            if (address >= (uintptr_t)v->address && address < (uintptr_t)v->address + v->size + v->size % 64 + 256)
                inside = v;
        if (!inside) return;
        if (address + bytes > (uintptr_t)inside->address + inside->size)
            fail(OUT_OF_BOUNDS, address, bytes, write, pc, 0);
        if ((flags & ALIGNED) && address % bytes) fail(MISALIGNED, address, bytes, write, pc, 0);
        offset = inside->shadow + (address - (uintptr_t)inside->address);
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
    if (__builtin_expect(!watching && offset < arena_size, 1)) {
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

}  // namespace emu

using namespace emu;

#define HOOKS(N)                                                                                              \
    EMU_EXPORT void __tsan_read##N(void* p) { access<N, 0>(p, __builtin_return_address(0)); }                 \
    EMU_EXPORT void __tsan_write##N(void* p) { access<N, 1>(p, __builtin_return_address(0)); }                \
    EMU_EXPORT void __tsan_unaligned_read##N(void* p) {                                                       \
        slow_access((uintptr_t)p, N, 0, 0, __builtin_return_address(0));                                      \
    }                                                                                                         \
    EMU_EXPORT void __tsan_unaligned_write##N(void* p) {                                                      \
        slow_access((uintptr_t)p, N, 1, 0, __builtin_return_address(0));                                      \
    }                                                                                                         \
    EMU_EXPORT void __tsan_volatile_read##N(void* p) {                                                        \
        slow_access((uintptr_t)p, N, 0, ALIGNED | VOLATILE, __builtin_return_address(0));                     \
    }                                                                                                         \
    EMU_EXPORT void __tsan_volatile_write##N(void* p) {                                                       \
        slow_access((uintptr_t)p, N, 1, ALIGNED | VOLATILE, __builtin_return_address(0));                     \
    }                                                                                                         \
    EMU_EXPORT void __tsan_unaligned_volatile_read##N(void* p) {                                              \
        slow_access((uintptr_t)p, N, 0, VOLATILE, __builtin_return_address(0));                               \
    }                                                                                                         \
    EMU_EXPORT void __tsan_unaligned_volatile_write##N(void* p) {                                             \
        slow_access((uintptr_t)p, N, 1, VOLATILE, __builtin_return_address(0));                               \
    }                                                                                                         \
    EMU_EXPORT void __tsan_read_write##N(void* p) {                                                           \
        access<N, 0>(p, __builtin_return_address(0));                                                         \
        access<N, 1>(p, __builtin_return_address(0));                                                         \
    }                                                                                                         \
    EMU_EXPORT void __tsan_unaligned_read_write##N(void* p) {                                                 \
        slow_access((uintptr_t)p, N, 0, 0, __builtin_return_address(0));                                      \
        slow_access((uintptr_t)p, N, 1, 0, __builtin_return_address(0));                                      \
    }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// A range is what a struct that is no power of two long is copied by: the card moves it in 4-byte pieces or less.
static void range(void* p, size_t bytes, int write, void* pc) {
    uintptr_t a = (uintptr_t)p;
    size_t piece = a % 4 == 0 && bytes % 4 == 0 ? 4 : 1;
    for (size_t i = 0; i < bytes; i += piece) slow_access(a + i, piece, write, 0, pc);
}
EMU_EXPORT void __tsan_read_range(void* p, size_t n) { range(p, n, 0, __builtin_return_address(0)); }
EMU_EXPORT void __tsan_write_range(void* p, size_t n) { range(p, n, 1, __builtin_return_address(0)); }
EMU_EXPORT void* __tsan_memcpy(void* to, const void* from, size_t n) {
    range((void*)from, n, 0, __builtin_return_address(0));
    range(to, n, 1, __builtin_return_address(0));
    return memcpy(to, from, n);
}
EMU_EXPORT void* __tsan_memmove(void* to, const void* from, size_t n) {
    range((void*)from, n, 0, __builtin_return_address(0));
    range(to, n, 1, __builtin_return_address(0));
    return memmove(to, from, n);
}
EMU_EXPORT void* __tsan_memset(void* to, int value, size_t n) {
    range(to, n, 1, __builtin_return_address(0));
    return memset(to, value, n);
}
EMU_EXPORT void __sanitizer_cov_trace_pc(void) {
    if (__builtin_expect(watching && self->current, 0)) watch_block_of_code(self, __builtin_return_address(0));
}
EMU_EXPORT void __tsan_init(void) {}
EMU_EXPORT void __tsan_func_entry(void*) {}
EMU_EXPORT void __tsan_func_exit(void) {}
EMU_EXPORT void __tsan_vptr_read(void**) {}
EMU_EXPORT void __tsan_vptr_update(void**, void*) {}

EMU_EXPORT void emu_access(const void* p, size_t bytes, int write) {
    void* pc = __builtin_return_address(0);
    if (bytes > 16) range((void*)p, bytes, write, pc);
    else slow_access((uintptr_t)p, bytes, write, ALIGNED, pc);
}

// ---------------------------------------------------------------------------------------------------------- fibers

namespace emu {

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static Coroutine* pool;

static Coroutine* new_coroutines(int count) {
    long page = sysconf(_SC_PAGESIZE);
    char* slab = (char*)reserve((STACK_BYTES + page) * (uint64_t)count);
    if (!slab) return 0;
    Coroutine* list = 0;
    for (int i = 0; i < count; i++) {
        char* at = slab + (STACK_BYTES + page) * (uint64_t)i;
        mprotect(at, page, PROT_NONE);  // the stack grows down into this page
        Coroutine* c = (Coroutine*)calloc(1, sizeof(Coroutine));
        c->stack = at + page;
        c->next = list;
        list = c;
    }
    return list;
}

static Coroutine* take_coroutine(Worker* w) {
    if (!w->idle) {
        pthread_mutex_lock(&pool_lock);
        if (!pool) pool = new_coroutines(64);
        for (int i = 0; i < 64 && pool; i++) {
            Coroutine* c = pool;
            pool = c->next;
            c->entered = false;
            c->next = w->idle;
            w->idle = c;
            c->all = w->owned;
            w->owned = c;
        }
        pthread_mutex_unlock(&pool_lock);
        if (!w->idle) fail(NO_STACKS, 0, 0, 0, 0, "no memory left for the stacks of a block's threads");
    }
    Coroutine* c = w->idle;
    w->idle = c->next;
    return c;
}

static void release_coroutines(Worker* w) {
    pthread_mutex_lock(&pool_lock);
    for (Coroutine* c = w->owned; c;) {
        Coroutine* next = c->all;
        c->next = pool;
        pool = c;
        c = next;
    }
    pthread_mutex_unlock(&pool_lock);
}

__attribute__((noinline)) static void suspend(Coroutine* c) {
    if (_setjmp(c->registers) == 0) _longjmp(self->scheduler, 1);
}

static void thread_left(Worker* w, Thread* t);

static void fiber_main() {
    for (;;) {
        Worker* w = self;
        Kernel* kernel = w->launch->kernel;
        Coroutine* c = w->current->coroutine;
        kernel->entry(kernel->function, w->launch->arguments);
        w = self;
        thread_left(w, w->current);
        suspend(c);
    }
}

static void resume(Worker* w, Thread* t) {
    if (!t->coroutine) t->coroutine = take_coroutine(w);
    Coroutine* c = t->coroutine;
    w->current = t;
    if (_setjmp(w->scheduler) == 0) {
        if (c->entered) _longjmp(c->registers, 1);
        c->entered = true;
        getcontext(&c->context);
        c->context.uc_stack.ss_sp = c->stack;
        c->context.uc_stack.ss_size = STACK_BYTES;
        c->context.uc_link = 0;
        makecontext(&c->context, fiber_main, 0);
        setcontext(&c->context);
    }
    w = self;
    t = w->current;
    w->current = 0;
    if (t->state == DONE) {
        t->coroutine->next = w->idle;
        w->idle = t->coroutine;
        t->coroutine = 0;
    }
}

// Give the processor to the block's other threads until somebody sets this one's state to READY.
static void block_on(int state, void* pc) {
    Thread* t = self->current;
    t->state = state;
    t->pc = pc;
    suspend(t->coroutine);
}

// ------------------------------------------------------------------------------------------- barriers and rendezvous

static void release_barrier(Worker* w, uint32_t number) {
    Barrier* b = &w->barriers[number];
    if (watching) watch_barrier(w, number);
    for (uint32_t i = 0; i < w->thread_count; i++) {
        Thread* t = &w->threads[i];
        if (t->state == BARRIER && t->barrier == number) t->state = READY;
    }
    w->released = true;
    b->result_count = b->count;
    b->result_and = b->count == b->arrived;
    b->arrived = b->count = 0;
    b->expected = 0;
}

static void complete_meeting(Worker* w, Thread* last) {
    Warp* warp = &w->warps[last->linear / 32];
    Thread* lanes = w->threads + last->linear / 32 * 32;
    void* payload[32] = {};
    uint32_t present = 0;
    for (int lane = 0; lane < 32; lane++)
        if ((last->mask >> lane & 1) && (warp->waiting >> lane & 1)) {
            payload[lane] = lanes[lane].payload;
            present |= 1u << lane;
        }
    warp->waiting &= ~present;
    if (watching) watch_meeting(w, last->linear / 32, present);
    if (last->action) last->action(payload, present, last->detail);
    for (int lane = 0; lane < 32; lane++)
        if (present >> lane & 1) lanes[lane].state = READY;
}

static bool meeting_complete(Worker* w, Thread* t) {
    Warp* warp = &w->warps[t->linear / 32];
    Thread* lanes = w->threads + t->linear / 32 * 32;
    uint32_t needed = t->mask & warp->living;
    if (needed & ~warp->waiting) return false;
    for (int lane = 0; lane < 32; lane++)
        if ((needed >> lane & 1) && (lanes[lane].mask != t->mask || lanes[lane].action != t->action)) return false;
    return true;
}

static void thread_left(Worker* w, Thread* t) {
    t->state = DONE;
    w->living--;
    Warp* warp = &w->warps[t->linear / 32];
    warp->living &= ~(1u << t->linear % 32);
    if (watching) watch_exit(w, t);
    Barrier* b = &w->barriers[0];  // threads that have returned are not waited for
    if (b->arrived && !b->expected && b->arrived == w->living) release_barrier(w, 0);
    if (warp->waiting) {
        Thread* lanes = w->threads + t->linear / 32 * 32;
        for (int lane = 0; lane < 32; lane++)
            if ((warp->waiting >> lane & 1) && meeting_complete(w, &lanes[lane])) complete_meeting(w, &lanes[lane]);
    }
}

static void arrive(uint32_t number, uint32_t threads, int wait, int predicate, void* pc) {
    Worker* w = self;
    Thread* t = w->current;
    Barrier* b = &w->barriers[number];
    if (watching) watch_arrive(w, number, threads, pc);
    b->arrived++;
    b->count += predicate != 0;
    b->expected = threads;
    t->barrier = number;
    bool complete = b->arrived >= (threads ? threads : w->living);
    if (!wait) {
        if (complete) release_barrier(w, number);
        return;
    }
    t->state = BARRIER;
    t->pc = pc;
    if (complete) release_barrier(w, number);  // sets this thread READY too, but the block's first threads go first
    suspend(t->coroutine);
}

static const char* STATES[] = {"done", "ready", "__syncthreads()", "a warp operation", "a wait"};

static void deadlock(Worker* w) {
    char text[sizeof(Error::text)];
    uint32_t shown = 0, count = 0;
    int at = 0;
    Thread* first = 0;
    for (uint32_t i = 0; i < w->thread_count; i++) {
        Thread* t = &w->threads[i];
        if (t->state == DONE) continue;
        count++;
        if (!first) first = t;
        if (shown++ < 2)
            at += snprintf(text + at, sizeof text - at, "%sthread (%u,%u,%u) waits at %s", shown > 1 ? ", " : "",
                           t->index[0], t->index[1], t->index[2], STATES[t->state]);
    }
    snprintf(text + at, sizeof text - at, "; %u of %u threads wait, %u have returned", count, w->thread_count,
             w->thread_count - count);
    w->current = first;
    fail(DEADLOCK, 0, 0, 0, first ? first->pc : 0, text);
}

// ---------------------------------------------------------------------------------------------------- one block

static uint64_t random_next(uint64_t* state) {  // splitmix64
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

static void shuffle(uint16_t* order, int count, uint64_t* state) {
    for (int i = count - 1; i > 0; i--) {
        int j = random_next(state) % (i + 1);
        uint16_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

// All that can run in this block looks for what another block is to write. If every worker has looked for long, and
// nothing has changed since, nothing will: what they wait for is up to blocks that have not begun.
static void wait_for_another_block(Worker* w, uint32_t spins) {
    Launch* launch = w->launch;
    const uint64_t patience = watching ? 1 << 12 : 1 << 18, now = __atomic_load_n(&launch->changes, __ATOMIC_SEQ_CST);
    w->vain = w->seen == now ? w->vain + spins : 0;
    w->seen = now;
    sched_yield();
    for (uint32_t i = 0; i < launch->worker_count; i++) {
        Worker* other = launch->workers[i];
        if (!other->finished && (other->seen != now || other->vain < patience)) return;
    }
    uint64_t blocks = launch->grid[0] * launch->grid[1] * launch->grid[2], begun = launch->next_block;
    char text[sizeof(Error::text)];
    snprintf(text, sizeof text, "%llu of %llu blocks have begun", (unsigned long long)(begun < blocks ? begun : blocks),
             (unsigned long long)blocks);
    for (uint32_t i = 0; i < w->thread_count && !w->current; i++)
        if (w->threads[i].state == READY) w->current = &w->threads[i];
    fail(SPINNING, 0, 0, 0, w->current->pc, text);
}

static void run_block(Worker* w, uint64_t number) {
    Launch* launch = w->launch;
    w->block_number = number;
    w->block_serial++;
    w->block_index[0] = number % launch->grid[0];
    w->block_index[1] = number / launch->grid[0] % launch->grid[1];
    w->block_index[2] = number / launch->grid[0] / launch->grid[1];
    uint32_t count = w->thread_count, warps = (count + 31) / 32;
    memset(w->barriers, 0, sizeof w->barriers);
    w->living = count;
    w->released = false;
    if (launch->dynamic_shared) memset((void*)w->shared, 0xFF, launch->dynamic_shared);
    for (uint32_t i = 0; i < count; i++) {
        Thread* t = &w->threads[i];
        t->state = READY;
        t->spins = 0;
    }
    copies_block_begin(w);
    uint16_t warp_order[32], lane_order[32];
    for (int i = 0; i < 32; i++) warp_order[i] = lane_order[i] = i;
    uint64_t state = launch->seed * 0x9E3779B97F4A7C15ull + number;
    for (uint32_t i = 0; i < warps; i++) {
        w->warps[i].living = count - 32 * i >= 32 ? ~0u : (1u << (count - 32 * i)) - 1;
        w->warps[i].waiting = 0;
    }
    if (watching) watch_block_begin(w);
    if (launch->seed) shuffle(warp_order, warps, &state);

    while (w->living) {
        bool ran = false, changed = false;
        uint32_t spins = 0;
        for (uint32_t i = 0; i < warps; i++) {
            Thread* lanes = w->threads + 32 * warp_order[i];
            uint32_t lane_count = count - 32 * warp_order[i] < 32 ? count - 32 * warp_order[i] : 32;
            if (launch->seed) shuffle(lane_order, 32, &state);
            for (bool again = true, gave_way = false; again && !gave_way;) {
                again = false;
                for (int l = 0; l < 32; l++) {
                    if (lane_order[l] >= lane_count) continue;
                    Thread* t = lanes + lane_order[l];
                    if (t->state == CONDITION && t->condition(t->argument)) t->state = READY;
                    if (t->state != READY) continue;
                    t->yielded = false;
                    resume(w, t);
                    if (t->yielded) {
                        gave_way = true;
                        if (t->changed) changed = true; else spins++;
                    } else { ran = true; again = true; }
                    if (launch->cancel) return;
                    if (w->released) break;
                }
                if (w->released) break;
            }
            if (w->released) {  // a barrier has let everybody go: from the first warp on
                w->released = false;
                i = ~0u;
                continue;
            }
            if (!w->warps[warp_order[i]].living && watching) watch_warp_done(w, warp_order[i]);
        }
        if (launch->cancel) return;
        if (ran || changed) {
            __atomic_fetch_add(&launch->changes, 1, __ATOMIC_RELAXED);
        } else if (w->living) {
            if (!spins) deadlock(w);
            wait_for_another_block(w, spins);
        }
    }
    copies_block_end(w);
    if (watching) watch_block_end(w);
}

// ------------------------------------------------------------------------------------------------------ launching

static void* worker_main(void* argument) {
    Worker* w = (Worker*)argument;
    Launch* launch = w->launch;
    self = w;
    watching = launch->watch != 0;
    stack_t alternative = {};
    alternative.ss_size = 64 << 10;
    alternative.ss_sp = malloc(alternative.ss_size);
    sigaltstack(&alternative, 0);
    w->thread_count = launch->block[0] * launch->block[1] * launch->block[2];
    w->threads = (Thread*)calloc(w->thread_count, sizeof(Thread));
    w->poisoned = (uint64_t*)calloc(launch->module->shared_count + 1, sizeof(uint64_t));
    for (uint32_t i = 0; i < w->thread_count; i++) {
        Thread* t = &w->threads[i];
        t->linear = i;
        t->index[0] = i % launch->block[0];
        t->index[1] = i / launch->block[0] % launch->block[1];
        t->index[2] = i / launch->block[0] / launch->block[1];
    }
    uint64_t region = w->index * SHARED_REGION;
    w->shared = arena_base + region;
    set_shadow(region, launch->dynamic_shared, true);
    for (Shared* s = launch->module->shared; s; s = s->next) set_shadow(region + s->offset, s->size, true);
    if (watching) watch_worker_begin(w);
    if (_setjmp(w->escape) == 0) {
        uint64_t blocks = launch->grid[0] * launch->grid[1] * launch->grid[2];
        while (!launch->cancel) {
            uint64_t number = __atomic_fetch_add(&launch->next_block, 1, __ATOMIC_RELAXED);
            if (number >= blocks) break;
            run_block(w, number);
        }
    }
    w->current = 0;
    w->finished = true;
    if (watching) watch_worker_end(w);
    watching = 0;
    set_shadow(region, (launch->dynamic_shared + 7) / 8 * 8, false);
    for (Shared* s = launch->module->shared; s; s = s->next)
        set_shadow(region + s->offset, (s->size + 7) / 8 * 8, false);
    release_coroutines(w);
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, 0);
    self = 0;
    free(alternative.ss_sp);
    free(w->threads);
    free(w->poisoned);
    free(w->pending);
    pthread_mutex_lock(&launch->lock);
    if (--launch->workers_left == 0) pthread_cond_broadcast(&launch->done);
    pthread_mutex_unlock(&launch->lock);
    return 0;
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGURG};
static const int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;
static struct sigaction previous[SIGNAL_COUNT];
static int launches;
static bool slots[MAX_WORKERS];
static pthread_cond_t slot_freed = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t launch_lock = PTHREAD_MUTEX_INITIALIZER;

static void on_signal(int number, siginfo_t* info, void* context) {
    Worker* w = self;
    if (w && w->current && !w->in_runtime) {
        if (number == SIGURG) {  // Ctrl-C: a kernel that never ends is left where it is
            if (w->launch->cancel) _longjmp(w->escape, 1);
            return;
        }
        uintptr_t address = (uintptr_t)info->si_addr, stack = (uintptr_t)w->current->coroutine->stack;
        bool overflow = number != SIGFPE && address < stack && address + 65536 >= stack;
        void* pc = 0;
#if defined(__linux__) && defined(__x86_64__)
        pc = (char*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] + 1;
#elif defined(__linux__) && defined(__aarch64__)
        pc = (char*)((ucontext_t*)context)->uc_mcontext.pc + 1;
#endif
        fail(overflow ? STACK_OVERFLOW : FAULT, address, number, 0, pc, 0);
    }
    for (int i = 0; i < SIGNAL_COUNT; i++) {
        if (SIGNALS[i] != number) continue;
        if ((previous[i].sa_flags & SA_SIGINFO) && previous[i].sa_sigaction) {
            previous[i].sa_sigaction(number, info, context);
        } else if (previous[i].sa_handler == SIG_DFL && number != SIGURG) {
            signal(number, SIG_DFL);  // happens again, and now ends the process
        } else if (previous[i].sa_handler != SIG_IGN && previous[i].sa_handler != SIG_DFL) {
            previous[i].sa_handler(number);
        }
    }
}

EMU_EXPORT Launch* emu_launch(Kernel* kernel, Module* module, const void* arguments, uint64_t argument_bytes,
                              const uint32_t* grid, const uint32_t* block, uint64_t dynamic_shared, uint32_t workers,
                              uint64_t seed, Watch* watch) {
    Launch* launch = (Launch*)calloc(1, sizeof(Launch));
    launch->kernel = kernel;
    launch->module = module;
    launch->arguments = (char*)calloc(1, argument_bytes + 64);
    memcpy(launch->arguments, arguments, argument_bytes);
    for (int i = 0; i < 3; i++) {
        launch->grid[i] = grid[i];
        launch->block[i] = block[i];
    }
    launch->dynamic_shared = dynamic_shared;
    launch->seed = seed;
    launch->watch = watch;
    pthread_mutex_init(&launch->lock, 0);
    pthread_cond_init(&launch->done, 0);

    pthread_mutex_lock(&launch_lock);
    if (launches++ == 0) {
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &action, &previous[i]);
    }
    while (!launch->worker_count) {  // other launches may have taken every slot: wait for one
        for (uint32_t i = 0; i < MAX_WORKERS && launch->worker_count < workers; i++) {
            if (slots[i]) continue;
            slots[i] = true;
            Worker* w = (Worker*)calloc(1, sizeof(Worker));
            w->launch = launch;
            w->index = i;
            launch->workers[launch->worker_count++] = w;
        }
        if (!launch->worker_count) pthread_cond_wait(&slot_freed, &launch_lock);
    }
    launch->workers_left = launch->worker_count;
    pthread_mutex_unlock(&launch_lock);

    sigset_t all, before;  // Python's signals belong to Python's threads
    sigfillset(&all);
    for (int i = 0; i < SIGNAL_COUNT; i++) sigdelset(&all, SIGNALS[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < launch->worker_count; i++) {
        if (pthread_create(&launch->workers[i]->handle, 0, worker_main, launch->workers[i])) {
            pthread_mutex_lock(&launch->lock);
            launch->workers_left--;
            launch->workers[i]->finished = true;
            if (!i) launch->error.kind = NO_STACKS;
            pthread_mutex_unlock(&launch->lock);
        } else launch->workers[i]->started = true;
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
    return launch;
}

// 1 when the launch has ended. Waits no longer than `milliseconds`, so that the caller can look for Ctrl-C.
EMU_EXPORT int emu_wait(Launch* launch, uint32_t milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += milliseconds % 1000 * 1000000l;
    until.tv_sec += milliseconds / 1000 + until.tv_nsec / 1000000000l;
    until.tv_nsec %= 1000000000l;
    pthread_mutex_lock(&launch->lock);
    while (launch->workers_left && pthread_cond_timedwait(&launch->done, &launch->lock, &until) != ETIMEDOUT) {}
    int done = launch->workers_left == 0;
    pthread_mutex_unlock(&launch->lock);
    return done;
}

EMU_EXPORT void emu_cancel(Launch* launch) {
    launch->cancel = 1;
    for (uint32_t i = 0; i < launch->worker_count; i++)
        if (launch->workers[i]->started) pthread_kill(launch->workers[i]->handle, SIGURG);
}

EMU_EXPORT const Error* emu_error(Launch* launch) { return &launch->error; }

EMU_EXPORT void emu_release(Launch* launch) {
    for (uint32_t i = 0; i < launch->worker_count; i++)
        if (launch->workers[i]->started) pthread_join(launch->workers[i]->handle, 0);
    pthread_mutex_lock(&launch_lock);
    for (uint32_t i = 0; i < launch->worker_count; i++) {
        slots[launch->workers[i]->index] = false;
        free(launch->workers[i]);
    }
    pthread_cond_broadcast(&slot_freed);
    if (--launches == 0)
        for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &previous[i], 0);
    pthread_mutex_unlock(&launch_lock);
    pthread_mutex_destroy(&launch->lock);
    pthread_cond_destroy(&launch->done);
    free(launch->arguments);
    free(launch);
}

// What lies at a shared address: which worker's, and how far in. Python finds the variable.
EMU_EXPORT uint64_t emu_shared_offset(uint64_t address) {
    uint64_t offset = address - arena_base;
    return offset < VARIABLES_BEGIN ? offset % SHARED_REGION : ~0ull;
}

}  // namespace emu

// ------------------------------------------------------------------------------------------ what kernels call

unsigned emu_thread_x(void) { return self->current->index[0]; }
unsigned emu_thread_y(void) { return self->current->index[1]; }
unsigned emu_thread_z(void) { return self->current->index[2]; }
unsigned emu_block_x(void) { return self->block_index[0]; }
unsigned emu_block_y(void) { return self->block_index[1]; }
unsigned emu_block_z(void) { return self->block_index[2]; }
unsigned emu_block_dim_x(void) { return self->launch->block[0]; }
unsigned emu_block_dim_y(void) { return self->launch->block[1]; }
unsigned emu_block_dim_z(void) { return self->launch->block[2]; }
unsigned emu_grid_dim_x(void) { return self->launch->grid[0]; }
unsigned emu_grid_dim_y(void) { return self->launch->grid[1]; }
unsigned emu_grid_dim_z(void) { return self->launch->grid[2]; }
unsigned emu_lane(void) { return self->current->linear % 32; }

void* emu_shared_address(const Shared* variable) {
    Worker* w = self;
    char* address = (char*)w->shared + variable->offset;
    if (w->poisoned[variable->index] != w->block_serial) {  // the block's first use of it
        w->poisoned[variable->index] = w->block_serial;
        memset(address, 0xFF, variable->size);
        if (watching) watch_fresh((uintptr_t)address - arena_base, variable->size);
    }
    return address;
}

static void meet(uint32_t mask, void* payload, WarpAction action, const void* detail, void* pc) {
    Worker* w = self;
    Thread* t = w->current;
    Warp* warp = &w->warps[t->linear / 32];
    uint32_t bit = 1u << t->linear % 32;
    if (!(mask & bit)) {
        char text[160];
        snprintf(text, sizeof text, "lane %u calls a warp operation whose mask 0x%08x leaves it out",
                 t->linear % 32, mask);
        fail(MISUSE, 0, 0, 0, pc, text);
    }
    t->mask = mask;
    t->payload = payload;
    t->action = action;
    t->detail = detail;
    t->pc = pc;
    t->state = RENDEZVOUS;
    warp->waiting |= bit;
    if (meeting_complete(w, t)) complete_meeting(w, t);
    suspend(t->coroutine);
}

void emu_warp_meet(uint32_t mask, void* payload, WarpAction action, const void* detail) {
    meet(mask, payload, action, detail, __builtin_return_address(0));
}

void emu_syncwarp(uint32_t mask) { meet(mask, 0, 0, 0, __builtin_return_address(0)); }

// The lanes that stand at a warp operation or can still run: on a card, those that execute this instruction together.
uint32_t emu_active_mask(void) { return self->warps[self->current->linear / 32].living; }

int emu_syncthreads(int mode, int predicate) {
    arrive(0, 0, 1, predicate, __builtin_return_address(0));
    Barrier* b = &self->barriers[0];
    if (mode == 1) return b->result_count;
    if (mode == 2) return b->result_and;
    return b->result_count != 0;
}

void emu_barrier(uint32_t number, uint32_t threads, int wait) {
    arrive(number % 16, threads, wait, 0, __builtin_return_address(0));
}

void emu_yield(void) {
    Thread* t = self->current;
    t->yielded = true;
    suspend(t->coroutine);
    t->changed = false;
}

void emu_wait_until(int (*condition)(void*), void* argument) {
    if (condition(argument)) return;
    Thread* t = self->current;
    t->condition = condition;
    t->argument = argument;
    block_on(CONDITION, __builtin_return_address(0));
}

void emu_fence(int scope) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (watching) watch_fence(self, scope);
}

uint64_t emu_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

void emu_trap(void) { fail(TRAP, 0, 0, 0, __builtin_return_address(0), 0); }

static pthread_mutex_t output_lock = PTHREAD_MUTEX_INITIALIZER;
static char* output;
static size_t output_bytes, output_room;

static void write_output(const char* text, size_t bytes) {
    pthread_mutex_lock(&output_lock);
    if (output_bytes + bytes > output_room) {
        output_room = 2 * (output_bytes + bytes) + 4096;
        output = (char*)realloc(output, output_room);
    }
    memcpy(output + output_bytes, text, bytes);
    output_bytes += bytes;
    pthread_mutex_unlock(&output_lock);
}

int emu_printf(const char* format, ...) {
    char text[4096];
    va_list list;
    self->in_runtime++;
    va_start(list, format);
    int written = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (written > 0) write_output(text, (size_t)written < sizeof text ? written : sizeof text - 1);
    self->in_runtime--;
    return written;
}

// Moves what kernels have printed into `to`; gives back how many bytes, at most `room`.
EMU_EXPORT uint64_t emu_take_output(char* to, uint64_t room) {
    pthread_mutex_lock(&output_lock);
    uint64_t taken = output_bytes < room ? output_bytes : room;
    memcpy(to, output, taken);
    memmove(output, output + taken, output_bytes - taken);
    output_bytes -= taken;
    pthread_mutex_unlock(&output_lock);
    return taken;
}

void emu_assert_fail(const char* expression, const char* file, int line, const char* function) {
    char text[sizeof(Error::text)];
    Thread* t = self->current;
    snprintf(text, sizeof text, "%s:%d: %s: block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed.", file, line,
             function, self->block_index[0], self->block_index[1], self->block_index[2], t->index[0], t->index[1],
             t->index[2], expression);
    fail(ASSERTION, 0, 0, 0, __builtin_return_address(0), text);
}

// --------------------------------------------------------------------------------------------------------- atomics

static inline void atomic_access(void* p, int bytes, void* pc) {
    Thread* t = self->current;
    if (++t->spins > 256) {  // it may be waiting for a lock that another thread holds
        t->spins = 0;
        t->pc = pc;
        emu_yield();
    }
    uint64_t offset = (uintptr_t)p - arena_base;
    if (!watching && offset < arena_size && (offset & 7) + bytes <= shadow[offset >> 3] && !(offset & (bytes - 1)))
        return;
    slow_access((uintptr_t)p, bytes, 1, ALIGNED | ATOMIC, pc);
}

template <class T>
static inline T combine(T old, T value, int operation) {
    switch (operation) {
        case 0: return old + value;
        case 1: return value;
        case 2: return value < old ? value : old;
        default: return value > old ? value : old;
    }
}

template <class T>
static inline T combine_integer(T old, T value, int operation) {
    switch (operation) {
        case 4: return old & value;
        case 5: return old | value;
        case 6: return old ^ value;
        case 7: return old >= value ? 0 : old + 1;
        case 8: return old == 0 || old > value ? value : old - 1;
        default: return combine(old, value, operation);
    }
}

#define ATOMIC(NAME, T, COMBINE)                                                                     \
    T NAME(T* p, T value, int operation) {                                                           \
        atomic_access(p, sizeof(T), __builtin_return_address(0));                                    \
        T old, next;                                                                                 \
        __atomic_load(p, &old, __ATOMIC_RELAXED);                                                    \
        do next = COMBINE(old, value, operation);                                                    \
        while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)); \
        self->current->changed |= next != old;                                                       \
        return old;                                                                                  \
    }
ATOMIC(emu_atomic_u32, uint32_t, combine_integer)
ATOMIC(emu_atomic_i32, int32_t, combine_integer)
ATOMIC(emu_atomic_u64, uint64_t, combine_integer)
ATOMIC(emu_atomic_i64, int64_t, combine_integer)
ATOMIC(emu_atomic_f32, float, combine)
ATOMIC(emu_atomic_f64, double, combine)

#define COMPARE_AND_SWAP(NAME, T)                                                                    \
    T NAME(T* p, T compare, T value) {                                                               \
        atomic_access(p, sizeof(T), __builtin_return_address(0));                                    \
        if (__atomic_compare_exchange(p, &compare, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) \
            self->current->changed |= compare != value;                                              \
        return compare;                                                                              \
    }
COMPARE_AND_SWAP(emu_atomic_cas16, uint16_t)
COMPARE_AND_SWAP(emu_atomic_cas32, uint32_t)
COMPARE_AND_SWAP(emu_atomic_cas64, uint64_t)
