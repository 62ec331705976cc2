// Asynchronous copies: cp.async, bulk copies both ways, and the mbarriers that bulk loads report to.
//
// A copy lands only when a thread waits for it, as late as a card may finish it: an access before the wait finds old data.
// A bulk store reads its shared memory as late, so that refilling a buffer too early is visible.
#include "runtime.h"

#include <string.h>

namespace emu {

static void land(Worker* w, Pending* p) {
    memcpy(p->to, p->from, p->source_bytes);
    memset(p->to + p->source_bytes, 0, p->bytes - p->source_bytes);
    if (watching) watch_copy_landed(w, p);
    if (p->kind != BULK_LOAD) w->threads[p->thread].open[p->kind]--;
    p->bytes = 0;
}

static void issue(
    int kind, void* to, const void* from, uint32_t bytes, uint32_t source_bytes, void* barrier, void* pc) {
    Worker* w = self;
    Thread* t = w->current;
    const uint32_t alignment = kind == CP_ASYNC ? bytes : 16;
    if ((uintptr_t)to % alignment) fail(MISALIGNED, (uint64_t)to, alignment, 1, pc, 0);
    if ((uintptr_t)from % alignment) fail(MISALIGNED, (uint64_t)from, alignment, 0, pc, 0);
    if (kind != CP_ASYNC && bytes % 16) fail(MISUSE, 0, 0, 0, pc, "a bulk copy's length is not a multiple of 16 bytes");
    if (!bytes) return;
    // A warp's cp.async counts as a request to global memory, a bulk copy does not. Neither counts as stores of lanes.
    const int engine = kind == CP_ASYNC ? 0 : PROXY;
    if (source_bytes) slow_access((uintptr_t)from, source_bytes, 0, engine ? ASYNC | UNCOUNTED | PROXY : ASYNC, pc);
    slow_access((uintptr_t)to, bytes, 1, ASYNC | UNCOUNTED | engine, pc);

    uint32_t slot = 0;
    while (slot < w->pending_room && w->pending[slot].bytes) slot++;
    if (slot == w->pending_room) {
        const uint32_t room = w->pending_room ? 2 * w->pending_room : 256;
        w->pending = (Pending*)resize(w->pending, room * sizeof(Pending));
        memset(w->pending + slot, 0, (room - slot) * sizeof(Pending));
        w->pending_room = room;
    }
    const uint32_t group = kind == BULK_LOAD ? 0 : t->group[kind];
    w->pending[slot] = Pending{(char*)to, (const char*)from, bytes, source_bytes, t->linear, group, pc, kind, barrier};
    if (kind != BULK_LOAD) t->open[kind]++;
}

// Lands this thread's copies of one kind, all but its latest `groups_left` groups.
static void wait_groups(int kind, uint32_t groups_left) {
    Worker* w = self;
    Thread* t = w->current;
    for (uint32_t i = 0; i < w->pending_room && t->open[kind]; i++) {
        Pending* p = &w->pending[i];
        if (p->bytes && p->kind == kind && p->thread == t->linear && p->group + groups_left < t->group[kind])
            land(w, p);
    }
}

void copies_block_begin(Worker* w) {
    forget_products(w);  // those that the last block did not wait for
    for (uint32_t i = 0; i < w->pending_room; i++) w->pending[i].bytes = 0;
    for (uint32_t i = 0; i < w->thread_count; i++)
        for (int kind = 0; kind < 2; kind++) w->threads[i].open[kind] = w->threads[i].group[kind] = 0;
}

void copies_worker_end(Worker* w) {
    forget_products(w);
    release(w->pending);
}

// Stores that no thread waited for are complete when the kernel ends. Loads are dropped: no thread is left to read them.
void copies_block_end(Worker* w) {
    for (uint32_t i = 0; i < w->pending_room; i++)
        if (w->pending[i].bytes && w->pending[i].kind == BULK_STORE) land(w, &w->pending[i]);
}

// The 64 bits of an mbarrier. Fresh shared memory is all ones, and so never passes for one.
struct Phases {
    uint64_t parity : 1;     // of the current phase
    uint64_t expected : 20;  // arrivals that end a phase
    uint64_t missing : 20;   // of this phase
    int64_t bytes : 22;      // of bulk loads that have not landed
    uint64_t never : 1;      // 0
};
static_assert(sizeof(Phases) == 8, "an mbarrier has 64 bits");

static Phases* opened(void* address, void* pc, int flags = 0) {
    if ((uintptr_t)address % 8) fail(MISALIGNED, (uint64_t)address, 8, 1, pc, 0);
    slow_access((uintptr_t)address, 8, 0, ATOMIC | UNCOUNTED | flags, pc);
    Phases* b = (Phases*)address;
    if (b->never || !b->expected) fail(MISUSE, 0, 0, 0, pc, "an mbarrier is used before its mbarrier_init()");
    return b;
}

static void end_phase_if_complete(Phases* b) {
    if (b->missing || b->bytes) return;
    b->parity ^= 1;
    b->missing = b->expected;
    if (watching) watch_phase_over(self, b);
}

struct Wait {
    Phases* barrier;
    uint32_t parity;
};

static int phase_over(void* argument) {
    Wait* wait = (Wait*)argument;
    Worker* w = self;
    for (uint32_t i = 0; i < w->pending_room; i++) {
        Pending* p = &w->pending[i];
        if (!p->bytes || p->barrier != wait->barrier) continue;
        const uint32_t bytes = p->bytes;
        land(w, p);
        wait->barrier->bytes -= bytes;
        end_phase_if_complete(wait->barrier);
    }
    return wait->barrier->parity != wait->parity;
}

}  // namespace emu

