"""Watched kernels: each planted bug of the corpus is found and named, and nothing is found in correct kernels."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fusedref.csrc import COMMON
from fusedref.emulator import SourceModule, gpuarray, watch
from fusedref.emulator import driver as drv
from fusedref.emulator.findings import KINDS
from tests import corpus, processes

ROOT = Path(__file__).parents[1]
int32, float32 = np.int32, np.float32


def findings(case, seed=0):
    with watch(seed=seed) as seen:
        corpus.run(case, SourceModule, drv, gpuarray)
    return seen.findings


@pytest.mark.parametrize("case", corpus.BUGS, ids=lambda case: case.name)
def test_planted_bug_is_found(case):
    kind, argument, element, line = case.expected
    found = findings(case)
    assert {finding.kind for finding in found} == {kind}, [f.message for f in found]
    matching = [
        f
        for f in found
        if f.argument == argument and element in (None, f.element) and line in (None, f.line, f.other_line)
    ]
    assert matching, [f.message for f in found]
    finding = matching[0]
    assert finding.kernel == "k"
    assert finding.message.endswith(finding.message.strip())
    if kind != "unwritten":
        assert finding.source == "kernel.cu"
        assert finding.message.startswith(f"kernel.cu:{finding.line}: kernel k: ")


@pytest.mark.parametrize("case", corpus.CORRECT, ids=lambda case: case.name)
def test_correct_kernel(case):
    assert [f.message for f in findings(case)] == []
    assert [f.message for f in findings(case, seed=7)] == []


def test_the_corpus_covers_every_kind():
    assert {case.expected[0] for case in corpus.BUGS} == set(KINDS)
    assert len(corpus.BUGS) >= 40
    assert len(corpus.CORRECT) >= len(corpus.BUGS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("race_no_barrier", "there is no __syncthreads() between them"),
        ("race_warp_synchronous", "only __syncwarp() or __syncthreads() keeps the lanes of a warp in step"),
        ("barriers_in_turn", "there is no barrier between them that both come to"),
        ("pipeline_stores_into_a_full_stage", "there is no mbarrier between them at which the first arrives"),
        ("pipeline_gives_back_before_all_lanes_read", "(itself, or a lane that it meets in a __syncwarp() before)"),
        ("bulk_store_without_fence", "does not call fence_async_shared() between its store and the barrier"),
        ("bulk_load_before_the_barrier_is_shown", "does not call mbarrier_init_fence() after mbarrier_init()"),
        ("race_blocks_overlap", "blocks run in any order"),
        (
            "race_fence_of_one_thread",
            "an atomic passes on only what lies before a __threadfence(), made by the thread that "
            "wrote or by one that it has met at a barrier",
        ),
    ],
)
def test_the_advice_fits_the_kernel(name, words):
    (case,) = (case for case in corpus.BUGS if case.name == name)
    messages = [finding.message for finding in findings(case)]
    assert any(words in message for message in messages), messages
    if "mbarrier" in words or "that both come to" in words:
        assert not any("__syncthreads" in message for message in messages)


IDIOMS = {  # kernels that synchronise without barriers: source, size of y, threads and blocks
    "a lock between blocks": (
        """__device__ int lock;
__global__ void k(int* y) {
    if (threadIdx.x == 0) {
        while (atomicCAS(&lock, 0, 1)) {}
        __threadfence();
        y[0] += 1;
        __threadfence();
        atomicExch(&lock, 0);
    }
}""",
        1,
        (64, 4),
    ),
    "a lock for every thread": (
        """__device__ int lock;
__global__ void k(int* y) {
    for (bool done = false; !done;)
        if (atomicCAS(&lock, 0, 1) == 0) {
            __threadfence();
            y[0] += 1;
            __threadfence();
            atomicExch(&lock, 0);
            done = true;
        }
}""",
        1,
        (64, 4),
    ),
    "a lock that a volatile store opens": (
        """__global__ void k(int* y) {
    __shared__ int lock, n;
    if (threadIdx.x == 0) lock = n = 0;
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        while (atomicCAS(&lock, 0, 1)) {}
        __threadfence_block();
        n += 1;
        __threadfence_block();
        *(volatile int*)&lock = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) y[0] = n;
}""",
        1,
        (128, 1),
    ),
    "every thread makes a fence, one counts": (
        """__device__ unsigned finished[2];
