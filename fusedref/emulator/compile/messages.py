"""Translate the compiler's messages: one sentence in CUDA's terms, and the source line that it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ENTRY = re.compile(
    r"(?P<file>(?:[^:\n]|:(?!\d))+):(?P<line>\d+):(?:\d+:)? (?P<kind>(?:fatal )?error|warning|note): (?P<text>.*)"
)
_MOST = 10  # errors shown: later ones are mostly consequences of the first

# CUDA's headers and names that the emulator does not support: pattern -> what they belong to.
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
HOST_NAMES = r"cuda[A-Z]\w*|cu[A-Z]\w+|cout|cerr|endl|vector|string"

_NAME = "'(?P<a>[^']*)'"
_OTHER = "'(?P<b>[^']*)'"
_HINT = r"(?:; did you mean '(?P<hint>[^']*)'\??)?"
_UNDEFINED = [
    rf"{_NAME} (?:was not declared in this scope|does not name a type|has not been declared){_HINT}.*",
    rf"(?:use of undeclared identifier|unknown type name) {_NAME}{_HINT}",
    rf"{_NAME} is not a namespace-name|expected namespace name.*",
    rf"{_NAME} is not a member of {_OTHER}{_HINT}",
    rf"no (?:member|type|template) named {_NAME} in namespace {_OTHER}.*",
    rf"there are no arguments to {_NAME} that depend on a template parameter.*",
]
_NO_HEADER = [r"(?P<a>\S+): No such file or directory", rf"{_NAME} file not found"]
_CONVERT = 'a value of type "{a}" cannot be converted to "{b}"'
_CONST = "a const value cannot be written"
_NO_VALUE = "a kernel returns no value: its result type is void"
_TEMPLATE = 'a template cannot be extern "C": use no_extern_c=True, and write extern "C" before the kernels'
_MEANINGS = [  # what g++ and clang say -> what it means
    (r"expected '}'.*", "a '{{' is never closed with '}}'"),
    (r"expected '(?P<a>[)\]])'.*", "a '{a}' is missing"),
    (r"expected declaration before '}' token|extraneous closing brace.*", "this '}}' closes nothing"),
    (r"template with C linkage|templates must have C\+\+ linkage", _TEMPLATE),
    (rf"too (?P<b>few|many) arguments to function {_NAME}", 'too {b} arguments: the function is "{a}"'),
    (
        r"too (?P<b>few|many) arguments to function call, expected (?:at \w+ )?(?P<a>\w+).*, have (?P<c>\d+).*",
        "too {b} arguments: the function takes {a}, the call has {c}",
    ),
    (rf"no matching function for call to {_NAME}", 'no version of the function takes these arguments: "{a}"'),
    (rf"(?:invalid conversion from|cannot convert|could not convert .* from) {_NAME} to {_OTHER}.*", _CONVERT),
    (rf"conversion from {_NAME} to non-scalar type {_OTHER} requested", _CONVERT),
    (rf"no viable conversion from {_NAME} to {_OTHER}.*", _CONVERT),
    (rf"cannot initialize a \w+ of type {_OTHER} with an? \w+ of type {_NAME}.*", _CONVERT),
    (rf"assigning to {_OTHER} from incompatible type {_NAME}.*", _CONVERT),
    (r"assignment of read-only .*|cannot assign to .* const.*|read-only variable is not assignable", _CONST),
    (rf"{_NAME} has no member named {_OTHER}.*", 'type "{a}" has no member "{b}"'),
    (rf"no member named {_OTHER} in {_NAME}.*", 'type "{a}" has no member "{b}"'),
    (
        rf"request for member {_OTHER} in '.*', which is of (?:non-class|pointer) type {_NAME}.*",
        'type "{a}" has no members, so there is no "{b}"',
    ),
    (rf"member reference base type {_NAME} is not a structure or union", 'type "{a}" has no members'),
    (rf"(?:redefinition|redeclaration) of {_NAME}.*", '"{a}" is declared a second time'),
    (rf"conflicting declaration {_NAME}", '"{a}" is declared a second time, with another type'),
    (rf"invalid types {_NAME} for array subscript", 'only an array or a pointer has elements: "{a}"'),
    (r"subscripted value is not an array, pointer, or vector", "only an array or a pointer has elements"),
    (
        r"return-statement with a value, in function returning 'void'.*|void function .* should not return a value.*",
        _NO_VALUE,
    ),
    (rf"invalid operands of types {_NAME} and {_OTHER} to binary.*", 'the operator does not take "{a}" and "{b}"'),
    (rf"invalid operands to binary expression \({_NAME} and {_OTHER}\)", 'the operator does not take "{a}" and "{b}"'),
    (rf"{_NAME} is not a constant expression", '"{a}" is not known when the kernel is compiled'),
    (rf"the value of {_NAME} is not usable in a constant expression", '"{a}" is not known when the kernel is compiled'),
    (r"#error (?P<a>.*)", "#error {a}"),
]
_MISSING_SEMICOLON = (
    r"expected (?:.* or )?';' (?:before '(?P<a>.*?)'.*|after.*|at end of.*)"
    r"|expected initializer before '?(?P<b>[^']*)'?.*"
)


@dataclass(frozen=True)
class Message:
    """One error: where it is and what it says. A lower ``rank`` is closer to the cause."""

    file: str
    line: int
    text: str
    rank: int = 0

    def shown(self, texts: Mapping[str, str]) -> str:
        """Return the message as nvcc writes it, with the source line below."""
        line = _line(texts, self.file, self.line)
        return f"{self.file}({self.line}): error: {self.text}" + (f"\n    {line}" if line else "")


def translate(stderr: str, texts: Mapping[str, str], name: str) -> str:
    """Return the compiler's output in CUDA's terms: for each faulty source line, one sentence and the line.

    ``texts`` has the source and the user's headers by name; ``name`` is the source's.
    """
    found: dict[tuple[str, int], Message] = {}
    place = (name, 1)  # the last place in the user's text that the compiler named
    for line in stderr.splitlines():
        including = re.match(r"(?:In file included from|\s+from) (.+):(\d+)[:,]", line)
        if including and including.group(1) in texts:
            place = including.group(1), int(including.group(2))
        entry = _ENTRY.match(line)
        if entry is None:
            continue
        if entry["file"] in texts:
            place = entry["file"], int(entry["line"])
        if "error" not in entry["kind"]:
            continue
        message = _message(*place, entry["text"], texts)
        key = message.file, message.line
        if key not in found or message.rank < found[key].rank:
            found[key] = message
    if not found:  # no message of the known form: it comes from the linker or the driver
        return stderr.strip()
    hidden = len(found) - _MOST
    shown = [message.shown(texts) for message in list(found.values())[:_MOST]]
    return "\n".join([*shown, *([f"({hidden} more errors)"] if hidden > 0 else [])])


def unresolved_message(symbol: str, text: str, texts: Mapping[str, str], name: str) -> Message:
    """Return the message about a missing function, at the first line of the user's text that calls it."""
    called = re.compile(rf"\b{re.escape(symbol.rpartition('::')[2])}\s*\(")
    for file, source in texts.items():
        for number, line in enumerate(source.splitlines(), 1):
            if called.search(line.partition("//")[0]):
                return Message(file, number, text)
    return Message(name, 1, text)