using namespace emu;

void emu_async_copy(void* to, const void* from, uint32_t bytes, uint32_t source_bytes) {
    issue(CP_ASYNC, to, from, bytes, source_bytes, 0, __builtin_return_address(0));
}
void emu_async_commit(void) { self->current->group[CP_ASYNC]++; }
void emu_async_wait(uint32_t groups_left) { wait_groups(CP_ASYNC, groups_left); }

void emu_bulk_load(void* to, const void* from, uint32_t bytes, void* barrier) {
    void* pc = __builtin_return_address(0);
    issue(BULK_LOAD, to, from, bytes, bytes, opened(barrier, pc, PROXY), pc);
    self->current->changed = true;
    emu_yield();  // waiting threads go on at once: a thread that does not wait for them is caught
}
void emu_bulk_store(void* to, const void* from, uint32_t bytes) {
    issue(BULK_STORE, to, from, bytes, bytes, 0, __builtin_return_address(0));
}
void emu_bulk_commit(void) { self->current->group[BULK_STORE]++; }
void emu_bulk_wait(uint32_t groups_left) { wait_groups(BULK_STORE, groups_left); }

void emu_mbarrier_init(void* barrier, uint32_t arrivals) {
    void* pc = __builtin_return_address(0);
    if ((uintptr_t)barrier % 8) fail(MISALIGNED, (uint64_t)barrier, 8, 1, pc, 0);
    slow_access((uintptr_t)barrier, 8, 1, UNCOUNTED, pc);
    if (!arrivals || arrivals >= 1u << 20) fail(MISUSE, 0, 0, 0, pc, "an mbarrier takes 1 to 1048575 arrivals");
    *(Phases*)barrier = Phases{0, arrivals, arrivals, 0, 0};
}

void emu_mbarrier_arrive(void* barrier, uint32_t bytes) {
    void* pc = __builtin_return_address(0);
    Phases* b = opened(barrier, pc);
    if (watching) watch_release(self, barrier);
    b->bytes += bytes;
    b->missing--;
    end_phase_if_complete(b);
    self->current->changed = true;
    if (!bytes) emu_yield();  // as after a bulk load
}

void emu_mbarrier_wait(void* barrier, uint32_t parity) {
    Wait wait = {opened(barrier, __builtin_return_address(0)), parity & 1};
    wait_until(phase_over, &wait, __builtin_return_address(0));
    if (watching) watch_acquire(self, barrier);
}

void emu_fence_proxy(void) {
    if (watching) watch_proxy_fence(self);
}