__global__ void k(int* y) {
    __shared__ bool last;
    int* partial = y + 64;
    for (int round = 0; round < 2; round++) {
        partial[(round * gridDim.x + blockIdx.x) * 64 + threadIdx.x] = 1;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) last = atomicInc(&finished[round], gridDim.x - 1) == gridDim.x - 1;
        __syncthreads();
        if (last) {
            int sum = round ? y[threadIdx.x] : 0;
            for (int b = 0; b < gridDim.x; b++) sum += partial[(round * gridDim.x + b) * 64 + threadIdx.x];
            if (round == 0) y[threadIdx.x] = sum;
        }
        __syncthreads();
    }
}""",
        64 + 2 * 5 * 64,
        (64, 5),
    ),
    "the last block resets the counter": (
        """__device__ unsigned finished;
__global__ void k(int* y) {
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(&finished, 1) == gridDim.x - 1) { finished = 0; y[0] = 1; }
    }
}""",
        1,
        (64, 4),
    ),
    "blocks in line, by volatile flags": (
        """__global__ void k(int* y) {
    volatile int *flag = y, *value = y + 8;
    if (threadIdx.x == 0) {
        int sum = blockIdx.x;
        if (blockIdx.x) {
            while (flag[blockIdx.x - 1] == 0) {}
            __threadfence();
            sum += value[blockIdx.x - 1];
        }
        value[blockIdx.x] = sum;
        __threadfence();
        flag[blockIdx.x] = 1;
    }
}""",
        16,
        (64, 8),
    ),
    "blocks in line, by atomics": (
        """__global__ void k(int* y) {
    int *flag = y, *value = y + 8;
    if (threadIdx.x == 0) {
        int sum = blockIdx.x;
        if (blockIdx.x) {
            while (atomicAdd(&flag[blockIdx.x - 1], 0) == 0) {}
            __threadfence();
            sum += value[blockIdx.x - 1];
        }
        value[blockIdx.x] = sum;
        __threadfence();
        atomicExch(&flag[blockIdx.x], 1);
    }
}""",
        16,
        (64, 8),
    ),
    "a volatile flag within a block": (
        """__global__ void k(int* y) {
    __shared__ int data;
    __shared__ volatile int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 0) { data = 7; __threadfence_block(); flag = 1; }
    if (threadIdx.x == 32) { while (flag == 0) {} __threadfence_block(); y[0] = data; }
}""",
        1,
        (64, 1),
    ),
    "bytes of one word": (
        """__global__ void k(int* y) {
    __shared__ unsigned char s[4];
    if (threadIdx.x < 4) s[threadIdx.x] = 1;
    __syncthreads();
    int sum = threadIdx.x == 1 ? s[0] : 0;
    __syncthreads();
    if (threadIdx.x == 1) sum += s[1];
    if (threadIdx.x == 33) s[0] = 5;
    y[threadIdx.x] = sum;
}""",
        64,
        (64, 1),
    ),
    "one lane counts for its warp": (
        """__global__ void k(int* y) {
    unsigned active = __activemask();
    int lane = threadIdx.x % 32, leader = __ffs(active) - 1, at = 0;
    if (lane == leader) at = atomicAdd(y, __popc(active));
    at = __shfl_sync(active, at, leader);
    y[1 + at + __popc(active & ((1u << lane) - 1))] = 1;
}""",
        257,
        (64, 4),
    ),
}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("name", IDIOMS)
def test_correct_idiom(name, seed):
    source, size, (block, grid) = IDIOMS[name]
    with watch(seed=seed) as seen:
        SourceModule(source).get_function("k")(gpuarray.zeros(size, int32), block=(block, 1, 1), grid=(grid, 1))
    assert [f.message for f in seen.findings] == []


def test_a_flag_without_fences_is_a_race():
    source = IDIOMS["a volatile flag within a block"][0].replace("__threadfence_block();", "")
    with watch() as seen:
        SourceModule(source).get_function("k")(gpuarray.zeros(1, int32), block=(64, 1, 1))
    assert {(f.kind, f.argument) for f in seen.findings} == {("race", "data"), ("race", "flag")}


WGMMA = """#include "ptx.cuh"
extern "C" __global__ void k(float* y) {
    __shared__ __align__(128) uint16_t b[2][512];  // 32 columns of 16, twice
    for (int i = threadIdx.x; i < 1024; i += 128) b[i / 512][i % 512] = 0x3c00;
    ptx::fence_async_shared();
    __syncthreads();
    float d[16];
    for (int i = 0; i < 2; i++) {
        ptx::wgmma_fence();
        ptx::wgmma_f16(d, 0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00, ptx::Columns(b[i]).at(0, 512), i > 0);
        ptx::wgmma_commit();
    }
    ptx::wgmma_wait<0>();
    __syncthreads();
    b[1][threadIdx.x] = 0;
    for (int i = 0; i < 16; i++) y[16 * threadIdx.x + i] = d[i];
}"""


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("", "", set()),
        ("ptx::fence_async_shared();", "", {("race", "b", 10)}),
        ("ptx::wgmma_wait<0>();", "", {("missing-wait", "b", 15), ("missing-wait", None, 16)}),
        ("ptx::wgmma_wait<0>();", "ptx::wgmma_wait<1>();", {("missing-wait", "b", 15), ("missing-wait", None, 16)}),
        (
            "    ptx::wgmma_wait<0>();\n    __syncthreads();\n    b[1][threadIdx.x] = 0;",
            "    b[1][threadIdx.x] = 0;\n    __syncthreads();\n    ptx::wgmma_wait<0>();",
            {("missing-wait", "b", 13)},
        ),
    ],
)
def test_products_that_do_not_wait(right, wrong, expected):
    source = WGMMA.replace(right, wrong, 1) if right else WGMMA
    y = gpuarray.empty(2048, float32)
    with watch() as seen:
        module = SourceModule(source, no_extern_c=True, include_dirs=[str(COMMON)])
        module.get_function("k")(y, block=(128, 1, 1))
    assert {(f.kind, f.argument, f.line) for f in seen.findings} == expected
    if not expected:
        assert (y.get() == 32).all()


# ------------------------------------------------------------------------------------------- ways to turn it on

RACY = """__global__ void k(int* y) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[63 - threadIdx.x];
}"""
MANY = (64, 1, 1)


def test_watch_of_a_module():
    function = SourceModule(RACY, watch=True).get_function("k")
    with pytest.raises(drv.FindingError, match="there is no __syncthreads") as raised:
        function(gpuarray.zeros(64, int32), block=MANY)
    assert raised.value.finding.kind == "race"
    assert isinstance(raised.value, drv.LogicError)
    with watch() as seen:
        function(gpuarray.zeros(64, int32), block=MANY)
    assert [finding.kind for finding in seen.findings] == ["race"]


def test_watch_by_the_environment(monkeypatch):
    function = SourceModule(RACY).get_function("k")
    function(gpuarray.zeros(64, int32), block=MANY)
    monkeypatch.setenv("FUSEDREF_WATCH", "1")
    with pytest.raises(drv.FindingError):
        function(gpuarray.zeros(64, int32), block=MANY)
    y = np.empty(100, int32)
    partly = SourceModule("__global__ void k(int* y) { y[threadIdx.x] = 1; }").get_function("k")
    with pytest.raises(drv.FindingError, match=r"y\[64\] was never written, nor were 35 more of y's 100 elements"):
        partly(drv.Out(y), block=MANY)


def test_the_fixture(tmp_path):
    (tmp_path / "test_it.py").write_text(f"""
