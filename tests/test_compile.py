"""The cubin cache, with a fake compiler that counts its calls; and with nvcc, if there is one."""

import os
import shutil

import pytest
import torch

from fusedref import KERNELBENCH_73
from fusedref import cache as compile_cache
from fusedref.cuda import nvcc
from fusedref.cuda.compile import INCLUDE_DIRS, source_module
from fusedref.cuda.nvcc import CompileError
from fusedref.plans import folded_plan

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Return an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "fusedref"


@pytest.fixture
def compiled(monkeypatch):
    """Return the list of calls of a fake compiler, which returns its arguments as machine code."""
    calls = []

    def compile_(source, options, architecture, include_dirs, folder):
        calls.append(source)
        return f"{source}|{options}|{architecture}".encode()

    monkeypatch.setattr(nvcc, "_compile", compile_)
    monkeypatch.setattr(nvcc, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(nvcc, "_version", lambda path: "13.0")
    return calls


def cubin(source, options, architecture, include_dirs=INCLUDE_DIRS):
    return nvcc.cubin(source, options, architecture, list(include_dirs))


def test_cached_cubin(cache, compiled):
    first = cubin("text", ("-DA=1",), "sm_90")
    assert cubin("text", ("-DA=1",), "sm_90") == first == b"text|('-DA=1',)|sm_90"
    assert len(compiled) == 1
    assert len(list(cache.iterdir())) == 1


def test_name_of_a_cubin(cache, compiled, monkeypatch, tmp_path):
    header, inner = tmp_path / "header.cuh", tmp_path / "inner.cuh"
    inner.write_text("// inner")
    header.write_text('#include "inner.cuh"')
    source = '  #include "header.cuh"\ntext'

    def call(source=source, options=(), arch="sm_90"):
        return cubin(source, options, arch, [tmp_path])

    call()
    call(source + " ")
    call(options=("-DA=1",))
    call(options=("-DA=2",))
    call(arch="sm_80")
    header.write_text('#include "inner.cuh"\n// changed')
    call()
    inner.write_text("// changed")
    call()
    monkeypatch.setattr(nvcc, "_version", lambda path: "13.1")
    call()
    monkeypatch.setattr(nvcc, "OPTIONS", ("-O0",))
    call()
    assert len(compiled) == 9
    call()
    assert len(compiled) == 9


@pytest.mark.parametrize("length", [0, 1, 31, 32, 40, -1], ids=lambda length: f"cut to {length}")
def test_truncated_cubin(cache, compiled, length):
    whole = cubin("text", (), "sm_90")
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    assert cubin("text", (), "sm_90") == whole
    assert len(compiled) == 2
    assert cubin("text", (), "sm_90") == whole
    assert len(compiled) == 2


def test_damaged_cubin(cache, compiled):
    whole = cubin("text", (), "sm_90")
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert cubin("text", (), "sm_90") == whole
    assert len(compiled) == 2


def test_unwritable_home(monkeypatch, compiled, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cubin("text", (), "sm_90") == cubin("text", (), "sm_90")
    assert len(compiled) == 1
    # No other user can put machine code there.
    assert compile_cache._temporary(os.getpid()).stat().st_mode & 0o777 == 0o700


def test_no_home(monkeypatch, compiled):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cubin("text without a home", (), "sm_90") == b"text without a home|()|sm_90"


def test_folder_that_is_deleted(cache, compiled):
    cubin("text", (), "sm_90")
    shutil.rmtree(cache)
    assert cubin("text", (), "sm_90") == b"text|()|sm_90"


@needs_nvcc
@pytest.mark.parametrize("arch", [ARCHITECTURES[0], ARCHITECTURES[-1]])  # test_kernels_compile.py: all
def test_folded_compiles(cache, arch):
    (launch,) = folded_plan(KERNELBENCH_73).launches
    assert cubin(launch.source.read_text(), launch.options, arch)[:4] == b"\x7fELF"


@needs_nvcc
def test_error_of_nvcc(cache):
    with pytest.raises(CompileError, match=r"identifier .*nonsense.* is undefined"):
        cubin('extern "C" __global__ void f(float* y) { *y = nonsense; }', (), "sm_90")
    assert list(cache.iterdir()) == []


def test_without_nvcc(monkeypatch, tmp_path):
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no nvcc on PATH: .* pip install fusedref\[gpu\]"):
        cubin("text", (), "sm_90")


def test_cuda_tensors_without_pycuda(monkeypatch):
    monkeypatch.setenv("FUSEDREF_DEVICE", "emulator")
    with pytest.raises(RuntimeError, match=r"needs PyCUDA \(pip install fusedref\[gpu\]\)"):
        source_module("text", (), torch.device("cuda:0"))


@pytest.mark.gpu
def test_one_module_per_source():
    text = 'extern "C" __global__ void f(float* y) { *y = VALUE; }'
    device = torch.device("cuda:0")
    one = source_module(text, ("-DVALUE=1",), device)
    assert source_module(text, ("-DVALUE=1",), device) is one
    assert source_module(text, ("-DVALUE=2",), device) is not one
