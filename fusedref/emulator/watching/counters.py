"""Count memory accesses: requests, sectors, bytes and bank conflicts, by kernel and by line."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import abi

SECTOR = 32  # bytes: the unit of transfer between memory and caches


@dataclass
class Counters:
    """Totals of the memory accesses of a kernel, or of one of its lines.

    A request is one load or store of a warp; a sector is 32 bytes. ``bytes_moved`` is 32 times the sectors,
    ``bytes_used`` what the lanes accessed in them. A bank conflict is an extra pass of a request to shared memory,
    because two lanes access different words of the same bank.

    ``cp.async`` counts as a global load; its writes to shared memory do not count as stores. A bulk copy is not a
    request of a warp: its bytes, global to shared or back, are ``bulk_bytes``, and are part of the bytes moved and
    used. Operations on an mbarrier are not counted.
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
        """Return the bytes of the sectors that loads moved."""
        return SECTOR * self.global_load_sectors

    @property
    def global_store_bytes_moved(self) -> int:
        """Return the bytes of the sectors that stores moved."""
        return SECTOR * self.global_store_sectors

    @property
    def bytes_moved(self) -> int:
        """Return the bytes that crossed the bus of global memory."""
        return self.global_load_bytes_moved + self.global_store_bytes_moved + self.bulk_bytes

    @property
    def bytes_used(self) -> int:
        """Return the bytes that threads read or wrote in global memory."""
        return self.global_load_bytes_used + self.global_store_bytes_used + self.bulk_bytes

    @property
    def bank_conflicts(self) -> int:
        """Return the bank conflicts of loads and stores."""
        return self.shared_load_bank_conflicts + self.shared_store_bank_conflicts

    def add(self, site: abi.Site) -> None:
        """Count one load, store or copy of the code."""
        self.bulk_bytes += site.copied
        if site.atomic:
            self.atomic_requests += site.requests
        elif site.space == abi.GLOBAL:
            kind = "store" if site.write else "load"
            self._increase(f"global_{kind}_requests", site.requests)
            self._increase(f"global_{kind}_sectors", site.sectors)
            self._increase(f"global_{kind}_bytes_used", site.used)
        elif site.space == abi.SHARED:
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
    """The first request that a line made: for each lane that took part, what it accessed."""

    kernel: str
    source: str
    line: int
    space: int
    write: bool
    width: int
    offsets: dict[int, int]  # lane -> address, counted from any multiple of 128
