#include "runtime.h"
namespace emu {
void watch_access(Worker*, uint64_t, uint64_t, int, int, void*) {}
void watch_barrier(Worker*, int) {}
void watch_arrive(Worker*, uint32_t, uint32_t, void*) {}
void watch_meeting(Worker*, uint32_t, uint32_t) {}
void watch_exit(Worker*, Thread*) {}
void watch_fence(Worker*, int) {}
void watch_release(Worker*, void*) {}
void watch_acquire(Worker*, void*) {}
void watch_block_begin(Worker*) {}
void watch_warp_done(Worker*, uint32_t) {}
void watch_block_end(Worker*) {}
void watch_worker_begin(Worker*) {}
void watch_worker_end(Worker*) {}
void watch_copy_landed(Worker*, Pending*) {}
void watch_forget(uint64_t, uint64_t) {}
}  // namespace emu
