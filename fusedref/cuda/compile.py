"""CUDA C to a loaded module: nvcc, a cache of cubins on disk, and a module per device in memory.

A cubin's file is named by the digest of all that it depends on: source, included files, options, architecture and nvcc.
It is written aside and moved into place, so that a reader sees all of it or nothing, and it ends with its own
checksum, so that a file cut short is noticed and built again. Where the home cannot be written, a directory of
temporary files serves.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import torch

from fusedref import cuda
from fusedref.cuda.context import kept, pushed

HEADERS = Path(__file__).parents[1] / "csrc"  # what every kernel may #include
NVCC_OPTIONS = ("-O3", "-std=c++17", "-lineinfo")

_modules: dict[tuple[str, int], object] = {}
_modules_lock = threading.Lock()


class CompileError(RuntimeError):
    """nvcc refused the source; the message is nvcc's."""


def source_module(source: str | Path, options: tuple[str, ...] = (), device: torch.device | None = None):
    """The module (``get_function``, ``get_global``) that CUDA C ``source`` compiles to, loaded on ``device``.

    ``source`` is the path of a .cu file, or the text itself. Kernels are marked ``extern "C"`` by their source.
    ``options`` are nvcc's, such as ``-DWIDTH=128``. ``device`` is a CUDA device, the CPU for the emulator, or None:
    wherever the door leads (``fusedref.cuda.device()``). The same source and options give the same module, without
    compiling again.

    Raises CompileError (the emulator: its own) where the source does not compile.
    """
    text, include_dirs = source, [HEADERS]
    if isinstance(source, Path):
        text = f'#line 1 "{source.name}"\n{source.read_text()}'  # the name that errors tell
        if source.parent != HEADERS:
            include_dirs = [source.parent, HEADERS]
    if (cuda.device() == "emulator") if device is None else (device.type == "cpu"):
        from fusedref.emulator import SourceModule

        return SourceModule(
            text, options=list(options), no_extern_c=True, include_dirs=[str(folder) for folder in include_dirs]
        )

    if cuda.device() != "gpu":
        raise RuntimeError(
            f"running a kernel on {device} needs PyCUDA (pip install fusedref[gpu]) and FUSEDREF_DEVICE unset or 'gpu'"
        )
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    arch = architecture(index)
    key = _digest(text, options, arch, include_dirs), index
    image = None if key in _modules else cubin(text, options, arch, include_dirs)  # nvcc may work for several threads
    with _modules_lock:
        if key not in _modules:
            import pycuda.driver as drv

            with pushed(index):
                _modules[key] = kept(drv.module_from_buffer(image))
        return _modules[key]


def architecture(index: int | None) -> str:
    """nvcc's name for CUDA device ``index`` (None: the current one): ``'sm_80'``; ``'sm_90a'`` where there is wgmma."""
    major, minor = torch.cuda.get_device_capability(index)
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"


def allow_shared(function, bytes_: int, device: torch.device) -> None:
    """Lets ``function`` be launched on ``device`` with so much dynamic shared memory; above 48 KB it must be asked."""
    if bytes_ <= 48 * 1024:
        return
    if device.type == "cpu":
        from fusedref.emulator import driver as drv

        function.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes_)
    else:
        import pycuda.driver as drv

        with pushed(torch.cuda.current_device() if device.index is None else device.index):
            function.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes_)


def cubin(source: str, options: tuple[str, ...], arch: str, include_dirs: list[Path] = [HEADERS]) -> bytes:
    """The machine code of ``source`` for ``arch`` (such as ``'sm_90'``), from the cache or from nvcc."""
    path = _cache_folder() / f"{_digest(source, options, arch, include_dirs)}.cubin"
    image = _read(path)
    if image is None:
        image = _compile(source, options, arch, include_dirs)
        _write(path, image)
    return image


def _compile(source: str, options: tuple[str, ...], arch: str, include_dirs: list[Path]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        text, image = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        text.write_text(source)
        includes = [f"-I{include_dir}" for include_dir in include_dirs]
        command = [nvcc(), "-cubin", f"-arch={arch}", *NVCC_OPTIONS, *options, *includes, "-o", str(image), str(text)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(f"nvcc refused the source:\n{done.stdout}{done.stderr}")
        return image.read_bytes()


def nvcc() -> str:
    """The path of nvcc."""
    cuda.find_nvcc()
    found = shutil.which("nvcc")
    if found is None:
        raise RuntimeError("no nvcc on PATH: install the CUDA toolkit, or pip install fusedref[gpu]")
    return found


@cache
def _nvcc_version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def _digest(source: str, options: tuple[str, ...], arch: str, include_dirs: list[Path]) -> str:
    parts = [*_with_includes(source, include_dirs), *NVCC_OPTIONS, *options, arch, _nvcc_version(nvcc())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _with_includes(source: str, include_dirs: list[Path]) -> list[str]:
    """The text and that of every file it includes by ``#include "..."`` (what is in ``<...>`` comes with nvcc)."""
    texts, seen = [source], set()
    for text in texts:
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            path = next((path for folder in include_dirs if (path := folder / name).is_file()), None)
            if path is not None and path not in seen:
                seen.add(path)
                texts.append(path.read_text())
    return texts


@cache
def _cache_folder() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedref"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        # A new one for this process: machine code is not loaded from a place where somebody else may have put it.
        folder = Path(tempfile.mkdtemp(prefix="fusedref-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    image, checksum = content[:-32], content[-32:]
    return image if hashlib.sha256(image).digest() == checksum else None


def _write(path: Path, image: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(image + hashlib.sha256(image).digest())
        os.replace(file.name, path)
    except OSError:
        pass  # a full disk costs the next process a compilation, not this one its kernel
