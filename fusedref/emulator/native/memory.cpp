// Device memory: one reserved range of addresses, the arena. It begins with the workers' shared memory, then come
// addresses that stand for the modules' variables, then the allocations. A shadow byte for each 8 bytes says how many of
// them, from the first on, are allocated: a hook checks an access exactly with one subtraction and one load.
#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace emu {

uintptr_t arena_base;
uint64_t arena_size;
uint8_t* shadow;

struct Span { uint64_t offset, bytes; };

// Addresses from `begin` to `end`. Those from `next` on were never used; the free ones below it are in `spans`, sorted,
// and no two of them touch.
struct AddressRange {
    uint64_t begin, next, end;
    Span* spans;
    uint64_t count, room;

    uint64_t take(uint64_t bytes) {  // the smallest free span that is large enough
        Span* best = 0;
        for (uint64_t i = 0; i < count; i++)
            if (spans[i].bytes >= bytes && (!best || spans[i].bytes < best->bytes)) best = &spans[i];
        if (!best) {
            if (bytes > end - next) return NOWHERE;
            next += bytes;
            return next - bytes;
        }
        uint64_t offset = best->offset;
        best->offset += bytes;
        best->bytes -= bytes;
        if (!best->bytes) remove(best - spans);
        return offset;
    }

    void give(uint64_t offset, uint64_t bytes) {
        uint64_t i = 0;
        for (uint64_t high = count; i < high;) {
            uint64_t middle = (i + high) / 2;
            if (spans[middle].offset < offset) i = middle + 1;
            else high = middle;
        }
        bool before = i && spans[i - 1].offset + spans[i - 1].bytes == offset;
        bool after = i < count && offset + bytes == spans[i].offset;
        if (before && after) {
            spans[i - 1].bytes += bytes + spans[i].bytes;
            remove(i--);
        } else if (before) {
            spans[--i].bytes += bytes;
        } else if (after) {
            spans[i].offset = offset;
            spans[i].bytes += bytes;
        } else {
            if (count == room) {
                room = room ? 2 * room : 64;
                spans = (Span*)realloc(spans, room * sizeof(Span));
            }
            memmove(spans + i + 1, spans + i, (count++ - i) * sizeof(Span));
            spans[i] = Span{offset, bytes};
        }
        if (spans[i].offset + spans[i].bytes == next) {
            next = spans[i].offset;
            remove(i);
        }
    }

    void remove(uint64_t i) { memmove(spans + i, spans + i + 1, (--count - i) * sizeof(Span)); }
};

struct Allocation {
    uint64_t offset, bytes, span;
    uint64_t owner;  // the launch whose kernel allocated it; 0: the host
};

// A freed allocation's addresses stay unused until this many others were freed after it: a use after free is found.
static const uint64_t QUARANTINED = 2048;

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static AddressRange arena, variables;
static Allocation* allocations;  // sorted by address
static uint64_t allocation_count, allocation_room, capacity, used;
static Span quarantine[QUARANTINED];  // a ring
static uint64_t quarantine_begin, quarantine_count, quarantine_bytes;

struct MemoryLock {
    Critical critical;
    MemoryLock() { pthread_mutex_lock(&memory_lock); }
    ~MemoryLock() { pthread_mutex_unlock(&memory_lock); }
};

void memory_before_fork() { pthread_mutex_lock(&memory_lock); }
void memory_after_fork(bool) { pthread_mutex_unlock(&memory_lock); }

void* reserve_pages(uint64_t bytes) {
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

void release_pages(void* begin, uint64_t bytes) { munmap(begin, bytes); }

void clear_pages(void* begin, uint64_t bytes) {  // zeros; of a long range the whole pages go back to the system
    char *p = (char*)begin, *end = p + bytes;
#if defined(__linux__)
    char* first = (char*)(((uintptr_t)p + 4095) & ~(uintptr_t)4095);
    char* last = (char*)((uintptr_t)end & ~(uintptr_t)4095);
    if (bytes >= 65536) {
        memset(p, 0, first - p);
        madvise(first, last - first, MADV_DONTNEED);
        p = last;
    }
#endif
    memset(p, 0, end - p);
}

void set_shadow(uint64_t offset, uint64_t bytes, bool allocated) {
    uint8_t* s = shadow + offset / 8;
    if (allocated) memset(s, 8, bytes / 8);
    else clear_pages(s, bytes / 8);
    if (bytes % 8) s[bytes / 8] = allocated ? bytes % 8 : 0;
}

static Allocation* find_allocation(uint64_t offset) {  // the last that begins at or before offset
    uint64_t low = 0, high = allocation_count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (allocations[middle].offset <= offset) low = middle + 1;
        else high = middle;
    }
    return low ? &allocations[low - 1] : 0;
}

static void release_oldest() {
    Span oldest = quarantine[quarantine_begin];
    quarantine_begin = (quarantine_begin + 1) % QUARANTINED;
    quarantine_count--;
    quarantine_bytes -= oldest.bytes;
    arena.give(oldest.offset, oldest.bytes);
}

static void put_in_quarantine(uint64_t offset, uint64_t bytes) {
    while (quarantine_count && (quarantine_count == QUARANTINED || quarantine_bytes > arena_size / 16))
        release_oldest();
    quarantine[(quarantine_begin + quarantine_count++) % QUARANTINED] = Span{offset, bytes};
    quarantine_bytes += bytes;
}

