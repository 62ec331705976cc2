// What a watched launch tells: races, reads of what nothing wrote, barriers that diverge, copies read too early; and
// counts of requests, sectors and bank conflicts, as a profiler on a card counts them.
//
// A watched launch runs its blocks one after another, so that what it reports is the same every time.
#include <stdlib.h>
#include <string.h>

#include "runtime.h"
#include "ways.h"

namespace emu {

struct Access {                    // who touched a word, and when
    uint32_t block;                // number + 1; 0: nobody
    uint32_t time;                 // by the clock of `actor`: the thread itself, or the mbarrier of its bulk load
    uint16_t thread, actor;
    uint8_t bytes, flags;          // which of the word's four bytes
    uint16_t site;
};

struct Cell {                      // of 4 bytes of memory, in one launch
    uint32_t launch;
    uint16_t copying, leaving;     // thread + 1 whose asynchronous copy is on its way here, or still reads here
    Access writer, reader[2];      // the last writer, the last two readers
    Access atomic[2];              // since then: the last atomic, and the last before it of another thread
    Access reader_elsewhere;       // of global memory: the last reader of another block than reader[0]'s
    uint32_t readers;              // of shared memory: where the block's further readers are, + 1
};

struct Reading {                   // one thread's last read of a word that several read
    uint32_t time;
    uint16_t site;
    uint8_t bytes, flags;
};

struct Event { uint64_t pc, offset; uint32_t bytes, flags, step; };   // bytes 0: a basic block begins

struct Trace { Event* events; uint32_t count, room, at, last; };   // last: its node of `ways`

static const uint32_t SITES = 1 << 14, SYNCS = 1 << 14, THREADS = 1024, MBARRIERS = 64;
static const uint64_t MOST_ACCOUNTS = 1 << 26, MOST_READINGS = 1 << 24;  // so that memory stays within bounds

// Vector clocks: up to which time of each actor's something is in step with it. An actor is a thread of the block, or
// an mbarrier for the bulk loads that report to it. What an actor did at time t is seen by those who know of t + 1.
struct Clock { uint32_t of[THREADS + MBARRIERS]; };

struct Released {                  // what a block has published: of each of its threads, all before this time
    uint32_t block;
    uint32_t* until;               // 0: all, where too many have published to keep account
};
struct Sync {                      // an atomic or volatile variable, and what has been published through it
    uint64_t offset;
    Released* released;            // to other blocks, if it lies in global memory
    uint32_t count, room;
    uint32_t block;                // within this block (number + 1), what its threads have
    Clock* here;
};

struct Fences {                    // when a thread made a fence, lately: all that it did before is behind it
    uint32_t count, at[8];
};

struct Mbarrier {
    uintptr_t address;
    uint32_t landed;               // bulk loads, so far
    Clock arriving, over;          // what this phase's arrivals bring; what those learn who wait for one that is over
};

struct Watch {
    Site sites[SITES];
    uint32_t site_order[SITES], site_count;
    Report reports[MAX_REPORTS];
    uint32_t report_count;
    // Reads of what nothing has written yet. One that a later write of another thread turns out to race with is a race.
    Report unwritten[MAX_REPORTS];
    uint32_t unwritten_count;
    uint64_t barriers;
    // Sample of one global and one shared request per site, for drawing: lane -> offset.
    uint64_t sample[SITES][32];
    uint32_t sample_mask[SITES];
    // The block that runs.
    Trace traces[1024];
    Ways ways;
    Clock clocks[THREADS];
    uint32_t learned[THREADS];     // lanes of a warp that have the same number here know the same of other warps
    uint32_t lessons;
    uint8_t met_by[THREADS];       // what the thread last kept step with others by: SYNCTHREADS, ...
    Clock barriers_arriving[16];
    Mbarrier mbarriers[MBARRIERS];
    Clock fenced[THREADS];         // what a thread knew of at its last __threadfence
    Fences device_fences[THREADS], proxy_fences[THREADS];
    bool has_fenced[THREADS], fences, block_fences;  // a thread, of any scope; this block, of the device, of any scope
    Reading* readings;             // of the words that Cell::readers leads to, a row of all threads each
    uint32_t reading_count, reading_room, free_row;  // a free row's first time is the next free one
    uint32_t arrived[32];
    void* barrier_pc;
    uint16_t barrier_thread;
    bool barrier_mixed;
    void* mixed_pc;
    uint16_t mixed_thread;
    uint32_t launch;
    Sync syncs[SYNCS];
    uint64_t accounts;             // of a thread each, in all that is released
    struct { Sync* sync; uint32_t count; } acquired[64];
    uint32_t acquired_count;
    // A write that another thread has written before: a race, unless it is the same value.
    struct { bool open; uint64_t address; uint32_t bytes; unsigned char before[16]; Report report; } doubt;
};

static Cell* cells;
static uint8_t* initialised;       // a bit per byte
static uint8_t* written;           // a byte per 64 KiB: a watched kernel wrote there
static uint32_t launch_count;

// Which memory is written is noted from the beginning on, watched or not.
bool watch_init() {
    initialised = (uint8_t*)reserve_pages(arena_size / 8);
    written = (uint8_t*)reserve_pages(arena_size >> 16);
    return initialised && written;
}

static void set_bits(uint64_t offset, uint64_t bytes, bool value) {
    uint64_t end = offset + bytes;
    while (offset < end && offset % 8) {
        if (value) initialised[offset / 8] |= 1 << offset % 8; else initialised[offset / 8] &= ~(1 << offset % 8);
        offset++;
    }
    uint64_t whole = (end - offset) / 8;
    if (value) memset(initialised + offset / 8, 0xFF, whole);
    else clear_pages(initialised + offset / 8, whole);
    for (offset += 8 * whole; offset < end; offset++) {
        if (value) initialised[offset / 8] |= 1 << offset % 8; else initialised[offset / 8] &= ~(1 << offset % 8);
    }
}

static bool bits_set(uint64_t offset, uint64_t bytes) {
    if (offset / 8 == (offset + bytes - 1) / 8) {
        uint8_t mask = ((1u << bytes) - 1) << offset % 8;
        return (initialised[offset / 8] & mask) == mask;
    }
    for (uint64_t i = offset; i < offset + bytes; i++)
        if (!(initialised[i / 8] >> i % 8 & 1)) return false;
    return true;
}

// The host, or a kernel that nobody watched, has written here.
EMU_EXPORT void emu_mark(uint64_t address, uint64_t bytes) {
    uint64_t offset = address - arena_base;
    if (offset < arena_size) set_bits(offset, bytes, true);
}

// The first byte in the range that nothing has written, if a watched kernel has written others there; or ~0.
EMU_EXPORT uint64_t emu_unwritten(uint64_t address, uint64_t bytes, uint64_t* how_many) {
    uint64_t offset = address - arena_base, first = ~0ull;
    bool touched = false;
    if (offset >= arena_size || !bytes) return first;
    for (uint64_t g = offset >> 16; g <= (offset + bytes - 1) >> 16; g++) touched |= written[g];
    *how_many = 0;
    for (uint64_t i = offset; touched && i < offset + bytes; i++)
        if (!(initialised[i / 8] >> i % 8 & 1)) {
            if (first == ~0ull) first = arena_base + i;
            ++*how_many;
        }
    return first;
}

void watch_forget(uint64_t offset, uint64_t bytes) {
    set_bits(offset, bytes, false);
    for (uint64_t g = offset >> 16; g <= (offset + bytes - 1) >> 16; g++) written[g] = 0;
    if (cells) clear_pages(cells + offset / 4, (bytes + 3) / 4 * sizeof(Cell));
}

void watch_fresh(uint64_t offset, uint64_t bytes) {  // a block's new shared memory
    set_bits(offset, bytes, false);
    clear_pages(cells + offset / 4, (bytes + 3) / 4 * sizeof(Cell));
}

EMU_EXPORT Watch* emu_watch_new(void) {
    if (!cells) cells = (Cell*)reserve_pages(arena_size / 4 * sizeof(Cell));
    if (!cells) return 0;
    Watch* watch = (Watch*)reserve_pages(sizeof(Watch));
    if (watch) watch->launch = __atomic_add_fetch(&launch_count, 1, __ATOMIC_RELAXED);
    return watch;
}

// ----------------------------------------------------------------------------------------------------------- reports

static uint16_t site_of(Watch* watch, void* pc) {
    uint64_t key = (uint64_t)pc;
    uint32_t slot = (key * 0x9E3779B97F4A7C15ull) >> 50;
    while (watch->sites[slot].pc && watch->sites[slot].pc != key) slot = (slot + 1) % SITES;
    if (!watch->sites[slot].pc) {
        watch->sites[slot].pc = key;
        watch->site_order[watch->site_count++] = slot;
    }
    return slot;
}

static void read_too_early(Watch* watch, const Report& report) {
    for (uint32_t i = 0; i < watch->unwritten_count; i++)
        if (watch->unwritten[i].pc == report.pc) return;
    if (watch->unwritten_count < MAX_REPORTS) watch->unwritten[watch->unwritten_count++] = report;
}

static void add_report(Watch* watch, const Report& report) {
    if (report.kind == RACE)
        for (uint32_t i = 0; i < watch->unwritten_count; i++)
            if (watch->unwritten[i].pc == report.pc || watch->unwritten[i].pc == report.other_pc)
                watch->unwritten[i].kind = RACE;
    for (uint32_t i = 0; i < watch->report_count; i++) {
        Report* r = &watch->reports[i];
        if (r->kind == report.kind && r->pc == report.pc && r->other_pc == report.other_pc) {
            r->count++;
            return;
        }
        if (r->kind == report.kind && r->pc == report.other_pc && r->other_pc == report.pc) {
            r->count++;
            return;
        }
    }
    if (watch->report_count < MAX_REPORTS) {
        watch->reports[watch->report_count] = report;
        watch->reports[watch->report_count++].count = 1;
    }
}

static void settle(Watch* watch) {
    if (!watch->doubt.open) return;
    watch->doubt.open = false;
    if (memcmp((void*)watch->doubt.address, watch->doubt.before, watch->doubt.bytes))
        add_report(watch, watch->doubt.report);
}

static Report report_of(Worker* w, uint32_t kind, uint64_t address, uint64_t bytes, int write, void* pc) {
    Report r = {};
    r.kind = kind;
    r.address = address;
    r.bytes = bytes;
    r.write = write;
    r.pc = (uint64_t)pc;
    r.block = w->block_number;
    r.thread = w->current ? w->current->linear : 0;
    r.worker = w->index;
    return r;
}

// ------------------------------------------------------------------------------------------------- what came before what

static void learn(uint32_t* to, const uint32_t* from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) to[i] = from[i] > to[i] ? from[i] : to[i];
}

