// Counts as a profiler does. The lanes of a warp run one after another here, so each records a trace of its accesses
// and basic blocks. When the warp synchronises, the traces are replayed in step, as a card runs the lanes.
#include "watch.h"

namespace emu {

void grow(Watch* watch, Trace* t) {
    const uint32_t room = t->room ? 2 * t->room : 256;
    if ((watch->traced + room - t->room) * sizeof(Event) > memory_capacity() / 2)
        fail(
            NO_MEMORY, 0, 0, 0, 0,
            "no memory left to record what the threads do: they run for too long without a barrier");
    watch->traced += room - t->room;
    t->events = (Event*)resize(t->events, room * sizeof(Event));
    t->room = room;
}

// Global memory and constants: the sectors of 32 bytes that the lanes touch, and the bytes that they use of them.
static void count_sectors(Site* site, const Event* const* lanes, uint32_t mask) {
    uint64_t sectors[64];
    uint32_t touched[64];
    int count = 0;
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        for (uint64_t at = lanes[l]->offset, end = at + lanes[l]->bytes; at < end;) {
            uint64_t sector = at / 32, last = (sector + 1) * 32 < end ? (sector + 1) * 32 : end;
            uint32_t bits = (uint32_t)(((1ull << (last - at)) - 1) << at % 32);
            int i = count - 1;
            while (i >= 0 && sectors[i] != sector) i--;
            if (i < 0) {
                i = count++;
                sectors[i] = sector;
                touched[i] = 0;
            }
            touched[i] |= bits;
            at = last;
        }
    }
    site->sectors += count;
    for (int i = 0; i < count; i++) site->used += __builtin_popcount(touched[i]);
}

// Shared memory: 32 banks of 4 bytes. 8- and 16-byte accesses are served by half and quarter warps.
static void count_bank_conflicts(Site* site, const Event* const* lanes, uint32_t mask, uint32_t bytes) {
    int lanes_at_once = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    for (int begin = 0; begin < 32; begin += lanes_at_once) {
        uint64_t words[32][32];
        uint8_t depth[32] = {};
        int most = 0;
        for (int l = begin; l < begin + lanes_at_once; l++) {
            if (!(mask >> l & 1)) continue;
            for (uint64_t word = lanes[l]->offset / 4; word <= (lanes[l]->offset + lanes[l]->bytes - 1) / 4; word++) {
                int bank = word % 32, i = 0;
                while (i < depth[bank] && words[bank][i] != word) i++;
                if (i < depth[bank]) continue;
                words[bank][depth[bank]++] = word;
                if (depth[bank] > most) most = depth[bank];
            }
        }
        if (most > 1) site->conflicts += most - 1;
    }
    site->used += (uint64_t)bytes * __builtin_popcount(mask);
}

static void count_request(Watch* watch, uint64_t pc, const Event* const* lanes, uint32_t mask) {
    uint16_t slot = site_of(watch, (void*)pc);
    Site* site = &watch->sites[slot];
    const Event* first = lanes[__builtin_ctz(mask)];
    if (first->offset < VARIABLES_BEGIN) site->space = SHARED;
    else site->space = first->offset - VARIABLES_BEGIN < VARIABLE_ROOM ? CONSTANT : GLOBAL;
    site->write |= (first->flags & WRITE) != 0;
    site->atomic |= (first->flags & ATOMIC) != 0;
    site->width = first->bytes;
    site->requests++;
    site->accesses += __builtin_popcount(mask);
    if (site->requests == 1) {
        watch->sample_mask[slot] = mask;
        for (int l = 0; l < 32; l++) watch->sample[slot][l] = mask >> l & 1 ? lanes[l]->offset : 0;
    }
    if (site->space == SHARED) count_bank_conflicts(site, lanes, mask, first->bytes);
    else count_sectors(site, lanes, mask);
}

// One step of the lanes in `mask`, which are all at the same place.
static void step(Watch* watch, Trace* traces, uint32_t mask) {
    const Event* lanes[32];
    for (uint32_t l = 0; l < 32; l++)
        if (mask >> l & 1) lanes[l] = &traces[l].events[traces[l].at++];
    const Event* first = lanes[__builtin_ctz(mask)];
    if (first->bytes && first->bytes <= 16) count_request(watch, first->pc, lanes, mask);
}

// Lanes that a branch has separated run separately, those furthest behind first: they reconverge where their paths join.
static void run_diverged(Watch* watch, Trace* traces, uint32_t count) {
    ReconvergenceOrder& order = watch->order;
    for (uint32_t l = 0; l < count; l++)
        for (uint32_t i = traces[l].at; i < traces[l].count; i++) {
            uint32_t to = order.node(traces[l].events[i].pc);
            traces[l].events[i].step = order.edge(traces[l].last, to);
            traces[l].last = to;
        }
    order.find_order();
    for (;;) {
        uint64_t lowest = ~0ull;
        uint32_t mask = 0;
        for (uint32_t l = 0; l < count; l++) {
            if (traces[l].at == traces[l].count) continue;
            uint64_t rank = order.edges[traces[l].events[traces[l].at].step].order;
            if (rank < lowest) {
                lowest = rank;
                mask = 0;
            }
            if (rank == lowest) mask |= 1u << l;
        }
        if (!mask) break;
        step(watch, traces, mask);
    }
}

void flush_warp(Worker* w, uint32_t warp) {
    Watch* watch = w->watch;
    Trace* traces = watch->traces + 32 * warp;
    uint32_t count = w->thread_count - 32 * warp < 32 ? w->thread_count - 32 * warp : 32;
    for (uint32_t l = 0; l < count; l++) traces[l].at = 0;
    auto ended = [&](uint32_t l) { return traces[l].at == traces[l].count; };
    auto pc = [&](uint32_t l) { return traces[l].events[traces[l].at].pc; };
    for (;;) {  // until they diverge
        bool together = !ended(0);
        for (uint32_t l = 1; together && l < count; l++) together = !ended(l) && pc(l) == pc(0);
        if (!together) break;
        uint32_t to = watch->order.node(pc(0));
        for (uint32_t l = 0; l < count; l++) {
            if (!l || traces[l].last != traces[0].last) watch->order.edge(traces[l].last, to);
            if (l) traces[l].last = to;
        }
        traces[0].last = to;
        step(watch, traces, ~0u >> (32 - count));
    }
    run_diverged(watch, traces, count);
    for (uint32_t l = 0; l < count; l++) traces[l].count = 0;
}

void watch_block_of_code(Worker* w, void* pc) { record(w, 0, 0, 0, pc); }

}  // namespace emu
