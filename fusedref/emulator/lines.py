"""From an address in a compiled kernel to the file and line of the .cu, by the library's DWARF tables."""

from __future__ import annotations

import bisect
import os
from functools import lru_cache

from .compile.build import INCLUDE

HEADERS = str(INCLUDE)


class Lines:
    """The line tables of one compiled kernel library.

    An access that a header of the emulator makes for a kernel (a vector load, a shuffle, an atomic) belongs to the
    line that called it: the chain of inlined calls is followed outwards to the first one outside those headers.
    """

    def __init__(self, path: str):
        from elftools.elf.elffile import ELFFile

        self.rows: list[tuple[int, str, int]] = []
        self.inlined: list[tuple[int, int, int, str, int]] = []  # (low, high, depth, caller's file, caller's line)
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            if not elf.has_dwarf_info():
                return
            dwarf = elf.get_dwarf_info()
            for unit in dwarf.iter_CUs():
                program = dwarf.line_program_for_CU(unit)
                if program is None:
                    continue
                files = _files(program)
                for entry in program.get_entries():
                    if entry.state is not None:
                        state = entry.state
                        file = "" if state.end_sequence else files.get(state.file, "")
                        self.rows.append((state.address, file, 0 if state.end_sequence else state.line))
                ranges = dwarf.range_lists()
                base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
                self._walk(unit.get_top_DIE(), files, dwarf, unit, ranges, base.value if base else 0, 0)
        self.rows.sort(key=lambda row: row[0])
        self.addresses = [row[0] for row in self.rows]

    def _walk(
        self, die: object, files: dict, dwarf: object, unit: object, ranges: object, base: int, depth: int
    ) -> None:
        for child in die.iter_children():
            below = depth
            if child.tag == "DW_TAG_inlined_subroutine":
                below += 1
                attributes = child.attributes
                if "DW_AT_call_line" in attributes:
                    file = files.get(attributes["DW_AT_call_file"].value, "") if "DW_AT_call_file" in attributes else ""
                    line = attributes["DW_AT_call_line"].value
                    for low, high in _ranges(child, dwarf, unit, ranges, base):
                        self.inlined.append((low, high, below, file, line))
            self._walk(child, files, dwarf, unit, ranges, base, below)

    def find(self, offset: int) -> tuple[str, int] | None:
        """(file, line) of the instruction before ``offset``, a return address counted from the library's start."""
        at = bisect.bisect_right(self.addresses, offset - 1) - 1
        if at < 0:
            return None
        _, file, line = self.rows[at]
        if not line and file:  # clang gives some instructions no line: they are their neighbours' in the kernel
            before, behind = self.rows[at::-1], self.rows[at:]
            near = next((row for row in before if row[2] or not row[1]), ("", "", 0))
            if _ours(near[1]):
                near = next((row for row in behind if row[2] or not row[1]), near)
            _, file, line = near
        if _ours(file):
            around = sorted((i for i in self.inlined if i[0] <= offset - 1 < i[1]), key=lambda i: -i[2])
            for _, _, _, file, line in around:
                if not _ours(file):
                    break
        return (file, line) if line else None


def _ours(file: str) -> bool:
    return file.startswith(HEADERS) or not file


def _files(program: object) -> dict[int, str]:
    header = program.header
    version = header.version
    directories = [
        d.decode() if isinstance(d, bytes) else d.dir_name.decode() if hasattr(d, "dir_name") else str(d)
        for d in header.include_directory
    ]
    if version >= 5:
        directories = [d.DW_LNCT_path.decode() for d in header.directories]
    files = {}
    for i, entry in enumerate(header.file_entry):
        name = entry.name.decode()
        index = entry.dir_index
        directory = ""
        if version >= 5:
            directory = directories[index] if index < len(directories) else ""
        elif index:
            directory = directories[index - 1]
        # A name from a line marker stays as it was written; only headers get their directory.
        full = name if os.path.isabs(name) else os.path.join(directory, name)
        files[i if version >= 5 else i + 1] = os.path.normpath(full) if _ours(os.path.normpath(full)) else name
    return files


def _ranges(die: object, dwarf: object, unit: object, ranges: object, base: int) -> list[tuple[int, int]]:
    attributes = die.attributes
    if "DW_AT_low_pc" in attributes and "DW_AT_high_pc" in attributes:
        low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
        return [(low, high.value if high.form == "DW_FORM_addr" else low + high.value)]
    if "DW_AT_ranges" not in attributes or ranges is None:
        return []
    found = []
    listed = ranges.get_range_list_at_offset(attributes["DW_AT_ranges"].value, cu=unit)
    for entry in listed:
        if hasattr(entry, "base_address"):
            base = entry.base_address
        elif getattr(entry, "is_absolute", False):
            found.append((entry.begin_offset, entry.end_offset))
        else:
            found.append((base + entry.begin_offset, base + entry.end_offset))
    return found


@lru_cache(maxsize=8)
def lines(path: str) -> Lines:
    """The line tables of the library at ``path``, read once."""
    return Lines(path)