import numpy as np
from fusedref.emulator import SourceModule, gpuarray
def test_wrong(watched):
    SourceModule({RACY!r}).get_function("k")(gpuarray.zeros(64, np.int32), block=(64, 1, 1))
def test_right(watched):
    SourceModule("__global__ void k() {{}}").get_function("k")(block=(64, 1, 1))
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fusedref.emulator.pytest_plugin", str(tmp_path)]
    done = processes.run(command, cwd=tmp_path)
    assert "2 passed, 1 error" in done.stdout
    assert "there is no __syncthreads() between them" in done.stdout


def test_two_launches_may_share_an_array():
    function = SourceModule("__global__ void k(int* y, int n) { y[n + threadIdx.x] = 1; }").get_function("k")
    y = gpuarray.empty(128, int32)
    with watch() as seen:
        function(y, int32(0), block=MANY)
        function(y, int32(64), block=MANY)
    assert seen.findings == []


def test_unwatched_launch_writes():
    write = SourceModule("__global__ void k(int* y) { y[threadIdx.x] = 1; }").get_function("k")
    read = SourceModule("__global__ void k(int* y, int* x) { y[threadIdx.x] = x[threadIdx.x]; }").get_function("k")
    x, y = gpuarray.empty(64, int32), gpuarray.empty(64, int32)
    with watch() as seen:
        pass
    write(x, block=MANY)
    with watch() as seen:
        read(y, x, block=MANY)
    assert seen.findings == []


