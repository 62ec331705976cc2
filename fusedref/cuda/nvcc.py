"""Compile CUDA C to machine code with nvcc, or take the cubin from the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from fusedref.cache import cached_bytes, digest

OPTIONS = ("-O3", "-std=c++17", "-lineinfo")


class CompileError(RuntimeError):
    """nvcc refused the source; the message is nvcc's."""


def find_nvcc() -> None:
    """Put nvcc on PATH, where PyCUDA looks for it, if CUDA_HOME or CUDA's compiler from PyPI has one."""
    if shutil.which("nvcc"):
        return
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    folders += [Path(entry) / "nvidia" / "cu13" / "bin" for entry in sys.path if entry]
    for folder in folders:
        if (folder / "nvcc").is_file():
            os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
            return


def nvcc() -> str:
    """Return the path of nvcc; raise RuntimeError if there is none."""
    find_nvcc()
    path = shutil.which("nvcc")
    if path is None:
        raise RuntimeError("no nvcc on PATH: install the CUDA toolkit, or pip install fusedref[gpu]")
    return path


def cubin_name(source: str, options: tuple[str, ...], architecture: str, include_dirs: list[Path]) -> str:
    """Return the cubin's file name: a digest of source, included files, options, architecture and nvcc's version."""
    texts = _with_includes(source, include_dirs)
    return digest(*texts, "", *OPTIONS, *options, architecture, _version(nvcc())) + ".cubin"


def cubin(source: str, options: tuple[str, ...], architecture: str, include_dirs: list[Path]) -> bytes:
    """Return the machine code of ``source`` for ``architecture`` (such as ``"sm_90"``), from the cache or from nvcc.

    Raise CompileError if nvcc refuses the source, RuntimeError if there is no nvcc.
    """
    name = cubin_name(source, options, architecture, include_dirs)
    return cached_bytes(name, lambda folder: _compile(source, options, architecture, include_dirs, folder))


def _compile(source: str, options: tuple[str, ...], architecture: str, include_dirs: list[Path], folder: Path) -> bytes:
    text, image = folder / "kernel.cu", folder / "kernel.cubin"
    text.write_text(source, encoding="utf-8")
    includes = [f"-I{include_dir}" for include_dir in include_dirs]
    command = [nvcc(), "-cubin", f"-arch={architecture}", *OPTIONS, *options, *includes, "-o", str(image), str(text)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"nvcc refused the source:\n{done.stdout}{done.stderr}")
    return image.read_bytes()


@cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def _with_includes(source: str, include_dirs: list[Path]) -> list[str]:
    """Return the text and that of every file it includes by ``#include "..."``; those in ``<...>`` are nvcc's own."""
    texts, seen = [source], set()
    for text in texts:
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            path = next((path for folder in include_dirs if (path := folder / name).is_file()), None)
            if path is not None and path not in seen:
                seen.add(path)
                texts.append(path.read_text(encoding="utf-8", errors="surrogateescape"))
    return texts
