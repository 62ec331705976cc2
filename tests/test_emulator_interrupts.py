"""Launches that do not end by themselves: Ctrl-C, other threads, fork, faults inside the runtime."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray
from fusedref.emulator import driver as drv

ROOT = Path(__file__).parents[1]
LIMIT = 240  # seconds until a process counts as hanging


def python(code, *arguments, **environment):
    """Return what a new process prints that starts with SIGINT ignored, as a background job does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, *(["-c", textwrap.dedent(code)] if code else []), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            out, error = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, error
    return out


SETUP = """
import os, signal, sys, threading, time
import numpy as np
from fusedref.emulator import SourceModule, driver, gpuarray
signal.signal(signal.SIGINT, signal.default_int_handler)
def kernel(body):
    return SourceModule("__global__ void k(int* a) { " + body + " }").get_function("k")
endless, add = kernel("while (true) a[0]++;"), kernel("a[threadIdx.x] += 1;")
a = gpuarray.zeros(32, np.int32)
"""


def test_ctrl_c_ends_a_kernel_that_never_ends():
    code = """
    import _thread, signal, threading
    import numpy as np
    from fusedref.emulator import SourceModule, gpuarray
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for body in (
        "while (true) a[0]++;",
        "for (;;) __syncthreads();",
        "volatile int i = 0; while (true) i++;",
        "int n = blockDim.x; while (n);",
    ):
        k = SourceModule("__global__ void k(int* a) { " + body + " }").get_function("k")
        threading.Timer(0.5, _thread.interrupt_main).start()
        try:
            k(gpuarray.zeros(1, np.int32), block=(32, 1, 1), grid=(4, 1))
        except KeyboardInterrupt:
            print("interrupted")
    """
    assert python(code) == "interrupted\n" * 4


@pytest.mark.parametrize("watched", ["", "1"], ids=["unwatched", "watched"])
def test_interrupts_at_any_moment(watched):
    script = str(Path(__file__).with_name("interrupt_stress.py"))
    assert python("", "-W", "ignore", script, "24", FUSEDREF_WATCH=watched) == "24 of 24\n"