static void learn(Clock& to, const Clock& from, uint32_t threads) {
    learn(to.of, from.of, threads);
    learn(to.of + THREADS, from.of + THREADS, MBARRIERS);
}

static void teach(Watch* watch, Worker* w, uint32_t thread, const Clock& from) {  // the thread learns of other warps
    learn(watch->clocks[thread], from, w->thread_count);
    watch->learned[thread] = ++watch->lessons;
}

static void publish(Watch* watch, Worker* w, uint32_t thread, Clock& to) {
    watch->clocks[thread].of[thread]++;
    learn(to, watch->clocks[thread], w->thread_count);
}

static void join_lanes(Watch* watch, Worker* w, uint32_t warp, uint32_t present) {
    uint32_t first = 32 * warp + __builtin_ctz(present), own = 32 * warp;
    bool differ = false;
    for (uint32_t t = own; t < own + 32; t++)
        if (present >> (t - own) & 1) {
            watch->clocks[t].of[t]++;
            differ |= watch->learned[t] != watch->learned[first];
        }
    Clock& joined = watch->clocks[first];
    for (uint32_t t = first + 1; t < own + 32; t++) {
        if (!(present >> (t - own) & 1)) continue;
        if (differ) learn(joined, watch->clocks[t], w->thread_count);
        else learn(joined.of + own, watch->clocks[t].of + own, 32);
    }
    if (differ) watch->learned[first] = ++watch->lessons;
    for (uint32_t t = first + 1; t < own + 32; t++) {
        if (!(present >> (t - own) & 1)) continue;
        if (differ) learn(watch->clocks[t], joined, w->thread_count);
        else memcpy(watch->clocks[t].of + own, joined.of + own, sizeof(uint32_t) * 32);
        watch->learned[t] = watch->learned[first];
    }
}

