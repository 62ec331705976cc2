// Compares an access with those before it: races, reads of unwritten memory, copies that no thread has waited for.
#include "watch.h"

namespace emu {

static const uint64_t MAX_READINGS = 1 << 24;  // limits the memory

static bool ordered(Watch* watch, Worker* w, const Access& before, uint64_t offset) {
    Thread* now = w->current;
    if (before.block == w->block_number + 1)
        return before.actor == now->linear || watch->clocks[now->linear].of[before.actor] > before.time;
    for (uint32_t a = 0; a < watch->acquired_count; a++) {
        // Atomics on one variable have a total order, and this block has taken part in it.
        if ((before.flags & ATOMIC) && (watch->acquired[a].sync->offset | 4) == (offset | 4)) return true;
        for (uint32_t i = 0; i < watch->acquired[a].count; i++) {
            Released* r = &watch->acquired[a].sync->released[i];
            if (r->block == before.block && (!r->until || r->until[before.thread] > before.time)) return true;
        }
    }
    return false;
}

static void conflict(
    Watch* watch, Worker* w, const Access& before, bool before_wrote, uint64_t word, uint64_t address, uint64_t bytes,
    int write, int flags, void* pc, uint8_t mask) {
    if (!before.block || !(before.bytes & mask)) return;
    if ((before.flags & ATOMIC) && (flags & ATOMIC)) return;
    bool elsewhere = before.block != w->block_number + 1;
    if ((before.flags & (ATOMIC | VOLATILE)) && (flags & (ATOMIC | VOLATILE))) {  // a flag, if the writer uses fences
        if (elsewhere || (write && watch->has_fenced[w->current->linear])) return;
        if (before_wrote && watch->has_fenced[before.thread]) return;
    }
    if (ordered(watch, w, before, 4 * word)) return;
    bool copy = write && (flags & ASYNC);
    Report r = report_of(w, before.actor >= THREADS && !copy ? MISSING_WAIT : RACE, address, bytes, write, pc);
    uint8_t mine = watch->met_by[r.thread], theirs = watch->met_by[before.thread];
    const uint8_t later = mine > theirs ? mine : theirs;
    r.advice = !elsewhere ? later : watch->acquired_count ? (uint8_t)DEVICE_FENCE : (uint8_t)SYNCTHREADS;
    r.other_pc = watch->sites[before.site].pc;
    r.other_block = before.block - 1;
    r.other_thread = before.thread;
    r.other_write = before_wrote;
    if (write && before_wrote && !(flags & (ATOMIC | ASYNC)) && !(before.flags & (ATOMIC | ASYNC)) && bytes <= 16) {
        if (watch->possible_race.open) return;
        watch->possible_race.open = true;  // decided once the value is written
        watch->possible_race.address = address;
        watch->possible_race.bytes = bytes;
        memcpy(watch->possible_race.before, (void*)address, bytes);
        watch->possible_race.report = r;
    } else {
        add_report(watch, r);
    }
}

// The copy engine and wgmma see a thread's writes only after its fence.
static void check_proxy(
    Watch* watch, Worker* w, const Access& before, uint64_t word, uint64_t address, uint64_t bytes, int write,
    int flags, void* pc, uint8_t mask) {
    if (before.block != w->block_number + 1 || !(before.bytes & mask) || (before.flags & ASYNC)) return;
    uint32_t me = w->current->linear;
    if (!ordered(watch, w, before, 4 * word)) return;  // reported as a race anyway
    if (last_fence(watch->proxy_fences[before.thread], watch->clocks[me].of[before.thread]) > before.time) return;
    Report r = report_of(w, RACE, address, bytes, write, pc);
    r.advice = flags & ATOMIC ? INIT_FENCE : PROXY_FENCE;
    r.other_pc = watch->sites[before.site].pc;
    r.other_block = before.block - 1;
    r.other_thread = before.thread;
    r.other_write = 1;
    add_report(watch, r);
}

// -------------------------------------------------------------------------------------------------- the readers of a word

static Reading* row_of(Watch* watch, Worker* w, const Cell* c) {
    return watch->readings + (uint64_t)(c->readers - 1) * w->thread_count;
}

static void keep_reader(Watch* watch, Worker* w, Cell* c, const Access& reader) {
    if (!c->readers) {
        c->readers = watch->free_row;
        if (c->readers) {
            watch->free_row = row_of(watch, w, c)->time;
        } else {
            if ((uint64_t)watch->reading_count * w->thread_count >= MAX_READINGS) return;
            if (watch->reading_count == watch->reading_room) {
                const uint32_t room = watch->reading_room ? 2 * watch->reading_room : 256;
                uint64_t bytes = (uint64_t)room * w->thread_count * sizeof(Reading);
                watch->readings = (Reading*)resize(watch->readings, bytes);
                watch->reading_room = room;
            }
            c->readers = ++watch->reading_count;
        }
        memset(row_of(watch, w, c), 0, w->thread_count * sizeof(Reading));
    }
    Reading* mine = row_of(watch, w, c) + reader.thread;
    uint8_t bytes = mine->time == reader.time ? mine->bytes : 0;
    *mine = Reading{reader.time, reader.site, (uint8_t)(reader.bytes | bytes), reader.flags};
}

static void drop_readers(Watch* watch, Worker* w, Cell* c) {
    row_of(watch, w, c)->time = watch->free_row;
    watch->free_row = c->readers;
    c->readers = 0;
}

// Notes a read. The cell has room for two readers; of the others, keep those that a later write may race with.
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

// ----------------------------------------------------------------------------------------------------------- an access

static uint64_t address_of_variable(Worker* w, uint64_t offset) {
    for (Variable* v = w->launch->module->variables; v; v = v->next)
        if (offset >= v->shadow && offset < v->shadow + v->size) return (uintptr_t)v->address + offset - v->shadow;
    return offset + arena_base;
}

static bool copy_in_flight(Watch* watch, uint64_t offset, uint64_t bytes) {
    for (uint64_t word = offset / 4; word <= (offset + bytes - 1) / 4; word++)
        if (cells[word].launch == watch->launch && cells[word].copying) return true;
    return false;
}

void watch_access(Worker* w, uint64_t offset, uint64_t bytes, int write, int flags, void* pc) {
    Watch* watch = w->watch;
    settle(watch);
    if (!(flags & UNCOUNTED)) record(w, offset, bytes, flags | (write ? WRITE : 0), pc);
    const bool shared = offset < VARIABLES_BEGIN, atomic = flags & ATOMIC;
    const bool module = !shared && offset - VARIABLES_BEGIN < VARIABLE_ROOM;
    const uint64_t address = module ? address_of_variable(w, offset) : offset + arena_base;
    if (!module && (!write || atomic) && !bits_set(offset, bytes) && !copy_in_flight(watch, offset, bytes))
        add_unwritten(watch, report_of(w, UNINITIALISED, address, bytes, write, pc));
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
        Access now = {
            (uint32_t)w->block_number + 1,
            watch->clocks[me].of[me],
            me,
            me,
            mask,
            (uint8_t)(flags & (ATOMIC | VOLATILE | ASYNC)),
            site};
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
            if ((flags & ASYNC) && shared) c->leaving++;  // a bulk store or a wgmma reads its source late
            note_reader(watch, w, c, word, shared, now);
            continue;
        }
        for (const Access& before : c->reader) against(before, false);
        against(c->reader_elsewhere, false);
        if (c->readers) {
            for (uint32_t i = 0; i < w->thread_count; i++) {
                const Reading& read = row_of(watch, w, c)[i];
                if (read.bytes & mask)
                    against(
                        Access{now.block, read.time, (uint16_t)i, (uint16_t)i, read.bytes, read.flags, read.site},
                        false);
            }
            if (mask == 15) drop_readers(watch, w, c);  // what is ordered after this write is ordered after them
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

// ------------------------------------------------------------------------------------- what asynchronous copies touch

// A thread's bulk store or product reads its shared memory at `time`, not before.
static void read_late(Worker* w, const void* address, uint32_t bytes, uint32_t thread, uint32_t time) {
    Watch* watch = w->watch;
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
    Watch* watch = w->watch;
    uint64_t offset = (uintptr_t)p->to - arena_base, from = (uintptr_t)p->from - arena_base;
    uint32_t actor = p->thread, time = watch->clocks[actor].of[actor];
    if (p->barrier) {  // a bulk load is synchronised only with threads that wait for its mbarrier
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
        if (!p->sums[me % 32] || address - (uintptr_t)p->sums[me % 32] >= p->sum_count * sizeof(float)) continue;
        Report r = report_of(w, MISSING_WAIT, address, sizeof(float), write, pc);
        r.advice = PRODUCT;
        r.other_pc = (uint64_t)p->pc;
        r.other_block = r.block;
        r.other_thread = r.thread;
        add_report(w->watch, r);
        return;
    }
}

void watch_product_done(Worker* w, const void* address, uint32_t bytes, uint32_t thread) {  // its warp has just met
    read_late(w, address, bytes, thread, (w->watch)->clocks[thread].of[thread] - 1);
}

}  // namespace emu
