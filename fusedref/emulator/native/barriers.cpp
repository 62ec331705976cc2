// Where the threads of a block wait for one another: barriers, warp operations, __activemask() and conditions.
#include "runtime.h"

#include <stdio.h>

namespace emu {

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
    if (complete) release_barrier(w, number);  // makes this thread READY too, but the block's first threads run first
    suspend(t->coroutine);
}

// ------------------------------------------------------------------------------------------------------ warp operations

static Thread* lanes_of(Worker* w, const Thread* t) { return w->threads + t->linear / 32 * 32; }

static bool meeting_complete(Worker* w, Thread* t) {
    Warp* warp = &w->warps[t->linear / 32];
    Thread* lanes = lanes_of(w, t);
    uint32_t needed = t->mask & warp->living;
    if (needed & ~warp->waiting) return false;
    for (int lane = 0; lane < 32; lane++)
        if ((needed >> lane & 1) && (lanes[lane].mask != t->mask || lanes[lane].action != t->action)) return false;
    return true;
}

static void complete_meeting(Worker* w, Thread* last) {
    Warp* warp = &w->warps[last->linear / 32];
    Thread* lanes = lanes_of(w, last);
    void* payload[32] = {};
    uint32_t present = last->mask & warp->waiting;
    for (int lane = 0; lane < 32; lane++)
        if (present >> lane & 1) payload[lane] = lanes[lane].payload;
    warp->waiting &= ~present;
    if (watching) watch_meeting(w, last->linear / 32, present);
    if (last->action) last->action(payload, present, last->detail);
    for (int lane = 0; lane < 32; lane++)
        if (present >> lane & 1) lanes[lane].state = READY;
}

static void meet(uint32_t mask, void* payload, WarpAction action, const void* detail, void* pc) {
    Worker* w = self;
    Thread* t = w->current;
    Warp* warp = &w->warps[t->linear / 32];
    uint32_t bit = 1u << t->linear % 32;
    if (!(mask & bit)) {
        char text[160];
        snprintf(
            text, sizeof text, "lane %u calls a warp operation whose mask 0x%08x leaves it out", t->linear % 32, mask);
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

// The scheduler calls this when no other lane of the warp can go on. The lanes that wait at the same __activemask() are
// those that a card, whose lanes reconverge, runs together there. Groups go on one at a time, the lowest lane's first.
bool converge(Worker* w, Warp* warp) {
    if (!warp->converging) return false;
    Thread* lanes = w->threads + 32 * (warp - w->warps);
    void* pc = lanes[__builtin_ctz(warp->converging)].pc;
    uint32_t together = 0;
    for (int lane = 0; lane < 32; lane++)
        if ((warp->converging >> lane & 1) && lanes[lane].pc == pc) together |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (together >> lane & 1) {
            lanes[lane].mask = together;
            lanes[lane].state = READY;
        }
    warp->converging &= ~together;
    return true;
}

// --------------------------------------------------------------------------------------------------------------- others

void thread_left(Worker* w, Thread* t) {
    t->state = DONE;
    w->living--;
    Warp* warp = &w->warps[t->linear / 32];
    warp->living &= ~(1u << t->linear % 32);
    if (watching) watch_exit(w);
    Barrier* b = &w->barriers[0];  // a barrier does not wait for threads that have returned
    if (b->arrived && !b->expected && b->arrived == w->living) release_barrier(w, 0);
    Thread* lanes = lanes_of(w, t);
    for (int lane = 0; warp->waiting && lane < 32; lane++)
        if ((warp->waiting >> lane & 1) && meeting_complete(w, &lanes[lane])) complete_meeting(w, &lanes[lane]);
}

void wait_until(int (*condition)(void*), void* argument, void* pc) {
    if (condition(argument)) return;
    Thread* t = self->current;
    t->condition = condition;
    t->argument = argument;
    block_on(CONDITION, pc);
}

static const char* STATES[] = {"done", "ready", "__syncthreads()", "a warp operation", "an mbarrier", "__activemask()"};

void deadlock(Worker* w) {
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
            at += snprintf(
                text + at, sizeof text - at, "%sthread (%u,%u,%u) waits at %s", shown > 1 ? ", " : "", t->index[0],
                t->index[1], t->index[2], STATES[t->state]);
    }
    snprintf(
        text + at, sizeof text - at, "; %u of %u threads wait, %u have returned", count, w->thread_count,
        w->thread_count - count);
    w->current = first;
    fail(DEADLOCK, 0, 0, 0, first ? first->pc : 0, text);
}

}  // namespace emu

using namespace emu;

void emu_warp_meet(uint32_t mask, void* payload, WarpAction action, const void* detail) {
    meet(mask, payload, action, detail, __builtin_return_address(0));
}

void emu_syncwarp(uint32_t mask) { meet(mask, 0, 0, 0, __builtin_return_address(0)); }

uint32_t emu_active_mask(void) {
    Worker* w = self;
    Thread* t = w->current;
    w->warps[t->linear / 32].converging |= 1u << t->linear % 32;
    block_on(CONVERGING, __builtin_return_address(0));
    return t->mask;
}

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

void emu_fence(int scope) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (watching) watch_fence(self, scope);
}
