"""The host compiler: finding it, running it, and compiling the emulator's runtime library."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

from fusedref.cache import cached_library, digest

from ..limits import workers

HERE = Path(__file__).resolve().parents[1]  # resolved: debug information and Python must name the same path
INCLUDE = HERE / "include"
COMPILE_SECONDS = 120.0  # no source written by hand takes so long, but a macro that expands without end does
COMMON = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-gdwarf-4",
    "-fPIC",
    "-fwrapv",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
# The compiled kernel must make the accesses of its source: none merged, none turned into memcpy.
KERNEL = [
    "-fsanitize=thread",
    "-fsanitize-coverage=trace-pc",
    "-w",
    "-ffp-contract=fast",
    "-fno-threadsafe-statics",
    "-fno-stack-protector",
    "-fstack-clash-protection",
    "-fno-optimize-sibling-calls",
    "-fno-builtin-memcpy",
    "-fno-builtin-memset",
]
KERNEL_GCC = [
    "-fno-tree-vectorize",
    "-fno-tree-loop-distribute-patterns",
    "-fno-store-merging",
    "--param=tsan-instrument-func-entry-exit=0",
    "--param=tsan-distinguish-volatile=1",
    "-fno-ipa-icf",
    "-fno-gnu-unique",  # else the library could not be unloaded
    # Each access keeps its own line.
    "-fno-tree-tail-merge",
    "-fno-crossjumping",
    "-fno-code-hoisting",
    "-fno-thread-jumps",
    "-fno-reorder-blocks",  # else code is duplicated, and one access becomes two
    "-fno-var-tracking",
    "-g1",  # -gdwarf-4 implies -g2, but types and variables are not needed
    "-gstatement-frontiers",  # lines as exact as those of -g2
    "-fno-diagnostics-show-caret",
    # Passes after the one that turns each access into a call: they cannot change what is counted, and a kernel runs
    # hardly faster for a third more time to compile.
    "-fira-region=one",
    "-fno-compare-elim",
    "-fno-cprop-registers",
    "-fno-cse-follow-jumps",
    "-fno-dce",
    "-fno-dse",
    "-fno-gcse",
    "-fno-if-conversion",
    "-fno-if-conversion2",
    "-fno-ipa-ra",
    "-fno-ivopts",
    "-fno-lra-remat",
    "-fno-move-loop-invariants",
    "-fno-peephole2",
    "-fno-ree",
    "-fno-rerun-cse-after-loop",
    "-fno-schedule-insns2",
    "-fno-shrink-wrap",
    "-fno-split-wide-types",
]
KERNEL_CLANG = [
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-distinguish-volatile=1",
    "-mllvm",
    "-tsan-instrument-memintrinsics=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-mllvm",
    "-sink-common-insts=false",
    "-mllvm",
    "-enable-tail-merge=false",
    "-fno-caret-diagnostics",
]


class NoCompiler(RuntimeError):
    """There is no C++ compiler on this machine."""


class CompilerFailed(RuntimeError):
    """The compiler refused the source. ``command`` and ``stderr`` say how and why."""

    def __init__(self, command: list[str], stderr: str):
        super().__init__(stderr)
        self.command, self.stderr = command, stderr


class Compiler:
    """A C++ compiler: its command, its family and its version."""

    def __init__(self, command: list[str]):
        self.command = command
        self.zig = "ziglang" in command
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        self.version = done.stdout
        self.clang = self.zig or "clang" in self.version
        # Keep endless loops that do nothing: Ctrl-C ends them. Older compilers keep them anyway or lack the option.
        major = re.search(r"(\d+)\.\d+\.\d+", self.version)
        keep_loops = ["-fno-finite-loops"] if major and int(major[1]) >= (12 if self.clang else 10) else []
        extra = [*(["-fno-sanitize=undefined"] if self.zig else []), *(["-mfma"] if has_fma() else [])]
        self.runtime_flags = [*COMMON, *extra]
        self.kernel_flags = [*COMMON, *extra, *keep_loops, *KERNEL, *(KERNEL_CLANG if self.clang else KERNEL_GCC)]

    def link(self, objects: list[str], output: str, arguments: list[str]) -> list[str]:
        """Return the command that links a shared library."""
        # zig cc rather than zig c++: kernels need no C++ library, and zig would first have to build its own.
        command = [*self.command[:-1], "cc"] if self.zig else self.command
        return [*command, "-shared", *objects, "-o", output, *arguments]


@cache
def has_fma() -> bool:
    """Return whether this is an x86 processor with FMA instructions, which a*b + c needs to round once."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return " fma " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@lru_cache(maxsize=8)
def _compiler(cxx: str | None, path: str | None) -> Compiler:
    candidates = [cxx.split()] if cxx else [["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0], path=path):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                return Compiler(command)
    if cxx:
        raise NoCompiler(f"the C++ compiler that CXX names, {cxx!r}, cannot be run")
    if importlib.util.find_spec("ziglang"):
        return Compiler([sys.executable, "-m", "ziglang", "c++"])
    raise NoCompiler(
        "the emulator needs a C++ compiler and found none: install g++ or clang++, or `pip install ziglang`"
    )


def compiler() -> Compiler:
    """Return the first compiler that exists: ``$CXX``, g++, clang++ or the PyPI package ziglang.

    Raises:
        NoCompiler: there is none, or ``$CXX`` cannot be run.
    """
    return _compiler(os.environ.get("CXX"), os.environ.get("PATH"))


@cache
def emulator_digest() -> str:
    """Return the digest of every file of the emulator that a compiled library depends on."""
    files = sorted([*HERE.glob("include/*"), *HERE.glob("native/*"), *HERE.glob("compile/*.py")])
    # The folder too: it is in the debug information, where it tells the emulator's lines from a kernel's.
    return digest(str(HERE), *[part for file in files for part in (file.name, file.read_bytes())])


def run(command: list[str], folder: str | Path | None = None) -> str:
    """Run the compiler in ``folder`` and return its standard output.

    Raises:
        CompilerFailed: it failed, or took longer than COMPILE_SECONDS.
    """
    # A process group of its own: the compiler's driver has children, which must end with it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},  # messages.py reads English
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise CompilerFailed(
            command, f"error: compiling took longer than {COMPILE_SECONDS:g} seconds and was stopped"
        ) from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        raise CompilerFailed(command, errors)
    return output


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def runtime() -> Path:
    """Return the path of the emulator's runtime library; compile it if it is missing."""
    cxx = compiler()
    name = f"libfusedref_{digest(emulator_digest(), cxx.version, ' '.join(cxx.command + cxx.runtime_flags))}.so"

    def build(folder: Path) -> bytes:
        """Return the library's bytes, compiled and linked in ``folder``."""
        sources = sorted(HERE.glob("native/*.cpp"))

        def compile_one(source: Path) -> None:
            """Compile one file of the runtime."""
            run([*cxx.command, *cxx.runtime_flags, "-c", str(source), "-o", f"{source.stem}.o"], folder)

        with ThreadPoolExecutor(workers()) as pool:
            list(pool.map(compile_one, sources))
        objects = [f"{source.stem}.o" for source in sources]
        soname = f"-Wl,-install_name,{name}" if sys.platform == "darwin" else f"-Wl,-soname,{name}"
        run(cxx.link(objects, "runtime.so", [soname, "-lpthread", "-lm"]), folder)
        return (folder / "runtime.so").read_bytes()

    return cached_library(name, build)
