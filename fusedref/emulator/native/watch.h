// What a watched launch records: races, reads of memory that nothing has written, divergent barriers, copies read too
// early; and counts of requests, sectors and bank conflicts as a profiler on a card counts them.
//
//   written.cpp   which bytes of memory something has written
//   reports.cpp   findings, for Python
//   clocks.cpp    the happens-before order: barriers, warps, fences, atomics, mbarriers
//   races.cpp     compares an access with those before it
//   counters.cpp  a warp's requests
//   watch.cpp     the beginning and end of blocks and launches, and barriers
//
// A watched launch runs its blocks one after another, so that it reports the same every time.
#pragma once
#include <string.h>

#include "reconvergence.h"
#include "runtime.h"

namespace emu {

static const uint32_t SITES = 1 << 14, SYNCS = 1 << 14, THREADS = 1024, MBARRIERS = 64, ACQUIRED = 64;

struct Access {      // who touched a word, and when
    uint32_t block;  // number + 1; 0: nobody
    uint32_t time;   // by the clock of `actor`: the thread itself, or the mbarrier of its bulk load
    uint16_t thread, actor;
    uint8_t bytes, flags;  // which of the word's four bytes
    uint16_t site;
};

struct Cell {  // the accesses to 4 bytes of memory in one launch
    uint32_t launch;
    uint16_t copying, leaving;  // thread + 1 whose asynchronous copy is in flight to here; copies that still read here
    Access writer, reader[2];   // the last writer, the last two readers
    Access atomic[2];           // since then: the last atomic, and the last before it of another thread
    Access reader_elsewhere;    // of global memory: the last reader of another block than reader[0]'s
    uint32_t readers;           // of shared memory: the row of the block's other readers, + 1
};

struct Reading {  // one thread's last read of a word that several read
    uint32_t time;
    uint16_t site;
    uint8_t bytes, flags;
};

struct Event {  // an access; bytes 0: the beginning of a basic block
    uint64_t pc, offset;
    uint32_t bytes, flags, step;
};
static const uint32_t WRITE = 1 << 8;  // of Event::flags, beside the flags of an access

struct Trace {  // what a lane has done since its warp last synchronised
    Event* events;
    uint32_t count, room, at, last;  // last: its node in the reconvergence order
};

// A vector clock: for each actor, the time up to which its actions are visible. An actor is a thread of the block, or an
// mbarrier for the bulk loads that report to it. Whoever has reached time t + 1 sees what the actor did at time t.
struct Clock { uint32_t of[THREADS + MBARRIERS]; };

struct Released {  // what a block has published: for each of its threads, everything before a time
    uint32_t block;
    uint32_t* until;  // 0: everything, because there are too many to store
};

struct Sync {  // an atomic or volatile variable, and what has been published through it
    uint64_t offset;
    Released* released;  // to other blocks, if it lies in global memory
    uint32_t count, room;
    uint32_t block;  // the block (number + 1) that `here` is about
    Clock* here;     // what the block's threads have published to one another
};

struct Fences {  // times of a thread's latest fences, which order everything that it did before
    uint32_t count, at[8];
};

struct MbarrierClock {
    uintptr_t address;
    uint32_t landed;       // bulk loads, so far
    Clock arriving, over;  // published by this phase's arrivals; acquired by waiting for a completed phase
};

struct PossibleRace {  // a write after another thread's write: a race, unless it writes the same value
    bool open;
    uint64_t address;
    uint32_t bytes;
    unsigned char before[16];
    Report report;
};

struct Watch {
    Site sites[SITES];
    uint32_t site_order[SITES], site_count;
    Report reports[MAX_REPORTS];
    uint32_t report_count;
    // Reads of memory that nothing has written yet. One that races with a later write of another thread is a race.
    Report unwritten[MAX_REPORTS];
    uint32_t unwritten_count;
    uint64_t barriers;
    // A sample of one request per site, for drawing: lane -> offset.
    uint64_t sample[SITES][32];
    uint32_t sample_mask[SITES];
    // The current block.
    Trace traces[THREADS];
    uint64_t traced;  // events that the traces have room for
    ReconvergenceOrder order;
    Clock clocks[THREADS];
    uint32_t version[THREADS];  // of a clock: lanes of a warp with the same number have the same times of other warps
    uint32_t last_version;
    uint8_t met_by[THREADS];  // an Advice: the means by which the thread last synchronised
    Clock barriers_arriving[16];
    MbarrierClock mbarriers[MBARRIERS];
    Clock fenced[THREADS];  // a thread's clock at its last __threadfence
    Fences device_fences[THREADS], proxy_fences[THREADS];
    bool has_fenced[THREADS];                        // at any scope
    bool fences, block_fences;                       // in this block: at the scope of the device; at any scope
    Reading* readings;                               // rows of one per thread, which Cell::readers refers to
    uint32_t reading_count, reading_room, free_row;  // a free row's first time is the next free one
    uint32_t arrived[32];
    void* barrier_pc;
    uint16_t barrier_thread;
    bool barrier_mixed;
    void* mixed_pc;
    uint16_t mixed_thread;
    uint32_t launch;
    Sync syncs[SYNCS];
    uint64_t released_times;  // in everything that is released
    struct {
        Sync* sync;
        uint32_t count;
    } acquired[ACQUIRED];
    uint32_t acquired_count;
    PossibleRace possible_race;
};

extern Cell* cells;
extern uint8_t* initialised;  // a bit per byte
extern uint8_t* written;      // a byte per 64 KiB: a watched kernel wrote there

// written.cpp
void set_bits(uint64_t offset, uint64_t bytes, bool value);
bool bits_set(uint64_t offset, uint64_t bytes);

// reports.cpp
Report report_of(Worker* w, uint32_t kind, uint64_t address, uint64_t bytes, int write, void* pc);
void add_report(Watch* watch, const Report& report);
void add_unwritten(Watch* watch, const Report& report);
void decide_race(Watch* watch);
inline void settle(Watch* watch) {
    if (__builtin_expect(watch->possible_race.open, 0)) decide_race(watch);
}

// clocks.cpp
void merge(uint32_t* to, const uint32_t* from, uint32_t count);
void acquire(Watch* watch, Worker* w, uint32_t thread, const Clock& from);  // the thread sees what `from` sees
void publish(Watch* watch, Worker* w, uint32_t thread, Clock& to);
void join_lanes(Watch* watch, Worker* w, uint32_t warp, uint32_t present);
uint32_t last_fence(const Fences& fences, uint32_t known);
void synchronise(Watch* watch, Worker* w, uint64_t offset, bool shared, int write, int flags);
uint32_t mbarrier_at(Watch* watch, void* address);

// counters.cpp
void flush_warp(Worker* w, uint32_t warp);  // counts the requests of the lanes' traces and empties them

inline uint16_t site_of(Watch* watch, void* pc) {
    uint64_t key = (uint64_t)pc;
    uint32_t slot = (key * 0x9E3779B97F4A7C15ull) >> 50;
    while (watch->sites[slot].pc && watch->sites[slot].pc != key) slot = (slot + 1) % SITES;
    if (!watch->sites[slot].pc) {
        watch->sites[slot].pc = key;
        watch->site_order[watch->site_count++] = slot;
    }
    return slot;
}

void grow(Watch* watch, Trace* t);
inline void record(Worker* w, uint64_t offset, uint32_t bytes, uint32_t flags, void* pc) {
    Trace* t = &w->watch->traces[w->current->linear];
    if (__builtin_expect(t->count == t->room, 0)) grow(w->watch, t);
    t->events[t->count++] = Event{(uint64_t)pc, offset, bytes, flags, 0};
}

}  // namespace emu