// ---- fences, and what is published by atomics

static void note(Fences& fences, uint32_t time) { fences.at[fences.count++ % 8] = time; }

// The last fence of which somebody knows who knows of all before `known`; 0: of none.
static uint32_t last_fence(const Fences& fences, uint32_t known) {
    uint32_t last = 0;
    for (uint32_t i = 0; i < fences.count && i < 8; i++)
        if (fences.at[i] <= known && fences.at[i] > last) last = fences.at[i];
    return !last && fences.count > 8 ? known : last;  // older ones are forgotten: there was one
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

// What lies before a fence that this thread knows of is seen by the blocks that take part in the atomic after it.
static void publish_to_blocks(Watch* watch, Worker* w, Sync* s) {
    uint32_t me = w->current->linear, block = w->block_number + 1;
    if (!s->count || s->released[s->count - 1].block != block) {
        if (s->count == s->room) {
            s->room = s->room ? 2 * s->room : 16;
            s->released = (Released*)realloc(s->released, s->room * sizeof(Released));
        }
        watch->accounts += w->thread_count;
        bool kept = watch->accounts < MOST_ACCOUNTS;
        s->released[s->count++] = Released{block, kept ? (uint32_t*)calloc(w->thread_count, sizeof(uint32_t)) : 0};
    }
    uint32_t* until = s->released[s->count - 1].until;
    if (!until) return;
    for (uint32_t t = 0; t < w->thread_count; t++) {
        uint32_t own = last_fence(watch->device_fences[t], watch->clocks[me].of[t]), heard = watch->fenced[me].of[t];
        uint32_t last = own > heard ? own : heard;
        if (last > until[t]) until[t] = last;
    }
}

static void synchronise(Watch* watch, Worker* w, uint64_t offset, bool shared, int write, int flags) {
    bool fences = watch->fences || watch->block_fences;
    if (shared && !fences) return;
    Sync* s = sync_at(watch, offset);
    if (!s) return;
    uint32_t me = w->current->linear, block = w->block_number + 1;
    if (!shared) {
        uint32_t a = 0;
        while (a < watch->acquired_count && watch->acquired[a].sync != s) a++;
        if (a < 64) {
            watch->acquired[a].sync = s;
            watch->acquired[a].count = s->count;
            if (a == watch->acquired_count) watch->acquired_count++;
        }
        if (watch->fences && write) publish_to_blocks(watch, w, s);
    }
    if (!fences) return;           // nothing is published without a fence
    if (s->block != block) {
        if (!s->here) s->here = (Clock*)malloc(sizeof(Clock));
        memset(s->here, 0, sizeof(Clock));
        s->block = block;
    }
    if (!write || (flags & ATOMIC)) teach(watch, w, me, *s->here);
    if (write && watch->has_fenced[me]) publish(watch, w, me, *s->here);
}

static bool ordered(Watch* watch, Worker* w, const Access& before, uint64_t offset) {
    Thread* now = w->current;
    if (before.block == w->block_number + 1)
        return before.actor == now->linear || watch->clocks[now->linear].of[before.actor] > before.time;
    for (uint32_t a = 0; a < watch->acquired_count; a++) {
        // Atomics on one variable happen in one order, and this block has already taken part in it.
        if ((before.flags & ATOMIC) && (watch->acquired[a].sync->offset | 4) == (offset | 4)) return true;
        for (uint32_t i = 0; i < watch->acquired[a].count; i++) {
            Released* r = &watch->acquired[a].sync->released[i];
            if (r->block == before.block && (!r->until || r->until[before.thread] > before.time)) return true;
        }
    }
    return false;
}

// ----------------------------------------------------------------------------------------------------- one access

static void conflict(Watch* watch, Worker* w, const Access& before, bool before_wrote, uint64_t word, uint64_t address,
                     uint64_t bytes, int write, int flags, void* pc, uint8_t mask) {
    if (!before.block || !(before.bytes & mask)) return;
    if ((before.flags & ATOMIC) && (flags & ATOMIC)) return;
    bool elsewhere = before.block != w->block_number + 1;
    if ((before.flags & (ATOMIC | VOLATILE)) && (flags & (ATOMIC | VOLATILE))) {  // a flag, where the writer knows fences
        if (elsewhere || (write && watch->has_fenced[w->current->linear])) return;
        if (before_wrote && watch->has_fenced[before.thread]) return;
    }
    if (ordered(watch, w, before, 4 * word)) return;
    bool copy = write && (flags & ASYNC);
    Report r = report_of(w, before.actor >= THREADS && !copy ? MISSING_WAIT : RACE, address, bytes, write, pc);
    uint8_t mine = watch->met_by[r.thread], theirs = watch->met_by[before.thread];
    r.advice = elsewhere ? (watch->acquired_count ? DEVICE_FENCE : SYNCTHREADS) : mine > theirs ? mine : theirs;
    r.other_pc = watch->sites[before.site].pc;
    r.other_block = before.block - 1;
    r.other_thread = before.thread;
    r.other_write = before_wrote;
    if (write && before_wrote && !(flags & (ATOMIC | ASYNC)) && !(before.flags & (ATOMIC | ASYNC)) && bytes <= 16) {
        if (watch->doubt.open) return;
        watch->doubt.open = true;   // decided when the value has been written
        watch->doubt.address = address;
        watch->doubt.bytes = bytes;
        memcpy(watch->doubt.before, (void*)address, bytes);
        watch->doubt.report = r;
    } else {
        add_report(watch, r);
    }
}

// The copy engine and wgmma see what a thread wrote only behind its fence.
static void check_proxy(Watch* watch, Worker* w, const Access& before, uint64_t word, uint64_t address, uint64_t bytes,
                        int write, int flags, void* pc, uint8_t mask) {
    if (before.block != w->block_number + 1 || !(before.bytes & mask) || (before.flags & ASYNC)) return;
    uint32_t me = w->current->linear;
    if (!ordered(watch, w, before, 4 * word)) return;  // that is a race as it is
    if (last_fence(watch->proxy_fences[before.thread], watch->clocks[me].of[before.thread]) > before.time) return;
    Report r = report_of(w, RACE, address, bytes, write, pc);
    r.advice = flags & ATOMIC ? INIT_FENCE : PROXY_FENCE;
    r.other_pc = watch->sites[before.site].pc;
    r.other_block = before.block - 1;
    r.other_thread = before.thread;
    r.other_write = 1;
    add_report(watch, r);
}

// ---- the readers of a word

static Reading* row_of(Watch* watch, Worker* w, const Cell* c) {
    return watch->readings + (uint64_t)(c->readers - 1) * w->thread_count;
}

static void keep_reader(Watch* watch, Worker* w, Cell* c, const Access& reader) {
    if (!c->readers) {
        c->readers = watch->free_row;
        if (c->readers) {
            watch->free_row = row_of(watch, w, c)->time;
        } else {
            if ((uint64_t)watch->reading_count * w->thread_count >= MOST_READINGS) return;
            if (watch->reading_count == watch->reading_room) {
                watch->reading_room = watch->reading_room ? 2 * watch->reading_room : 256;
                uint64_t bytes = (uint64_t)watch->reading_room * w->thread_count * sizeof(Reading);
                watch->readings = (Reading*)realloc(watch->readings, bytes);
            }
            c->readers = ++watch->reading_count;
        }
        memset(row_of(watch, w, c), 0, w->thread_count * sizeof(Reading));
    }
    Reading* mine = row_of(watch, w, c) + reader.thread;
    uint8_t bytes = mine->time == reader.time ? mine->bytes : 0;
    *mine = Reading{reader.time, reader.site, (uint8_t)(reader.bytes | bytes), reader.flags};
}

static void forget_readers(Watch* watch, Worker* w, Cell* c) {
    row_of(watch, w, c)->time = watch->free_row;
    watch->free_row = c->readers;
    c->readers = 0;
}

// Notes a read. Two readers have room in the cell; of the others, those are kept whose reads a write may still race with.
static void note_reader(Watch* watch, Worker* w, Cell* c, uint64_t word, bool shared, const Access& now) {
    if (c->readers && !(now.flags & ASYNC)) return keep_reader(watch, w, c, now);
    for (Access& slot : c->reader) {
        bool mine = slot.block == now.block && slot.thread == now.thread, together = mine && slot.time == now.time;
        if (slot.block && !together && !(mine && !(slot.bytes & ~now.bytes))) continue;
        uint8_t bytes = together ? slot.bytes : 0;
        slot = c->reader[0];
        c->reader[0] = now;
        c->reader[0].bytes |= bytes;
        return;
    }
    const Access& last = c->reader[1];
    if (!shared && last.block != now.block) c->reader_elsewhere = last;
    if (shared && (last.bytes & ~now.bytes || !ordered(watch, w, last, 4 * word))) keep_reader(watch, w, c, last);
    c->reader[1] = c->reader[0];
    c->reader[0] = now;
}

static void record(Worker* w, uint64_t offset, uint32_t bytes, int flags, void* pc) {
    Watch* watch = (Watch*)w->log;
    Trace* t = &watch->traces[w->current->linear];
    if (t->count == t->room) {
        t->room = t->room ? 2 * t->room : 256;
        t->events = (Event*)realloc(t->events, t->room * sizeof(Event));
    }
    t->events[t->count++] = Event{(uint64_t)pc, offset, bytes, (uint32_t)flags, 0};
}

void watch_block_of_code(Worker* w, void* pc) { record(w, 0, 0, 0, pc); }

void watch_access(Worker* w, uint64_t offset, uint64_t bytes, int write, int flags, void* pc) {
    Watch* watch = (Watch*)w->log;
    settle(watch);
    if (!(flags & UNCOUNTED)) record(w, offset, bytes, flags | (write ? 1 << 8 : 0), pc);
    uint64_t variables = VARIABLES_BEGIN, address = offset + arena_base;
    bool shared = offset < variables, module = !shared && offset < variables + VARIABLE_ROOM;
    bool atomic = flags & ATOMIC;
    if (module) {
        for (Variable* v = w->launch->module->variables; v; v = v->next)
            if (offset >= v->shadow && offset < v->shadow + v->size) address = (uintptr_t)v->address + offset - v->shadow;
    } else if ((!write || atomic) && !bits_set(offset, bytes)) {
        bool copying = false;
        for (uint64_t word = offset / 4; word <= (offset + bytes - 1) / 4; word++)
            copying |= cells[word].launch == watch->launch && cells[word].copying;
        if (!copying) read_too_early(watch, report_of(w, UNINITIALISED, address, bytes, write, pc));
    }
    uint16_t site = site_of(watch, pc);
    Thread* t = w->current;
    if ((flags & ASYNC) && (flags & UNCOUNTED) && !shared) watch->sites[site].copied += bytes;
    for (uint64_t word = offset / 4; word <= (offset + bytes - 1) / 4; word++) {
        uint64_t begin = word * 4 < offset ? offset - word * 4 : 0;
        uint64_t end = offset + bytes < word * 4 + 4 ? offset + bytes - word * 4 : 4;
        uint8_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);
        Cell* c = &cells[word];
        if (c->launch != watch->launch) {
            memset(c, 0, sizeof *c);
            c->launch = watch->launch;
        }
        if ((write && c->leaving) || c->copying) {
            bool two_copies = c->copying && write && (flags & ASYNC);
            const Access& late = c->copying ? c->writer : c->reader[c->reader[0].flags & ASYNC ? 0 : 1];
            Report r = report_of(w, two_copies ? RACE : MISSING_WAIT, address, bytes, write, pc);
            r.other_thread = c->copying ? c->copying - 1 : late.thread;
            r.other_pc = watch->sites[late.site].pc;
            r.other_block = w->block_number;
            r.other_write = c->copying != 0;
            add_report(watch, r);
            continue;
        }
        uint16_t me = t->linear;
        Access now = {(uint32_t)w->block_number + 1, watch->clocks[me].of[me], me, me, mask,
                      (uint8_t)(flags & (ATOMIC | VOLATILE | ASYNC)), site};
        auto against = [&](const Access& before, bool wrote) {
            conflict(watch, w, before, wrote, word, address, bytes, write, flags, pc, mask);
        };
        against(c->writer, true);
        if (c->atomic[0].block)
            for (const Access& before : c->atomic) against(before, true);
        if ((flags & PROXY) && shared) {
            check_proxy(watch, w, c->writer, word, address, bytes, write, flags, pc, mask);
            check_proxy(watch, w, c->atomic[0], word, address, bytes, write, flags, pc, mask);
        }
        if (!write) {
            if ((flags & ASYNC) && shared) c->leaving++;  // a bulk store, or a wgmma, reads its source late
            note_reader(watch, w, c, word, shared, now);
            continue;
        }
        for (const Access& before : c->reader) against(before, false);
        against(c->reader_elsewhere, false);
        if (c->readers) {
            for (uint32_t i = 0; i < w->thread_count; i++) {
                const Reading& read = row_of(watch, w, c)[i];
                if (read.bytes & mask)
                    against(Access{now.block, read.time, (uint16_t)i, (uint16_t)i, read.bytes, read.flags, read.site}, false);
            }
            if (mask == 15) forget_readers(watch, w, c);  // who comes behind this write comes behind them
        }
        if (atomic) {
            if (c->atomic[0].thread != now.thread || c->atomic[0].block != now.block) c->atomic[1] = c->atomic[0];
            c->atomic[0] = now;
            continue;
        }
        c->atomic[0] = c->atomic[1] = Access{};
        c->writer = now;
        if (flags & ASYNC) c->copying = t->linear + 1;
    }
    if (write && !(flags & ASYNC) && !module) {
        set_bits(offset, bytes, true);
        written[offset >> 16] = 1;
    }
    if ((flags & (ATOMIC | VOLATILE)) && !(flags & UNCOUNTED)) synchronise(watch, w, offset, shared, write, flags);
}

