// Where a thread is: its indices, its lane, its shared memory, the time.
#include "runtime.h"

#include <string.h>
#include <time.h>

using namespace emu;

unsigned emu_thread_x(void) { return self->current->index[0]; }
unsigned emu_thread_y(void) { return self->current->index[1]; }
unsigned emu_thread_z(void) { return self->current->index[2]; }
unsigned emu_block_x(void) { return self->block_index[0]; }
unsigned emu_block_y(void) { return self->block_index[1]; }
unsigned emu_block_z(void) { return self->block_index[2]; }
unsigned emu_block_dim_x(void) { return self->launch->block[0]; }
unsigned emu_block_dim_y(void) { return self->launch->block[1]; }
unsigned emu_block_dim_z(void) { return self->launch->block[2]; }
unsigned emu_grid_dim_x(void) { return self->launch->grid[0]; }
unsigned emu_grid_dim_y(void) { return self->launch->grid[1]; }
unsigned emu_grid_dim_z(void) { return self->launch->grid[2]; }
unsigned emu_lane(void) { return self->current->linear % 32; }

void* emu_shared_address(const Shared* variable) {
    Worker* w = self;
    char* address = (char*)w->shared + variable->offset;
    if (w->poisoned[variable->index] != w->block_serial) {  // the block's first use of it
        w->poisoned[variable->index] = w->block_serial;
        memset(address, 0xFF, variable->size);
        if (watching) watch_fresh((uintptr_t)address - arena_base, variable->size);
    }
    return address;
}

uint64_t emu_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}
