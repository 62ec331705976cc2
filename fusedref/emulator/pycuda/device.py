"""The emulated device, its one context, its streams and its events."""

from __future__ import annotations

import enum
import time

from .. import runtime
from ..errors import LogicError
from ..limits import (
    COMPUTE_CAPABILITY,
    CONSTANT_MEMORY,
    MAX_BLOCK,
    MAX_GRID,
    MAX_THREADS_PER_BLOCK,
    SHARED_DEFAULT,
    SHARED_OPT_IN,
    workers,
)


class device_attribute(enum.IntEnum):
    """The attributes of a device that have a meaning on the emulator."""

    MAX_THREADS_PER_BLOCK = 1
    MAX_BLOCK_DIM_X = 2
    MAX_BLOCK_DIM_Y = 3
    MAX_BLOCK_DIM_Z = 4
    MAX_GRID_DIM_X = 5
    MAX_GRID_DIM_Y = 6
    MAX_GRID_DIM_Z = 7
    MAX_SHARED_MEMORY_PER_BLOCK = 8
    TOTAL_CONSTANT_MEMORY = 9
    WARP_SIZE = 10
    MULTIPROCESSOR_COUNT = 16
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


_DEVICE_ATTRIBUTES = {
    device_attribute.MAX_THREADS_PER_BLOCK: MAX_THREADS_PER_BLOCK,
    device_attribute.MAX_BLOCK_DIM_X: MAX_BLOCK[0],
    device_attribute.MAX_BLOCK_DIM_Y: MAX_BLOCK[1],
    device_attribute.MAX_BLOCK_DIM_Z: MAX_BLOCK[2],
    device_attribute.MAX_GRID_DIM_X: MAX_GRID[0],
    device_attribute.MAX_GRID_DIM_Y: MAX_GRID[1],
    device_attribute.MAX_GRID_DIM_Z: MAX_GRID[2],
    device_attribute.MAX_SHARED_MEMORY_PER_BLOCK: SHARED_DEFAULT,
    device_attribute.TOTAL_CONSTANT_MEMORY: CONSTANT_MEMORY,
    device_attribute.WARP_SIZE: 32,
    device_attribute.COMPUTE_CAPABILITY_MAJOR: COMPUTE_CAPABILITY[0],
    device_attribute.COMPUTE_CAPABILITY_MINOR: COMPUTE_CAPABILITY[1],
    device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: SHARED_OPT_IN,
}


class Device:
    """The emulated device, number 0.

    Raises:
        LogicError: ``number`` is not 0.
    """

    def __init__(self, number: int = 0):
        if number != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    @staticmethod
    def count() -> int:
        """Return the number of devices: 1."""
        return 1

    def name(self) -> str:
        """Return the device's name."""
        return "fusedref emulator"

    def compute_capability(self) -> tuple[int, int]:
        """Return (major, minor)."""
        return COMPUTE_CAPABILITY

    def total_memory(self) -> int:
        """Return the bytes of device memory."""
        return runtime.memory_bytes()

    def get_attribute(self, attribute: device_attribute) -> int:
        """Return the value of an attribute."""
        if attribute == device_attribute.MULTIPROCESSOR_COUNT:
            return workers()
        return _DEVICE_ATTRIBUTES[attribute]

    def get_attributes(self) -> dict[device_attribute, int]:
        """Return the values of all attributes."""
        return {attribute: self.get_attribute(attribute) for attribute in device_attribute}

    def __getattr__(self, name: str) -> int:
        try:
            return self.get_attribute(device_attribute[name.upper()])
        except KeyError:
            raise AttributeError(name) from None


class Context:
    """The one context. A launch is over when it returns, so there is nothing to wait for."""

    @staticmethod
    def synchronize() -> None:
        """Return at once: all launches are over."""

    @staticmethod
    def get_device() -> Device:
        """Return the device."""
        return Device(0)


def init(flags: int = 0) -> None:
    """Do nothing: the emulator needs no initialisation."""


def get_version() -> tuple[int, int, int]:
    """Return the version of CUDA that the emulator follows."""
    return (13, 0, 0)


def get_driver_version() -> int:
    """Return the version as one number: 1000 times the major version."""
    return 13000


class Stream:
    """A stream. Its work is done at once, which is a valid order for any stream."""

    def __init__(self, flags: int = 0):
        self.handle = 0

    def synchronize(self) -> None:
        """Return at once: the stream's work is done."""

    def is_done(self) -> bool:
        """Return True."""
        return True

    def wait_for_event(self, event: Event) -> None:
        """Return at once: the event has happened."""


class Event:
    """A point in time. The time between two events is the emulator's and says nothing about a card."""

    def __init__(self, flags: int = 0):
        self._moment: float | None = None

    def record(self, stream: Stream | None = None) -> Event:
        """Set the event to the current time."""
        self._moment = time.perf_counter()
        return self

    def synchronize(self) -> Event:
        """Return at once: the event has happened."""
        return self

    def query(self) -> bool:
        """Return True."""
        return True

    def time_since(self, event: Event) -> float:
        """Return the milliseconds from ``event`` to this one.

        Raises:
            LogicError: one of the two was not recorded.
        """
        if self._moment is None or event._moment is None:
            raise LogicError("cuEventElapsedTime failed: invalid resource handle")
        return (self._moment - event._moment) * 1e3

    def time_till(self, event: Event) -> float:
        """Return the milliseconds from this event to ``event``."""
        return event.time_since(self)
