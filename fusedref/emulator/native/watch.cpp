// The beginning and end of watched launches and blocks; barriers and warp operations.
#include "watch.h"

namespace emu {

static uint32_t launch_count;

void watch_arrive(Worker* w, uint32_t number, uint32_t threads, void* pc) {
    Watch* watch = w->watch;
    settle(watch);
    uint32_t thread = w->current->linear, warp = thread / 32;
    if (number == 0 && threads == 0) {
        if (!w->barriers[0].arrived) {
            watch->barrier_pc = pc;
            watch->barrier_thread = thread;
            watch->barrier_mixed = false;
        } else if (pc != watch->barrier_pc && !watch->barrier_mixed) {
            watch->barrier_mixed = true;
            watch->mixed_pc = pc;
            watch->mixed_thread = thread;
        }
    } else {
        publish(watch, w, thread, watch->barriers_arriving[number]);
    }
    watch->arrived[warp] |= 1u << thread % 32;
    if (watch->arrived[warp] == w->warps[warp].living) flush_warp(w, warp);
}

void watch_barrier(Worker* w, uint32_t number) {
    Watch* watch = w->watch;
    settle(watch);
    uint32_t warps = (w->thread_count + 31) / 32;
    watch->barriers += number == 0;
    Barrier* b = &w->barriers[number];
    if (number == 0 && b->expected == 0) {
        if (b->arrived < w->thread_count || watch->barrier_mixed) {
            Report r = report_of(w, DIVERGENT_BARRIER, 0, 0, 0, watch->barrier_pc);
            r.thread = watch->barrier_thread;
            r.bytes = b->arrived;
            r.other_block = r.block;
            if (watch->barrier_mixed) {
                r.other_pc = (uint64_t)watch->mixed_pc;
                r.other_thread = watch->mixed_thread;
            } else {
                for (uint32_t i = 0; i < w->thread_count; i++)
                    if (w->threads[i].state == DONE) {
                        r.other_thread = i;
                        break;
                    }
            }
            add_report(watch, r);
        }
        Clock all = {};
        for (uint32_t t = 0; t < w->thread_count; t++) {
            all.of[t] = ++watch->clocks[t].of[t];
            merge(all.of + THREADS, watch->clocks[t].of + THREADS, MBARRIERS);
        }
        watch->last_version++;
        for (uint32_t t = 0; t < w->thread_count; t++) {
            memcpy(watch->clocks[t].of, all.of, sizeof(uint32_t) * w->thread_count);
            memcpy(watch->clocks[t].of + THREADS, all.of + THREADS, sizeof(uint32_t) * MBARRIERS);
            watch->version[t] = watch->last_version;
            watch->met_by[t] = SYNCTHREADS;
        }
        for (uint32_t v = 0; v < warps; v++) {
            flush_warp(w, v);
            watch->arrived[v] = 0;
        }
        return;
    }
    Clock& arriving = watch->barriers_arriving[number];
    for (uint32_t i = 0; i < w->thread_count; i++) {
        Thread* t = &w->threads[i];
        if (t->state != BARRIER || t->barrier != number) continue;
        acquire(watch, w, i, arriving);
        watch->met_by[i] = NAMED_BARRIER;
        watch->arrived[i / 32] &= ~(1u << i % 32);
    }
    memset(&arriving, 0, sizeof arriving);
}

void watch_meeting(Worker* w, uint32_t warp, uint32_t present) {
    Watch* watch = w->watch;
    settle(watch);
    join_lanes(watch, w, warp, present);
    if (present == w->warps[warp].living) flush_warp(w, warp);
}

void watch_exit(Worker* w) { settle(w->watch); }

void watch_block_begin(Worker* w) {
    Watch* watch = w->watch;
    for (uint32_t t = 0; t < w->thread_count; t++) {
        memset(watch->clocks[t].of, 0, sizeof(uint32_t) * w->thread_count);
        memset(watch->clocks[t].of + THREADS, 0, sizeof(uint32_t) * MBARRIERS);
        watch->version[t] = 0;
        watch->traces[t].last = ReconvergenceOrder::BEGIN;
        watch->met_by[t] = SYNCTHREADS;
        watch->has_fenced[t] = false;
        watch->device_fences[t].count = watch->proxy_fences[t].count = 0;
        if (watch->fences) memset(watch->fenced[t].of, 0, sizeof(uint32_t) * w->thread_count);
    }
    memset(watch->barriers_arriving, 0, sizeof watch->barriers_arriving);
    memset(watch->arrived, 0, sizeof watch->arrived);
    memset(watch->mbarriers, 0, sizeof watch->mbarriers);
    watch->fences = watch->block_fences = false;
    watch->acquired_count = 0;
    watch->reading_count = watch->free_row = 0;
    if (w->launch->dynamic_shared) watch_fresh(w->shared - arena_base, w->launch->dynamic_shared);
}

void watch_warp_done(Worker* w, uint32_t warp) { flush_warp(w, warp); }

void watch_block_end(Worker* w) { settle(w->watch); }

static void free_memory(Watch* watch) {
    for (Trace& t : watch->traces) release(t.events);
    watch->order.free_all();
    for (Sync& s : watch->syncs) {
        for (uint32_t i = 0; i < s.count; i++) release(s.released[i].until);
        release(s.released);
        release(s.here);
    }
    release(watch->readings);
}

void watch_worker_end(Worker* w) {
    Watch* watch = w->watch;
    watch->possible_race.open = false;
    // If the kernel was left in the middle of a recording, its traces may be half written: do not read them.
    const uint32_t failure = w->failure.kind;
    if (!w->launch->interrupted && failure != STACK_OVERFLOW && failure != NO_MEMORY)
        for (uint32_t v = 0; v < (w->thread_count + 31) / 32; v++) flush_warp(w, v);
    for (uint32_t i = 0; i < watch->unwritten_count; i++)
        if (watch->unwritten[i].kind == UNINITIALISED) add_report(watch, watch->unwritten[i]);
    free_memory(watch);
}

}  // namespace emu

using namespace emu;

void emu_watch_new(Watch** out) {
    if (!cells) cells = (Cell*)reserve_pages(arena_size / 4 * sizeof(Cell));
    if (!cells) return;
    *out = (Watch*)reserve_pages(sizeof(Watch));
    if (*out) (*out)->launch = __atomic_add_fetch(&launch_count, 1, __ATOMIC_RELAXED);
}

void emu_watch_free(Watch** watch) {
    if (*watch) release_pages(*watch, sizeof(Watch));
    *watch = 0;
}
