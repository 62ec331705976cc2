"""The host compiler: finding one, and shared libraries kept on disk by a digest of all that went into them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent  # as the debug information names it, whatever sys.path says
INCLUDE = HERE / "include"
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
# The accesses of the compiled kernel are to be the source's: nothing merged, nothing turned into memcpy.
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
    # Each access keeps its own line.
    "-fno-tree-tail-merge",
    "-fno-crossjumping",
    "-fno-code-hoisting",
    "-fno-thread-jumps",
    "-fno-reorder-blocks",  # code is not copied: an access would be two
    "-fno-var-tracking",  # lines are all that is asked of the debug information
    "-fno-diagnostics-show-caret",
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
    """The compiler refused the text. ``command`` and ``stderr`` say how and why."""

    def __init__(self, command: list[str], stderr: str):
        super().__init__(stderr)
        self.command = command
        self.stderr = stderr


class Compiler:
    """A C++ compiler's command, its family and its version."""

    def __init__(self, command: list[str]):
        self.command = command
        self.zig = "ziglang" in command
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        self.version = done.stdout
        self.clang = self.zig or "clang" in self.version

    @property
    def extra(self) -> list[str]:
        return [*(["-fno-sanitize=undefined"] if self.zig else []), *(["-mfma"] if has_fma() else [])]

    def link(self, objects: list[str], output: str, arguments: list[str]) -> list[str]:
        # zig cc rather than zig c++: kernels need no C++ library, and zig would first have to build its own.
        command = [*self.command[:-1], "cc"] if self.zig else self.command
        return [*command, "-shared", *objects, "-o", output, *arguments]


@lru_cache(maxsize=1)
def has_fma() -> bool:
    """Whether an x86 processor has the FMA instruction that a*b + c is contracted to. (Every aarch64 has.)"""
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
    """The compiler: ``$CXX``, g++, clang++ or the PyPI package ziglang, the first that there is.

    Raises:
        NoCompiler: there is none, or ``$CXX`` cannot be run.
    """
    return _compiler(os.environ.get("CXX"), os.environ.get("PATH"))


def cache_directory(wanted: str | None = None) -> Path:
    """A directory that can be written: ``wanted``, the user's cache, or a temporary one of this process."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for candidate in (wanted, os.path.join(base, "fusedref", "emulator")):
        if not candidate:
            continue
        with contextlib.suppress(OSError):
            os.makedirs(candidate, exist_ok=True)
            with tempfile.TemporaryFile(dir=candidate):
                return Path(candidate)
    return _temporary()


@lru_cache(maxsize=1)
def _temporary() -> Path:
    import atexit

    directory = tempfile.mkdtemp(prefix="fusedref-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def digest(*parts: str | bytes) -> str:
    """A name for what is compiled from ``parts``."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:32]


@lru_cache(maxsize=1)
def headers_digest() -> str:
    """Of every header and source of the emulator, so that a changed one is never mixed with an old library."""
    files = sorted([*INCLUDE.glob("*"), *(HERE / "native").glob("*"), HERE / "frontend.py", HERE / "build.py"])
    # Their place too: by it a library's debug information tells the emulator's lines from a kernel's.
    return digest(str(HERE), *[part for file in files for part in (file.name, file.read_bytes())])


def run(command: list[str], **options: object) -> str:
    """The command's standard output. Raises CompilerFailed with what it wrote to standard error."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", **options)
    if done.returncode:
        raise CompilerFailed(command, done.stderr)
    return done.stdout


def publish(built: str, target: Path) -> None:
    """Move a finished library to its place in one step, with its checksum behind it: nobody ever sees half of it."""
    with open(built, "rb+") as stream:
        checksum = hashlib.sha256(stream.read()).digest()
        stream.write(checksum)
    os.replace(built, target)


def whole(library: Path) -> bool:
    """Whether the library is there and as it was published. (Loading one that was cut short can end the process.)"""
    try:
        data = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


def runtime() -> Path:
    """Path of the emulator's runtime library, compiled at first use."""
    cxx = compiler()
    name = f"libfusedref_{digest(headers_digest(), cxx.version, ' '.join(cxx.extra))}.so"
    target = cache_directory() / name
    if not whole(target):
        build_runtime(cxx, target)
    return target


def build_runtime(cxx: Compiler, target: Path) -> None:
    """Compile the runtime to ``target``."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects = []
        for source in sorted((HERE / "native").glob("*.cpp")):
            output = os.path.join(scratch, source.stem + ".o")
            run([*cxx.command, *COMMON, *cxx.extra, "-c", str(source), "-o", output])
            objects.append(output)
        built = os.path.join(scratch, "runtime.so")
        name = f"-Wl,-install_name,{target.name}" if sys.platform == "darwin" else f"-Wl,-soname,{target.name}"
        run(cxx.link(objects, built, [name, "-lpthread", "-lm"]))
        publish(built, target)
