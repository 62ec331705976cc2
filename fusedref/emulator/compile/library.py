"""Compile a kernel's source to a shared library in the compile cache."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fusedref.cache import cached_library, digest

from ..errors import CompileError
from ..limits import COMPUTE_CAPABILITY
from . import build, messages, options
from .constructors import hold_constructors
from .frontend import Frontend
from .hostcalls import unresolved
from .tokens import TranslationError

NAME = "kernel.cu"  # the source's name, unless its first line is #line 1 "name.cu"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)
_LINE = re.compile(r'#line 1 "(.{1,255}?)"\n', re.DOTALL)
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_SYSTEM = ("<", str(build.INCLUDE), "/usr/", "/opt/", "/Library/", "/Applications/")


@dataclass(frozen=True)
class Source:
    """A kernel's text and everything else that decides what it compiles to."""

    text: str
    extern_c: bool  # wrap the text in extern "C"
    options: options.Options
    headers: dict[tuple[str, str], str] = field(default_factory=dict)  # (folder, name) -> text of the user's headers

    @property
    def name(self) -> str:
        """The name that messages and findings use for the source."""
        match = _LINE.match(self.text)
        return match.group(1) if match else NAME

    @property
    def texts(self) -> dict[str, str]:
        """File name -> text, of the source and of the user's headers."""
        match = _LINE.match(self.text)
        return {
            **{name: text for (_, name), text in self.headers.items()},
            self.name: self.text[match.end() :] if match else self.text,
        }

    @property
    def flags(self) -> list[str]:
        """The compiler's flags for the options."""
        number = re.search(r"\d+", self.options.architecture or "")
        major, minor = COMPUTE_CAPABILITY
        architecture = 10 * int(number.group()) if number else 100 * major + 10 * minor
        contract = [] if self.options.contract else ["-ffp-contract=off"]
        return [*self.options.definitions, f"-D__CUDA_ARCH__={architecture}", *contract]


def read_source(text: str, words: Iterable[str], include_dirs: Iterable[str], extern_c: bool) -> Source:
    """Return the source with nvcc's options ``words`` applied and the user's headers read.

    Raises:
        CompileError: nvcc has no such option.
    """
    words = list(words)
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if match := _LINE.match(text):
        name = re.sub(r'["\\\n\r]', "_", match.group(1))  # they have a meaning in a #line
        text = f'#line 1 "{name}"\n{text[match.end() :].removeprefix(_BYTE_ORDER_MARK)}'
    try:
        parsed = options.parse(words)
    except options.Refused as error:
        raise CompileError(f"nvcc compilation of {NAME} failed", ["nvcc", *words], "", str(error)) from None
    return Source(text, extern_c, parsed, _headers(text, [*parsed.include_dirs, *include_dirs]))


def _headers(text: str, folders: list[str]) -> dict[tuple[str, str], str]:
    """Return (folder, name) -> text of every file of the user's folders that the source or such a file may include.

    Headers that the emulator supplies are left out: its own replace them wherever they are included from.
    """
    found: dict[tuple[str, str], str] = {}
    waiting = [("", text)]  # (folder that the text's includes are relative to, text)
    while waiting:
        below, includer = waiting.pop()
        for included in _INCLUDE.findall(includer):
            for folder in folders:
                for name in dict.fromkeys((os.path.normpath(os.path.join(below, included)), included)):
                    path = Path(folder, name)
                    if (folder, name) not in found and path.is_file() and not (build.INCLUDE / path.name).exists():
                        content = path.read_text(encoding="utf-8-sig", errors="replace")
                        found[folder, name] = content
                        waiting.append((os.path.dirname(name), content))
    return found


def kernel_library(source: Source, cache_dir: str | None = None, keep: bool = False) -> Path:
    """Return the path of the library that the source compiles to; compile it if the cache does not have it.

    With ``keep``, compile it again in a folder that is kept, and print its name.

    Raises:
        CompileError: the source does not compile.
    """
    cxx = build.compiler()
    name = digest(
        build.emulator_digest(),
        cxx.version,
        " ".join(cxx.command + cxx.kernel_flags),
        source.text,
        str(source.extern_c),
        *source.flags,
        "",
        *[part for (folder, header), text in source.headers.items() for part in (folder, header, text)],
    )
    if keep:
        folder = Path(tempfile.mkdtemp(prefix="fusedref-kept-"))
        print(f"*** compiler output in {folder}")
        _build(cxx, source, folder, verbose=True)
    return cached_library(f"{name}.so", lambda folder: _build(cxx, source, folder, verbose=keep), cache_dir)


