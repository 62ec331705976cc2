"""Describe the runtime's reports in sentences: which thread did what to which element, in which line."""

from __future__ import annotations

from dataclasses import dataclass

from .. import abi, runtime
from ..errors import DeadlockError, Error, LaunchError, LogicError, MemoryAccessError, MemoryError
from ..findings import Finding
from ..image import Launch

NEAR = 1 << 30  # bytes: an address farther than this from every array belongs to none
SIGNALS = {
    4: "an illegal instruction",
    5: "a trap",
    7: "a bad address",
    8: "an integer division by zero",
    10: "a bad address",
    11: "a bad address",
}
ADVICE = {  # by the means that the two threads of a race last synchronised by
    abi.SYNCTHREADS: "there is no __syncthreads() between them",
    abi.NAMED_BARRIER: "there is no barrier between them that both come to",
    abi.MBARRIER: "there is no mbarrier between them at which the first arrives (itself, or a lane that it meets in a "
    "__syncwarp() before) and for which the second waits",
}
UNSEEN = {  # writes that the copy engine and the tensor cores may miss
    abi.PROXY_FENCE: (
        "a bulk copy or a product on",
        "that thread does not call fence_async_shared() between its store and "
        "the barrier, so the copy engine and the tensor cores may not see what it wrote",
    ),
    abi.INIT_FENCE: (
        "a bulk copy that reports to",
        "that thread does not call mbarrier_init_fence() after "
        "mbarrier_init(), so the copy engine may not see the mbarrier",
    ),
}
Index = tuple[int, int, int]


def _thread_of_block(thread: Index, block: Index) -> str:
    return f"thread {thread} of block {block}"


def error_for(launch: Launch, error: abi.Error) -> Error:
    """Return the exception for what stopped a launch."""
    name = launch.kernel.title
    block = tuple(error.block)
    place = launch.kernel.image.line(error.pc)
    at = f" ({place[0]}:{place[1]})" if place else ""
    who = _thread_of_block(tuple(error.thread), block)
    text = error.text.decode("utf-8", "replace")
    if error.kind in (abi.OUT_OF_BOUNDS, abi.MISALIGNED):
        return MemoryAccessError(access_finding(launch, error))
    if error.kind == abi.DEADLOCK:
        return DeadlockError(f"kernel {name}{at}: block {block} waits for ever: {text}. A card would hang here.")
    if error.kind == abi.SPINNING:
        return DeadlockError(
            f"kernel {name}{at}: {who} polls memory that no running block will write; {text}. A card may run all "
            "blocks at the same time; the emulator runs at most one per processor core, and a watched launch one "
            "after another."
        )
    if error.kind == abi.MISUSE:
        return LaunchError(f"kernel {name}{at}: {text}, in {who}")
    if error.kind == abi.STACK_OVERFLOW:
        return LaunchError(
            f"kernel {name}{at}: the stack overflowed in {who}: too deep a recursion, "
            "or local arrays that are too large"
        )
    if error.kind == abi.FAULT:
        return LaunchError(f"kernel {name}{at}: {SIGNALS.get(error.bytes, f'signal {error.bytes}')} in {who}")
    if error.kind == abi.ASSERTION:
        return LogicError(f"cuLaunchKernel failed: device-side assert triggered - {text}")
    if error.kind == abi.TRAP:
        return LaunchError(f"cuLaunchKernel failed: unspecified launch failure - __trap(){at} in {who}")
    return MemoryError(f"kernel {name}: {text or 'no memory left to run it'}")


@dataclass(frozen=True)
class Place:
    """Where an address lies: in which variable, at which element of how many. ``live``: the memory is allocated."""

    name: str | None = None
    element: int | None = None
    count: int = 0
    live: bool = True


