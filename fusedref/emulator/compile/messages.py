"""What a compiler's messages mean: one sentence in the terms of CUDA, and the line of the source it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ENTRY = re.compile(
    r"(?P<file>(?:[^:\n]|:(?!\d))+):(?P<line>\d+):(?:\d+:)? (?P<kind>(?:fatal )?error|warning|note): (?P<text>.*)"
)
_MOST = 10  # errors shown: the later ones follow from the first

# Headers and names of CUDA that the emulator does not have: pattern -> what they belong to.
UNSUPPORTED_HEADERS = {
    r"cooperative_groups\.h|cooperative_groups/.*": "cooperative groups",
    r"mma\.h|crt/mma\.h": "wmma",
    r"cuda/(?:std/)?.*|nv/target": "libcu++",
    r"cub/.*": "CUB",
    r"thrust/.*": "Thrust",
    r"cuda_fp8\.h": "8-bit floating-point types",
    r"curand.*": "cuRAND",
    r"cublas.*": "cuBLAS",
    r"cudnn.*": "cuDNN",
    r"cufft.*": "cuFFT",
    r"helper_\w+\.h": "the helper headers of NVIDIA's samples",
    r"cutlass/.*|cute/.*": "CUTLASS",
    r"texture_\w+\.h|surface_\w+\.h|cuda_texture_types\.h": "textures and surfaces",
}
UNSUPPORTED_NAMES = {
    r"cooperative_groups|cg|thread_block|this_thread_block|tiled_partition|this_grid|coalesced_threads": (
        "cooperative groups"
    ),
    r"wmma|nvcuda": "wmma",
    r"texture|tex[123]D\w*|texCubemap\w*|cudaTextureObject_t|surf[123]D\w*|surface|cudaSurfaceObject_t": (
        "textures and surfaces"
    ),
    r"__nv_fp8\w*": "8-bit floating-point types",
    r"cub|thrust|curand\w*|cublas\w*": "CUDA's libraries",
}
HOST_NAMES = r"cuda[A-Z]\w*|cu[A-Z]\w+|cout|cerr|endl|std::(?:cout|cerr|endl|vector|string)"

# What g++ and clang say -> what it means. {n} is a group of the pattern.
_NAME = r"'(?P<a>[^']*)'"
_OTHER = r"'(?P<b>[^']*)'"
_HINT = r"(?:; did you mean '(?P<hint>[^']*)'\??)?"
_MEANINGS = [
    (rf"{_NAME} (?:was not declared in this scope|does not name a type){_HINT}.*", "undefined"),
    (rf"use of undeclared identifier {_NAME}{_HINT}", "undefined"),
    (rf"unknown type name {_NAME}{_HINT}", "undefined"),
    (rf"{_NAME} has not been declared{_HINT}", "undefined"),
    (rf"there are no arguments to {_NAME} that depend on a template parameter.*", "undefined"),
    (r"(?P<a>\S+): No such file or directory", "header"),
    (rf"{_NAME} file not found", "header"),
    (
        r"expected '(?:,' or ')?;' (?:before|after|at end of).*",
        "a ';' is missing before this point or at the end of the line",
    ),
    (r"expected initializer before.*", "a ';' is missing at the end of the line before"),
    (r"expected '}' at end of input|expected '}'", "a '{{' is never closed with '}}'"),
    (r"expected '\)'.*", "a ')' is missing"),
    (r"expected '\]'.*", "a ']' is missing"),
    (rf"too (?P<b>few|many) arguments to function {_NAME}", 'too {b} arguments: the function is "{a}"'),
    (
        r"too (?P<b>few|many) arguments to function call, expected (?P<a>\d+)[^,]*, have (?P<c>\d+)",
        "too {b} arguments: the function takes {a}, the call has {c}",
    ),
    (rf"no matching function for call to {_NAME}", 'no version of the function takes these arguments: "{a}"'),
    (
        rf"(?:invalid conversion|cannot convert|could not convert).* from {_NAME} to {_OTHER}.*",
        'a value of type "{a}" cannot be converted to "{b}"',
    ),
    (
        rf"(?:invalid conversion|cannot convert) from {_NAME} to {_OTHER}.*",
        'a value of type "{a}" cannot be converted to "{b}"',
    ),
    (rf"cannot convert {_NAME} to {_OTHER}.*", 'a value of type "{a}" cannot be converted to "{b}"'),
    (
        rf"cannot initialize a \w+ of type {_OTHER} with an? \w+ of type {_NAME}.*",
        'a value of type "{a}" cannot be converted to "{b}"',
    ),
    (rf"assigning to {_OTHER} from incompatible type {_NAME}.*", 'a value of type "{a}" cannot be converted to "{b}"'),
    (rf"assignment of read-only (?:\w+ )?{_NAME}", '"{a}" is const: it cannot be written'),
    (
        rf"cannot assign to (?:variable |non-static data member )?{_NAME} with const-qualified type.*",
        '"{a}" is const: it cannot be written',
    ),
    (r"read-only variable is not assignable", "a const variable cannot be written"),
    (rf"{_NAME} has no member named {_OTHER}.*", 'type "{a}" has no member "{b}"'),
    (rf"no member named {_OTHER} in {_NAME}.*", 'type "{a}" has no member "{b}"'),
    (
        rf"request for member {_OTHER} in {_NAME}, which is of (?:non-class|pointer) type.*",
        '"{a}" is no struct: it has no member "{b}"',
    ),
    (rf"member reference base type {_NAME} is not a structure or union", 'type "{a}" is no struct: it has no members'),
    (rf"redefinition of {_NAME}.*", '"{a}" is defined a second time'),
    (rf"redeclaration of {_NAME}.*", '"{a}" is declared a second time'),
    (rf"conflicting declaration {_NAME}", '"{a}" is declared a second time, with another type'),
    (rf"invalid types {_NAME} for array subscript", 'only an array or a pointer has elements: "{a}"'),
    (r"subscripted value is not an array, pointer, or vector", "only an array or a pointer has elements"),
    (
        r"return-statement with a value, in function returning 'void'.*",
        "a kernel returns no value: its result type is void",
    ),
    (rf"void function {_NAME} should not return a value.*", "a kernel returns no value: its result type is void"),
    (rf"invalid operands of types {_NAME} and {_OTHER} to binary.*", 'the operator does not take "{a}" and "{b}"'),
    (
        r"invalid operands to binary expression \('(?P<a>.*?)' and '(?P<b>.*?)'\)",
        'the operator does not take "{a}" and "{b}"',
    ),
    (r"stray .* in program", "a character that C++ does not know: {0}"),
    (r"#error (?P<a>.*)", "#error {a}"),
]


@dataclass(frozen=True)
class Message:
    """One error: where it is and what it says."""

    file: str
    line: int
    text: str

    def shown(self, texts: Mapping[str, str]) -> str:
        """Return it as nvcc writes it, with its line of the source below."""
        return f"{self.file}({self.line}): error: {self.text}{_source_line(texts, self.file, self.line)}"


def translate(stderr: str, texts: Mapping[str, str], name: str) -> str:
    """Return what the compiler wrote, in CUDA's terms.

    ``texts`` has the source and the user's headers by their name; ``name`` is the source's.
    """
    found: list[Message] = []
    user = ""  # the last place in the user's text that the compiler came through
    for line in stderr.splitlines():
        if through := re.match(r"(?:In file included from|\s+from) (.+):(\d+)[:,]", line):
            user = _place(through.group(1), through.group(2), texts)
            continue
        entry = _ENTRY.match(line)
        if entry is None:
            continue
        place = _place(entry["file"], entry["line"], texts)
        if "error" not in entry["kind"]:
            continue
        file, _, number = (place or user or f"{name}:1").rpartition(":")
        message = Message(file, int(number), _meaning(entry["text"], _line(texts, file, int(number))))
        if message not in found:
            found.append(message)
    if not found:  # nothing that could be read: a message of the linker, or of the driver
        return stderr.strip()
    hidden = len(found) - _MOST
    shown = [message.shown(texts) for message in found[:_MOST]]
    return "\n".join([*shown, *([f"({hidden} more errors)"] if hidden > 0 else [])])


def _place(file: str, line: str, texts: Mapping[str, str]) -> str:
    """Return ``file:line`` if the file is the user's, else an empty string."""
    return f"{file}:{line}" if file in texts else ""