static uint32_t mbarrier_at(Watch* watch, void* address) {
    uint32_t i = 0;
    while (i < MBARRIERS - 1 && watch->mbarriers[i].address && watch->mbarriers[i].address != (uintptr_t)address) i++;
    watch->mbarriers[i].address = (uintptr_t)address;
    return i;
}

void watch_release(Worker* w, void* address) {
    Watch* watch = (Watch*)w->log;
    settle(watch);
    watch->met_by[w->current->linear] = MBARRIER;
    publish(watch, w, w->current->linear, watch->mbarriers[mbarrier_at(watch, address)].arriving);
}

void watch_phase_over(Worker* w, void* address) {
    Watch* watch = (Watch*)w->log;
    Mbarrier* m = &watch->mbarriers[mbarrier_at(watch, address)];
    learn(m->over, m->arriving, w->thread_count);
    memset(&m->arriving, 0, sizeof m->arriving);
}

void watch_acquire(Worker* w, void* address) {
    Watch* watch = (Watch*)w->log;
    watch->met_by[w->current->linear] = MBARRIER;
    teach(watch, w, w->current->linear, watch->mbarriers[mbarrier_at(watch, address)].over);
}

// What a thread's bulk store or product reads of shared memory it has read at this time, and no earlier.
static void read_late(Worker* w, const void* address, uint32_t bytes, uint32_t thread, uint32_t time) {
    Watch* watch = (Watch*)w->log;
    uint64_t offset = (uintptr_t)address - arena_base;
    for (uint64_t word = offset / 4; word <= (offset + bytes - 1) / 4; word++) {
        Cell* c = &cells[word];
        if (c->leaving) c->leaving--;
        for (Access& reader : c->reader)
            if ((reader.flags & ASYNC) && reader.thread == thread) reader.time = time;
        if (c->readers && (row_of(watch, w, c)[thread].flags & ASYNC)) row_of(watch, w, c)[thread].time = time;
    }
}

