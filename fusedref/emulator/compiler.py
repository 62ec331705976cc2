"""``SourceModule``: CUDA C to a loaded kernel library, through the front end and the host compiler."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from . import abi, build, driver, runtime
from . import options as nvcc_options
from .frontend import Frontend, TranslationError
from .hostcalls import host_calls

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)
NAME = "kernel.cu"


def _included(text: str, directories: list[str]) -> dict[tuple[str, str], str]:
    """(directory, name) -> text of every file that the source may include from the user's directories, in turn.

    A header that the emulator supplies is not among them, wherever it is included from: the emulator's own stands in.
    """
    found: dict[tuple[str, str], str] = {}
    waiting = [text]
    while waiting:
        for name in INCLUDE.findall(waiting.pop()):
            for directory in directories:
                path = Path(directory, name)
                if (directory, name) not in found and path.is_file() and not (build.INCLUDE / path.name).exists():
                    found[directory, name] = path.read_text(errors="replace")
                    waiting.append(found[directory, name])
    return found


def _architecture(name: str | None) -> int:
    """What ``__CUDA_ARCH__`` is for ``sm_90a`` and the like."""
    number = re.search(r"\d+", name or "")
    return 10 * (int(number.group()) if number else 10 * driver.COMPUTE_CAPABILITY[0] + driver.COMPUTE_CAPABILITY[1])


class SourceModule:
    """CUDA C, compiled. Arguments and errors are those of ``pycuda.compiler.SourceModule``.

    Args:
        source: the text. A first line ``#line 1 "name.cu"`` gives it the name that errors and findings use.
        options: nvcc's options; of these ``-D``, ``-U``, ``-I``, ``-arch`` and ``-fmad`` count.
        no_extern_c: whether the text says ``extern "C"`` itself.
        cache_dir: where to keep the compiled library; the user's cache directory by default.
        include_dirs: where ``#include`` looks, behind the emulator's own headers.
        watch: watch every launch; findings are raised (``fusedref.emulator.watch``).
        keep: print where the translated text is, and leave it there.

    Raises:
        CompileError: the text does not compile, or needs more shared memory than a block has; nvcc has no such option.
        TypeError: the source is no text, or the options are no list of texts.
    """

    def __init__(
        self,
        source: str,
        nvcc: str | None = None,
        options: list[str] | None = None,
        keep: bool = False,
        no_extern_c: bool = False,
        arch: str | None = None,
        code: str | None = None,
        cache_dir: str | None = None,
        include_dirs: list[str] | None = None,
        watch: bool = False,
    ):
        if not isinstance(source, str):
            raise TypeError(f"source must be CUDA C as a str, got {source!r}")
        if isinstance(options, str) or not all(isinstance(option, str) for option in options or []):
            raise TypeError(f"options must be a list of str, such as ['-DSIZE=4'], got {options!r}")
        options = list(options or [])
        self.watch = watch
        lib = runtime.library()
        cxx = build.compiler()
        try:
            asked = nvcc_options.parse([*options, *(["-arch", arch] if arch else [])])
        except nvcc_options.Refused as error:
            raise driver.CompileError(
                f"nvcc compilation of {NAME} failed", ["nvcc", *options], stdout="", stderr=str(error)
            ) from None
        directories = [*asked.include_dirs, *map(str, include_dirs or [])]
        flags = [
            *asked.definitions,
            f"-D__CUDA_ARCH__={_architecture(asked.architecture)}",
            *([] if asked.contract else ["-ffp-contract=off"]),
        ]
        included = _included(source, directories)
        parts = [part for (directory, file), content in included.items() for part in (directory, file, content)]
        name = build.digest(
            build.headers_digest(),
            cxx.version,
            " ".join(cxx.command + cxx.extra),
            source,
            str(no_extern_c),
            *flags,
            *parts,
        )
        target = build.cache_directory(cache_dir) / f"{name}.so"
        if keep or not build.whole(target):
            self._compile(cxx, source, no_extern_c, flags, included, target, keep)
        self._library = ctypes.CDLL(str(target))
        self._path = str(target)
        self._texts = {NAME: source, **{name: content for (_, name), content in included.items()}}
        if first := re.match(r'#line 1 "([^"]+)"\n', source):
            self._texts[first.group(1)] = source[first.end() :]
        self._native = abi.Module.from_address(ctypes.addressof(ctypes.c_char.in_dll(self._library, "emu_module")))
        if not self._native.image_begin:  # the same library may be loaded by two modules: one image, registered once
            lib.emu_module_loaded(self._native)
        self._shared = runtime.chain(self._native.shared)
        self._variables = {
            v.name.decode(): (v.address, v.size, max(v.element, 1)) for v in runtime.chain(self._native.variables)
        }
        self._kernels = {}
        for kernel in runtime.chain(self._native.kernels):
            symbol = lib.emu_symbol(kernel.function)
            if symbol:
                self._kernels[symbol.decode()] = kernel
        self._check_shared()
        driver._modules.add(self)

    def _compile(
        self,
        cxx: build.Compiler,
        text: str,
        no_extern_c: bool,
        flags: list[str],
        included: dict[tuple[str, str], str],
        target: Path,
        keep: bool,
    ) -> None:
        scratch = tempfile.mkdtemp(prefix="build-", dir=target.parent)
        try:
            source = os.path.join(scratch, NAME)
            Path(source).write_text(text)
            include = f'#include "{NAME}"\n'
            Path(scratch, "module.cpp").write_text(include if no_extern_c else f'extern "C" {{\n{include}}}\n')
            base = [
                *cxx.command,
                *build.COMMON,
                *cxx.extra,
                *build.KERNEL,
                *(build.KERNEL_CLANG if cxx.clang else build.KERNEL_GCC),
            ]
            includes = [f"-I{build.INCLUDE}", *_copy(included, scratch)]
            first = ["-include", str(build.INCLUDE / "emulator.h")]
            command = preprocess = [*base, *flags, *includes, *first, "-E", "module.cpp"]
            try:
                expanded = build.run(preprocess, cwd=scratch)
                translated = Frontend(expanded, _is_user).translate()
                Path(scratch, "kernel.ii").write_text(translated)
                built = os.path.join(scratch, "kernel.so")
                command = [*base, *flags, "-c", "kernel.ii", "-o", "kernel.o"]
                build.run(command, cwd=scratch)
                if calls := host_calls(os.path.join(scratch, "kernel.o")):
                    raise TranslationError(
                        "\n".join(
                            f'{NAME}: error: calling a __host__ function("{name}") from device code is not allowed'
                            for name in calls
                        )
                    )
                runtime = str(build.runtime())
                own_symbols = [] if sys.platform == "darwin" else ["-Wl,-Bsymbolic"]
                command = cxx.link(["kernel.o"], built, [runtime, "-lm", *own_symbols])
                build.run(command, cwd=scratch)
            except build.CompilerFailed as error:
                raise driver.CompileError(
                    f"nvcc compilation of {source} failed",
                    error.command,
                    stdout="",
                    stderr=_readable(error.stderr, text),
                ) from None
            except TranslationError as error:
                raise driver.CompileError(
                    f"nvcc compilation of {source} failed", command, stdout="", stderr=str(error)
                ) from None
            build.publish(built, target)
        finally:
            if keep:
                print(f"*** compiler output in {scratch}")
            else:
                shutil.rmtree(scratch, ignore_errors=True)

    def _static_shared(self, kernel: str) -> int:
        """Bytes of shared memory that the kernel declares itself."""
        total = 0
        for variable in self._shared:
            if variable.owner.decode() == kernel and variable.size:
                total = (total + variable.align - 1) // variable.align * variable.align + variable.size
        return total

    def _check_shared(self) -> None:
        for name in self._kernels:
            used = self._static_shared(name)
            if used > driver.SHARED_DEFAULT:
                raise driver.CompileError(
                    f"nvcc compilation of {NAME} failed",
                    [],
                    stdout="",
                    stderr=f"ptxas error   : Entry function '{name}' uses too much shared data "
                    f"(0x{used:x} bytes, 0x{driver.SHARED_DEFAULT:x} max)",
                )

    def _line(self, pc: int) -> tuple[str, int] | None:
        """(file, line) of the .cu for a return address in this module."""
        if not pc or not self._native.image_begin <= pc < self._native.image_end:
            return None
        from .lines import lines

        return lines(self._path).find(pc - self._native.image_begin)

    def get_function(self, name: str) -> driver.Function:
        """The kernel of that name, as the linker knows it.

        Raises:
            LogicError: there is none; a kernel that is not ``extern "C"`` has a mangled name.
        """
        try:
            return driver.Function(self, self._kernels[name], name)
        except KeyError:
            raise driver.LogicError("cuModuleGetFunction failed: named symbol not found") from None

    def get_global(self, name: str) -> tuple[int, int]:
        """(address, bytes) of a ``__constant__`` or ``__device__`` variable. LogicError if there is none."""
        try:
            address, size, _ = self._variables[name]
        except KeyError:
            raise driver.LogicError("cuModuleGetGlobal failed: named symbol not found") from None
        return address, size


def _copy(included: dict[tuple[str, str], str], scratch: str) -> list[str]:
    """Copies of the user's headers, so that none lies beside a header that the emulator supplies; their -I options."""
    copies: dict[str, str] = {}
    for (directory, name), text in included.items():
        root = copies.setdefault(directory, os.path.join(scratch, f"include{len(copies)}"))
        copy = Path(os.path.normpath(os.path.join(root, name)))
        if scratch in str(copy.parent):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(f'#line 1 "{name}"\n{text}')
    return [f"-I{root}" for root in copies.values()]


def _readable(stderr: str, text: str) -> str:
    """The compiler's messages in nvcc's form, each with the line of the source that it is about."""
    source = text.splitlines()
    out = []
    for line in stderr.splitlines():
        match = re.match(r"([^:\s]+):(\d+):(?:\d+:)? ((?:fatal )?error|warning|note): (.*)", line)
        if match is None:
            out.append(line)
            continue
        file, number, kind, message = match.group(1), int(match.group(2)), match.group(3), match.group(4)
        out.append(f"{file}({number}): {kind}: {message}")
        if file == NAME and 0 < number <= len(source):
            out.append(f"    {source[number - 1].strip()}")
    return "\n".join(out)


def _is_user(file: str) -> bool:
    """Whether a file's text is CUDA C to translate: the source itself, and what it includes from its own side."""
    if file.startswith(("<", str(build.INCLUDE), "/usr/", "/opt/", "/Library/", "/Applications/")):
        return False
    return bool(file) and "ziglang" not in file