def test_the_seed_decides_the_order_of_threads():
    source = """__global__ void k(int* y) {
    __shared__ int turn;
    if (threadIdx.x == 0) turn = 0;
    __syncthreads();
    y[threadIdx.x] = atomicAdd(&turn, 1);
}"""
    orders = {}
    for seed in (0, 1, 1, 2):
        y = gpuarray.zeros(64, int32)
        with watch(seed=seed) as seen:
            SourceModule(source).get_function("k")(y, block=MANY)
        assert seen.findings == []
        assert sorted(y.get()) == list(range(64))
        assert orders.setdefault(seed, tuple(y.get())) == tuple(y.get())
    assert orders[0] == tuple(range(64))
    assert len(set(orders.values())) == 3
    with pytest.raises(ValueError, match="seed must be a whole number"), watch(seed=-1):
        pass


def test_watch_is_rendered():
    with watch() as seen:
        SourceModule(RACY).get_function("k")(gpuarray.zeros(64, int32), block=MANY)
    text, page = str(seen), seen._repr_html_()
    assert "race: kernel.cu:" in text
    assert "kernel.cu:3" in text
    assert "shared stores" in text
    assert "s[threadIdx.x] = threadIdx.x;" in page
    assert 'background-color:#8c8">8</td>' in page
    assert "<svg" not in page  # Jupyter drops SVG where it does not trust a notebook
    assert "by bank" in page
    assert "sectors of 32 bytes" in page
    assert "/home" not in page
    assert str(ROOT) not in page + text
    assert repr(seen) == text
    assert repr(seen.findings) == f"[<race: {seen.findings[0].message}>]"
    assert page.count("background-color:#fdd") == 2  # both lines of the race
    assert "atomics" not in page + text
    assert "load requests" not in page + text


def test_one_sector_is_one():
    with watch() as seen:
        SourceModule("__global__ void k(int* y) { y[0] = 1; }").get_function("k")(gpuarray.zeros(1, int32), block=MANY)
    assert "1 sector of 32 bytes" in seen._repr_html_()


def test_lines_with_another_import_path():
    source = "__global__ void k() {\nif (threadIdx.x < 32) __syncthreads();\n}"
    code = f"""
import sys
sys.path.insert(0, "..")
from fusedref.emulator import SourceModule, watch
with watch() as seen:
    SourceModule({source!r}).get_function("k")(block=(64, 1, 1))
print(seen.findings[0].source, seen.findings[0].line)
"""
    assert processes.python(code, cwd=ROOT / "tests", PYTHONPATH=None) == "kernel.cu 2\n"


def test_two_checkouts_may_share_a_cache(tmp_path):
    """Each checkout compiles its own library, because lines lead to the headers of that checkout."""
    code = """
from fusedref.emulator import SourceModule, watch
module = SourceModule("__global__ void k() {\\nif (threadIdx.x < 32) __syncthreads();\\n}")
with watch() as seen:
    module.get_function("k")(block=(64, 1, 1))
print(seen.findings[0].source, seen.findings[0].line)
"""
    shutil.copytree(ROOT / "fusedref", tmp_path / "other" / "fusedref", ignore=shutil.ignore_patterns("__pycache__"))
    for checkout in (ROOT, tmp_path / "other"):
        changes = {"PYTHONPATH": checkout, "XDG_CACHE_HOME": tmp_path}
        assert processes.python(code, cwd=tmp_path, **changes) == "kernel.cu 2\n"


def test_race_names_both_threads():
    with watch() as seen:
        SourceModule(RACY).get_function("k")(gpuarray.zeros(64, int32), block=MANY)
    (finding,) = seen.findings
    assert {finding.line, finding.other_line} == {3, 4}
    assert finding.thread[0] // 32 != finding.other_thread[0] // 32
    assert finding.block == finding.other_block == (0, 0, 0)
    assert finding.message == (
        f"kernel.cu:3: kernel k: thread {finding.thread} of block (0, 0, 0) writes s[{finding.element}], which thread "
        f"{finding.other_thread} of the same block read in line 4: there is no __syncthreads() between them"
    )
