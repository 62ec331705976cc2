// What the runtime and Python share. fusedref/emulator/abi.py reads this header (and the structures of emulator_abi.h)
// and builds the ctypes side from it, so each declaration here is plain C that ends in a semicolon.
#pragma once
#include "../include/emulator_abi.h"

namespace emu {

struct Launch;
struct Watch;

static const uint32_t MAX_WORKERS = 64;
static const uint64_t DYNAMIC_ROOM = 1 << 20;  // dynamic shared memory: the first bytes of a worker's region
static const uint64_t OUTPUT_BYTES = 1 << 20;  // kept of what a launch prints: the latest
static const uint32_t MAX_REPORTS = 256;       // of one launch
static const uint64_t NOWHERE = ~0;            // an address or offset that does not exist

enum ErrorKind {
    OUT_OF_BOUNDS = 1,
    MISALIGNED,
    DEADLOCK,
    MISUSE,
    FAULT,
    STACK_OVERFLOW,
    ASSERTION,
    TRAP,
    NO_MEMORY,
    SPINNING
};
enum ReportKind { RACE = 101, UNINITIALISED, DIVERGENT_BARRIER, MISSING_WAIT };
enum Advice {  // what a race lacks
    SYNCTHREADS,
    NAMED_BARRIER,
    MBARRIER,
    PROXY_FENCE,
    INIT_FENCE,
    DEVICE_FENCE,
    PRODUCT
};
enum Space { GLOBAL = 1, SHARED, CONSTANT };
enum ModuleStatus { MODULE_READY, SHARED_TOO_LARGE, VARIABLES_TOO_LARGE };

struct Error {             // the failure that stopped a launch
    uint32_t kind, write;  // an ErrorKind; 0: nothing
    uint64_t address, bytes, pc;
    uint32_t block[3], thread[3], worker;
    char text[512];
};

struct Outcome {  // of a launch
    Error error;
    char* output;  // what it printed; emu_outcome_free() frees it
    uint64_t output_bytes, output_lost;
};

struct Report {            // one finding of a watched launch
    uint32_t kind, count;  // a ReportKind
    uint64_t address, bytes, pc, other_pc;
    uint32_t block, thread, write, other_block, other_thread, other_write, worker, advice;
};

struct Site {  // one load or store in the kernel's code
    uint64_t pc;
    uint32_t space, write, atomic, width;
    uint64_t requests, sectors, used, conflicts, accesses;
    uint64_t copied;  // bytes of bulk copies
};

}  // namespace emu

// Memory of the device.
EMU_EXPORT int emu_init(uint64_t memory);                      // 1: there are addresses for it
EMU_EXPORT void emu_alloc(uint64_t bytes, uint64_t* address);  // leaves it 0 if there is no room
EMU_EXPORT void emu_free(uint64_t* address);                   // and sets it to 0
EMU_EXPORT int emu_valid(uint64_t address, uint64_t bytes);
EMU_EXPORT int emu_allocation(uint64_t address, uint64_t* out);
EMU_EXPORT uint64_t emu_memory_used(void);
EMU_EXPORT uint64_t emu_allocations(uint64_t* out, uint64_t room);
EMU_EXPORT uint64_t emu_shared_offset(uint64_t address);  // in a worker's shared memory, or NOWHERE
EMU_EXPORT void emu_mark(uint64_t address, uint64_t bytes);
EMU_EXPORT uint64_t emu_unwritten(uint64_t address, uint64_t bytes, uint64_t* how_many);

// Modules. emu_module_constructors() comes first: it makes a kernel that runs the module's constructors, and returns 1 if
// there are any, -1 if they did not finish before.
EMU_EXPORT int emu_module_constructors(emu::Module* module, emu::Kernel* kernel);
EMU_EXPORT int emu_module_loaded(emu::Module* module);     // a ModuleStatus
EMU_EXPORT void emu_module_unloaded(emu::Module* module);  // before its library is closed
EMU_EXPORT const char* emu_symbol(void* function);

// Launches. emu_python() comes first: it takes PyEval_SaveThread, PyEval_RestoreThread and PyErr_CheckSignals.
// emu_run() is called with the GIL held. It returns 1 when the launch has ended, 0 when it was interrupted: Python's
// exception is set then, unless Ctrl-C ended a launch of a thread other than the main one (`ends_at_ctrl_c`).
EMU_EXPORT void emu_python(void* save_thread, void* restore_thread, void* check_signals);
EMU_EXPORT int emu_run(
    emu::Kernel* kernel, emu::Module* module, const void* arguments, uint64_t argument_bytes, const uint32_t* grid,
    const uint32_t* block, uint64_t dynamic_shared, uint32_t workers, uint64_t seed, emu::Watch* watch,
    int ends_at_ctrl_c, emu::Outcome* outcome);
EMU_EXPORT void emu_outcome_free(emu::Outcome* outcome);

// What a watched launch has seen.
EMU_EXPORT void emu_watch_new(emu::Watch** out);     // leaves it null if there are no addresses for it
EMU_EXPORT void emu_watch_free(emu::Watch** watch);  // and sets it to null
EMU_EXPORT uint32_t emu_watch_reports(emu::Watch* watch, emu::Report* out);
EMU_EXPORT uint32_t emu_watch_sites(emu::Watch* watch, emu::Site* out, uint64_t* samples, uint32_t* masks);
EMU_EXPORT uint64_t emu_watch_barriers(emu::Watch* watch);
