// Launches: a worker thread per processor runs blocks, while the thread that launched waits and looks for interrupts.
//
// One call from Python covers a launch from its start to the last worker's end. Python's signal handlers run only
// inside the wait, and an exception that they raise propagates only after the launch has ended: an interrupt leaves
// nothing behind.
#include "runtime.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

namespace emu {

static const uint32_t POLL = 50;  // milliseconds between two checks for Python's signals
static const uint64_t SIGNAL_STACK = 64 << 10;

static struct {
    void* (*save_thread)(void);  // releases the GIL
    void (*restore_thread)(void*);
    int (*check_signals)(void);
} python;

static pthread_mutex_t launch_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t slot_freed;
static uint32_t launches, waiting_for_ctrl_c, forks;
static uint64_t launch_serial;
static bool slots[MAX_WORKERS];

// ---------------------------------------------------------------------------------------------------------- the workers

static void set_shared_memory(Worker* w, bool allocated) {
    const uint64_t region = w->index * SHARED_REGION, dynamic = w->launch->dynamic_shared;
    set_shadow(region, allocated ? dynamic : (dynamic + 7) / 8 * 8, allocated);
    for (Shared* s = w->launch->module->shared; s; s = s->next)
        set_shadow(region + s->offset, allocated ? s->size : (s->size + 7) / 8 * 8, allocated);
}

static void prepare(Worker* w) {
    Launch* launch = w->launch;
    w->thread_count = launch->block[0] * launch->block[1] * launch->block[2];
    w->threads = (Thread*)allocate(w->thread_count * sizeof(Thread));
    w->poisoned = (uint64_t*)allocate((launch->module->shared_count + 1) * sizeof(uint64_t));
    for (uint32_t i = 0; i < w->thread_count; i++) {
        Thread* t = &w->threads[i];
        t->linear = i;
        t->index[0] = i % launch->block[0];
        t->index[1] = i / launch->block[0] % launch->block[1];
        t->index[2] = i / launch->block[0] / launch->block[1];
    }
    w->shared = arena_base + w->index * SHARED_REGION;
    set_shared_memory(w, true);
}

static void note_failure(Launch* launch, const Error& failure) {  // only the first is reported
    pthread_mutex_lock(&launch->lock);
    if (!launch->error.kind) launch->error = failure;
    pthread_mutex_unlock(&launch->lock);
}

static void* worker_main(void* argument) {
    Worker* w = (Worker*)argument;
    Launch* launch = w->launch;
    stack_t alternative = {}, none = {};
    alternative.ss_size = SIGNAL_STACK;
    alternative.ss_sp = malloc(SIGNAL_STACK);
    sigaltstack(&alternative, 0);
    self = w;
    watching = attention = launch->watch != 0;
    if (_setjmp(w->escape) == 0) {
        prepare(w);
        uint64_t blocks = launch->grid[0] * launch->grid[1] * launch->grid[2];
        while (!launch->cancel) {
            uint64_t number = __atomic_fetch_add(&launch->next_block, 1, __ATOMIC_RELAXED);
            if (number >= blocks) break;
            run_block(w, number);
        }
    }
    w->current = 0;
    w->finished = true;
    if (w->failure.kind) note_failure(launch, w->failure);
    if (watching) watch_worker_end(w);
    set_shared_memory(w, false);
    release_coroutines(w);
    copies_worker_end(w);
    self = 0;
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, 0);
    free(alternative.ss_sp);
    free(w->threads);
    free(w->poisoned);
    pthread_mutex_lock(&launch->lock);
    if (--launch->workers_left == 0) pthread_cond_broadcast(&launch->done);
    pthread_mutex_unlock(&launch->lock);
    return 0;
}