void watch_copy_landed(Worker* w, Pending* p) {
    Watch* watch = (Watch*)w->log;
    uint64_t offset = (uintptr_t)p->to - arena_base, from = (uintptr_t)p->from - arena_base;
    uint32_t actor = p->thread, time = watch->clocks[actor].of[actor];
    if (p->barrier) {  // nobody is in step with a bulk load but those who wait for its mbarrier
        uint32_t i = mbarrier_at(watch, p->barrier);
        actor = THREADS + i;
        time = watch->mbarriers[i].landed++;
        watch->mbarriers[i].arriving.of[actor] = time + 1;
    }
    for (uint64_t word = offset / 4; word <= (offset + p->bytes - 1) / 4; word++) {
        Cell* c = &cells[word];
        c->copying = 0;
        c->writer.time = time;
        c->writer.actor = actor;
    }
    if (from < VARIABLES_BEGIN) read_late(w, p->from, p->bytes, p->thread, time);
    set_bits(offset, p->bytes, true);
    if (offset >= VARIABLES_BEGIN) written[offset >> 16] = 1;
}

void watch_sums(Worker* w, uintptr_t address, int write, void* pc) {
    uint32_t me = w->current->linear;
    for (Product* p = w->products[me / 32]; p; p = p->next) {
        if (!p->sums[me % 32] || address - (uintptr_t)p->sums[me % 32] >= p->matrix.rows / 2 * sizeof(float)) continue;
        Report r = report_of(w, MISSING_WAIT, address, sizeof(float), write, pc);
        r.advice = PRODUCT;
        r.other_pc = (uint64_t)p->pc;
        r.other_block = r.block;
        r.other_thread = r.thread;
        add_report((Watch*)w->log, r);
        return;
    }
}

