"""Makes the virtual environment that the Makefile's targets run in: `python .ci/bootstrap.py .venv`.

Standard library only. With an NVIDIA GPU it installs requirements.txt, otherwise requirements-cpu.txt, and lets the
environment import this checkout. What the machine lacks comes from PyPI: CUDA's compiler where there is a GPU and no
toolkit, a C++ compiler (ziglang) where there is no GPU and no compiler.
"""

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
STAMP = ".ready"


def say(text):
    print(f"\n== {text}", flush=True)


def run(*command, **environment):
    """Shows and runs a command, with variables added to the environment; exits if it fails."""
    print("+ " + " ".join(map(shlex.quote, command)), flush=True)
    status = subprocess.run(command, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(f"\n== Setting up stopped: the command above ended with status {status}. Run make again to go on.")


def driver():
    """Path of NVIDIA's driver library, or None where there is no driver or it has no working GPU.

    The driver itself is asked: an nvidia-smi may be missing in a container, or be there and broken.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    return Path(re.findall(r"/\S*libcuda\.so\S*", Path("/proc/self/maps").read_text())[0])


def toolkit():
    """Root of an installed CUDA toolkit with all that PyCUDA's build needs, or None."""
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/cuda/bin"]:
        root = Path(folder, "..").resolve()
        if all((root / part).exists() for part in ("bin/nvcc", "include/cudaProfiler.h", "include/curand.h")):
            return root
    return None


def has_compiler():
    """Whether a C++ compiler is on PATH."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def has_headers():
    """Whether Python's own headers, which extensions are built with, are installed."""
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def make_environment(folder):
    """Makes the virtual environment, unless it is there and its Python runs; returns its Python."""
    python = folder / "bin" / "python"
    if python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return str(python)
    say(f"Making {folder} with Python {platform.python_version()}")
    for module in ("venv", "virtualenv"):
        shutil.rmtree(folder, ignore_errors=True)
        if subprocess.run([sys.executable, "-m", module, folder], capture_output=True).returncode == 0:
            return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    major, minor = sys.version_info[:2]
    sys.exit(
        f"== {sys.executable} can make no virtual environment: the module venv (or ensurepip, which it uses) is\n"
        "   missing, and virtualenv is not installed.\n"
        f"   On Debian or Ubuntu: apt install python{major}.{minor}-venv\n"
        f"   Elsewhere: {sys.executable} -m pip install virtualenv"
    )


def site_packages(python):
    """Where an environment's Python keeps its packages."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def install_for_gpu(python, libcuda):
    """Installs requirements.txt. PyPI has PyCUDA as sources only, so it is built here, and then seen to load."""
    root = toolkit()
    if root is None:
        say("No CUDA toolkit found: taking CUDA's compiler from PyPI")
        run(python, "-m", "pip", "install", CUDA_TOOLKIT)
        root = site_packages(python) / "nvidia" / "cu13"
    say(f"Installing requirements.txt; PyCUDA is built against {root}, which takes two or three minutes")
    with tempfile.TemporaryDirectory() as links:
        # The linker wants names without a version; neither a driver nor PyPI's libraries must have them.
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


def main(folder):
    python = make_environment(folder)
    libcuda = driver()
    if libcuda and not (has_compiler() and has_headers()):
        say(
            "An NVIDIA GPU is here, but PyCUDA cannot be built without a C++ compiler and Python's headers:\n"
            "   setting up for the emulator.\n"
            f"   To use the GPU: apt install g++ python3-dev; rm -r {folder}; and run make again."
        )
        libcuda = None
    if libcuda:
        say("An NVIDIA GPU is here")
        install_for_gpu(python, libcuda)
    else:
        say("No NVIDIA GPU in use: installing requirements-cpu.txt; kernels will run on the emulator")
        run(python, "-m", "pip", "install", "-r", str(ROOT / "requirements-cpu.txt"))
        if not has_compiler():
            say("No C++ compiler found: taking ziglang from PyPI")
            run(python, "-m", "pip", "install", ZIGLANG)
    # fusedref, kernels and lessons become importable from anywhere, notebooks included.
    (site_packages(python) / "fusedref-checkout.pth").write_text(f"{ROOT}\n")
    (folder / STAMP).touch()
    say(f"{folder} is ready")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