def locate(launch: Launch, address: int) -> Place:
    """Return the shared, constant or device variable, or the argument, at ``address`` or nearest to it."""
    image = launch.kernel.image
    offset = runtime.library().emu_shared_offset(address)
    if offset != abi.NOWHERE:
        before = [variable for variable in image.shared if variable.offset <= offset]
        if offset < abi.DYNAMIC_ROOM:
            own = [variable for variable in before if variable.owner.decode() == launch.kernel.name] or before
            size = own[0].element if own else 1
            name = own[0].name.decode() if own else "dynamic shared memory"
            return Place(name, offset // size, launch.shared // size)
        best = max(before, key=lambda variable: variable.offset)
        return Place(best.name.decode(), (offset - best.offset) // best.element, best.size // best.element)
    for name, variable in image.variables.items():
        end = variable.address + variable.size + variable.size % 64 + 256  # with the gap that emulator.h leaves
        if variable.address <= address < end:
            return Place(name, (address - variable.address) // variable.element, variable.size // variable.element)
    nearest, distance = Place(), NEAR
    for pointer in launch.pointers():
        start, element = pointer.address, pointer.element
        begin, size = runtime.allocation(start) or (start, 0)
        live = begin <= start < begin + size
        if not live:
            begin, size = start, 0
        away = max(begin - address, address - (begin + size) + 1, 0)
        if away < distance:
            nearest = Place(pointer.name, (address - start) // element, (begin + size - start) // element, live)
            distance = away
    return nearest


def access_finding(launch: Launch, error: abi.Error) -> Finding:
    """Return the finding for a refused access, with the variable and the element."""
    thread, block = tuple(error.thread), tuple(error.block)
    place = launch.kernel.image.line(error.pc)
    found = locate(launch, error.address)
    name = found.name
    at = f"{place[0]}:{place[1]}: " if place else ""
    does = "writes" if error.write else "reads"
    subject = f"{at}kernel {launch.kernel.title}: {_thread_of_block(thread, block)} {does} "
    if error.kind == abi.MISALIGNED:
        what = f"{error.bytes} bytes at once at {name}[{found.element}]" if name else f"{error.bytes} bytes at once"
        what += f", an address that is not a multiple of {error.bytes}"
    elif name is None:
        what = f"address 0x{error.address:x}, which is not device memory"
    elif not found.live:
        what = f"{name}[{found.element}], but {name} is not live device memory (null, freed, or the host's)"
    else:
        what = f"{name}[{found.element}], but {name} has {found.count} elements"
    file, line = place or (None, None)
    kind = "misaligned" if error.kind == abi.MISALIGNED else "out-of-bounds"
    return Finding(kind, launch.kernel.name, name, found.element, thread, block, line, file, subject + what)


def _index(linear: int, size: Index) -> Index:
    return (linear % size[0], linear // size[0] % size[1], linear // size[0] // size[1])


class _Report:
    """A report of the runtime, with its threads, blocks and lines looked up."""

    def __init__(self, launch: Launch, report: abi.Report):
        self.launch, self.report = launch, report
        self.thread, self.block = _index(report.thread, launch.block), _index(report.block, launch.grid)
        self.other = _index(report.other_thread, launch.block)
        self.other_block = _index(report.other_block, launch.grid)
        image = launch.kernel.image
        self.source: str | None
        self.line: int | None
        self.other_source: str | None
        self.other_line: int | None
        self.source, self.line = image.line(report.pc) or (None, None)
        self.other_source, self.other_line = image.line(report.other_pc) or (None, None)
        at = f"{self.source}:{self.line}: " if self.source else ""
        self.start = f"{at}kernel {launch.kernel.title}: {_thread_of_block(self.thread, self.block)}"
        same_file = self.other_source in (self.source, None)
        self.there = f"in line {self.other_line}" if same_file else f"in {self.other_source}:{self.other_line}"
        self.place = Place()
        self.variable = ""

    def locate(self) -> None:
        """Find the variable that the report's address belongs to."""
        self.place = locate(self.launch, self.report.address)
        named = self.place.name is not None
        self.variable = f"{self.place.name}[{self.place.element}]" if named else f"address 0x{self.report.address:x}"

    def finding(self, kind: str, what: str, other_block: Index | None, alone: bool = False) -> Finding:
        """Return the finding of this kind; ``alone``: no second thread takes part."""
        return Finding(
            kind,
            self.launch.kernel.name,
            self.place.name,
            self.place.element,
            self.thread,
            self.block,
            self.line,
            self.source,
            f"{self.start} {what}",
            *(() if alone else (self.other, other_block or self.block, self.other_line)),
        )


def finding_for(launch: Launch, report: abi.Report) -> Finding | None:
    """Return the finding for a report of the runtime; None if its lines show that it is not a bug."""
    found = _Report(launch, report)
    does = "writes" if report.write else "reads"
    did = "wrote" if report.other_write else "read"
    if report.kind == abi.DIVERGENT_BARRIER:
        if report.other_pc and (found.source, found.line) == (found.other_source, found.other_line):
            return None  # one barrier in the source, which the compiler duplicated
        reason = (
            f"thread {found.other} waits at another one {found.there}"
            if report.other_pc
            else f"thread {found.other} has returned and never reaches it"
        )
        return found.finding("divergent-barrier", f"waits at a __syncthreads(), but {reason}", None)
    if report.advice == abi.PRODUCT:
        what = f"{does} a sum of the product that it started {found.there}, but has not waited for"
        return found.finding("missing-wait", what, None)
    found.locate()
    name = found.variable
    if report.kind == abi.UNINITIALISED:
        return found.finding("uninitialised", f"reads {name}, which nothing has written", None, alone=True)
    if report.advice in UNSEEN:
        copies, cure = UNSEEN[report.advice]
        return found.finding(
            "race", f"starts {copies} {name}, which thread {found.other} wrote {found.there}: {cure}", None
        )
    if report.kind == abi.MISSING_WAIT:
        operation = "asynchronous copy" if report.other_write else "bulk store or product"
        started = f"the {operation} that thread {found.other} started {found.there}"
        what = f"{does} {name}, but {started} has not been waited for"
        return found.finding("missing-wait", what, None)
    if found.other_block != found.block:
        reason = f"thread {found.other} of block {found.other_block} {did} {found.there}: blocks run in any order"
        if report.advice == abi.DEVICE_FENCE:
            reason += (
                ", and an atomic passes on only what lies before a __threadfence(), made by the thread that "
                "wrote or by one that it has met at a barrier"
            )
    elif found.thread == found.other:
        reason = (
            f"an asynchronous copy that the same thread started {found.there} {did}: it has not waited for that one"
        )
    elif report.thread // 32 == report.other_thread // 32:
        reason = (
            f"thread {found.other} of the same warp {did} {found.there}: only __syncwarp() or __syncthreads() "
            "keeps the lanes of a warp in step"
        )
    else:
        reason = f"thread {found.other} of the same block {did} {found.there}: {ADVICE[report.advice]}"
    return found.finding("race", f"{does} {name}, which {reason}", found.other_block)
