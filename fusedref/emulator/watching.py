"""Watching kernels: what is wrong with them, and what their memory accesses cost.

    with watch() as seen:
        kernel(x, y, np.int32(n), block=(256, 1, 1), grid=(4, 1))
    seen.findings           # a list of Finding
    seen.counters["kernel"]  # Counters, also by line

A module made with ``watch=True``, or ``FUSEDREF_WATCH=1`` in the environment, has every launch watched; findings are
then raised as ``driver.FindingError``, unless a ``watch()`` around the launch collects them.

Watched launches run their blocks one after another, so all that is reported is the same in every run.

What it does not see:

- arrays in a thread's local memory; and what the compiler settles before the kernel runs: a vector at a constant
  index of a ``__constant__`` or ``__device__`` array is not checked for alignment;
- of a word of global memory, more than two readers of a block and one of another: a race with a further one;
- which thread of a block has taken part in an atomic: what other blocks published by it counts as known to all of them;
- what ``cp.async`` wrote and bulk copies or wgmma read without a fence between.

With clang instead of g++ an access may be reported with the line next to its own.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_uint32, c_uint64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import abi, runtime
from .abi import (
    CONSTANT,
    DEVICE_FENCE,
    DIVERGENT_BARRIER,
    GLOBAL,
    INIT_FENCE,
    MBARRIER,
    MISSING_WAIT,
    NAMED_BARRIER,
    PRODUCT,
    PROXY_FENCE,
    SHARED,
    SYNCTHREADS,
    UNINITIALISED,
)
from .findings import Finding

if TYPE_CHECKING:
    from .driver import Function

ADVICE = {  # by what the two threads of a race last kept step with others
    SYNCTHREADS: "there is no __syncthreads() between them",
    NAMED_BARRIER: "there is no barrier between them that both come to",
    MBARRIER: "there is no mbarrier between them at which the first arrives (itself, or a lane that it meets in a "
    "__syncwarp() before) and for which the second waits",
}
UNSEEN = {  # what the copy engine and the tensor cores need not see
    PROXY_FENCE: (
        "a bulk copy or a product on",
        "that thread does not call fence_async_shared() between its store and "
        "the barrier, so the copy engine and the tensor cores need not see what it wrote",
    ),
    INIT_FENCE: (
        "a bulk copy that reports to",
        "that thread does not call mbarrier_init_fence() after "
        "mbarrier_init(), so the copy engine need not see the mbarrier",
    ),
}
SECTOR = 32  # bytes: what moves between memory and caches at a time


@dataclass
class Counters:
    """What the memory accesses of a kernel, or of one of its lines, came to.

    A request is one load or store of a warp; a sector is 32 bytes. ``bytes_moved`` is 32 times the sectors,
    ``bytes_used`` what the lanes asked for in them. A bank conflict is one more turn that a request to shared memory
    takes, because two lanes want different words of the same bank.

    ``cp.async`` is a global load: its requests and sectors count as such, and what it puts into shared memory is no
    store of the warp. A bulk copy is no request of a warp at all: its bytes, global to shared or back, are
    ``bulk_bytes``, and are part of the bytes moved and used. An mbarrier's operations are not counted.
    """

    global_load_requests: int = 0
    global_load_sectors: int = 0
    global_load_bytes_used: int = 0
    global_store_requests: int = 0
    global_store_sectors: int = 0
    global_store_bytes_used: int = 0
    shared_load_requests: int = 0
    shared_load_bank_conflicts: int = 0
    shared_store_requests: int = 0
    shared_store_bank_conflicts: int = 0
    atomic_requests: int = 0
    bulk_bytes: int = 0
    barriers: int = 0
    launches: int = 0

    @property
    def global_load_bytes_moved(self) -> int:
        return SECTOR * self.global_load_sectors

    @property
    def global_store_bytes_moved(self) -> int:
        return SECTOR * self.global_store_sectors

    @property
    def bytes_moved(self) -> int:
        return self.global_load_bytes_moved + self.global_store_bytes_moved + self.bulk_bytes

    @property
    def bytes_used(self) -> int:
        return self.global_load_bytes_used + self.global_store_bytes_used + self.bulk_bytes

    @property
    def bank_conflicts(self) -> int:
        return self.shared_load_bank_conflicts + self.shared_store_bank_conflicts

    def add(self, site: abi.Site) -> None:
        """Count one load, store or copy of the code."""
        self.bulk_bytes += site.copied
        if site.atomic:
            self.atomic_requests += site.requests
        elif site.space == GLOBAL:
            kind = "store" if site.write else "load"
            self._increase(f"global_{kind}_requests", site.requests)
            self._increase(f"global_{kind}_sectors", site.sectors)
            self._increase(f"global_{kind}_bytes_used", site.used)
        elif site.space == SHARED:
            kind = "store" if site.write else "load"
            self._increase(f"shared_{kind}_requests", site.requests)
            self._increase(f"shared_{kind}_bank_conflicts", site.conflicts)

    def _increase(self, name: str, by: int) -> None:
        setattr(self, name, getattr(self, name) + by)


@dataclass
class KernelCounters(Counters):
    """Counters of all launches of one kernel. ``by_line`` has those of each (file, line) of its source."""

    by_line: dict[tuple[str, int], Counters] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """The first request that a line made: for each lane that took part, what it touched."""

    kernel: str
    source: str
    line: int
    space: int
    write: bool
    width: int
    offsets: dict[int, int]  # lane -> address, counted from any multiple of 128


@dataclass(repr=False)
class Seen:
    """What a ``watch()`` saw. ``findings`` in the order in which they came; ``counters`` by the kernel's name."""

    findings: list[Finding] = field(default_factory=list)
    counters: dict[str, KernelCounters] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        from .draw import as_text

        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from .draw import as_html

        return as_html(self)


