"""One launch: run it, and turn what stopped it into a Python error that names what the reader knows."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import abi, runtime, watching
from .findings import Finding

if TYPE_CHECKING:
    from .driver import Function

SIGNALS = {
    4: "an illegal instruction",
    5: "a trap",
    7: "a bad address",
    8: "an integer division by zero",
    10: "a bad address",
    11: "a bad address",
}
NEAR = 1 << 30  # farther from every array than this, an address is nobody's


def launch(function: Function, arguments: bytes, grid: tuple, block: tuple, shared: int, workers: int) -> None:
    """Run the kernel, watched if somebody wants that. Raises what ``Function.__call__`` says."""
    if watching.wanted(function):
        watching.launch(function, arguments, grid, block, shared)
        return
    blocks = grid[0] * grid[1] * grid[2]
    error = runtime.launch(
        function._kernel, function._module._native, arguments, grid, block, shared, min(workers, blocks, 64)
    )
    watching.unwatched_wrote(function, arguments)
    if error:
        raise explain(function, arguments, error, shared)


def position(thread: tuple, block: tuple) -> str:
    return f"thread ({thread[0]}, {thread[1]}, {thread[2]}) of block ({block[0]}, {block[1]}, {block[2]})"


def explain(function: Function, arguments: bytes, error: abi.Error, shared: int) -> Exception:
    """The exception for what stopped a launch."""
    from . import driver

    thread, block = tuple(error.thread), tuple(error.block)
    place = function._module._line(error.pc)
    at = f" ({place[0]}:{place[1]})" if place else ""
    who = position(thread, block)
    text = error.text.decode("utf-8", "replace")
    if error.kind in (abi.OUT_OF_BOUNDS, abi.MISALIGNED):
        finding = access_finding(function, arguments, error, shared)
        return driver.MemoryAccessError(finding)
    if error.kind == abi.DEADLOCK:
        return driver.DeadlockError(
            f"kernel {function.name}{at}: block {block} waits for ever: {text}. A card would hang here."
        )
    if error.kind == abi.SPINNING:
        return driver.DeadlockError(
            f"kernel {function.name}{at}: {who} looks again and again for what no block that "
            f"runs will write; {text}. A card may run all blocks at the same time, the "
            "emulator runs no more than one a processor core, and one when it watches."
        )
    if error.kind == abi.MISUSE:
        return driver.LaunchError(f"kernel {function.name}{at}: {text}, in {who}")
    if error.kind == abi.STACK_OVERFLOW:
        return driver.LaunchError(
            f"kernel {function.name}{at}: the stack overflowed in {who}: too deep a recursion, "
            "or local arrays that are too large"
        )
    if error.kind == abi.FAULT:
        what = SIGNALS.get(error.bytes, f"signal {error.bytes}")
        return driver.LaunchError(f"kernel {function.name}{at}: {what} in {who}")
    if error.kind == abi.ASSERTION:
        return driver.LogicError(f"cuLaunchKernel failed: device-side assert triggered - {text}")
    if error.kind == abi.TRAP:
        return driver.LaunchError(f"cuLaunchKernel failed: unspecified launch failure - __trap(){at} in {who}")
    return driver.MemoryError(f"kernel {function.name}: {text or 'no memory left to run it'}")


def pointer_arguments(function: Function, arguments: bytes) -> list[tuple[str, int, int]]:
    """(name, address, element size) of the pointers among a launch's arguments."""
    found = []
    for name, parameter in zip(function.parameter_names, function.parameters):
        if parameter.pointer:
            found.append((name, struct.unpack_from("P", arguments, parameter.offset)[0], max(parameter.element, 1)))
    return found


@dataclass(frozen=True)
class Place:
    """Where an address lies: in which variable, at which element of how many. ``live``: it is memory of the device."""

    name: str | None = None
    element: int | None = None
    count: int = 0
    live: bool = True


def locate(function: Function, arguments: bytes, address: int, shared: int) -> Place:
    """The shared, constant or device variable, or the argument, at ``address`` or nearest to it."""
    module = function._module
    offset = runtime.library().emu_shared_offset(address)
    if offset != abi.NOWHERE:
        variables = [v for v in module._shared if v.offset <= offset]
        if offset < abi.DYNAMIC_ROOM:
            own = [v for v in variables if v.owner.decode() == function.name] or variables
            size = own[0].element if own else 1
            return Place(own[0].name.decode() if own else "dynamic shared memory", offset // size, shared // size)
        best = max(variables, key=lambda v: v.offset)
        return Place(best.name.decode(), (offset - best.offset) // best.element, best.size // best.element)
    for name, (begin, size, element) in module._variables.items():
        if begin <= address < begin + size + size % 64 + 256:
            return Place(name, (address - begin) // element, size // element)
    nearest, distance = Place(), NEAR
    for name, start, element in pointer_arguments(function, arguments):
        begin, size = runtime.allocation(start) or (start, 0)
        live = begin <= start < begin + size
        if not live:
            begin, size = start, 0
        away = max(begin - address, address - (begin + size) + 1, 0)
        if away < distance:
            nearest = Place(name, (address - start) // element, (begin + size - start) // element, live)
            distance = away
    return nearest


def access_finding(function: Function, arguments: bytes, error: abi.Error, shared: int) -> Finding:
    """What a refused access was, to the variable and element."""
    thread, block = tuple(error.thread), tuple(error.block)
    place = function._module._line(error.pc)
    found = locate(function, arguments, error.address, shared)
    name = found.name
    does = "writes" if error.write else "reads"
    who = position(thread, block)
    at = f"{place[0]}:{place[1]}: " if place else ""
    subject = f"{at}kernel {function.name}: {who} {does} "
    if error.kind == abi.MISALIGNED:
        what = f"{error.bytes} bytes at once at {name}[{found.element}]" if name else f"{error.bytes} bytes at once"
        what += f", an address that is not a multiple of {error.bytes}"
    elif name is None:
        what = f"address 0x{error.address:x}, which is no memory of the device"
    elif not found.live:
        what = f"{name}[{found.element}], but {name} is no live memory of the device (null, freed, or the host's)"
    else:
        what = f"{name}[{found.element}], but {name} has {found.count} elements"
    file, line = place or (None, None)
    kind = "misaligned" if error.kind == abi.MISALIGNED else "out-of-bounds"
    return Finding(kind, function.name, name, found.element, thread, block, line, file, subject + what)
