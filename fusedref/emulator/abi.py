"""The runtime's binary interface: ctypes structures, constants and prototypes, read from the runtime's C headers.

``native/abi.h`` and ``include/emulator_abi.h`` are the only place that declares them. The parser knows the plain C that
these headers use; it raises ``ValueError`` on anything else. A constant of the headers is an attribute of this module:
``abi.OUT_OF_BOUNDS``.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import POINTER, Structure, c_char, c_char_p, c_void_p
from pathlib import Path
from typing import Any, TypeVar

_HERE = Path(__file__).resolve().parent
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRUCTURE = re.compile(r"\bstruct (\w+) \{(.*?)\};", re.DOTALL)
_ENUMERATION = re.compile(r"\benum \w+ \{(.*?)\}", re.DOTALL)
_CONSTANT = re.compile(r"\bstatic const u?int\d+_t (\w+) = ([^;]+);")
_FUNCTION = re.compile(r"\bEMU_EXPORT ([\w:* ]+?[ *])(emu_\w+)\(([^()]*)\);")
_FIELD = re.compile(r"(const )?(\w+)(.*)", re.DOTALL)
_DECLARATOR = re.compile(r"\s*(\**)\s*(\w+)\s*(?:\[(\w+)\])?\s*")
_SCALARS: dict[str, Any] = {
    "char": c_char,
    "int": ctypes.c_int,
    "uintptr_t": ctypes.c_size_t,
    **{f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def _read(*path: str) -> str:
    return _COMMENT.sub("", _HERE.joinpath(*path).read_text())


def _constants(text: str) -> dict[str, int]:
    """Return the values of all enumerators and integer constants."""
    found: dict[str, int] = {}
    for body in _ENUMERATION.findall(text):
        value = -1
        for item in filter(None, map(str.strip, body.split(","))):
            name, _, given = map(str.strip, item.partition("="))
            value = int(given, 0) if given else value + 1
            found[name] = value
    for name, expression in _CONSTANT.findall(text):
        if not re.fullmatch(r"[\d ()<*~]+", expression):
            raise ValueError(f"abi.h: the constant {name} = {expression} is not an expression that abi.py can read")
        found[name] = eval(expression) & 2**64 - 1
    return found


_SHARED = _read("include", "emulator_abi.h")
_OWN = _read("native", "abi.h")
CONSTANTS = _constants(_OWN)
_BODIES: dict[str, str] = dict(_STRUCTURE.findall(_SHARED) + _STRUCTURE.findall(_OWN))
_classes: dict[str, type[Structure]] = {}


def __getattr__(name: str) -> int:
    try:
        return CONSTANTS[name]
    except KeyError:
        raise AttributeError(f"the runtime's headers declare no constant {name}") from None


def _type(base: str, stars: int, constant: bool) -> Any:
    """Return the ctypes type for a C type; a pointer to a structure without a class is ``c_void_p``."""
    base = base.removeprefix("emu::")
    if not stars:
        return None if base == "void" else _SCALARS.get(base) or _classes[base]
    if base == "char" and constant and stars == 1:
        return c_char_p
    target = _SCALARS.get(base) if base != "char" else None
    target = target or _classes.get(base)
    if target is None:
        return c_void_p
    return POINTER(target) if stars == 1 else POINTER(c_void_p)


def _fields(body: str) -> list[tuple[str, Any]]:
    """Return the fields of a structure in the form of ``Structure._fields_``."""
    fields: list[tuple[str, Any]] = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        if function := re.search(r"\(\*(\w+)\)\(", declaration):  # a pointer to a function
            fields.append((function[1], c_void_p))
            continue
        match = _FIELD.fullmatch(declaration)
        if match is None:
            raise ValueError(f"abi.h: cannot read the field {declaration!r}")
        for declarator in match[3].split(","):
            parts = _DECLARATOR.fullmatch(declarator)
            if parts is None:
                raise ValueError(f"abi.h: cannot read the field {declaration!r}")
            kind = _type(match[2], len(parts[1]), bool(match[1]))
            length = parts[3] and (int(parts[3]) if parts[3].isdigit() else CONSTANTS[parts[3]])
            fields.append((parts[2], kind * length if length else kind))
    return fields


_S = TypeVar("_S", bound=type[Structure])


def _layout(cls: _S) -> _S:
    """Give a class the fields of the C structure of its name."""
    _classes[cls.__name__] = cls
    cls._fields_ = _fields(_BODIES[cls.__name__])
    return cls


@_layout
class Parameter(Structure):
    """A parameter of a kernel: its offset in the argument buffer and its type."""


@_layout
class Kernel(Structure):
    """A kernel of a loaded module."""


@_layout
class Shared(Structure):
    """A ``__shared__`` variable."""


@_layout
class Variable(Structure):
    """A ``__constant__`` or ``__device__`` variable."""


@_layout
class Module(Structure):
    """A loaded module: the lists of its kernels and variables, and its place in memory."""


@_layout
class Error(Structure):
    """The failure that stopped a launch."""


@_layout
class Outcome(Structure):
    """How a launch ended, and what it printed."""


@_layout
class Report(Structure):
    """One finding of a watched launch."""


@_layout
class Site(Structure):
    """One load or store in a kernel's code, and what it cost."""


def _prototype(result: str, arguments: str) -> tuple[Any, list[Any]]:
    def parse(text: str) -> Any:
        """Return the ctypes type that ``text`` declares."""
        text = re.sub(r"\s+", " ", text).strip()
        match = re.fullmatch(r"(const )?([\w:]+) ?(\**) ?\w*", text)
        if match is None:
            raise ValueError(f"abi.h: cannot read the type {text!r}")
        return _type(match[2], len(match[3]), bool(match[1]))

    return parse(result), [parse(argument) for argument in arguments.split(",") if argument.strip() not in ("", "void")]


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    name: _prototype(result, arguments) for result, name, arguments in _FUNCTION.findall(_OWN)
}


def declare(library: ctypes.CDLL) -> None:
    """Set the result and argument types of every function of the headers."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