_local = threading.local()


def _collectors() -> list[Seen]:
    if not hasattr(_local, "collectors"):
        _local.collectors = []
    return _local.collectors


@contextmanager
def watch(seed: int = 0) -> Iterator[Seen]:
    """Watch every launch of this thread in the block, and collect what is found instead of raising it.

    With a ``seed`` other than 0 the threads of each block run in a random order that the seed decides: a result that
    changes with it shows a bug.
    """
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}")
    seen = Seen(seed=seed)
    _collectors().append(seen)
    try:
        yield seen
        for address in list(_written):
            _check_written(address)
    except BaseException:
        _written.clear()  # what was broken off says nothing of what would have been written
        raise
    finally:
        _collectors().remove(seen)


def wanted(function: Function) -> bool:
    """Whether a launch of this kernel is to be watched."""
    return bool(_collectors() or function._module.watch or os.environ.get("FUSEDREF_WATCH", "") not in ("", "0"))


# Device memory that a watched kernel was given to write: address -> (kernel, argument, bytes of an element).
_written: dict[int, tuple[str, str, int]] = {}


def _deliver(findings: list[Finding]) -> None:
    """To the innermost ``watch()``, or else to whoever launched, as an exception."""
    from .driver import FindingError, MemoryAccessError

    if not findings:
        return
    if _collectors():
        _collectors()[-1].findings.extend(findings)
        return
    if findings[0].kind in ("out-of-bounds", "misaligned"):
        raise MemoryAccessError(findings[0])
    raise FindingError(findings)


