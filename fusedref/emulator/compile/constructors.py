"""Delay a library's constructors: the runtime runs them after loading, when they can be interrupted."""

from __future__ import annotations

import struct
from pathlib import Path

_HELD = b".init_array\0"
_RENAMED = b"emu_startup\0"  # a C identifier: the linker defines symbols for the ends of such a section
_PROGBITS = 1


def hold_constructors(path: Path) -> None:
    """Rename an object file's ``.init_array`` to ``emu_startup``, a section of plain data. Only ELF files have one."""
    data = bytearray(path.read_bytes())
    if data[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [table + size * i for i in range(count)]
    (names,) = struct.unpack_from("<Q", data, headers[names_index] + 24)
    held = []
    for header in headers:
        name = names + struct.unpack_from("<I", data, header)[0]
        if data[name : name + len(_HELD)] == _HELD:
            held.append(name)
            struct.pack_into("<I", data, header + 4, _PROGBITS)
    for name in held:
        data[name : name + len(_RENAMED)] = _RENAMED
    path.write_bytes(data)
