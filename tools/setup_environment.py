"""Create the virtual environment of the Makefile's targets: `python tools/setup_environment.py .venv`.

The script uses the standard library only. It installs requirements.txt on a machine with an NVIDIA GPU and
requirements-cpu.txt on any other, and makes this checkout importable. Missing compilers come from PyPI: CUDA's if there
is a GPU but no toolkit, ziglang as the C++ compiler if there is neither a GPU nor g++ or clang++.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA_TOOLKIT = "cuda-toolkit[nvcc,cudart,cccl,curand,profiler]==13.0.*"  # CUDA 13.0 is what torch 2.13.0 is built with
ZIGLANG = "ziglang==0.17.1"
STAMP = ".ready"  # in the environment's folder: set-up has finished


def say(text: str) -> None:
    """Print a headline."""
    print(f"\n== {text}", flush=True)


def run(*command: str, **environment: str) -> None:
    """Print and run a command, with variables added to the environment; exit if it fails."""
    print("+ " + " ".join(map(shlex.quote, command)), flush=True)
    status = subprocess.run(command, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(f"\n== Set-up stopped: the command above failed with status {status}. Run make again to continue.")


def driver() -> Path | None:
    """Return the path of NVIDIA's driver library, or None if there is no driver or no working GPU.

    Query the driver itself, since nvidia-smi can be missing in a container, or present and broken.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    return Path(re.findall(r"/\S*libcuda\.so\S*", Path("/proc/self/maps").read_text())[0])


def toolkit() -> Path | None:
    """Return the root of an installed CUDA toolkit that PyCUDA can be built with, or None."""
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/cuda/bin"]:
        root = Path(folder, "..").resolve()
        if all((root / part).exists() for part in ("bin/nvcc", "include/cudaProfiler.h", "include/curand.h")):
            return root
    return None


def has_compiler() -> bool:
    """Return whether a C++ compiler is on PATH."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def has_headers() -> bool:
    """Return whether Python's headers, which building PyCUDA needs, are installed."""
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def create_environment(folder: Path) -> str:
    """Create the virtual environment, unless a working one exists; return the path of its Python."""
    python = folder / "bin" / "python"
    if python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return str(python)
    say(f"Creating {folder} with Python {platform.python_version()}")
    for module in ("venv", "virtualenv"):
        shutil.rmtree(folder, ignore_errors=True)
        if subprocess.run([sys.executable, "-m", module, folder], capture_output=True).returncode == 0:
            return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    major, minor = sys.version_info[:2]
    sys.exit(
        f"== {sys.executable} cannot create a virtual environment: its module venv, or ensurepip, is missing,\n"
        "   and virtualenv is not installed.\n"
        f"   On Debian or Ubuntu: apt install python{major}.{minor}-venv\n"
        f"   Elsewhere: {sys.executable} -m pip install virtualenv"
    )


def site_packages(python: str) -> Path:
    """Return the folder in which an environment keeps its packages."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def install_for_gpu(python: str, libcuda: Path) -> None:
    """Install requirements.txt; build PyCUDA, which PyPI has only as source, and check that it loads."""
    root = toolkit()
    if root is None:
        say("No CUDA toolkit found: installing CUDA's compiler from PyPI")
        run(python, "-m", "pip", "install", CUDA_TOOLKIT)
        root = site_packages(python) / "nvidia" / "cu13"
    say(f"Installing requirements.txt; building PyCUDA against {root} takes two or three minutes")
    with tempfile.TemporaryDirectory() as links:
        # The linker needs unversioned names. Drivers and PyPI's libraries may have only versioned ones.
        Path(links, "libcuda.so").symlink_to(libcuda)
        for curand in sorted((root / "lib").glob("libcurand.so.*"))[:1]:
            Path(links, "libcurand.so").symlink_to(curand)
        path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        run(
            python,
            "-m",
            "pip",
            "install",
            "-r",
            str(ROOT / "requirements.txt"),
            PATH=path,
            LIBRARY_PATH=links,
            LDFLAGS="-Wl,-rpath,$ORIGIN/../nvidia/cu13/lib",
        )
    run(python, "-c", "import pycuda.driver")


def main(folder: Path) -> None:
    """Set up the environment in `folder` and mark it as ready."""
    python = create_environment(folder)
    libcuda = driver()
    if libcuda and not (has_compiler() and has_headers()):
        say(
            "This machine has an NVIDIA GPU, but PyCUDA cannot be built without a C++ compiler and Python's headers:\n"
            "   setting up for the emulator.\n"
            f"   To use the GPU: apt install g++ python3-dev; rm -r {folder}; and run make again."
        )
        libcuda = None
    if libcuda:
        say("This machine has an NVIDIA GPU")
        install_for_gpu(python, libcuda)
    else:
        say("No NVIDIA GPU to use: installing requirements-cpu.txt; kernels will run on the emulator")
        run(python, "-m", "pip", "install", "-r", str(ROOT / "requirements-cpu.txt"))
        if not has_compiler():
            say("No C++ compiler found: installing ziglang from PyPI")
            run(python, "-m", "pip", "install", ZIGLANG)
    # Make fusedref, kernels and lessons importable from every folder, so that notebooks find them.
    (site_packages(python) / "fusedref-checkout.pth").write_text(f"{ROOT}\n")
    (folder / STAMP).touch()
    say(f"{folder} is ready")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