def launch(function: Function, arguments: bytes, grid: tuple, block: tuple, shared: int) -> None:
    """Run the kernel and deliver what was seen."""
    from . import launching

    lib = runtime.library()
    module = function._module
    for name, address, element in launching.pointer_arguments(function, arguments):
        home = runtime.allocation(address)
        if home and home[0] <= address < home[0] + home[1]:
            _written.setdefault(home[0], (function.name, name, element))
    handle = lib.emu_watch_new()
    if not handle:
        raise OSError("the emulator cannot reserve addresses for what it notes of the memory")
    seed = _collectors()[-1].seed if _collectors() else 0
    try:
        error = runtime.launch(function._kernel, module._native, arguments, grid, block, shared, 1, seed, handle)
        reports = (abi.Report * abi.MAX_REPORTS)()
        report_count = lib.emu_watch_reports(handle, reports)
        site_count = lib.emu_watch_sites(handle, None, None, None)
        sites = (abi.Site * site_count)()
        samples = (c_uint64 * (32 * site_count))()
        masks = (c_uint32 * site_count)()
        lib.emu_watch_sites(handle, sites, samples, masks)
        barriers = lib.emu_watch_barriers(handle)
    finally:
        lib.emu_watch_free(handle)
    for seen in _collectors()[-1:]:
        _count(seen, function, sites, samples, masks, barriers)
    if error:  # it was stopped half way: what it has not written says nothing
        for _, address, _ in launching.pointer_arguments(function, arguments):
            if home := runtime.allocation(address):
                _written.pop(home[0], None)
    findings = _distinct(_explain(function, arguments, r, grid, block, shared) for r in reports[:report_count])
    if error and error.kind in (abi.OUT_OF_BOUNDS, abi.MISALIGNED):
        findings.append(launching.access_finding(function, arguments, error, shared))
    elif error and error.kind == abi.DEADLOCK and b"__syncthreads" in error.text:
        place = module._line(error.pc) or (None, None)
        raised = launching.explain(function, arguments, error, shared)
        findings.append(
            Finding(
                "divergent-barrier",
                function.name,
                None,
                None,
                tuple(error.thread),
                tuple(error.block),
                place[1],
                place[0],
                str(raised),
            )
        )
    elif error:
        if _collectors():
            _deliver(findings)
        raise launching.explain(function, arguments, error, shared)
    _deliver(findings)


def _distinct(findings: Iterator[Finding | None]) -> list[Finding]:
    """One finding for each kind and pair of lines: ``y[0] += 1`` reads and writes, but is one bug."""
    kept: dict[tuple, Finding] = {}
    for finding in findings:
        if finding is not None:
            lines = frozenset((finding.line, finding.other_line))
            kept.setdefault((finding.kind, finding.argument, finding.source, lines), finding)
    return list(kept.values())


def _count(
    seen: Seen, function: Function, sites: ctypes.Array, samples: ctypes.Array, masks: ctypes.Array, barriers: int
) -> None:
    module = function._module
    counters = seen.counters.setdefault(function.name, KernelCounters())
    counters.launches += 1
    counters.barriers += barriers
    seen.sources.update(module._texts)
    drawn = {(s.source, s.line, s.space, s.write) for s in seen.samples}
    for i, site in enumerate(sites):
        place = module._line(site.pc)
        if not (site.requests or site.copied) or site.space == CONSTANT:
            continue
        counters.add(site)
        if place is None:
            continue
        counters.by_line.setdefault(place, Counters()).add(site)
        if site.requests and (*place, site.space, bool(site.write)) not in drawn:
            lanes = {lane: samples[32 * i + lane] for lane in range(32) if masks[i] >> lane & 1}
            seen.samples.append(Sample(function.name, *place, site.space, bool(site.write), site.width, lanes))