void watch_product_done(Worker* w, const void* address, uint32_t bytes, uint32_t thread) {  // its warp has just met
    read_late(w, address, bytes, thread, ((Watch*)w->log)->clocks[thread].of[thread] - 1);
}

void watch_fence(Worker* w, int scope) {
    Watch* watch = (Watch*)w->log;
    settle(watch);
    uint32_t me = w->current->linear, time = ++watch->clocks[me].of[me];
    watch->has_fenced[me] = watch->block_fences = true;
    if (scope < 1) return;
    watch->fences = true;
    note(watch->device_fences[me], time);
    memcpy(watch->fenced[me].of, watch->clocks[me].of, sizeof(uint32_t) * w->thread_count);
}

void watch_proxy_fence(Worker* w) {
    Watch* watch = (Watch*)w->log;
    settle(watch);
    uint32_t me = w->current->linear;
    note(watch->proxy_fences[me], ++watch->clocks[me].of[me]);
}

// ------------------------------------------------------------------------------------------------ counting a warp

static void count_request(Watch* watch, uint64_t pc, const Event* const* lanes, uint32_t mask) {
    uint16_t slot = site_of(watch, (void*)pc);
    Site* site = &watch->sites[slot];
    const Event* first = lanes[__builtin_ctz(mask)];
    uint64_t variables = VARIABLES_BEGIN;
    site->space = first->offset < variables ? 2 : first->offset < variables + VARIABLE_ROOM ? 3 : 1;
    site->write |= first->flags >> 8 & 1;
    site->atomic |= (first->flags & ATOMIC) != 0;
    site->width = first->bytes;
    site->requests++;
    site->accesses += __builtin_popcount(mask);
    if (site->requests == 1) {
        watch->sample_mask[slot] = mask;
        for (int l = 0; l < 32; l++) watch->sample[slot][l] = mask >> l & 1 ? lanes[l]->offset : 0;
    }
    if (site->space != 2) {
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
        return;
    }
    // Shared memory: 32 banks of 4 bytes. 8- and 16-byte accesses are served by half and quarter warps.
    int lanes_at_once = first->bytes <= 4 ? 32 : first->bytes == 8 ? 16 : 8;
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
    site->used += (uint64_t)first->bytes * __builtin_popcount(mask);
}

