// The structures of a running launch, and the functions that the parts of the runtime share.
//
//   memory.cpp    device memory: addresses, allocations and their shadow, which is exact to the byte
//   modules.cpp   loaded modules: the addresses of their images, shared memory and variables
//   hooks.cpp     what the compiler inserts before every load, store and basic block of a kernel
//   fibers.cpp    a stack for each thread of a block, and switching between them
//   barriers.cpp  __syncthreads, named barriers and warp operations
//   block.cpp     the scheduler: runs the threads of one block to their end
//   signals.cpp   faults and interrupts: how a worker leaves a kernel that will not return
//   launch.cpp    workers, and waiting for them from Python
//   atomics.cpp, copies.cpp, products.cpp, output.cpp, position.cpp   what kernels call
//   watch.h ...   what a watched launch records
#pragma once
#if defined(__APPLE__)  // <ucontext.h> there
#define _XOPEN_SOURCE 700
#define _DARWIN_C_SOURCE
#endif
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include "abi.h"

namespace emu {

static const uint64_t SHARED_REGION = 16u << 20;  // a worker's shared memory
static const uint64_t VARIABLES_BEGIN = MAX_WORKERS * SHARED_REGION;
static const uint64_t VARIABLE_ROOM = 1ull << 30;  // addresses that stand for __constant__ and __device__ variables
static const uint64_t STACK_BYTES = 256 << 10;

// Flags of an access. UNCOUNTED: not a request of a warp. PROXY: by the copy engine or the tensor cores, of shared memory.
enum AccessFlags { ALIGNED = 1, VOLATILE = 2, ATOMIC = 4, ASYNC = 8, UNCOUNTED = 16, PROXY = 32 };
enum CopyKind { CP_ASYNC, BULK_STORE, BULK_LOAD };
enum ThreadState { DONE, READY, BARRIER, RENDEZVOUS, CONDITION, CONVERGING };

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
    bool changed;  // since it last yielded, it has done more than poll in vain
    uint32_t spins, mask, barrier;
    void* payload;
    WarpAction action;
    const void* detail;
    int (*condition)(void*);
    void* argument;
    void* pc;
    uint32_t open[2], group[2];  // asynchronous copies in flight, and the group that takes new ones, by CopyKind
};

struct Warp {
    uint32_t living, waiting, converging;  // lanes that have not returned; at a rendezvous; in __activemask()
};

struct Barrier { uint32_t arrived, count, expected, result_count, result_and; };

struct Pending {  // an asynchronous copy in flight; bytes 0: a free slot
    char* to;
    const char* from;
    uint32_t bytes, source_bytes, thread, group;
    void* pc;
    int kind;
    void* barrier;  // the mbarrier that a bulk load reports to
};

struct Product {  // a warp's share of a wgmma, computed when the warp waits for it
    Product* next;
    WarpAction run;
    uint32_t group, bytes;  // bytes: of each lane's operands
    Matrix a, b;
    float* sums[32];  // of each lane
    uint32_t sum_count;
    void* pc;
    char operands[];
};

struct Output {  // what the kernel prints: a ring of records (a length, then the text)
    pthread_mutex_t lock;
    char* ring;
    uint64_t begin, end, lost;  // positions that only grow; bytes overwritten
};

struct Worker {
    Launch* launch;
    pthread_t handle;
    bool started;
    volatile bool finished;
    volatile uint64_t seen, vain;  // how often its threads have polled in vain since the launch's `changes` was `seen`
    uint32_t index;
    uintptr_t shared;
    uint32_t block_index[3], thread_count, living;
    bool released;  // a barrier has just released its threads
    uint64_t block_number, block_serial;
    Thread* threads;
    Thread* volatile current;
    Warp warps[32];
    Barrier barriers[16];
    uint64_t* poisoned;  // per shared variable: the block that poisoned it last
    Coroutine *idle, *owned;
    Pending* pending;
    uint32_t pending_room;
    Product* products[32];  // of each warp, the oldest first
    uint32_t product_group[32];
    volatile int critical;    // it holds a lock or is in the allocator: no signal may leave it
    jmp_buf* volatile probe;  // where to continue after a fault, while printf tests a pointer
    Error failure;
    jmp_buf scheduler, escape;
    Watch* watch;  // of a watched launch
};

struct Launch {
    Kernel* kernel;
    Module* module;
    char* arguments;
    uint64_t grid[3];
    uint32_t block[3];
    uint64_t dynamic_shared, seed, next_block;
    uint64_t changes;  // counts everything that a polling thread may wait for
    uint64_t serial;   // owner of what its kernel allocates
    Watch* watch;
    volatile int cancel;  // stop: a thread has failed, or the launch was interrupted
    bool interrupted;
    Error error;
    Output output;
    Worker* workers[MAX_WORKERS];
    uint32_t worker_count, workers_left;
    pthread_mutex_t lock;
    pthread_cond_t done;
};