def _index(linear: int, size: tuple) -> tuple[int, int, int]:
    return (linear % size[0], linear // size[0] % size[1], linear // size[0] // size[1])


def _explain(
    function: Function, arguments: bytes, report: abi.Report, grid: tuple, block: tuple, shared: int
) -> Finding | None:
    """The finding for a report of the runtime; None for one that a look at the lines settles."""
    from . import launching

    module = function._module
    thread, blocks = _index(report.thread, block), _index(report.block, grid)
    other, other_block = _index(report.other_thread, block), _index(report.other_block, grid)
    source, line = module._line(report.pc) or (None, None)
    other_source, other_line = module._line(report.other_pc) or (None, None)
    at = f"{source}:{line}: " if source else ""
    start = f"{at}kernel {function.name}: {launching.position(thread, blocks)}"
    there = f"in line {other_line}" if other_source in (source, None) else f"in {other_source}:{other_line}"
    if report.kind == DIVERGENT_BARRIER:
        if report.other_pc and (source, line) == (other_source, other_line):
            return None  # one barrier in the source, of which the compiler made two
        reason = (
            f"thread {other} waits at another one {there}"
            if report.other_pc
            else f"thread {other} has returned and never reaches it"
        )
        return Finding(
            "divergent-barrier",
            function.name,
            None,
            None,
            thread,
            blocks,
            line,
            source,
            f"{start} waits at a __syncthreads(), but {reason}",
            other,
            blocks,
            other_line,
        )
    does = "writes" if report.write else "reads"
    if report.advice == PRODUCT:
        return Finding(
            "missing-wait",
            function.name,
            None,
            None,
            thread,
            blocks,
            line,
            source,
            f"{start} {does} a sum of the product that it started {there}, but has not waited for",
            other,
            blocks,
            other_line,
        )
    place = launching.locate(function, arguments, report.address, shared)
    name = f"{place.name}[{place.element}]" if place.name else f"address 0x{report.address:x}"
    if report.kind == UNINITIALISED:
        return Finding(
            "uninitialised",
            function.name,
            place.name,
            place.element,
            thread,
            blocks,
            line,
            source,
            f"{start} reads {name}, which nothing has written",
        )
    did = "wrote" if report.other_write else "read"
    if report.advice in UNSEEN:
        name_it, cure = UNSEEN[report.advice]
        return Finding(
            "race",
            function.name,
            place.name,
            place.element,
            thread,
            blocks,
            line,
            source,
            f"{start} starts {name_it} {name}, which thread {other} wrote {there}: {cure}",
            other,
            blocks,
            other_line,
        )
    if report.kind == MISSING_WAIT:
        under_way = "asynchronous copy" if report.other_write else "bulk store or product"
        return Finding(
            "missing-wait",
            function.name,
            place.name,
            place.element,
            thread,
            blocks,
            line,
            source,
            f"{start} {does} {name}, but the {under_way} that thread {other} started {there} has not been waited for",
            other,
            blocks,
            other_line,
        )
    if other_block != blocks:
        reason = f"thread {other} of block {other_block} {did} {there}: blocks run in any order"
        if report.advice == DEVICE_FENCE:
            reason += (
                ", and an atomic passes on only what lies before a __threadfence(), made by the thread that "
                "wrote or by one that it has met at a barrier"
            )
    elif thread == other:
        reason = f"an asynchronous copy that the same thread started {there} {did}: it has not waited for that one"
    elif report.thread // 32 == report.other_thread // 32:
        reason = (
            f"thread {other} of the same warp {did} {there}: nothing makes the lanes of a warp keep step but "
            "__syncwarp() or __syncthreads()"
        )
    else:
        reason = f"thread {other} of the same block {did} {there}: {ADVICE[report.advice]}"
    return Finding(
        "race",
        function.name,
        place.name,
        place.element,
        thread,
        blocks,
        line,
        source,
        f"{start} {does} {name}, which {reason}",
        other,
        other_block,
        other_line,
    )


# -------------------------------------------------------------------------------- what is and is not written


def host_wrote(address: int, size: int) -> None:
    """The host has written device memory."""
    runtime.library().emu_mark(address, size)


def unwatched_wrote(function: Function, arguments: bytes) -> None:
    """A launch that nobody watched may have written whatever its pointers lead to."""
    if any(p.opaque for p in function.parameters):  # a pointer that leads to pointers: anything may be written
        homes = list(runtime.live())
    else:
        homes = [
            runtime.allocation(struct.unpack_from("P", arguments, p.offset)[0])
            for p in function.parameters
            if p.pointer and not p.constant
        ]
    for home in homes:
        if home:
            host_wrote(*home)


def _check_written(address: int) -> None:
    """Deliver 'unwritten' for memory that watched kernels have written only in part."""
    kernel, name, element = _written.pop(address)
    home = runtime.allocation(address)
    if not home or home[0] != address:
        return
    missing = c_uint64()
    first = runtime.library().emu_unwritten(address, home[1], ctypes.byref(missing))
    if first == abi.NOWHERE:
        return
    index, lacking, size = (first - address) // element, -(-missing.value // element), home[1] // element
    _deliver(
        [
            Finding(
                "unwritten",
                kernel,
                name,
                index,
                None,
                None,
                None,
                None,
                f"kernel {kernel}: {name}[{index}] was never written, nor were {lacking - 1} more of "
                f"{name}'s {size} elements"
                if lacking > 1
                else f"kernel {kernel}: {name}[{index}] was never written, alone of {name}'s {size} elements",
            )
        ]
    )


def about_to_leave(address: int) -> None:
    """Device memory is copied to the host, or freed."""
    home = runtime.allocation(address) if _written else None
    if home and home[0] in _written:
        _check_written(home[0])
