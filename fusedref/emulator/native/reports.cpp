// The findings and counts of a watched launch, for Python.
#include "watch.h"

namespace emu {

Report report_of(Worker* w, uint32_t kind, uint64_t address, uint64_t bytes, int write, void* pc) {
    Report r = {};
    r.kind = kind;
    r.address = address;
    r.bytes = bytes;
    r.write = write;
    r.pc = (uint64_t)pc;
    r.block = w->block_number;
    r.thread = w->current ? w->current->linear : 0;
    r.worker = w->index;
    return r;
}

void add_unwritten(Watch* watch, const Report& report) {
    for (uint32_t i = 0; i < watch->unwritten_count; i++)
        if (watch->unwritten[i].pc == report.pc) return;
    if (watch->unwritten_count < MAX_REPORTS) watch->unwritten[watch->unwritten_count++] = report;
}

static bool same(const Report& a, const Report& b) {
    if (a.kind != b.kind) return false;
    return (a.pc == b.pc && a.other_pc == b.other_pc) || (a.pc == b.other_pc && a.other_pc == b.pc);
}

void add_report(Watch* watch, const Report& report) {
    if (report.kind == RACE)
        for (uint32_t i = 0; i < watch->unwritten_count; i++)
            if (watch->unwritten[i].pc == report.pc || watch->unwritten[i].pc == report.other_pc)
                watch->unwritten[i].kind = RACE;
    for (uint32_t i = 0; i < watch->report_count; i++)
        if (same(watch->reports[i], report)) {
            watch->reports[i].count++;
            return;
        }
    if (watch->report_count < MAX_REPORTS) {
        watch->reports[watch->report_count] = report;
        watch->reports[watch->report_count++].count = 1;
    }
}

void decide_race(Watch* watch) {
    watch->possible_race.open = false;
    if (memcmp((void*)watch->possible_race.address, watch->possible_race.before, watch->possible_race.bytes))
        add_report(watch, watch->possible_race.report);
}

}  // namespace emu

using namespace emu;

uint32_t emu_watch_reports(Watch* watch, Report* out) {
    memcpy(out, watch->reports, watch->report_count * sizeof(Report));
    return watch->report_count;
}

uint32_t emu_watch_sites(Watch* watch, Site* out, uint64_t* samples, uint32_t* masks) {
    for (uint32_t i = 0; out && i < watch->site_count; i++) {
        uint32_t slot = watch->site_order[i];
        out[i] = watch->sites[slot];
        memcpy(samples + 32 * i, watch->sample[slot], sizeof watch->sample[slot]);
        masks[i] = watch->sample_mask[slot];
    }
    return watch->site_count;
}

uint64_t emu_watch_barriers(Watch* watch) { return watch->barriers; }
