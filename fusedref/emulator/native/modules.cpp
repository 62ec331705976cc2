// Loaded modules: the addresses of their images, shared memory and variables.
#include "runtime.h"

#include <dlfcn.h>
#if defined(__linux__)
#include <link.h>
#endif

namespace emu {

#if defined(__linux__)
struct Image { uintptr_t address, begin, end; };

static int holds_address(struct dl_phdr_info* info, size_t, void* data) {
    Image* image = (Image*)data;
    uintptr_t low = ~(uintptr_t)0, high = 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            if (begin < low) low = begin;
            if (begin + info->dlpi_phdr[i].p_memsz > high) high = begin + info->dlpi_phdr[i].p_memsz;
        }
    if (image->address < low || image->address >= high) return 0;
    image->begin = low;
    image->end = high;
    return 1;
}

bool find_image(uintptr_t address, uintptr_t* begin, uintptr_t* end) {
    Image image = {address, 0, 0};
    if (!dl_iterate_phdr(holds_address, &image)) return false;
    *begin = image.begin;
    *end = image.end;
    return true;
}
#else
bool find_image(uintptr_t, uintptr_t* begin, uintptr_t* end) {
    *begin = 4096;  // elsewhere every host address except null counts as the module's
    *end = ~(uintptr_t)0;
    return true;
}
#endif

static uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

// After each variable comes a gap as long as the variable, at least 1 KiB.
static bool place_shared(Module* m) {
    uint64_t offset = DYNAMIC_ROOM;
    uint32_t index = 0;
    for (Shared* s = m->shared; s; s = s->next) {
        s->index = index++;
        if (!s->size) continue;  // dynamic: it begins the region
        offset = round_up(offset, s->align > 1024 ? s->align : 1024);
        s->offset = offset;
        if (s->size > SHARED_REGION) return false;
        offset += s->size + (s->size > 1024 ? s->size : 1024);
    }
    m->shared_count = index;
    return offset <= SHARED_REGION;
}

static uint64_t variable_room(const Variable* v) { return round_up(v->size, 1024) + 1024; }

static uint64_t room_of_variables(const Module* m) {
    uint64_t bytes = 0;
    for (Variable* v = m->variables; v; v = v->next) bytes += variable_room(v);
    return bytes;
}

static void run_constructors(void* module, const char*) {
    Module* m = (Module*)module;
    while (m->constructors < m->constructors_end) (*m->constructors++)();
}

}  // namespace emu

using namespace emu;

int emu_module_constructors(Module* m, Kernel* kernel) {
    if (m->constructors && !m->constructors_end) return -1;
    find_image((uintptr_t)m, &m->image_begin, &m->image_end);
    *kernel = Kernel{};
    kernel->function = m;
    kernel->entry = run_constructors;
    return m->constructors < m->constructors_end;
}

int emu_module_loaded(Module* m) {
    if (!place_shared(m)) return SHARED_TOO_LARGE;
    const uint64_t bytes = room_of_variables(m);
    if (bytes) {
        uint64_t shadow = reserve_variables(bytes);
        if (shadow == NOWHERE) return VARIABLES_TOO_LARGE;
        for (Variable* v = m->variables; v; v = v->next) {
            v->shadow = shadow;
            shadow += variable_room(v);
        }
    }
    return MODULE_READY;
}

void emu_module_unloaded(Module* m) {
    if (m->variables) release_variables(m->variables->shadow, room_of_variables(m));
    m->image_begin = m->image_end = 0;
}

const char* emu_symbol(void* function) {
    Dl_info info;
    return dladdr(function, &info) && info.dli_saddr == function ? info.dli_sname : 0;
}
