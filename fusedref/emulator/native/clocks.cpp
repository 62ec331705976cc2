// The happens-before order: vector clocks, which barriers, warp operations, fences, atomics and mbarriers synchronise.
#include "watch.h"

namespace emu {

static const uint64_t MAX_RELEASED_TIMES = 1 << 26;  // limits the memory

void merge(uint32_t* to, const uint32_t* from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) to[i] = from[i] > to[i] ? from[i] : to[i];
}

static void merge(Clock& to, const Clock& from, uint32_t threads) {
    merge(to.of, from.of, threads);
    merge(to.of + THREADS, from.of + THREADS, MBARRIERS);
}

void acquire(Watch* watch, Worker* w, uint32_t thread, const Clock& from) {
    merge(watch->clocks[thread], from, w->thread_count);
    watch->version[thread] = ++watch->last_version;
}

void publish(Watch* watch, Worker* w, uint32_t thread, Clock& to) {
    watch->clocks[thread].of[thread]++;
    merge(to, watch->clocks[thread], w->thread_count);
}

void join_lanes(Watch* watch, Worker* w, uint32_t warp, uint32_t present) {
    uint32_t first = 32 * warp + __builtin_ctz(present), own = 32 * warp;
    bool differ = false;
    for (uint32_t t = own; t < own + 32; t++)
        if (present >> (t - own) & 1) {
            watch->clocks[t].of[t]++;
            differ |= watch->version[t] != watch->version[first];
        }
    Clock& joined = watch->clocks[first];
    for (uint32_t t = first + 1; t < own + 32; t++) {
        if (!(present >> (t - own) & 1)) continue;
        if (differ) merge(joined, watch->clocks[t], w->thread_count);
        else merge(joined.of + own, watch->clocks[t].of + own, 32);
    }
    if (differ) watch->version[first] = ++watch->last_version;
    for (uint32_t t = first + 1; t < own + 32; t++) {
        if (!(present >> (t - own) & 1)) continue;
        if (differ) merge(watch->clocks[t], joined, w->thread_count);
        else memcpy(watch->clocks[t].of + own, joined.of + own, sizeof(uint32_t) * 32);
        watch->version[t] = watch->version[first];
    }
}

// -------------------------------------------------------------------------------------- fences, and atomics after them

static void note(Fences& fences, uint32_t time) { fences.at[fences.count++ % 8] = time; }

// The latest fence of a thread that is visible to those who see everything that it did before `known`; 0: none.
uint32_t last_fence(const Fences& fences, uint32_t known) {
    uint32_t last = 0;
    for (uint32_t i = 0; i < fences.count && i < 8; i++)
        if (fences.at[i] <= known && fences.at[i] > last) last = fences.at[i];
    return !last && fences.count > 8 ? known : last;  // there was one among those forgotten
}

static Sync* sync_at(Watch* watch, uint64_t offset) {
    uint32_t slot = (offset * 0x9E3779B97F4A7C15ull) >> 50;
    for (uint32_t i = 0; i < 64; i++, slot = (slot + 1) % SYNCS) {
        Sync* s = &watch->syncs[slot];
        if (!s->offset) s->offset = offset;
        if (s->offset == offset) return s;
    }
    return 0;
}

// Blocks that use the same atomic later see everything before the fences that this thread knows of.
static void publish_to_blocks(Watch* watch, Worker* w, Sync* s) {
    uint32_t me = w->current->linear, block = w->block_number + 1;
    if (!s->count || s->released[s->count - 1].block != block) {
        if (s->count == s->room) {
            const uint32_t room = s->room ? 2 * s->room : 16;
            s->released = (Released*)resize(s->released, room * sizeof(Released));
            s->room = room;
        }
        watch->released_times += w->thread_count;
        bool kept = watch->released_times < MAX_RELEASED_TIMES;
        s->released[s->count++] = Released{block, kept ? (uint32_t*)allocate(w->thread_count * sizeof(uint32_t)) : 0};
    }
    uint32_t* until = s->released[s->count - 1].until;
    if (!until) return;
    for (uint32_t t = 0; t < w->thread_count; t++) {
        uint32_t own = last_fence(watch->device_fences[t], watch->clocks[me].of[t]), heard = watch->fenced[me].of[t];
        uint32_t last = own > heard ? own : heard;
        if (last > until[t]) until[t] = last;
    }
}

void synchronise(Watch* watch, Worker* w, uint64_t offset, bool shared, int write, int flags) {
    bool fences = watch->fences || watch->block_fences;
    if (shared && !fences) return;
    Sync* s = sync_at(watch, offset);
    if (!s) return;
    uint32_t me = w->current->linear, block = w->block_number + 1;
    if (!shared) {
        uint32_t a = 0;
        while (a < watch->acquired_count && watch->acquired[a].sync != s) a++;
        if (a < ACQUIRED) {
            watch->acquired[a].sync = s;
            watch->acquired[a].count = s->count;
            if (a == watch->acquired_count) watch->acquired_count++;
        }
        if (watch->fences && write) publish_to_blocks(watch, w, s);
    }
    if (!fences) return;  // nothing is published without a fence
    if (s->block != block) {
        if (!s->here) s->here = (Clock*)allocate(sizeof(Clock));
        memset(s->here, 0, sizeof(Clock));
        s->block = block;
    }
    if (!write || (flags & ATOMIC)) acquire(watch, w, me, *s->here);
    if (write && watch->has_fenced[me]) publish(watch, w, me, *s->here);
}

void watch_fence(Worker* w, int scope) {
    Watch* watch = w->watch;
    settle(watch);
    uint32_t me = w->current->linear, time = ++watch->clocks[me].of[me];
    watch->has_fenced[me] = watch->block_fences = true;
    if (scope < 1) return;
    watch->fences = true;
    note(watch->device_fences[me], time);
    memcpy(watch->fenced[me].of, watch->clocks[me].of, sizeof(uint32_t) * w->thread_count);
}

void watch_proxy_fence(Worker* w) {
    Watch* watch = w->watch;
    settle(watch);
    uint32_t me = w->current->linear;
    note(watch->proxy_fences[me], ++watch->clocks[me].of[me]);
}

// ----------------------------------------------------------------------------------------------------------- mbarriers

uint32_t mbarrier_at(Watch* watch, void* address) {
    uint32_t i = 0;
    while (i < MBARRIERS - 1 && watch->mbarriers[i].address && watch->mbarriers[i].address != (uintptr_t)address) i++;
    watch->mbarriers[i].address = (uintptr_t)address;
    return i;
}

void watch_release(Worker* w, void* address) {
    Watch* watch = w->watch;
    settle(watch);
    watch->met_by[w->current->linear] = MBARRIER;
    publish(watch, w, w->current->linear, watch->mbarriers[mbarrier_at(watch, address)].arriving);
}

void watch_phase_over(Worker* w, void* address) {
    Watch* watch = w->watch;
    MbarrierClock* m = &watch->mbarriers[mbarrier_at(watch, address)];
    merge(m->over, m->arriving, w->thread_count);
    memset(&m->arriving, 0, sizeof m->arriving);
}

void watch_acquire(Worker* w, void* address) {
    Watch* watch = w->watch;
    watch->met_by[w->current->linear] = MBARRIER;
    acquire(watch, w, w->current->linear, watch->mbarriers[mbarrier_at(watch, address)].over);
}

}  // namespace emu