// One step of the lanes in `mask`, which are all at the same place.
static void step(Watch* watch, Trace* traces, uint32_t mask) {
    const Event* lanes[32];
    for (uint32_t l = 0; l < 32; l++)
        if (mask >> l & 1) lanes[l] = &traces[l].events[traces[l].at++];
    const Event* first = lanes[__builtin_ctz(mask)];
    if (first->bytes && first->bytes <= 16) count_request(watch, first->pc, lanes, mask);
}

// Lanes that a branch has parted run apart, those furthest behind first: they meet again where their ways come together.
static void run_apart(Watch* watch, Trace* traces, uint32_t count) {
    Ways& ways = watch->ways;
    for (uint32_t l = 0; l < count; l++)
        for (uint32_t i = traces[l].at; i < traces[l].count; i++) {
            uint32_t to = ways.node(traces[l].events[i].pc);
            traces[l].events[i].step = ways.edge(traces[l].last, to);
            traces[l].last = to;
        }
    ways.find_order();
    for (;;) {
        uint64_t lowest = ~0ull;
        uint32_t mask = 0;
        for (uint32_t l = 0; l < count; l++) {
            if (traces[l].at == traces[l].count) continue;
            uint64_t order = ways.edges[traces[l].events[traces[l].at].step].order;
            if (order < lowest) {
                lowest = order;
                mask = 0;
            }
            if (order == lowest) mask |= 1u << l;
        }
        if (!mask) break;
        step(watch, traces, mask);
    }
}

