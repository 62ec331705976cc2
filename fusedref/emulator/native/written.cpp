// Which bytes of memory have been written. This is recorded from the start, whether a launch is watched or not.
#include "watch.h"

namespace emu {

Cell* cells;
uint8_t* initialised;
uint8_t* written;

bool watch_init() {
    initialised = (uint8_t*)reserve_pages(arena_size / 8);
    written = (uint8_t*)reserve_pages(arena_size >> 16);
    return initialised && written;
}

static void set_bit(uint64_t offset, bool value) {
    if (value) initialised[offset / 8] |= 1 << offset % 8;
    else initialised[offset / 8] &= ~(1 << offset % 8);
}

void set_bits(uint64_t offset, uint64_t bytes, bool value) {
    uint64_t end = offset + bytes;
    for (; offset < end && offset % 8; offset++) set_bit(offset, value);
    uint64_t whole = (end - offset) / 8;
    if (value) memset(initialised + offset / 8, 0xFF, whole);
    else clear_pages(initialised + offset / 8, whole);
    for (offset += 8 * whole; offset < end; offset++) set_bit(offset, value);
}

bool bits_set(uint64_t offset, uint64_t bytes) {
    if (offset / 8 == (offset + bytes - 1) / 8) {
        uint8_t mask = ((1u << bytes) - 1) << offset % 8;
        return (initialised[offset / 8] & mask) == mask;
    }
    for (uint64_t i = offset; i < offset + bytes; i++)
        if (!(initialised[i / 8] >> i % 8 & 1)) return false;
    return true;
}

static void clear_cells(uint64_t offset, uint64_t bytes) {
    clear_pages(cells + offset / 4, (bytes + 3) / 4 * sizeof(Cell));
}

void watch_forget(uint64_t offset, uint64_t bytes) {
    set_bits(offset, bytes, false);
    for (uint64_t g = offset >> 16; g <= (offset + bytes - 1) >> 16; g++) written[g] = 0;
    if (cells) clear_cells(offset, bytes);
}

void watch_fresh(uint64_t offset, uint64_t bytes) {
    set_bits(offset, bytes, false);
    clear_cells(offset, bytes);
}

}  // namespace emu

using namespace emu;

void emu_mark(uint64_t address, uint64_t bytes) {
    uint64_t offset = address - arena_base;
    if (offset < arena_size) set_bits(offset, bytes, true);
}

uint64_t emu_unwritten(uint64_t address, uint64_t bytes, uint64_t* how_many) {
    uint64_t offset = address - arena_base, first = NOWHERE;
    bool touched = false;
    if (offset >= arena_size || !bytes) return first;
    for (uint64_t g = offset >> 16; g <= (offset + bytes - 1) >> 16; g++) touched |= written[g];
    *how_many = 0;
    for (uint64_t i = offset; touched && i < offset + bytes; i++)
        if (!(initialised[i / 8] >> i % 8 & 1)) {
            if (first == NOWHERE) first = arena_base + i;
            ++*how_many;
        }
    return first;
}