static void start_workers(Launch* launch) {
    sigset_t others, before;  // Python's signals belong to Python's threads
    block_others(&others);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    launch->workers_left = launch->worker_count;
    for (uint32_t i = 0; i < launch->worker_count; i++) {
        Worker* w = launch->workers[i];
        w->started = !pthread_create(&w->handle, 0, worker_main, w);
        if (w->started) continue;
        pthread_mutex_lock(&launch->lock);
        launch->workers_left--;
        w->finished = true;
        if (!i) launch->error.kind = NO_MEMORY;
        pthread_mutex_unlock(&launch->lock);
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

// ------------------------------------------------------------------------------------------------------------- waiting

static void create_condition(pthread_cond_t* condition) {
#if defined(__APPLE__)
    pthread_cond_init(condition, 0);
#else
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
#endif
}

// False when the time is over.
static bool wait_on(pthread_cond_t* condition, pthread_mutex_t* lock, uint32_t milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000l};
#if defined(__APPLE__)
    return pthread_cond_timedwait_relative_np(condition, lock, &time) != ETIMEDOUT;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    time.tv_sec += now.tv_sec + (time.tv_nsec + now.tv_nsec) / 1000000000l;
    time.tv_nsec = (time.tv_nsec + now.tv_nsec) % 1000000000l;
    return pthread_cond_timedwait(condition, lock, &time) != ETIMEDOUT;
#endif
}

static bool ended(Launch* launch, uint32_t milliseconds) {
    pthread_mutex_lock(&launch->lock);
    while (launch->workers_left && wait_on(&launch->done, &launch->lock, milliseconds)) {}
    bool all = !launch->workers_left;
    pthread_mutex_unlock(&launch->lock);
    return all;
}

struct Waiter {   // the thread that launched
    void* state;  // its Python state while it does not hold the GIL
    bool ends_at_ctrl_c;
    uint32_t ctrl_c, forks;

    bool interrupted() {
        const bool stop = ends_at_ctrl_c && ctrl_c_count() != ctrl_c;
        python.restore_thread(state);
        const int raised = python.check_signals();
        state = python.save_thread();
        return raised || stop;
    }
    bool forked() const { return forks != emu::forks; }  // this is a child process: it has none of the workers
};

static void stop(Launch* launch) {
    launch->interrupted = true;
    launch->cancel = 1;
    uint32_t milliseconds = 1;
    do {  // repeat: a signal may reach a worker where it cannot leave
        for (uint32_t i = 0; i < launch->worker_count; i++)
            if (launch->workers[i]->started) pthread_kill(launch->workers[i]->handle, SIGURG);
        if (milliseconds < 16) milliseconds *= 2;
    } while (!ended(launch, milliseconds));
}

// ------------------------------------------------------------------------------------------------------------ launching

static bool take_slots(Launch* launch, uint32_t workers) {  // waits a while if other launches have all of them
    pthread_mutex_lock(&launch_lock);
    bool any = false;
    for (uint32_t i = 0; i < MAX_WORKERS; i++) any |= !slots[i];
    if (!any) wait_on(&slot_freed, &launch_lock, POLL);
    for (uint32_t i = 0; i < MAX_WORKERS && launch->worker_count < workers; i++) {
        if (slots[i]) continue;
        slots[i] = true;
        Worker* w = (Worker*)calloc(1, sizeof(Worker));
        w->launch = launch;
        w->index = i;
        w->watch = launch->watch;
        launch->workers[launch->worker_count++] = w;
    }
    pthread_mutex_unlock(&launch_lock);
    return launch->worker_count != 0;
}

static void begin(Launch* launch, Waiter* waiter) {
    pthread_mutex_lock(&launch_lock);
    launch->serial = ++launch_serial;
    waiter->forks = forks;
    if (launches++ == 0) install_handlers();
    if (waiter->ends_at_ctrl_c && waiting_for_ctrl_c++ == 0) install_ctrl_c();
    waiter->ctrl_c = ctrl_c_count();
    pthread_mutex_unlock(&launch_lock);
}

static void finish(Launch* launch, const Waiter& waiter, Outcome* outcome) {
    outcome->error = launch->error;
    hand_over_output(&launch->output, outcome);
    if (!waiter.forked()) {
        for (uint32_t i = 0; i < launch->worker_count; i++)
            if (launch->workers[i]->started) pthread_join(launch->workers[i]->handle, 0);
        if (launch->cancel) free_heap_of(launch->serial);
        pthread_mutex_lock(&launch_lock);
        for (uint32_t i = 0; i < launch->worker_count; i++) slots[launch->workers[i]->index] = false;
        pthread_cond_broadcast(&slot_freed);
        if (waiter.ends_at_ctrl_c && --waiting_for_ctrl_c == 0) remove_ctrl_c();
        if (--launches == 0) remove_handlers();
        pthread_mutex_unlock(&launch_lock);
    }
    for (uint32_t i = 0; i < launch->worker_count; i++) free(launch->workers[i]);
    pthread_mutex_destroy(&launch->lock);
    pthread_cond_destroy(&launch->done);
    pthread_mutex_destroy(&launch->output.lock);
    free(launch->arguments);
    free(launch);
}

// A child process must find every lock free; the launches of its parent's other threads are not its own.
static void before_fork() {
    pthread_mutex_lock(&launch_lock);
    memory_before_fork();
    fibers_before_fork();
}

static void after_fork(bool child) {
    fibers_after_fork(child);
    memory_after_fork(child);
    if (child) {
        forks++;
        if (launches) remove_handlers();
        if (waiting_for_ctrl_c) remove_ctrl_c();
        launches = waiting_for_ctrl_c = 0;
        memset(slots, 0, sizeof slots);
        create_condition(&slot_freed);
    }
    pthread_mutex_unlock(&launch_lock);
}

static void after_fork_in_parent() { after_fork(false); }
static void after_fork_in_child() { after_fork(true); }

}  // namespace emu

using namespace emu;

void emu_python(void* save_thread, void* restore_thread, void* check_signals) {
    python.save_thread = (void* (*)(void))save_thread;
    python.restore_thread = (void (*)(void*))restore_thread;
    python.check_signals = (int (*)(void))check_signals;
    create_condition(&slot_freed);
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int emu_run(
    Kernel* kernel, Module* module, const void* arguments, uint64_t argument_bytes, const uint32_t* grid,
    const uint32_t* block, uint64_t dynamic_shared, uint32_t workers, uint64_t seed, Watch* watch, int ends_at_ctrl_c,
    Outcome* outcome) {
    Launch* launch = (Launch*)calloc(1, sizeof(Launch));
    launch->kernel = kernel;
    launch->module = module;
    launch->arguments = (char*)calloc(1, argument_bytes + 64);
    memcpy(launch->arguments, arguments, argument_bytes);
    for (int i = 0; i < 3; i++) {
        launch->grid[i] = grid[i];
        launch->block[i] = block[i];
    }
    launch->dynamic_shared = dynamic_shared;
    launch->seed = seed;
    launch->watch = watch;
    pthread_mutex_init(&launch->lock, 0);
    create_condition(&launch->done);
    pthread_mutex_init(&launch->output.lock, 0);

    Waiter waiter = {python.save_thread(), ends_at_ctrl_c != 0, 0, 0};
    begin(launch, &waiter);
    bool interrupted = false;
    while (!interrupted && !take_slots(launch, workers)) interrupted = waiter.interrupted();
    if (!interrupted) {
        start_workers(launch);
        while (!interrupted && !ended(launch, POLL)) interrupted = waiter.interrupted() || waiter.forked();
        if (interrupted && !waiter.forked()) stop(launch);
    }
    finish(launch, waiter, outcome);
    python.restore_thread(waiter.state);
    return !interrupted;
}
