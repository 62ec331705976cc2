// What the runtime and Python share. fusedref/emulator/abi.py reads this header (and the structures of emulator_abi.h)
// and builds the ctypes side from it, so each declaration here is plain C that ends in a semicolon.
#pragma once
#include "../include/emulator_abi.h"

namespace emu {

struct Launch;
struct Watch;

static const uint32_t MAX_WORKERS = 64;
static const uint64_t DYNAMIC_ROOM = 1 << 20;   // dynamic shared memory: the first bytes of a worker's region
static const uint32_t MAX_REPORTS = 256;        // of one launch
static const uint64_t NOWHERE = ~0;             // an address or offset that does not exist

enum ErrorKind {
    OUT_OF_BOUNDS = 1,
    MISALIGNED,
    DEADLOCK,
    MISUSE,
    FAULT,
    STACK_OVERFLOW,
    ASSERTION,
    TRAP,
    NO_STACKS,
    SPINNING
};
enum ReportKind { RACE = 101, UNINITIALISED, DIVERGENT_BARRIER, MISSING_WAIT };
enum Advice {                    // what a race lacks
    SYNCTHREADS,
    NAMED_BARRIER,
    MBARRIER,
    PROXY_FENCE,
    INIT_FENCE,
    DEVICE_FENCE,
    PRODUCT
};
enum Space { GLOBAL = 1, SHARED, CONSTANT };

struct Error {                   // what stopped a launch
    uint32_t kind, write;        // an ErrorKind; 0: nothing
    uint64_t address, bytes, pc;
    uint32_t block[3], thread[3], worker;
    char text[512];
};

struct Report {                  // one finding of a watched launch
    uint32_t kind, count;        // a ReportKind
    uint64_t address, bytes, pc, other_pc;
    uint32_t block, thread, write, other_block, other_thread, other_write, worker, advice;
};

struct Site {                    // one load or store in the kernel's code
    uint64_t pc;
    uint32_t space, write, atomic, width;
    uint64_t requests, sectors, used, conflicts, accesses;
    uint64_t copied;             // bytes of bulk copies
};

}  // namespace emu

// Memory of the device.
EMU_EXPORT int emu_init(uint64_t memory);                  // 1: there are addresses for it
EMU_EXPORT uint64_t emu_alloc(uint64_t bytes);             // 0: no room
EMU_EXPORT int emu_free(uint64_t address);
EMU_EXPORT int emu_valid(uint64_t address, uint64_t bytes);
EMU_EXPORT int emu_allocation(uint64_t address, uint64_t* out);
EMU_EXPORT uint64_t emu_memory_used(void);
EMU_EXPORT uint64_t emu_allocations(uint64_t* out, uint64_t room);
EMU_EXPORT uint64_t emu_shared_offset(uint64_t address);   // in a worker's shared memory, or NOWHERE
EMU_EXPORT void emu_mark(uint64_t address, uint64_t bytes);
EMU_EXPORT uint64_t emu_unwritten(uint64_t address, uint64_t bytes, uint64_t* how_many);

// Modules.
EMU_EXPORT void emu_module_loaded(emu::Module* module);
EMU_EXPORT const char* emu_symbol(void* function);

// Launches.
EMU_EXPORT emu::Launch* emu_launch(emu::Kernel* kernel, emu::Module* module, const void* arguments,
                                   uint64_t argument_bytes, const uint32_t* grid, const uint32_t* block,
                                   uint64_t dynamic_shared, uint32_t workers, uint64_t seed, emu::Watch* watch);
EMU_EXPORT int emu_wait(emu::Launch* launch, uint32_t milliseconds);
EMU_EXPORT void emu_cancel(emu::Launch* launch);
EMU_EXPORT const emu::Error* emu_error(emu::Launch* launch);
EMU_EXPORT void emu_release(emu::Launch* launch);
EMU_EXPORT uint64_t emu_take_output(char* to, uint64_t room);

// What a watched launch has seen.
EMU_EXPORT emu::Watch* emu_watch_new(void);
EMU_EXPORT void emu_watch_free(emu::Watch* watch);
EMU_EXPORT uint32_t emu_watch_reports(emu::Watch* watch, emu::Report* out);
EMU_EXPORT uint32_t emu_watch_sites(emu::Watch* watch, emu::Site* out, uint64_t* samples, uint32_t* masks);
EMU_EXPORT uint64_t emu_watch_barriers(emu::Watch* watch);
