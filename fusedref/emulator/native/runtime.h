// The runtime's own structures, shared by runtime.cpp (runs kernels) and watch.cpp (tells what they did).
#pragma once
#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

#include "abi.h"

namespace emu {

static const uint64_t SHARED_REGION = 16u << 20;   // a worker's shared memory: variables lie far apart in it
static const uint64_t VARIABLES_BEGIN = MAX_WORKERS * SHARED_REGION;
static const uint64_t VARIABLE_ROOM = 1ull << 30;  // addresses that stand for __constant__ and __device__ variables
static const uint64_t STACK_BYTES = 256 << 10;

// What kind of access. UNCOUNTED: no request of a warp; PROXY: by the copy engine or the tensor cores, of shared memory.
enum { ALIGNED = 1, VOLATILE = 2, ATOMIC = 4, ASYNC = 8, UNCOUNTED = 16, PROXY = 32 };
enum { CP_ASYNC, BULK_STORE, BULK_LOAD };                    // Pending::kind
enum { DONE, READY, BARRIER, RENDEZVOUS, CONDITION };       // what a thread of a block does

struct Allocation {
    uint64_t offset, bytes, span;
    uint32_t flags;
};

struct Coroutine {
    Coroutine *next, *all;
    char* stack;
    bool entered;
    jmp_buf registers;
    ucontext_t context;
};

struct Thread {
    Coroutine* coroutine;
    uint32_t index[3], linear;
    uint8_t state, yielded;
    bool changed;              // it has done more since it last gave way than to look and find nothing new
    uint32_t spins, mask, barrier;
    void* payload;
    WarpAction action;
    const void* detail;
    int (*condition)(void*);
    void* argument;
    void* pc;
    uint32_t open[2], group[2];  // asynchronous copies under way, and the group that takes new ones: CP_ASYNC, BULK_STORE
};

struct Warp {
    uint32_t living, waiting;  // lanes that have not returned; lanes that stand at a rendezvous
};

struct Barrier {
    uint32_t arrived, count, expected, result_count, result_and;
};

struct Pending {               // an asynchronous copy under way; bytes 0: a free slot
    char* to;
    const char* from;
    uint32_t bytes, source_bytes, thread, group;
    void* pc;
    int kind;
    void* barrier;             // the mbarrier that a bulk load reports to
};

struct Product {               // a warp's share of a wgmma, worked out when it is waited for (copies.cpp)
    Product* next;
    WarpAction run;
    uint32_t group, bytes;     // bytes: of each lane's operands
    Matrix matrix;
    float* sums[32];
    void* pc;
    char operands[];
};

struct Launch;

struct Worker {
    Launch* launch;
    pthread_t handle;
    bool started;
    volatile bool finished;
    volatile uint64_t seen, vain;  // how often its threads gave way in vain since `seen` of the launch's changes
    uint32_t index;
    uintptr_t shared;
    uint32_t block_index[3], thread_count, living;
    bool released;             // a barrier has just let its threads go
    uint64_t block_number, block_serial;
    Thread *threads, *current;
    Warp warps[32];
    Barrier barriers[16];
    uint64_t* poisoned;        // per shared variable: the block that poisoned it last
    Coroutine *idle, *owned;
    Pending* pending;
    uint32_t pending_room;
    Product* products[32];     // of each warp, the oldest first
    uint32_t product_group[32];
    volatile int in_runtime;   // a signal must not leave the runtime half done
    jmp_buf scheduler, escape;
    void* log;                 // of a watched launch
};

struct Launch {
    Kernel* kernel;
    Module* module;
    char* arguments;
    uint64_t grid[3];
    uint32_t block[3];
    uint64_t dynamic_shared, seed, next_block;
    uint64_t changes;          // counts whatever may be what a spinning thread waits for
    Watch* watch;
    volatile int cancel;
    Error error;
    Worker* workers[MAX_WORKERS];
    uint32_t worker_count, workers_left;
    pthread_mutex_t lock;
    pthread_cond_t done;
};

extern EMU_TLS Worker* self;
extern EMU_TLS int watching;
extern uintptr_t arena_base;
extern uint64_t arena_size;
extern uint8_t* shadow;

[[noreturn]] void fail(int kind, uint64_t address, uint64_t bytes, int write, void* pc, const char* text);
void slow_access(uintptr_t address, uint64_t bytes, int write, int flags, void* pc);
void* reserve_pages(uint64_t bytes);
void release_pages(void* begin, uint64_t bytes);
void clear_pages(void* begin, uint64_t bytes);

// copies.cpp
void copies_block_begin(Worker* w);
void copies_block_end(Worker* w);

// watch.cpp: called only in watched launches, but for watch_init and watch_forget.
bool watch_init();
void watch_access(Worker* w, uint64_t offset, uint64_t bytes, int write, int flags, void* pc);
void watch_barrier(Worker* w, uint32_t number);
void watch_arrive(Worker* w, uint32_t number, uint32_t threads, void* pc);
void watch_meeting(Worker* w, uint32_t warp, uint32_t present);
void watch_exit(Worker* w, Thread* t);
void watch_fence(Worker* w, int scope);
void watch_proxy_fence(Worker* w);
void watch_release(Worker* w, void* mbarrier);  // an arrival: what this thread did before is seen by those who wait
void watch_phase_over(Worker* w, void* mbarrier);
void watch_acquire(Worker* w, void* mbarrier);  // a wait that is over
void watch_block_begin(Worker* w);
void watch_warp_done(Worker* w, uint32_t warp);
void watch_block_end(Worker* w);
void watch_worker_begin(Worker* w);
void watch_worker_end(Worker* w);
void watch_copy_landed(Worker* w, Pending* p);
void watch_sums(Worker* w, uintptr_t address, int write, void* pc);  // of a thread's own memory
void watch_product_done(Worker* w, const void* address, uint32_t bytes, uint32_t thread);
void watch_fresh(uint64_t offset, uint64_t bytes);   // shared memory of a new block
void watch_block_of_code(Worker* w, void* pc);
void watch_forget(uint64_t offset, uint64_t bytes);  // memory was freed

}  // namespace emu
