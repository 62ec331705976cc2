// How a worker leaves a kernel that will not return: after a fault, after a misuse, and when Python is interrupted.
//
// It jumps from the kernel's stack to its own, so it must not hold a lock or be inside the allocator then. Three rules
// ensure that. The runtime itself leaves only at certain points: hooks, barriers, printf. A signal that cancels the
// launch makes the next hook such a point (`attention`), and leaves at once only if it interrupts the kernel's own code
// or the mathematical library. A fault leaves wherever it happens, but `Critical` marks where the runtime holds a lock, and
// checks beforehand that enough stack is left.
#include "runtime.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

namespace emu {

EMU_TLS Worker* self;
EMU_TLS int watching;
EMU_TLS int attention;

static const uint64_t CRITICAL_STACK = 16 << 10;  // bytes of stack that the allocator and the like may need
static uintptr_t mathematics_begin, mathematics_end;

void escape() {
    Worker* w = self;
    w->launch->cancel = 1;
    _longjmp(w->escape, 1);
}

void check_cancelled() {
    if (self->launch->cancel) escape();
}

// Uses almost no stack and calls nothing: the kernel's stack may be full.
void fail(int kind, uint64_t address, uint64_t bytes, int write, void* pc, const char* text) {
    Worker* w = self;
    Error* e = &w->failure;
    e->kind = kind;
    e->address = address;
    e->bytes = bytes;
    e->write = write;
    e->pc = (uint64_t)pc;
    e->worker = w->index;
    for (int i = 0; i < 3; i++) {
        e->block[i] = w->block_index[i];
        if (w->current) e->thread[i] = w->current->index[i];
    }
    uint32_t length = 0;
    for (; text && text[length] && length + 1 < sizeof e->text; length++) e->text[length] = text[length];
    e->text[length] = 0;
    escape();
}

static bool stack_ends(Worker* w) {
    if (!w->current) return false;
    uintptr_t stack = (uintptr_t)w->current->coroutine->stack, here = (uintptr_t)__builtin_frame_address(0);
    return here - stack < CRITICAL_STACK;
}

Critical::Critical() : w(self) {
    if (!w) return;
    if (!w->critical && stack_ends(w)) fail(STACK_OVERFLOW, 0, 0, 0, 0, 0);
    w->critical++;
}

static void* checked(void* memory) {
    if (!memory) fail(NO_MEMORY, 0, 0, 0, 0, 0);
    return memory;
}

void* allocate(uint64_t bytes) {
    void* memory;
    {
        Critical critical;
        memory = calloc(1, bytes);
    }
    return checked(memory);
}

void* resize(void* memory, uint64_t bytes) {
    {
        Critical critical;
        memory = realloc(memory, bytes);
    }
    return checked(memory);
}

void release(void* memory) {
    Critical critical;
    free(memory);
}

void find_mathematics() {
    double (*function)(double) = cbrt;
    find_image((uintptr_t)function, &mathematics_begin, &mathematics_end);
}

static uintptr_t interrupted_pc(void* context) {  // 0: unknown on this machine
#if defined(__linux__) && defined(__x86_64__)
    return ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__linux__) && defined(__aarch64__)
    return ((ucontext_t*)context)->uc_mcontext.pc;
#else
    return 0;
#endif
}

static bool in_kernel(Worker* w, uintptr_t pc) {
    Module* m = w->launch->module;
    return !pc || (pc >= m->image_begin && pc < m->image_end) || (pc >= mathematics_begin && pc < mathematics_end);
}

