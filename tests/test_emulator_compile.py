"""Compiling for the emulator: errors, options, headers, compilers and the cache."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fusedref.emulator import SourceModule
from fusedref.emulator import driver as drv
from fusedref.emulator.compile import build, library
from fusedref.emulator.compile.frontend import Frontend
from tests.emulated import result
from tests.processes import python

int32, float32 = np.int32, np.float32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("__global__ void k(int* a)\n{\n    a[0] = undefined_name;\n}", r"kernel.cu\(3\): error: .*undefined_name"),
        ('#line 1 "mine.cu"\n__global__ void k(int* a)\n{ a[0] = nothing; }', r"mine.cu\(2\): error: .*nothing"),
        ('__global__ void k() { asm volatile("bar.sync 0;"); }', r"kernel.cu\(1\): error: inline PTX"),
        ("__global__ void k() { __shared__ int s = 3; }", "shared variable 's' cannot have an initialiser"),
        ("\n__global__ void k() {", r"kernel.cu\(2\): error: '\{' is never closed"),
        ('#include "nowhere.cuh"\n', "nowhere.cuh"),
        ("#error stop here\n", "stop here"),
        ("__global__ void k() { exit(3); }", r'calling a __host__ function\("exit"\) from device code is not allowed'),
        ("__global__ void k() { abort(); }", r'__host__ function\("abort"\)'),
        ('__global__ void k() { system("true"); }', r'__host__ function\("system"\)'),
    ],
)
def test_compile_error_names_the_line(source, message):
    with pytest.raises(drv.CompileError, match=r"nvcc compilation of (kernel|mine)\.cu failed") as raised:
        SourceModule(source)
    assert raised.match(message)


def test_included_files_are_translated(tmp_path):
    (tmp_path / "tile.cuh").write_text(
        '#pragma once\n#include "size.h"\n__device__ int turn(int v) {\n'
        "    __shared__ int s[SIZE];\n    s[threadIdx.x] = v;\n    __syncthreads();\n"
        "    return s[SIZE - threadIdx.x];\n}\n"
    )
    (tmp_path / "size.h").write_text("#define SIZE 4\n")
    source = '#include "tile.cuh"\n__global__ void k(int* out) { out[threadIdx.x] = turn(threadIdx.x); }'
    with pytest.raises(drv.MemoryAccessError) as raised:
        result(source, 4, block=(4, 1, 1), include_dirs=[str(tmp_path)])
    finding = raised.value.finding
    assert (finding.source, finding.line, finding.argument, finding.element) == ("tile.cuh", 7, "s", 4)
    (tmp_path / "size.h").write_text("#define SIZE 5\n")  # another text, hence another library
    with pytest.raises(drv.MemoryAccessError, match=r"reads s.5., but s has 5 elements"):
        result(source, 4, block=(4, 1, 1), include_dirs=[str(tmp_path)])


def test_options(tmp_path):
    source = "__global__ void k(int* out) { out[0] = VALUE + __CUDA_ARCH__; }"
    assert result(source, 1, block=(1, 1, 1), options=["-DVALUE=5", "-O3", "--use_fast_math"], arch="sm_80")[0] == 805
    assert result(source, 1, block=(1, 1, 1), options=["-D", "VALUE=6"])[0] == 906
    same = ["--define-macro=VALUE=7", "-arch", "sm_80", "-lineinfo", "-std=c++17", "-Xptxas", "-v", "--restrict"]
    assert result(source, 1, block=(1, 1, 1), options=same)[0] == 807


def test_fmad_false():
    source = "__global__ void k(float* y, float x) { y[0] = x * x - (1 + 1.0f / 2048); }"
    x = float32(1 + 2**-12)  # its square, 1 + 2^-11 + 2^-24, rounds to 1 + 2^-11
    assert result(source, 1, float32, x)[0] == 2.0**-24
    assert result(source, 1, float32, x, options=["-fmad=false"])[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-foo"], "Unknown option '-foo'"),
        (["--lineinfo"], "Unknown option '--lineinfo'"),  # a short name takes one dash only
        (["-DA=1", "-I"], "'-I': expected an argument"),
        (["-std=c++99"], "Value 'c++99' is not defined for option 'std'"),
        (["-arch=sm_1"], "Unsupported gpu architecture 'sm_1'"),
        (["other.cu"], "A single input file is required"),
        (["-fmad=3"], "'3': expected true or false"),
        (["-use_fast_math=true"], "no argument expected after '-use_fast_math'"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(drv.CompileError, match="nvcc fatal   : ") as raised:
        SourceModule("__global__ void k() {}", options=options)
    assert message in raised.value.stderr
    assert raised.value.command_line == ["nvcc", *options]


@pytest.mark.parametrize("options", ["-DA=1", ["-DA=1", 3], [None]])
def test_options_must_be_a_list(options):
    with pytest.raises(TypeError, match="options must be a list of str"):
        SourceModule("__global__ void k() {}", options=options)


@pytest.mark.parametrize("source", [3, None, b"__global__ void k() {}", Path("k.cu")])
def test_source_must_be_a_string(source):
    with pytest.raises(TypeError, match="source must be CUDA C as a str, got "):
        SourceModule(source)


def test_second_module_is_not_compiled_again(tmp_path, monkeypatch):
    source = "__global__ void k(int* a) { a[0] = 4; }"
    assert result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))[0] == 4
    monkeypatch.setattr(library, "_build", None)
    assert result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))[0] == 4


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_damaged_library_is_compiled_again(tmp_path, size):
    source = f"__global__ void k(int* a) {{ a[0] = {size}; }}"
    result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))
    (library,) = tmp_path.iterdir()
    whole = library.stat().st_size
    library.unlink()  # the loader knows the old file by its inode
    library.write_bytes(bytes(size))
    assert result(source, 1, block=(1, 1, 1), cache_dir=str(tmp_path))[0] == size
    assert library.stat().st_size == whole
    assert len(list(tmp_path.iterdir())) == 1


PRINTS_6 = """
import numpy as np
from fusedref.emulator import SourceModule, gpuarray
a = gpuarray.zeros(1, np.int32)
SourceModule("__global__ void k(int* a) { a[0] = 6; }").get_function("k")(a, block=(1, 1, 1))
print(a.get()[0])
"""


def test_unwritable_home(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")  # no directory can be made below a file
    assert python(PRINTS_6, XDG_CACHE_HOME=blocked / "below") == "6\n"


def test_two_processes_with_an_empty_cache(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(partial(python, XDG_CACHE_HOME=tmp_path), [PRINTS_6] * 2))
    assert both == ["6\n", "6\n"]


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NoCompiler, match="that CXX names, 'no-such-compiler', cannot be run"):
        build.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.NoCompiler, match="pip install ziglang"):
        build.compiler()


def test_ziglang():
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    code = """
    import numpy as np
    from fusedref.emulator import SourceModule, driver, gpuarray
    source = '''
    __constant__ float c[2] = {1, 2};
    __global__ void k(float4* out, int n) {
        __shared__ float4 s[4];
        s[threadIdx.x] = make_float4(c[1], threadIdx.x, 0, 0);
        __syncthreads();
        out[threadIdx.x + n] = s[3 - threadIdx.x];
    }'''
    k = SourceModule(source).get_function("k")
    out = gpuarray.zeros(16, np.float32)
    k(out, np.int32(0), block=(4, 1, 1))
    print(list(map(int, out.get()[1::4])))
    try:
        k(out, np.int32(1), block=(4, 1, 1))
    except driver.MemoryAccessError as error:
        print(error)
    """
    assert python(code, CXX=f"{sys.executable} -m ziglang c++").splitlines() == [
        "[3, 2, 1, 0]",
        "kernel.cu:7: kernel k: thread (3, 0, 0) of block (0, 0, 0) writes out[4], but out has 4 elements",
    ]


def test_import_compiles_nothing():
    python("from fusedref.emulator import runtime; assert runtime._library is None", PATH="")


def test_frontend_keeps_lines():
    text = '# 1 "kernel.cu"\n__global__ void k() {\n  __shared__ int\n    a,\n    b[3];\n}\n__constant__ int\n  c;\n'
    assert Frontend(text, lambda file: True).translate().count("\n") == text.count("\n")