// The lanes' traces, run in step as a warp runs.
static void flush_warp(Worker* w, uint32_t warp) {
    Watch* watch = (Watch*)w->log;
    Trace* traces = watch->traces + 32 * warp;
    uint32_t count = w->thread_count - 32 * warp < 32 ? w->thread_count - 32 * warp : 32;
    for (uint32_t l = 0; l < count; l++) traces[l].at = 0;
    auto ended = [&](uint32_t l) { return traces[l].at == traces[l].count; };
    auto pc = [&](uint32_t l) { return traces[l].events[traces[l].at].pc; };
    for (;;) {                     // until they part
        bool together = !ended(0);
        for (uint32_t l = 1; together && l < count; l++) together = !ended(l) && pc(l) == pc(0);
        if (!together) break;
        uint32_t to = watch->ways.node(pc(0));
        for (uint32_t l = 0; l < count; l++) {
            if (!l || traces[l].last != traces[0].last) watch->ways.edge(traces[l].last, to);
            if (l) traces[l].last = to;
        }
        traces[0].last = to;
        step(watch, traces, ~0u >> (32 - count));
    }
    run_apart(watch, traces, count);
    for (uint32_t l = 0; l < count; l++) traces[l].count = 0;
}

// ------------------------------------------------------------------------------------------ barriers and warps

void watch_arrive(Worker* w, uint32_t number, uint32_t threads, void* pc) {
    Watch* watch = (Watch*)w->log;
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
    Watch* watch = (Watch*)w->log;
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
            learn(all.of + THREADS, watch->clocks[t].of + THREADS, MBARRIERS);
        }
        watch->lessons++;
        for (uint32_t t = 0; t < w->thread_count; t++) {
            memcpy(watch->clocks[t].of, all.of, sizeof(uint32_t) * w->thread_count);
            memcpy(watch->clocks[t].of + THREADS, all.of + THREADS, sizeof(uint32_t) * MBARRIERS);
            watch->learned[t] = watch->lessons;
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
        teach(watch, w, i, arriving);
        watch->met_by[i] = NAMED_BARRIER;
        watch->arrived[i / 32] &= ~(1u << i % 32);
    }
    memset(&arriving, 0, sizeof arriving);
}

void watch_meeting(Worker* w, uint32_t warp, uint32_t present) {
    Watch* watch = (Watch*)w->log;
    settle(watch);
    join_lanes(watch, w, warp, present);
    if (present == w->warps[warp].living) flush_warp(w, warp);
}

void watch_exit(Worker* w, Thread*) { settle((Watch*)w->log); }

void watch_block_begin(Worker* w) {
    Watch* watch = (Watch*)w->log;
    for (uint32_t t = 0; t < w->thread_count; t++) {
        memset(watch->clocks[t].of, 0, sizeof(uint32_t) * w->thread_count);
        memset(watch->clocks[t].of + THREADS, 0, sizeof(uint32_t) * MBARRIERS);
        watch->learned[t] = 0;
        watch->traces[t].last = Ways::BEGIN;
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

void watch_block_end(Worker* w) { settle((Watch*)w->log); }

void watch_worker_begin(Worker* w) { w->log = w->launch->watch; }

void watch_worker_end(Worker* w) {
    Watch* watch = (Watch*)w->log;
    watch->doubt.open = false;
    for (uint32_t v = 0; v < (w->thread_count + 31) / 32; v++) flush_warp(w, v);
    for (uint32_t i = 0; i < watch->unwritten_count; i++)
        if (watch->unwritten[i].kind == UNINITIALISED) add_report(watch, watch->unwritten[i]);
    for (uint32_t i = 0; i < 1024; i++) {
        free(watch->traces[i].events);
        watch->traces[i] = Trace{};
    }
    watch->ways.free_all();
    for (Sync& s : watch->syncs) {
        for (uint32_t i = 0; i < s.count; i++) free(s.released[i].until);
        free(s.released);
        free(s.here);
    }
    free(watch->readings);
}

// ------------------------------------------------------------------------------------------ what Python reads

EMU_EXPORT uint32_t emu_watch_reports(Watch* watch, Report* out) {
    memcpy(out, watch->reports, watch->report_count * sizeof(Report));
    return watch->report_count;
}

EMU_EXPORT uint32_t emu_watch_sites(Watch* watch, Site* out, uint64_t* samples, uint32_t* masks) {
    for (uint32_t i = 0; i < watch->site_count; i++) {
        uint32_t slot = watch->site_order[i];
        if (!out) continue;
        out[i] = watch->sites[slot];
        memcpy(samples + 32 * i, watch->sample[slot], sizeof watch->sample[slot]);
        masks[i] = watch->sample_mask[slot];
    }
    return watch->site_count;
}

EMU_EXPORT uint64_t emu_watch_barriers(Watch* watch) { return watch->barriers; }

EMU_EXPORT void emu_watch_free(Watch* watch) { release_pages(watch, sizeof(Watch)); }

}  // namespace emu
