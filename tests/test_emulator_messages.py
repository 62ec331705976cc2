"""Messages about source that does not compile: one sentence in CUDA's terms, and the line of the source."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from fusedref.emulator import SourceModule
from fusedref.emulator import driver as drv
from fusedref.emulator.compile import build, messages
from tests.processes import environment

KERNEL = "__global__ void k(float* y, const float* x, int n)\n{\n    int i = threadIdx.x;\n    %s\n}\n"
HOST = "belongs to host code: the emulator compiles kernels only, and Python is their host"
NO = "the emulator does not support"


def message(source, **options):
    """Return what CompileError says of the source, without its first line."""
    with pytest.raises(drv.CompileError) as raised:
        SourceModule(source, **options)
    assert raised.value.msg == "nvcc compilation of kernel.cu failed"
    return raised.value.stderr


@pytest.mark.parametrize(
    ("statement", "meaning"),
    [
        ("y[i] = undefined_name;", 'identifier "undefined_name" is undefined'),
        ("y[i] = thredIdx.x;", 'identifier "thredIdx" is undefined; did you mean "threadIdx"?'),
        ("unsigned_int v = 3;", 'identifier "unsigned_int" is undefined; did you mean "unsigned"?'),
        ("y[i] = x[i]", "a ';' is missing in this line or at its end"),
        ("y[i] = fmaxf(x[i]);", 'too few arguments: the function is "float fmaxf(float, float)"'),
        ("y[i] = sqrtf(1.0f, 2.0f);", 'too many arguments: the function is "float sqrtf(float)"'),
        ("y[i] = atomicAdd(y);", 'no version of the function takes these arguments: "atomicAdd(float*&)"'),
        ("x[i] = 1;", "a const value cannot be written"),
        ("float4 v = x[i];", 'a value of type "const float" cannot be converted to "float4"'),
        ("int* p = x;", 'a value of type "const float*" cannot be converted to "int*"'),
        ("y[i] = x[i].z;", 'type "const float" has no members, so there is no "z"'),
        ("float4 v; y[i] = v.r;", 'type "struct float4" has no member "r"'),
        ("y[i] = n[i];", 'only an array or a pointer has elements: "int[int]"'),
        ("return 3;", "a kernel returns no value: its result type is void"),
        ("y[i] = y + y;", 'the operator does not take "float*" and "float*"'),
        ("int i = 2;", '"int i" is declared a second time'),
        ("y[i] = (x[i];", "'(' is never closed"),
        ("if (i < n { y[i] = 0; }", "'(' is never closed"),
        ("y[i = 0;", "'[' is never closed"),
        ("__shared__ float s[n]; y[i] = s[0];", '"n" is not known when the kernel is compiled'),
        ("exit(1);", 'calling a __host__ function("exit") from device code is not allowed'),
        ("cudaMalloc(&y, 4);", f'"cudaMalloc" {HOST}'),
        ("std::cout << i;", f'"cout" {HOST}'),
        (
            "k<<<1, 2>>>(y, x, n);",
            "a launch with <<<...>>> is host code: call the kernel from Python, with grid= and block=",
        ),
        ("namespace cg = cooperative_groups;", f'"cooperative_groups": {NO} cooperative groups'),
        ("nvcuda::wmma::fragment<int> f;", f'"nvcuda": {NO} wmma'),
        ("y[i] = tex2D<float>(n, 0, 0);", f'"tex2D": {NO} textures and surfaces'),
        ('asm("bar.sync 0;");', "inline PTX cannot run on the emulator; the wrappers of ptx.cuh can"),
    ],
)
def test_mistake_in_a_kernel(statement, meaning):
    assert message(KERNEL % statement) == f"kernel.cu(4): error: {meaning}\n    {statement}"


@pytest.mark.parametrize(
    ("source", "line", "meaning"),
    [
        ('#include "nowhere.cuh"', 1, 'cannot open "nowhere.cuh": no such file in the folders of include_dirs'),
        ("#include <cooperative_groups.h>", 1, f'cannot open "cooperative_groups.h": {NO} cooperative groups'),
        ("#include <mma.h>", 1, f'cannot open "mma.h": {NO} wmma'),
        ("#include <cub/cub.cuh>", 1, f'cannot open "cub/cub.cuh": {NO} CUB'),
        ("#include <cuda_fp8.h>", 1, f'cannot open "cuda_fp8.h": {NO} 8-bit floating-point types'),
        ("texture<float, 2> t;", 1, f'"texture": {NO} textures and surfaces'),
        ("__global__ void k(flot* y) {}", 1, 'identifier "flot" is undefined; did you mean "float"?'),
        ("\n__global__ int k() { return 3; }", 2, "a __global__ function must have a void return type"),
        ("__global__ void k() {", 1, "'{' is never closed"),
        ("__global__ void k() { } }", 1, "this '}' closes nothing"),
        ("#error stop here", 1, "#error stop here"),
        ("int a\n\n__device__ int f();", 1, "a ';' is missing at the end of this line"),
        (
            "template <int N> __device__ int f() { return N; }",
            1,
            'a template cannot be extern "C": use no_extern_c=True, and write extern "C" before the kernels',
        ),
    ],
)
def test_mistake_outside_a_kernel(source, line, meaning):
    text = source.splitlines()[line - 1]
    assert message(source) == f"kernel.cu({line}): error: {meaning}\n    {text}"


def test_function_without_a_body():
    source = "__device__ float later(float v);\n__global__ void k(float* y) { y[0] = later(1); }"
    assert message(source) == (
        'kernel.cu(1): error: "later" is declared and called, but defined nowhere\n    __device__ float later(float v);'
    )
    mangled = source.replace("__global__", 'extern "C" __global__')
    assert message(mangled, no_extern_c=True).startswith('kernel.cu(1): error: "later(float)" is declared and called, ')


def test_mistake_in_a_header(tmp_path):
    (tmp_path / "tile.cuh").write_text("\n__device__ int f() { return g(); }\n")
    source = '\n#include "tile.cuh"\n__global__ void k() {}'
    assert message(source, include_dirs=[str(tmp_path)]) == (
        'tile.cuh(2): error: identifier "g" is undefined\n    __device__ int f() { return g(); }'
    )


def test_each_line_gets_one_message_and_ten_are_shown():
    source = "__global__ void k() {\n" + "".join(f"    left{i} = right{i};\n" for i in range(12)) + "}"
    lines = message(source).splitlines()
    assert lines[:2] == ['kernel.cu(2): error: identifier "left0" is undefined', "    left0 = right0;"]
    assert len(lines) == 21
    assert lines[-1] == "(2 more errors)"


def test_unknown_message_is_shown_as_it_is():
    shown = messages.translate(
        "kernel.cu:1:5: error: quite new\nkernel.cu:1:9: note: no\n", {"kernel.cu": " x"}, "kernel.cu"
    )
    assert shown == "kernel.cu(1): error: quite new\n    x"
    assert messages.translate("ld: something else\n", {"kernel.cu": "x"}, "kernel.cu") == "ld: something else"


@pytest.mark.parametrize(
    ("stderr", "meaning"),
    [
        ("use of undeclared identifier 'b'", 'identifier "b" is undefined'),
        ("use of undeclared identifier 'thredIdx'; did you mean 'threadIdx'?", '"thredIdx" is undefined; did you mean'),
        ("unknown type name 'flot'; did you mean 'float'?", 'identifier "flot" is undefined; did you mean "float"?'),
        ("expected ';' after expression", "a ';' is missing in this line or at its end"),
        ("'nowhere.cuh' file not found", 'cannot open "nowhere.cuh": no such file'),
        (
            "too few arguments to function call, expected 2, have 1",
            "too few arguments: the function takes 2, the call has 1",
        ),
        (
            "cannot initialize a variable of type 'int *' with an rvalue of type 'float'",
            'type "float" cannot be converted',
        ),
        ("assigning to 'float' from incompatible type 'float *'", '"float *" cannot be converted to "float"'),
        ("cannot assign to variable 'x' with const-qualified type 'const int'", "a const value cannot be written"),
        ("no member named 'r' in 'float4'", 'type "float4" has no member "r"'),
        ("no member named 'cout' in namespace 'std'", f'"cout" {HOST}'),
        ("redefinition of 'i'", '"i" is declared a second time'),
        ("extraneous closing brace ('}')", "this '}' closes nothing"),
    ],
)
def test_messages_of_clang(stderr, meaning):
    assert meaning in messages.translate(f"kernel.cu:1:5: error: {stderr}", {"kernel.cu": "x"}, "kernel.cu")


# -------------------------------------------------------------------------------------------------- the command line


def test_command_line_is_shown_on_request(monkeypatch, capsys):
    source = "__global__ void k() { nothing; }"
    plain = 'nvcc compilation of kernel.cu failed\n[stderr:\nkernel.cu(1): error: identifier "nothing" is undefined\n'
    with pytest.raises(drv.CompileError) as raised:
        SourceModule(source)
    assert str(raised.value).startswith(plain)
    assert raised.value.command_line[-4:] == ["-c", "kernel.ii", "-o", "kernel.o"]
    with pytest.raises(drv.CompileError, match=r"\n\[command: .* -c kernel.ii -o kernel.o\]\n"):
        SourceModule(source, keep=True)
    assert capsys.readouterr().out.startswith("*** compiler output in ")
    monkeypatch.setenv("FUSEDREF_VERBOSE", "1")
    with pytest.raises(drv.CompileError, match=r"\n\[command: .* -c kernel.ii -o kernel.o\]\n"):
        SourceModule(source)


# ------------------------------------------------------------------------------------------- unusual sources


@pytest.mark.parametrize("name", ['a"b.cu', "a\\b.cu", "a\nb.cu", "a b.cu", "\N{GREEK SMALL LETTER PI}.cu", "100%.cu"])
def test_odd_file_name(name):
    source = f'#line 1 "{name}"\n\n__global__ void k() {{ nothing; }}'
    with pytest.raises(drv.CompileError) as raised:
        SourceModule(source)
    shown = name.replace('"', "_").replace("\\", "_").replace("\n", "_")
    assert raised.value.msg == f"nvcc compilation of {shown} failed"
    assert raised.value.stderr.startswith(f'{shown}(2): error: identifier "nothing" is undefined\n')


@pytest.mark.parametrize("first", ["", '#line 1 "mine.cu"\n'])
def test_byte_order_mark(first):
    SourceModule(f"{first}\N{ZERO WIDTH NO-BREAK SPACE}__global__ void k() {{}}").get_function("k")


BOMB = "#define A(x) B(x) B(x)\n" + "".join(
    f"#define {chr(66 + i)}(x) {chr(67 + i)}(x) {chr(67 + i)}(x)\n" for i in range(24)
)


def test_compiling_stops_at_a_limit(monkeypatch):
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.5)
    assert message(f"{BOMB}__global__ void k() {{ A(+1 B(+2)); }}") == (
        "error: compiling took longer than 0.5 seconds and was stopped"
    )


def test_ctrl_c_ends_the_compiler():
    code = f"""
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from fusedref.emulator import SourceModule
    from fusedref.emulator.compile import build
    run = build.run
    def announced(command, folder=None):
        if "-E" in command:
            print("compiling", flush=True)
        return run(command, folder)
    build.run = announced
    try:
        SourceModule({BOMB!r} + "__global__ void k() {{ A(+1 B(+2)); }}")
    except KeyboardInterrupt:
        print("interrupted")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout.readline() == "compiling\n"
    time.sleep(0.3)  # let the compiler start
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