def _build(cxx: build.Compiler, source: Source, folder: Path, verbose: bool) -> bytes:
    """Compile the source in ``folder`` and return the library."""
    (folder / NAME).write_text(source.text, encoding="utf-8", errors="surrogateescape")
    include = f'#include "{NAME}"\n'
    (folder / "module.cpp").write_text(f'extern "C" {{\n{include}}}\n' if source.extern_c else include)
    prelude = _prelude(cxx, folder)
    includes = [f"-I{build.INCLUDE}", *_copy(source.headers, folder)]
    flags = [*cxx.command, *cxx.kernel_flags, *source.flags]
    command = [*flags, *includes, *prelude, "-E", "module.cpp"]
    try:
        expanded = build.run(command, folder)
        (folder / "kernel.ii").write_text(Frontend(expanded, _is_user).translate(), encoding="utf-8", errors="replace")
        command = [*flags, *prelude[2:], "-c", "kernel.ii", "-o", "kernel.o"]
        build.run(command, folder)
        if problems := unresolved(folder / "kernel.o"):
            found = [messages.unresolved_message(*item, source.texts, source.name) for item in problems.items()]
            raise _failed(source, command, "\n".join(message.shown(source.texts) for message in found), verbose)
        hold_constructors(folder / "kernel.o")
        own_symbols = [] if sys.platform == "darwin" else ["-Wl,-Bsymbolic", "-Wl,-z,now"]
        # g++ links a third faster if it need not look for the C++ library, which the runtime links.
        libraries = ["-lm"] if cxx.clang else ["-nodefaultlibs", "-lm", "-lgcc", "-lc"]
        command = cxx.link(["kernel.o"], "kernel.so", [str(build.runtime()), *libraries, *own_symbols])
        build.run(command, folder)
    except build.CompilerFailed as error:
        message = messages.translate(error.stderr, source.texts, source.name)
        raise _failed(source, error.command, message, verbose) from None
    except TranslationError as error:
        message = messages.Message(error.file, error.line, error.message).shown(source.texts)
        raise _failed(source, command, message, verbose) from None
    return (folder / "kernel.so").read_bytes()


def _failed(source: Source, command: list[str], message: str, verbose: bool) -> CompileError:
    return CompileError(f"nvcc compilation of {source.name} failed", command, "", message, verbose=verbose)


def _prelude(cxx: build.Compiler, folder: Path) -> list[str]:
    """Return the arguments that include emulator.h before the source.

    For g++ the header is precompiled, which is four times as fast to read. If a macro or a flag of the source makes it
    invalid, g++ falls back to the text.
    """
    header = f'#include "{build.INCLUDE / "emulator.h"}"\n'
    if cxx.clang:
        return ["-include", str(build.INCLUDE / "emulator.h")]
    (folder / "prelude.h").write_text(header)
    os.symlink(_precompiled(cxx, header), folder / "prelude.h.gch")
    return ["-include", "prelude.h", "-fpch-preprocess"]


@cache
def _precompiled(cxx: build.Compiler, header: str) -> Path:
    name = digest(build.emulator_digest(), cxx.version, " ".join(cxx.command + cxx.kernel_flags), header)

    def precompile(folder: Path) -> bytes:
        """Return the precompiled header."""
        (folder / "prelude.h").write_text(header)
        build.run([*cxx.command, *cxx.kernel_flags, "-x", "c++-header", "prelude.h", "-o", "prelude.h.gch"], folder)
        return (folder / "prelude.h.gch").read_bytes()

    return cached_library(f"{name}.gch", precompile)


def _copy(headers: dict[tuple[str, str], str], folder: Path) -> list[str]:
    """Copy the user's headers to ``folder``; return the -I options for the copies."""
    copies: dict[str, Path] = {}
    for (original, name), text in headers.items():
        root = copies.setdefault(original, folder / f"include{len(copies)}")
        copy = Path(os.path.normpath(root / name))
        if copy.is_relative_to(folder):
            copy.parent.mkdir(parents=True, exist_ok=True)
            quoted = name.replace("\\", "\\\\").replace('"', '\\"')
            copy.write_text(f'#line 1 "{quoted}"\n{text}', encoding="utf-8", errors="replace")
    return [f"-I{root}" for root in copies.values()]


def _is_user(file: str) -> bool:
    """Return whether a file's text is CUDA C to translate: the source itself, or one of the user's headers."""
    return file not in ("", "module.cpp") and not file.startswith(_SYSTEM) and "ziglang" not in file
