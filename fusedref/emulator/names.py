"""Convert the linker's names to those of the source."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def _demangler() -> ctypes._NamedFuncPointer | None:
    """Return ``__cxa_demangle`` of the C++ library, or None if there is none."""
    for library in (None, "libstdc++.so.6", "libc++abi.so.1", "libc++.1.dylib"):
        try:
            function = ctypes.CDLL(library).__cxa_demangle
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
        return function
    return None


def demangled(symbol: str) -> str:
    """Return the C++ name of a linker's symbol: ``twice(float*, int)`` for ``_Z5twicePfi``. Others are unchanged."""
    function = _demangler() if symbol.startswith("_Z") else None
    if function is None:
        return symbol
    text = function(symbol.encode(), None, None, ctypes.byref(ctypes.c_int()))
    if not text:
        return symbol
    result = ctypes.string_at(text).decode()
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    free(text)
    return result


def function_name(symbol: str) -> str:
    """Return a function's name without its result and parameters: ``twice<float>`` for ``_Z5twiceIfEvPT_i``."""
    signature = demangled(symbol)
    depth, end = 0, len(signature)
    for index in range(len(signature) - 1, -1, -1):  # the last brackets at depth 0 hold the parameters
        depth += (signature[index] in ")>") - (signature[index] in "(<")
        if signature[index] == "(" and depth == 0:
            end = index
            break
    depth = 0
    for index in range(end - 1, -1, -1):
        depth += (signature[index] in ")>") - (signature[index] in "(<")
        if signature[index] == " " and depth == 0:
            return signature[index + 1 : end]
    return signature[:end]