// Whether the kernel may read all bytes of a string, up to `most` of them.
bool readable_text(const char* text, uint64_t most) {
    Worker* w = self;
    uint64_t offset = (uintptr_t)text - arena_base;
    if (offset < arena_size) {
        for (uint64_t i = 0; i < most; i++) {
            if (first_outside(offset + i, 1) == offset + i) return false;
            if (!text[i]) return true;
        }
        return true;
    }
    Module* m = w->launch->module;
    bool local = (uintptr_t)text - (uintptr_t)w->current->coroutine->stack < STACK_BYTES;
    if (!local && ((uintptr_t)text < m->image_begin || (uintptr_t)text >= m->image_end)) return false;
    jmp_buf probe;
    volatile bool readable = false;
    if (_setjmp(probe) == 0) {
        w->probe = &probe;
        for (uint64_t i = 0; i < most && ((volatile const char*)text)[i]; i++) {}
        readable = true;
    }
    w->probe = 0;
    return readable;
}

// ------------------------------------------------------------------------------------------------------------- handlers

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGURG};
static const int COUNT = sizeof SIGNALS / sizeof *SIGNALS;
static struct sigaction previous[COUNT];

void block_others(sigset_t* set) {
    sigfillset(set);
    for (int number : SIGNALS) sigdelset(set, number);
}

static void pass_on(const struct sigaction& to, int number, siginfo_t* info, void* context) {
    if ((to.sa_flags & SA_SIGINFO) && to.sa_sigaction) {
        to.sa_sigaction(number, info, context);
    } else if (to.sa_handler == SIG_DFL && number != SIGURG) {
        signal(number, SIG_DFL);  // it happens again, and now ends the process
    } else if (to.sa_handler != SIG_IGN && to.sa_handler != SIG_DFL) {
        to.sa_handler(number);
    }
}

static void on_signal(int number, siginfo_t* info, void* context) {
    Worker* w = self;
    const uintptr_t pc = interrupted_pc(context);
    if (w && number == SIGURG) {
        if (!w->launch->cancel) return;
        attention = 1;
        if (w->current && !w->critical && in_kernel(w, pc)) escape();
        return;
    }
    if (w && w->probe) _longjmp(*w->probe, 1);
    if (w && w->current && !w->critical) {
        uintptr_t address = (uintptr_t)info->si_addr, stack = (uintptr_t)w->current->coroutine->stack;
        bool overflow = number != SIGFPE && address < stack && address + 65536 >= stack;
        fail(overflow ? STACK_OVERFLOW : FAULT, address, number, 0, pc ? (void*)(pc + 1) : 0, 0);
    }
    for (int i = 0; i < COUNT; i++)
        if (SIGNALS[i] == number) pass_on(previous[i], number, info, context);
}

static void install(int number, void (*handler)(int, siginfo_t*, void*), struct sigaction* before) {
    struct sigaction action = {};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(number, &action, before);
}

static void remove(int number, void (*handler)(int, siginfo_t*, void*), const struct sigaction* before) {
    struct sigaction now;
    sigaction(number, 0, &now);
    if (now.sa_sigaction == handler) sigaction(number, before, 0);  // else it has been replaced since
}

void install_handlers() {
    for (int i = 0; i < COUNT; i++) install(SIGNALS[i], on_signal, &previous[i]);
}

void remove_handlers() {
    for (int i = 0; i < COUNT; i++) remove(SIGNALS[i], on_signal, &previous[i]);
}

// ------------------------------------------------------------------------------------------- Ctrl-C and other threads

// Python raises KeyboardInterrupt in its main thread only. While launches of other threads wait, this handler counts
// what Python's own sees, so that they end too.
static struct sigaction before_ctrl_c;
static volatile uint32_t ctrl_c;

static void on_ctrl_c(int number, siginfo_t* info, void* context) {
    pass_on(before_ctrl_c, number, info, context);
    __atomic_add_fetch(&ctrl_c, 1, __ATOMIC_SEQ_CST);
}

uint32_t ctrl_c_count() { return __atomic_load_n(&ctrl_c, __ATOMIC_SEQ_CST); }
void install_ctrl_c() { install(SIGINT, on_ctrl_c, &before_ctrl_c); }
void remove_ctrl_c() { remove(SIGINT, on_ctrl_c, &before_ctrl_c); }

}  // namespace emu
