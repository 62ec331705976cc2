"""Find the source file and line of an address in a kernel library, by the library's DWARF tables."""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .compile.build import INCLUDE

HEADERS = str(INCLUDE)


@dataclass(frozen=True)
class _Inlined:
    """A range of addresses that a call was inlined into, and the place of the call."""

    low: int
    high: int
    depth: int
    file: str
    line: int


class Lines:
    """The line tables of one kernel library.

    An access that a header of the emulator makes for a kernel (a vector load, a shuffle, an atomic) belongs to the
    line that called it: the chain of inlined calls is followed outwards to the first one outside those headers.
    """

    def __init__(self, path: str):
        from elftools.elf.elffile import ELFFile  # imported here because most launches need no line

        self.rows: list[tuple[int, str, int]] = []  # (address, file, line)
        self.inlined: list[_Inlined] = []
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            if elf.has_dwarf_info():
                dwarf = elf.get_dwarf_info()
                for unit in dwarf.iter_CUs():
                    self._read(dwarf, unit)
        self.rows.sort(key=lambda row: row[0])
        self.addresses = [row[0] for row in self.rows]

    def _read(self, dwarf: Any, unit: Any) -> None:
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            return
        files = _files(program)
        for entry in program.get_entries():
            state = entry.state
            if state is not None:
                end = state.end_sequence
                self.rows.append((state.address, "" if end else files.get(state.file, ""), 0 if end else state.line))
        top = unit.get_top_DIE()
        base = top.attributes.get("DW_AT_low_pc")
        self._walk(top, files, _Ranges(dwarf, unit, base.value if base else 0), 0)

    def _walk(self, die: Any, files: dict[int, str], ranges: _Ranges, depth: int) -> None:
        for child in die.iter_children():
            below = depth
            if child.tag == "DW_TAG_inlined_subroutine":
                below += 1
                attributes = child.attributes
                if "DW_AT_call_line" in attributes:
                    file = files.get(attributes["DW_AT_call_file"].value, "") if "DW_AT_call_file" in attributes else ""
                    line = attributes["DW_AT_call_line"].value
                    self.inlined += [_Inlined(low, high, below, file, line) for low, high in ranges.of(child)]
            self._walk(child, files, ranges, below)

    def find(self, offset: int) -> tuple[str, int] | None:
        """Return (file, line) of the instruction before ``offset``, counted from the library's start."""
        at = bisect.bisect_right(self.addresses, offset - 1) - 1
        if at < 0:
            return None
        _, file, line = self.rows[at]
        if not line and file:
            file, line = self._neighbour(at)
        if _is_header(file):
            around = sorted(
                (call for call in self.inlined if call.low <= offset - 1 < call.high), key=lambda c: -c.depth
            )
            for call in around:
                file, line = call.file, call.line
                if not _is_header(file):
                    break
        return (file, line) if line else None

    def _neighbour(self, at: int) -> tuple[str, int]:
        """Return the (file, line) nearest to an instruction without a line of its own, which clang produces."""
        nothing = (0, "", 0)
        near = next((row for row in self.rows[at::-1] if row[2] or not row[1]), nothing)
        if _is_header(near[1]):
            near = next((row for row in self.rows[at:] if row[2] or not row[1]), near)
        return near[1], near[2]


def _is_header(file: str) -> bool:
    """Return whether a file is one of the emulator's headers. Code without a file counts as such."""
    return file.startswith(HEADERS) or not file


def _files(program: Any) -> dict[int, str]:
    """Return the file names of a line program by their numbers."""
    header = program.header
    version = header.version
    if version >= 5:
        directories = [directory.DW_LNCT_path.decode() for directory in header.directories]
    else:
        directories = [
            entry.decode() if isinstance(entry, bytes) else entry.dir_name.decode()
            for entry in header.include_directory
        ]
    files = {}
    for i, entry in enumerate(header.file_entry):
        name = entry.name.decode()
        index = entry.dir_index if version >= 5 else entry.dir_index - 1
        directory = directories[index] if 0 <= index < len(directories) else ""
        # A name from a line marker stays as it was written; only headers get their folder.
        full = os.path.normpath(os.path.join(directory, name))
        files[i if version >= 5 else i + 1] = full if _is_header(full) else name
    return files


class _Ranges:
    """The address ranges of the entries of one compilation unit."""

    def __init__(self, dwarf: Any, unit: Any, base: int):
        self._lists, self._unit, self._base = dwarf.range_lists(), unit, base

    def of(self, die: Any) -> list[tuple[int, int]]:
        """Return (low, high) of each range of an entry."""
        attributes = die.attributes
        if "DW_AT_low_pc" in attributes and "DW_AT_high_pc" in attributes:
            low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
            return [(low, high.value if high.form == "DW_FORM_addr" else low + high.value)]
        if "DW_AT_ranges" not in attributes or self._lists is None:
            return []
        found, base = [], self._base
        for entry in self._lists.get_range_list_at_offset(attributes["DW_AT_ranges"].value, cu=self._unit):
            if hasattr(entry, "base_address"):
                base = entry.base_address
            elif getattr(entry, "is_absolute", False):
                found.append((entry.begin_offset, entry.end_offset))
            else:
                found.append((base + entry.begin_offset, base + entry.end_offset))
        return found


@lru_cache(maxsize=8)
def lines(path: str) -> Lines:
    """Return the line tables of the library at ``path``; keep the last few in memory."""
    return Lines(path)