def _line(texts: Mapping[str, str], file: str, number: int) -> str:
    lines = texts.get(file, "").splitlines()
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def _source_line(texts: Mapping[str, str], file: str, number: int) -> str:
    line = _line(texts, file, number)
    return f"\n    {line}" if line else ""


def _meaning(text: str, source: str) -> str:
    """Return the meaning of one message; the compiler's own words where it is not known."""
    for pattern, meaning in _MEANINGS:
        match = re.fullmatch(pattern, text)
        if match is None:
            continue
        groups = {key: value or "" for key, value in match.groupdict().items()}
        if meaning == "undefined":
            return _undefined(groups["a"], groups.get("hint", ""))
        if meaning == "header":
            return _no_header(groups["a"])
        return meaning.format(text, **groups)
    return text


def _undefined(name: str, hint: str) -> str:
    for pattern, what in UNSUPPORTED_NAMES.items():
        if re.fullmatch(pattern, name):
            return f'"{name}": the emulator does not support {what}'
    if re.fullmatch(HOST_NAMES, name):
        return f'"{name}" belongs to host code: the emulator compiles kernels only, and Python is their host'
    return f'identifier "{name}" is undefined' + (f'; did you mean "{hint}"?' if hint else "")


def _no_header(name: str) -> str:
    for pattern, what in UNSUPPORTED_HEADERS.items():
        if re.fullmatch(pattern, name):
            return f'cannot open "{name}": the emulator does not support {what}'
    return f'cannot open "{name}": no such file in the folders of include_dirs'
