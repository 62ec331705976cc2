"""Refuse calls of host functions: ``exit`` would end the process that runs the emulator."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ..names import demangled, function_name

MATHEMATICS = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "copysign",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "exp",
    "exp10",
    "exp2",
    "expm1",
    "fabs",
    "fdim",
    "floor",
    "fma",
    "fmax",
    "fmin",
    "fmod",
    "frexp",
    "hypot",
    "ilogb",
    "j0",
    "j1",
    "jn",
    "ldexp",
    "lgamma",
    "llrint",
    "llround",
    "log",
    "log10",
    "log1p",
    "log2",
    "logb",
    "lrint",
    "lround",
    "modf",
    "nearbyint",
    "nextafter",
    "pow",
    "remainder",
    "remquo",
    "rint",
    "round",
    "scalbln",
    "scalbn",
    "sin",
    "sincos",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "tgamma",
    "trunc",
    "y0",
    "y1",
    "yn",
]
ALLOWED = re.compile(
    "|".join(
        [
            r"emu_\w+|_ZN3emu\w+|__st(?:art|op)_emu_startup",  # the emulator's runtime
            r"__tsan_\w+|__sanitizer_cov_\w+",  # how the runtime sees accesses and branches
            rf"(?:{'|'.join(MATHEMATICS)})[fl]?",
            r"__(?:isnan|isinf|finite|signbit|fpclassify)[fl]?",
            r"mem(?:cpy|move|set|cmp)|malloc|free|_Zn[wa]m\w*|_Zd[la]Pv\w*",  # CUDA has these in device code too
            r"_GLOBAL_OFFSET_TABLE_|_DYNAMIC|__tls_get_addr|__dso_handle|__cxa_\w+|__gxx_personality_v0|_Unwind_Resume",
            r"__zig\w+|__\w+[sdtx][ifc]\d?|__\w+[sdtx]i[sdtx]f\d?",  # the compiler's own: 128-bit division ...
        ]
    )
)


def unresolved(path: Path) -> dict[str, str]:
    """Return name -> error message, for each function that an object file calls and a kernel must not.

    Only ELF files are checked.
    """
    with path.open("rb") as file:
        try:
            sections = list(ELFFile(file).iter_sections())
        except ELFError:
            return {}
        needed = {
            symbol.name
            for section in sections
            if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols()
            if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name
        }
    return {function_name(symbol): _problem(symbol) for symbol in sorted(needed) if not ALLOWED.fullmatch(symbol)}


def _problem(symbol: str) -> str:
    if symbol.startswith(("_ZSt", "_ZNSt")) or hasattr(ctypes.CDLL(None), symbol):
        return f'calling a __host__ function("{demangled(symbol)}") from device code is not allowed'
    return f'"{demangled(symbol)}" is declared and called, but defined nowhere'
