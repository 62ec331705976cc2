// printf, assert and __trap. What a launch prints goes to a ring of 1 MiB of its own, as on a card: when it is full, the
// oldest records are overwritten.
#include "runtime.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace emu {

static const uint32_t MOST = 4096;  // bytes of one printf

static void copy_in(Output* o, const void* from, uint32_t bytes) {
    uint64_t at = o->end % OUTPUT_BYTES, first = OUTPUT_BYTES - at < bytes ? OUTPUT_BYTES - at : bytes;
    memcpy(o->ring + at, from, first);
    memcpy(o->ring, (const char*)from + first, bytes - first);
    o->end += bytes;
}

static void copy_out(Output* o, void* to, uint32_t bytes) {
    uint64_t at = o->begin % OUTPUT_BYTES, first = OUTPUT_BYTES - at < bytes ? OUTPUT_BYTES - at : bytes;
    memcpy(to, o->ring + at, first);
    memcpy((char*)to + first, o->ring, bytes - first);
    o->begin += bytes;
}

static void write_output(Output* o, const char* text, uint32_t bytes) {
    Critical critical;
    pthread_mutex_lock(&o->lock);
    if (!o->ring) o->ring = (char*)malloc(OUTPUT_BYTES);
    while (o->ring && o->end + sizeof bytes + bytes - o->begin > OUTPUT_BYTES) {
        uint32_t oldest;
        copy_out(o, &oldest, sizeof oldest);
        o->begin += oldest;
        o->lost += oldest;
    }
    if (o->ring) {
        copy_in(o, &bytes, sizeof bytes);
        copy_in(o, text, bytes);
    }
    pthread_mutex_unlock(&o->lock);
}

void hand_over_output(Output* from, Outcome* to) {
    if (from->end != from->begin) to->output = (char*)malloc(from->end - from->begin);
    while (to->output && from->begin < from->end) {
        uint32_t bytes;
        copy_out(from, &bytes, sizeof bytes);
        copy_out(from, to->output + to->output_bytes, bytes);
        to->output_bytes += bytes;
    }
    to->output_lost = from->lost;
    free(from->ring);
}

// Returns what is wrong with a call of printf (a string that the kernel must not read, or %n), or 0.
static const char* wrong(const char* format, va_list list) {
    if (!readable_text(format, MOST)) return "printf's format is not a string that the kernel can read";
    for (const char* p = format; *p; p++) {
        if (*p != '%') continue;
        uint64_t precision = MOST;
        int longs = 0;
        for (p++; *p && strchr("-+ #0123456789.*hlqLjzt", *p); p++) {
            if (*p == '*') va_arg(list, int);
            if (*p == 'l' || *p == 'q' || *p == 'j' || *p == 'z' || *p == 't') longs++;
            if (*p == 'L') longs = 3;
            if (*p == '.' && p[1] >= '0' && p[1] <= '9') precision = strtoull(p + 1, 0, 10);
        }
        if (!*p) break;
        if (strchr("eEfFgGaA", *p)) {
            if (longs == 3) va_arg(list, long double);
            else va_arg(list, double);
        } else if (*p == 's') {
            const char* text = va_arg(list, const char*);
            if (precision && !readable_text(text, precision < MOST ? precision : MOST))
                return "printf's %s is given an address where the kernel can read no string";
        } else if (*p == 'n') {
            return "printf on a device has no %n";
        } else if (*p == 'p' || longs) {
            va_arg(list, uint64_t);
        } else if (*p != '%') {
            va_arg(list, int);
        }
    }
    return 0;
}

}  // namespace emu

using namespace emu;

int emu_printf(const char* format, ...) {
    check_cancelled();
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    const char* fault = wrong(format, again);
    va_end(again);
    if (fault) fail(MISUSE, 0, 0, 0, __builtin_return_address(0), fault);
    char text[MOST];
    int written;
    {
        Critical critical;
        written = vsnprintf(text, sizeof text, format, list);
    }
    va_end(list);
    const uint32_t bytes = written < (int)sizeof text ? written : sizeof text - 1;
    if (written > 0) write_output(&self->launch->output, text, bytes);
    return written;
}

void emu_assert_fail(const char* expression, const char* file, int line, const char* function) {
    char text[sizeof(Error::text)];
    Thread* t = self->current;
    snprintf(
        text, sizeof text, "%s:%d: %s: block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed.", file, line,
        function, self->block_index[0], self->block_index[1], self->block_index[2], t->index[0], t->index[1],
        t->index[2], expression);
    fail(ASSERTION, 0, 0, 0, __builtin_return_address(0), text);
}

void emu_trap(void) { fail(TRAP, 0, 0, 0, __builtin_return_address(0), 0); }

void emu_unreachable(void) {
    fail(MISUSE, 0, 0, 0, __builtin_return_address(0), "the code reaches __builtin_unreachable()");
}

void emu_outcome_free(Outcome* outcome) {
    free(outcome->output);
    outcome->output = 0;
    outcome->output_bytes = 0;
}
