"""The text of the package's kernels with their headers inlined, so that a test can plant a bug anywhere in it."""

import re
from pathlib import Path

from fusedref.csrc import COMMON, INFERENCE, TRAINING


def inlined(path: Path) -> str:
    """Return the text of a .cu with the package's headers in place of their #includes, each header once.

    ptx.cuh stays an #include: the emulator has its own.
    """
    seen = {"ptx.cuh"}

    def text_of(file: Path) -> str:
        text = file.read_text().replace("#pragma once\n", "")
        return re.sub(r'^#include "([\w.]+)"\n', header, text, flags=re.MULTILINE)

    def header(include: re.Match[str]) -> str:
        name = include[1]
        if name in seen:
            return include[0] if name == "ptx.cuh" else ""
        seen.add(name)
        (file,) = (folder / name for folder in (COMMON, INFERENCE, TRAINING) if (folder / name).exists())
        return text_of(file)

    return text_of(path)
