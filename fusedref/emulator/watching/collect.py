"""``watch()``, its results, and the device memory that watched kernels have to write."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .. import abi, runtime
from ..errors import FindingError, MemoryAccessError
from ..findings import Finding
from .counters import KernelCounters, Sample
from .render import as_html, as_text


@dataclass(repr=False, eq=False)
class WatchResult:
    """What a ``watch()`` saw. ``findings`` are in the order of the launches; ``counters`` are by kernel name."""

    findings: list[Finding] = field(default_factory=list)
    counters: dict[str, KernelCounters] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        return as_text(self.findings, self.counters)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self.findings, self.counters, self.samples, self.sources)


class _Thread(threading.local):
    """The watches that are open in this thread, the innermost last."""

    def __init__(self) -> None:
        self.watches: list[WatchResult] = []


_thread = _Thread()


@contextmanager
def watch(seed: int = 0) -> Iterator[WatchResult]:
    """Watch every launch of this thread inside the block; collect findings instead of raising them.

    With a ``seed`` other than 0 the threads of each block run in a random order that the seed decides: a result that
    changes with it shows a bug.

    Raises:
        ValueError: ``seed`` is negative or not an int.
    """
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}")
    result = WatchResult(seed=seed)
    _thread.watches.append(result)
    try:
        yield result
        for address in _expected.addresses(result):
            _check_written(address)
    finally:
        _expected.forget(result)  # after an exception, unwritten memory is not a fault
        _thread.watches.remove(result)


def current_watch() -> WatchResult | None:
    """Return the innermost ``watch()`` that is open in this thread."""
    return _thread.watches[-1] if _thread.watches else None


def deliver(findings: list[Finding], to: WatchResult | None) -> None:
    """Add the findings to a watch; without one, raise them.

    Raises:
        FindingError: ``to`` is None, and there are findings.
    """
    if not findings:
        return
    if to is not None:
        to.findings.extend(findings)
        return
    if findings[0].kind in ("out-of-bounds", "misaligned"):
        raise MemoryAccessError(findings[0])
    raise FindingError(findings)


# ------------------------------------------------------------------------------------------ memory that must be written


@dataclass(frozen=True)
class _Expected:
    """An allocation that a watched kernel was given to write."""

    kernel: str
    argument: str
    element: int  # bytes
    owner: WatchResult | None  # the watch that gets the finding


class _ExpectedWrites:
    """The allocations to be written, by address, for all threads: any of them may copy or free the memory."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer that frees memory may run while this thread holds it
        self._by_address: dict[int, _Expected] = {}

    def __bool__(self) -> bool:
        return bool(self._by_address)

    def add(self, address: int, expected: _Expected) -> None:
        """Expect writes at ``address``, unless they are expected already."""
        with self._lock:
            self._by_address.setdefault(address, expected)

    def take(self, address: int) -> _Expected | None:
        """Remove and return what is expected at ``address``."""
        with self._lock:
            return self._by_address.pop(address, None)

    def addresses(self, owner: WatchResult) -> list[int]:
        """Return the addresses that ``owner`` expects writes at."""
        with self._lock:
            return [address for address, expected in self._by_address.items() if expected.owner is owner]

    def forget(self, owner: WatchResult) -> None:
        """Remove what ``owner`` expects."""
        for address in self.addresses(owner):
            self.take(address)


_expected = _ExpectedWrites()


def expect_write(address: int, kernel: str, argument: str, element: int, owner: WatchResult | None) -> None:
    """Note that a watched kernel got the allocation at ``address``: it must be written before it leaves the device."""
    _expected.add(address, _Expected(kernel, argument, element, owner))


def expect_nothing(address: int) -> None:
    """Forget the allocation at ``address``: a kernel that writes it was stopped half way."""
    _expected.take(address)


def leaves_device(address: int) -> None:
    """Check that the allocation that holds ``address`` was written, before it is copied to the host or freed.

    Raises:
        FindingError: it was not, and no ``watch()`` collects the finding.
    """
    home = runtime.allocation(address) if _expected else None
    if home:
        _check_written(home[0])


def written(address: int, size: int) -> None:
    """Note that device memory was written by the host or by a launch that was not watched."""
    runtime.library().emu_mark(address, size)


def _check_written(address: int) -> None:
    """Deliver an "unwritten" finding if watched kernels have written the allocation only in part."""
    expected = _expected.take(address)
    home = runtime.allocation(address)
    if expected is None or not home or home[0] != address:
        return
    missing = ctypes.c_uint64()
    first = runtime.library().emu_unwritten(address, home[1], ctypes.byref(missing))
    if first == abi.NOWHERE:
        return
    kernel, name, element = expected.kernel, expected.argument, expected.element
    index, lacking, size = (first - address) // element, -(-missing.value // element), home[1] // element
    others = f"nor were {lacking - 1} more" if lacking > 1 else "alone"
    message = f"kernel {kernel}: {name}[{index}] was never written, {others} of {name}'s {size} elements"
    deliver(
        [Finding("unwritten", kernel, name, index, None, None, None, None, message)], expected.owner or current_watch()
    )
