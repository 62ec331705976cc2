// Fibers: each thread of a block has a stack of its own, and a worker switches between them.
#include "runtime.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static Coroutine* pool;

void fibers_before_fork() { pthread_mutex_lock(&pool_lock); }
void fibers_after_fork(bool) { pthread_mutex_unlock(&pool_lock); }

static Coroutine* new_coroutines(int count) {
    long page = sysconf(_SC_PAGESIZE);
    char* slab = (char*)reserve_pages((STACK_BYTES + page) * (uint64_t)count);
    if (!slab) return 0;
    Coroutine* list = 0;
    for (int i = 0; i < count; i++) {
        char* at = slab + (STACK_BYTES + page) * (uint64_t)i;
        mprotect(at, page, PROT_NONE);  // the stack grows down into this page
        Coroutine* c = (Coroutine*)calloc(1, sizeof(Coroutine));
        c->stack = at + page;
        c->next = list;
        list = c;
    }
    return list;
}

static Coroutine* take_coroutine(Worker* w) {
    if (!w->idle) {
        pthread_mutex_lock(&pool_lock);
        if (!pool) pool = new_coroutines(64);
        for (int i = 0; i < 64 && pool; i++) {
            Coroutine* c = pool;
            pool = c->next;
            c->entered = false;
            c->next = w->idle;
            w->idle = c;
            c->all = w->owned;
            w->owned = c;
        }
        pthread_mutex_unlock(&pool_lock);
        if (!w->idle) fail(NO_MEMORY, 0, 0, 0, 0, "no memory left for the stacks of a block's threads");
    }
    Coroutine* c = w->idle;
    w->idle = c->next;
    return c;
}

void release_coroutines(Worker* w) {
    pthread_mutex_lock(&pool_lock);
    for (Coroutine* c = w->owned; c;) {
        Coroutine* next = c->all;
        c->next = pool;
        pool = c;
        c = next;
    }
    pthread_mutex_unlock(&pool_lock);
}

__attribute__((noinline)) void suspend(Coroutine* c) {
    if (_setjmp(c->registers) == 0) _longjmp(self->scheduler, 1);
}

static void fiber_main() {
    for (;;) {
        Worker* w = self;
        Kernel* kernel = w->launch->kernel;
        Coroutine* c = w->current->coroutine;
        kernel->entry(kernel->function, w->launch->arguments);
        w = self;
        thread_left(w, w->current);
        suspend(c);
    }
}

void resume(Worker* w, Thread* t) {
    if (!t->coroutine) t->coroutine = take_coroutine(w);
    Coroutine* c = t->coroutine;
    w->current = t;
    if (_setjmp(w->scheduler) == 0) {
        if (c->entered) _longjmp(c->registers, 1);
        c->entered = true;
        getcontext(&c->context);
        c->context.uc_stack.ss_sp = c->stack;
        c->context.uc_stack.ss_size = STACK_BYTES;
        c->context.uc_link = 0;
        makecontext(&c->context, fiber_main, 0);
        setcontext(&c->context);
    }
    w = self;
    t = w->current;
    w->current = 0;
    if (t->state == DONE) {
        t->coroutine->next = w->idle;
        w->idle = t->coroutine;
        t->coroutine = 0;
    }
}

void block_on(int state, void* pc) {
    Thread* t = self->current;
    t->state = state;
    t->pc = pc;
    suspend(t->coroutine);
}

}  // namespace emu

using namespace emu;

void emu_yield(void) {
    Thread* t = self->current;
    t->yielded = true;
    suspend(t->coroutine);
    t->changed = false;
}