uint64_t allocate_device(uint64_t bytes, uint64_t owner) {
    // The gap after an allocation is as long as the allocation: an index that is wrong by a stride lands in it.
    const uint64_t pages = (bytes + 4095) / 4096 * 4096, most = 1u << 30;
    const uint64_t span = pages + (pages < most ? pages : most) + 65536;
    uint64_t offset;
    {
        MemoryLock lock;
        if (!bytes || bytes > capacity - used) return 0;
        offset = arena.take(span);
        while (offset == NOWHERE && quarantine_count) {
            release_oldest();
            offset = arena.take(span);
        }
        if (offset == NOWHERE) return 0;
        if (allocation_count == allocation_room) {
            allocation_room = allocation_room ? 2 * allocation_room : 64;
            allocations = (Allocation*)realloc(allocations, allocation_room * sizeof(Allocation));
        }
        Allocation* before = find_allocation(offset);
        uint64_t index = before ? before - allocations + 1 : 0;
        memmove(allocations + index + 1, allocations + index, (allocation_count++ - index) * sizeof(Allocation));
        allocations[index] = Allocation{offset, bytes, span, owner};
        used += bytes;
        set_shadow(offset, bytes, true);
    }
    memset((void*)(arena_base + offset), 0xFF, bytes);  // NaN as a float; as an index far outside any array
    return arena_base + offset;
}

static void free_allocation(Allocation* a) {
    set_shadow(a->offset, a->bytes, false);
    watch_forget(a->offset, a->bytes);
    madvise((void*)(arena_base + a->offset), (a->bytes + 4095) / 4096 * 4096, MADV_DONTNEED);
    used -= a->bytes;
    put_in_quarantine(a->offset, a->span);
    memmove(a, a + 1, (--allocation_count - (a - allocations)) * sizeof(Allocation));
}

bool free_device(uint64_t address, bool heap) {
    MemoryLock lock;
    uint64_t offset = address - arena_base;
    Allocation* a = offset < arena_size ? find_allocation(offset) : 0;
    if (!a || a->offset != offset || (a->owner != 0) != heap) return false;
    free_allocation(a);
    return true;
}

void free_heap_of(uint64_t owner) {
    MemoryLock lock;
    for (uint64_t i = allocation_count; i--;)
        if (allocations[i].owner == owner) free_allocation(&allocations[i]);
}

uint64_t memory_capacity() { return capacity; }

uint64_t reserve_variables(uint64_t bytes) {
    MemoryLock lock;
    return variables.take(bytes);
}

void release_variables(uint64_t offset, uint64_t bytes) {
    MemoryLock lock;
    watch_forget(offset, bytes);
    variables.give(offset, bytes);
}

uint64_t first_outside(uint64_t offset, uint64_t bytes) {  // the first byte that is not allocated, or the end
    if (offset >= arena_size || bytes > arena_size - offset) return offset;
    uint64_t at = offset, end = offset + bytes;
    while (at < end) {
        uint64_t next = (at | 7) + 1, last = next < end ? next : end, live = at / 8 * 8 + shadow[at / 8];
        if (last > live) return live > at ? live : at;
        at = last;
    }
    return end;
}

static bool reserve_arena() {
    for (uint64_t size = 1ull << 40; size >= 1ull << 32; size /= 2) {
        void* addresses = reserve_pages(size);
        void* shadows = addresses ? reserve_pages(size / 8) : 0;
        if (addresses && !shadows) release_pages(addresses, size);
        if (!shadows) continue;
        arena_base = (uintptr_t)addresses;
        shadow = (uint8_t*)shadows;
        arena_size = size;
        return watch_init();
    }
    return false;
}

}  // namespace emu

using namespace emu;

int emu_init(uint64_t memory) {
    MemoryLock lock;
    if (!arena_base) {
        if (!reserve_arena()) return 0;
        variables.begin = variables.next = VARIABLES_BEGIN;
        variables.end = arena.begin = arena.next = VARIABLES_BEGIN + VARIABLE_ROOM;
        arena.end = arena_size;
        capacity = memory;
        find_mathematics();
    }
    return 1;
}

void emu_alloc(uint64_t bytes, uint64_t* address) { *address = allocate_device(bytes, 0); }

void emu_free(uint64_t* address) {
    if (*address) free_device(*address, false);
    *address = 0;
}

uint64_t emu_memory_used(void) { return used; }

int emu_valid(uint64_t address, uint64_t bytes) {
    uint64_t offset = address - arena_base;
    return first_outside(offset, bytes) == offset + bytes;
}

int emu_allocation(uint64_t address, uint64_t* out) {
    MemoryLock lock;
    uint64_t offset = address - arena_base;
    Allocation* a = offset < arena_size ? find_allocation(offset) : 0;
    if (!a) return 0;
    out[0] = arena_base + a->offset;
    out[1] = a->bytes;
    return 1;
}

uint64_t emu_allocations(uint64_t* out, uint64_t room) {
    MemoryLock lock;
    for (uint64_t i = 0; i < allocation_count && i < room; i++) {
        out[2 * i] = arena_base + allocations[i].offset;
        out[2 * i + 1] = allocations[i].bytes;
    }
    return allocation_count;
}

uint64_t emu_shared_offset(uint64_t address) {
    uint64_t offset = address - arena_base;
    return offset < VARIABLES_BEGIN ? offset % SHARED_REGION : NOWHERE;
}

// ------------------------------------------------------------------------------------------- malloc and free of kernels

void* emu_malloc(size_t bytes) { return (void*)allocate_device(bytes, self->launch->serial); }

void emu_heap_free(void* p) {
    if (p && !free_device((uint64_t)p, true))
        fail(MISUSE, 0, 0, 0, __builtin_return_address(0), "free() of an address that malloc() has not returned");
}
