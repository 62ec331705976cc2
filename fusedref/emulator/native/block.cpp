// The scheduler: runs the threads of one block, one at a time, until all have returned.
#include "runtime.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

namespace emu {

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

// All threads of this block that can run poll memory that another block has to write. If all workers have polled for
// long and nothing has changed, nothing will: only blocks that have not begun could change it.
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
    snprintf(
        text, sizeof text, "%llu of %llu blocks have begun", (unsigned long long)(begun < blocks ? begun : blocks),
        (unsigned long long)blocks);
    for (uint32_t i = 0; i < w->thread_count && !w->current; i++)
        if (w->threads[i].state == READY) w->current = &w->threads[i];
    fail(SPINNING, 0, 0, 0, w->current->pc, text);
}

static void begin_block(Worker* w, uint64_t number) {
    Launch* launch = w->launch;
    w->block_number = number;
    w->block_serial++;
    w->block_index[0] = number % launch->grid[0];
    w->block_index[1] = number / launch->grid[0] % launch->grid[1];
    w->block_index[2] = number / launch->grid[0] / launch->grid[1];
    memset(w->barriers, 0, sizeof w->barriers);
    w->living = w->thread_count;
    w->released = false;
    if (launch->dynamic_shared) memset((void*)w->shared, 0xFF, launch->dynamic_shared);
    for (uint32_t i = 0; i < w->thread_count; i++) {
        w->threads[i].state = READY;
        w->threads[i].spins = 0;
    }
    for (uint32_t first = 0; first < w->thread_count; first += 32) {
        uint32_t lanes = w->thread_count - first;
        w->warps[first / 32] = Warp{lanes >= 32 ? ~0u : (1u << lanes) - 1, 0, 0};
    }
    copies_block_begin(w);
    if (watching) watch_block_begin(w);
}

struct Progress {
    bool ran, changed;  // a thread did something other than yield; a thread did something before it yielded
    uint32_t spins;     // threads that yielded without having found anything new
};

// Runs a warp's lanes until none can go on, or until one yields; then it is other warps' turn. Stops when a barrier
// is released or the launch is cancelled.
static void run_warp(Worker* w, uint32_t number, const uint16_t* order, Progress* progress) {
    Thread* lanes = w->threads + 32 * number;
    const uint32_t count = w->thread_count - 32 * number < 32 ? w->thread_count - 32 * number : 32;
    for (bool again = true, yielded = false; again && !yielded;) {
        again = false;
        for (int l = 0; l < 32; l++) {
            if (order[l] >= count) continue;
            Thread* t = lanes + order[l];
            if (t->state == CONDITION && t->condition(t->argument)) t->state = READY;
            if (t->state != READY) continue;
            t->yielded = false;
            resume(w, t);
            if (t->yielded) {
                yielded = true;
                if (t->changed) progress->changed = true;
                else progress->spins++;
            } else {
                progress->ran = again = true;
            }
            if (w->launch->cancel || w->released) return;
        }
        if ((!again || yielded) && converge(w, &w->warps[number])) {
            again = true;
            yielded = false;
        }
    }
}

void run_block(Worker* w, uint64_t number) {
    Launch* launch = w->launch;
    begin_block(w, number);
    uint32_t warps = (w->thread_count + 31) / 32;
    uint16_t warp_order[32], lane_order[32];
    for (int i = 0; i < 32; i++) warp_order[i] = lane_order[i] = i;
    uint64_t state = launch->seed * 0x9E3779B97F4A7C15ull + number;
    if (launch->seed) shuffle(warp_order, warps, &state);
    while (w->living) {
        Progress progress = {};
        for (uint32_t i = 0; i < warps; i++) {
            if (launch->seed) shuffle(lane_order, 32, &state);
            run_warp(w, warp_order[i], lane_order, &progress);
            if (launch->cancel) return;
            if (w->released) {  // a barrier has released all threads: start with the first warp again
                w->released = false;
                i = ~0u;
                continue;
            }
            if (!w->warps[warp_order[i]].living && watching) watch_warp_done(w, warp_order[i]);
        }
        if (progress.ran || progress.changed) {
            __atomic_fetch_add(&launch->changes, 1, __ATOMIC_RELAXED);
        } else if (w->living) {
            if (!progress.spins) deadlock(w);
            wait_for_another_block(w, progress.spins);
        }
    }
    copies_block_end(w);
    if (watching) watch_block_end(w);
}

}  // namespace emu