def _line(texts: Mapping[str, str], file: str, number: int) -> str:
    lines = texts.get(file, "").splitlines()
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def _message(file: str, line: int, text: str, texts: Mapping[str, str]) -> Message:
    """Return one message in CUDA's terms, or in the compiler's own words if its meaning is not known."""
    for pattern in _UNDEFINED:
        if match := re.fullmatch(pattern, text):
            groups = match.groupdict()
            return Message(file, line, _undefined(groups["a"] or "", groups.get("hint") or ""))
    for pattern in _NO_HEADER:
        if match := re.fullmatch(pattern, text):
            return Message(file, line, _no_header(match["a"]))
    if match := re.fullmatch(_MISSING_SEMICOLON, text):
        before = match["a"] or match["b"]
        # The compiler notices a missing ';' at the next word, which may be on a later line.
        if before and before != "}" and re.match(rf"(__\w+__\s+)*{re.escape(before)}", _line(texts, file, line)):
            while line > 1 and not _line(texts, file, line - 1):
                line -= 1
            return Message(file, line - 1, "a ';' is missing at the end of this line", 1)
        return Message(file, line, "a ';' is missing in this line or at its end", 1)
    for pattern, meaning in _MEANINGS:
        if match := re.fullmatch(pattern, text):
            groups = {key: value or "" for key, value in match.groupdict().items()}
            return Message(file, line, meaning.format(**groups), 1)
    return Message(file, line, text, 2)


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
