"""Run one launch, watched or not."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass

from .. import abi, runtime
from ..findings import Finding
from ..image import Launch
from .collect import WatchResult, current_watch, deliver, expect_nothing, expect_write, written
from .counters import Counters, KernelCounters, Sample
from .explain import access_finding, error_for, finding_for


def run(launch: Launch, workers: int, module_is_watched: bool = False) -> None:
    """Run the kernel, watched if a ``watch()``, its module or ``FUSEDREF_WATCH`` says so.

    Raises:
        FindingError: it is watched, something is found, and no ``watch()`` collects it.
        MemoryAccessError, LaunchError, LogicError, MemoryError: the kernel failed.
    """
    watch = current_watch()
    if watch is not None or module_is_watched or os.environ.get("FUSEDREF_WATCH", "") not in ("", "0"):
        _launch_watched(launch, watch)
        return
    error = _run(launch, min(workers, launch.blocks, abi.MAX_WORKERS))
    _note_writes(launch)
    if error:
        raise error_for(launch, error)


def _run(launch: Launch, workers: int, seed: int = 0, watch: runtime.Watch | None = None) -> abi.Error | None:
    kernel = launch.kernel
    return runtime.launch(
        kernel.record,
        kernel.image.module,
        launch.arguments,
        launch.grid,
        launch.block,
        launch.shared,
        workers,
        seed,
        watch,
    )


def _note_writes(launch: Launch) -> None:
    """Mark all memory that an unwatched launch may have written through its pointers as written."""
    if any(parameter.opaque for parameter in launch.kernel.parameters):  # pointers to pointers: anything
        for home in runtime.live():
            written(*home)
        return
    for pointer in launch.pointers():
        if not pointer.constant and (allocation := runtime.allocation(pointer.address)):
            written(*allocation)


@dataclass(frozen=True)
class _Seen:
    """The runtime's record of a watched launch."""

    error: abi.Error | None
    reports: list[abi.Report]
    sites: list[abi.Site]
    samples: list[int]  # 32 addresses for each site, one per lane
    masks: list[int]  # for each site, the lanes that took part
    barriers: int


def _record(launch: Launch, seed: int) -> _Seen:
    library = runtime.library()
    watch = runtime.Watch()
    error = _run(launch, 1, seed, watch)
    reports = (abi.Report * abi.MAX_REPORTS)()
    report_count = library.emu_watch_reports(watch.handle, reports)
    site_count = library.emu_watch_sites(watch.handle, None, None, None)
    sites = (abi.Site * site_count)()
    samples = (ctypes.c_uint64 * (32 * site_count))()
    masks = (ctypes.c_uint32 * site_count)()
    library.emu_watch_sites(watch.handle, sites, samples, masks)
    barriers = library.emu_watch_barriers(watch.handle)
    return _Seen(error, reports[:report_count], list(sites), samples[:], masks[:], barriers)


def _launch_watched(launch: Launch, watch: WatchResult | None) -> None:
    """Run the kernel and deliver the findings."""
    name = launch.kernel.name
    for pointer in launch.pointers():
        home = runtime.allocation(pointer.address)
        if home and home[0] <= pointer.address < home[0] + home[1]:
            expect_write(home[0], launch.kernel.title, pointer.name, pointer.element, watch)
    seen = _record(launch, watch.seed if watch else 0)
    if watch is not None:
        _count(watch, launch, seen)
    error = seen.error
    if error:
        for pointer in launch.pointers():
            if home := runtime.allocation(pointer.address):
                expect_nothing(home[0])
    findings = _distinct(finding_for(launch, report) for report in seen.reports)
    if error and error.kind in (abi.OUT_OF_BOUNDS, abi.MISALIGNED):
        findings.append(access_finding(launch, error))
    elif error and error.kind == abi.DEADLOCK and b"__syncthreads" in error.text:
        source, line = launch.kernel.image.line(error.pc) or (None, None)
        thread, block = tuple(error.thread), tuple(error.block)
        message = str(error_for(launch, error))
        findings.append(Finding("divergent-barrier", name, None, None, thread, block, line, source, message))
    elif error:
        if watch is not None:
            deliver(findings, watch)
        raise error_for(launch, error)
    deliver(findings, watch)


def _distinct(findings: Iterable[Finding | None]) -> list[Finding]:
    """Return one finding for each kind and pair of lines: ``y[0] += 1`` reads and writes, but is one bug."""
    kept: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        if finding is not None:
            lines = frozenset((finding.line, finding.other_line))
            kept.setdefault((finding.kind, finding.argument, finding.source, lines), finding)
    return list(kept.values())


def _count(watch: WatchResult, launch: Launch, seen: _Seen) -> None:
    """Add the launch to the watch's counters."""
    name, image = launch.kernel.name, launch.kernel.image
    counters = watch.counters.setdefault(name, KernelCounters())
    counters.launches += 1
    counters.barriers += seen.barriers
    watch.sources.update(image.texts)
    sampled = {(sample.source, sample.line, sample.space, sample.write) for sample in watch.samples}
    for i, site in enumerate(seen.sites):
        if not (site.requests or site.copied) or site.space == abi.CONSTANT:
            continue
        counters.add(site)
        place = image.line(site.pc)
        if place is None:
            continue
        counters.by_line.setdefault(place, Counters()).add(site)
        if site.requests and (*place, site.space, bool(site.write)) not in sampled:
            lanes = {lane: seen.samples[32 * i + lane] for lane in range(32) if seen.masks[i] >> lane & 1}
            watch.samples.append(Sample(name, *place, site.space, bool(site.write), site.width, lanes))