def test_ctrl_c_ends_kernels_of_other_threads():
    code = SETUP + textwrap.dedent("""
    def work():
        try:
            endless(a, block=(1, 1, 1))
        except KeyboardInterrupt:
            print("interrupted")
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        pass
    for thread in threads:
        thread.join()
    a.fill(np.int32(0))
    add(a, block=(32, 1, 1))
    print(a.get().sum(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert python(code) == "interrupted\n" * 3 + "32 True\n"


def test_process_ends_while_a_daemon_thread_runs_an_endless_kernel():
    code = SETUP + textwrap.dedent("""
    threading.Thread(target=endless, args=(a,), kwargs={"block": (1, 1, 1)}, daemon=True).start()
    time.sleep(0.3)
    print("end")
    """)
    assert python(code) == "end\n"


def test_a_signal_handler_that_raises_nothing_leaves_the_launch_alone():
    code = SETUP + textwrap.dedent("""
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    until = kernel("while (((volatile int*)a)[1] == 0) a[2]++;")
    def end():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        driver.memcpy_htod(int(a.gpudata) + 4, np.ones(1, np.int32))
    threading.Timer(0.2, end).start()
    until(a, block=(1, 1, 1))
    print(len(seen), a.get()[1])
    """)
    assert python(code) == "1 1\n"


def test_fork_while_other_threads_launch():
    code = SETUP + textwrap.dedent("""
    stop = False
    def work():
        mine = gpuarray.zeros(32, np.int32)
        while not stop:
            add(mine, block=(32, 1, 1), grid=(4, 1))
            gpuarray.zeros(100, np.int32)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    good = 0
    for _ in range(20):
        child = os.fork()
        if not child:
            mine = gpuarray.zeros(32, np.int32)
            add(mine, block=(32, 1, 1))
            os._exit(0 if mine.get().sum() == 32 else 1)
        good += os.waitpid(child, 0)[1] == 0
    stop = True
    for thread in threads:
        thread.join()
    print(good)
    """)
    assert python(code, "-W", "ignore") == "20\n"


def launch(source, *arguments, block=(1, 1, 1)):
    SourceModule(source).get_function("k")(*arguments, block=block)


def next_launch_works():
    out = gpuarray.zeros(32, np.int32)
    launch("__global__ void k(int* a) { a[threadIdx.x] = threadIdx.x; }", out, block=(32, 1, 1))
    return np.array_equal(out.get(), np.arange(32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (a[0] == 0) __builtin_unreachable(); a[0] = 1;", r"__builtin_unreachable\(\), in thread \(0, 0, 0\)"),
        ("free(a);", r"free\(\) of an address that malloc\(\) has not returned, in thread \(0, 0, 0\)"),
        ('printf("%s", (const char*)0x1234);', r"printf's %s is given an address where the kernel can read no string"),
        ('printf("%d %5.1f %s", 1, 2.0, (const char*)a);', "printf's %s is given an address"),
        ('printf("%n", a);', "printf on a device has no %n"),
        ("printf((const char*)0x1234);", "printf's format is not a string that the kernel can read"),
    ],
)
def test_misuse_is_a_launch_error(body, message):
    source = f"__global__ void k(int* a) {{\n{body}\n}}"
    array = gpuarray.GPUArray((16,), np.int32)  # fresh memory has no zero byte that ends a string
    if "unreachable" in body:
        array.fill(np.int32(0))
    with pytest.raises(drv.LaunchError, match=message) as caught:
        launch(source, array)
    assert "(kernel.cu:2)" in str(caught.value)
    assert next_launch_works()


def test_printf_reads_strings_of_the_kernel(capsys):
    source = """__global__ void k(char* a) {
        char local[4] = {'l', 'o', 'c', 0};
        a[0] = 'd'; a[1] = 'e'; a[2] = 'v'; a[3] = 0;
        printf("%s %s %s %.2s %*d %% %c\\n", "lit", local, a, a, 3, 7, 'x');
    }"""
    launch(source, gpuarray.GPUArray((4,), np.int8))
    assert capsys.readouterr().out == "lit loc dev de   7 % x\n"


def test_printf_keeps_the_latest_mebibyte_of_a_launch(capsys):
    source = '__global__ void k(int n) { for (int i = 0; i < n; i++) printf("%07d\\n", i); }'
    count, record = 200000, 8 + 4
    with pytest.warns(RuntimeWarning, match=r"the first \d+ bytes were overwritten") as caught:
        launch(source, np.int32(count))
    kept = capsys.readouterr().out.splitlines()
    assert kept == [f"{i:07d}" for i in range(count - (1 << 20) // record, count)]
    assert f"first {8 * (count - len(kept))} bytes" in str(caught[0].message)
    assert len(caught) == 1
    launch(source, np.int32(2))
    assert capsys.readouterr().out == "0000000\n0000001\n"


def test_output_of_an_interrupted_launch_is_not_the_next_ones():
    code = SETUP + textwrap.dedent("""
    kernel_out, real = kernel('printf("x\\\\n"); while (true) a[0]++;'), sys.stdout
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        kernel_out(a, block=(1, 1, 1))
    except KeyboardInterrupt:
        print("interrupted")
    kernel('printf("y\\\\n");')(a, block=(1, 1, 1))
    """)
    assert python(code) == "x\ninterrupted\ny\n"


def test_device_malloc_and_free():
    source = """__global__ void k(int* a) {
        int* mine = (int*)malloc(64 * sizeof(int));
        for (int i = 0; i < 64; i++) mine[i] = i;
        int sum = 0;
        for (int i = 0; i < 64; i++) sum += mine[i];
        free(mine);
        int* other = new int[3];
        other[2] = 1;
        a[threadIdx.x] = sum + other[2];
        delete[] other;
        free(0);
    }"""
    before = drv.mem_get_info()
    out = gpuarray.zeros(64, np.int32)
    launch(source, out, block=(64, 1, 1))
    assert list(out.get()) == [2017] * 64
    del out
    assert drv.mem_get_info() == before


def test_device_malloc_is_checked_and_freed_when_the_kernel_fails():
    gc.collect()  # else memory of earlier tests may be freed in between
    before = drv.mem_get_info()
    with pytest.raises(drv.MemoryAccessError, match="which is not device memory"):
        launch("__global__ void k() { int* p = (int*)malloc(8); p[0] = 1; p[2] = 1; }")
    with pytest.raises(drv.LaunchError, match=r"free\(\) of an address"):
        launch("__global__ void k() { int* p = (int*)malloc(8); free(p); free(p); }")
    assert drv.mem_get_info() == before


ENDLESS_CONSTRUCTOR = """struct S { int v; __device__ S() { v = 1; while (true) v++; } };
__device__ S s;
__global__ void k(int* a) { a[0] = s.v; }"""


def test_ctrl_c_ends_a_constructor_that_never_ends():
    code = SETUP + textwrap.dedent("""
    from fusedref.emulator import runtime
    launch = runtime.launch
    def interrupted_launch(*arguments):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return launch(*arguments)
    runtime.launch = interrupted_launch
    try:
        SourceModule(sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted")
    runtime.launch = launch
    add(a, block=(32, 1, 1))
    print(a.get().sum())
    """)
    assert python(code, ENDLESS_CONSTRUCTOR) == "interrupted\n32\n"


def test_constructors_run_once_when_the_module_is_loaded():
    source = """struct S { int v; __device__ S() : v(41) { v++; } };
    __device__ S s;
    __global__ void k(int* a) { a[0] = s.v++; }"""
    out = gpuarray.zeros(1, np.int32)
    module = SourceModule(source)
    for expected in (42, 43):
        module.get_function("k")(out, block=(1, 1, 1))
        assert out.get()[0] == expected
    SourceModule(source).get_function("k")(out, block=(1, 1, 1))
    assert out.get()[0] == 44


def test_a_constructor_that_fails_is_an_error():
    source = """struct S { __device__ S() { *(int*)16 = 3; } };
    __device__ S s;
    __global__ void k() {}"""
    for _ in range(2):
        with pytest.raises(drv.CompileError, match="the constructor of a global variable fails"):
            SourceModule(source)
    assert next_launch_works()