extern EMU_TLS Worker* self;
extern EMU_TLS int watching;
extern EMU_TLS int attention;  // hooks must not take their fast path: the launch is watched or being cancelled
extern uintptr_t arena_base;
extern uint64_t arena_size;
extern uint8_t* shadow;  // of each 8 bytes: how many are allocated, from the first on

// Between construction and destruction no signal leaves the worker: it holds a lock or is inside the allocator.
struct Critical {
    Worker* w;
    Critical();
    ~Critical() {
        if (w) w->critical--;
    }
};

// signals.cpp
[[noreturn]] void fail(int kind, uint64_t address, uint64_t bytes, int write, void* pc, const char* text);
[[noreturn]] void escape();
void check_cancelled();            // escapes from a launch that is cancelled
void find_mathematics();           // finds libm: a signal may leave a kernel there too
void block_others(sigset_t* set);  // every signal except those that a worker handles
void install_handlers();
void remove_handlers();
uint32_t ctrl_c_count();  // how often SIGINT came since install_ctrl_c()
void install_ctrl_c();
void remove_ctrl_c();
bool readable_text(const char* text, uint64_t most);
void* allocate(uint64_t bytes);  // zeroed; fails the launch when there is no memory left
void* resize(void* memory, uint64_t bytes);
void release(void* memory);

// memory.cpp
void* reserve_pages(uint64_t bytes);
void release_pages(void* begin, uint64_t bytes);
void clear_pages(void* begin, uint64_t bytes);
void set_shadow(uint64_t offset, uint64_t bytes, bool allocated);
uint64_t memory_capacity();
uint64_t first_outside(uint64_t offset, uint64_t bytes);
uint64_t allocate_device(uint64_t bytes, uint64_t owner);  // an address; 0: no room
bool free_device(uint64_t address, bool heap);
void free_heap_of(uint64_t owner);
uint64_t reserve_variables(uint64_t bytes);  // an offset or NOWHERE
void release_variables(uint64_t offset, uint64_t bytes);
void memory_before_fork();
void memory_after_fork(bool child);

// modules.cpp
bool find_image(uintptr_t address, uintptr_t* begin, uintptr_t* end);

// hooks.cpp
void slow_access(uintptr_t address, uint64_t bytes, int write, int flags, void* pc);

// fibers.cpp
void suspend(Coroutine* c);
void resume(Worker* w, Thread* t);
void block_on(int state, void* pc);  // until another thread sets this one's state to READY
void release_coroutines(Worker* w);
void fibers_before_fork();
void fibers_after_fork(bool child);

// barriers.cpp
void thread_left(Worker* w, Thread* t);
void wait_until(int (*condition)(void*), void* argument, void* pc);
bool converge(Worker* w, Warp* warp);  // lets some of the lanes at __activemask() go on; false: there are none
void deadlock(Worker* w);

// output.cpp
void hand_over_output(Output* from, Outcome* to);

// block.cpp
void run_block(Worker* w, uint64_t number);

// copies.cpp, products.cpp
void copies_block_begin(Worker* w);
void copies_block_end(Worker* w);
void copies_worker_end(Worker* w);
void forget_products(Worker* w);

// watch.cpp and the files beside it: called in watched launches only, except watch_init and watch_forget.
bool watch_init();
void watch_access(Worker* w, uint64_t offset, uint64_t bytes, int write, int flags, void* pc);
void watch_barrier(Worker* w, uint32_t number);
void watch_arrive(Worker* w, uint32_t number, uint32_t threads, void* pc);
void watch_meeting(Worker* w, uint32_t warp, uint32_t present);
void watch_exit(Worker* w);
void watch_fence(Worker* w, int scope);
void watch_proxy_fence(Worker* w);
void watch_release(Worker* w, void* mbarrier);  // an arrival: threads that wait see what this thread did before
void watch_phase_over(Worker* w, void* mbarrier);
void watch_acquire(Worker* w, void* mbarrier);  // a wait is over
void watch_block_begin(Worker* w);
void watch_warp_done(Worker* w, uint32_t warp);
void watch_block_end(Worker* w);
void watch_worker_end(Worker* w);
void watch_copy_landed(Worker* w, Pending* p);
void watch_sums(Worker* w, uintptr_t address, int write, void* pc);  // an access to a thread's own memory
void watch_product_done(Worker* w, const void* address, uint32_t bytes, uint32_t thread);
void watch_fresh(uint64_t offset, uint64_t bytes);  // shared memory of a new block
void watch_block_of_code(Worker* w, void* pc);
void watch_forget(uint64_t offset, uint64_t bytes);  // memory was freed

}  // namespace emu
