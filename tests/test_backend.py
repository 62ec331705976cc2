"""The two backends: several launches over the same tensors, tensors in place, and the modules that stay loaded."""

import contextlib
import gc
import struct
import weakref

import pytest
import torch

from fusedref.cuda import backend as backend_module
from fusedref.cuda import modules
from fusedref.cuda.backend import EMULATOR, GPU, backend_of
from fusedref.cuda.compile import source_module
from fusedref.cuda.kernel import Kernel
from fusedref.cuda.modules import LoadedModules
from fusedref.cuda.scratch import Scratch
from fusedref.emulator import watch
from fusedref.plans import plan
from fusedref.problem import KERNELBENCH_73
from fusedref.target import EMULATED
from tests.tiles import needs_emulator

SOURCE = """
extern "C" __global__ void sum(const float* x, float* total)
{
    if (threadIdx.x == 0) { *total = 0; for (int i = 0; i < 4; i++) *total += x[i]; }
}

extern "C" __global__ void update(float momentum, const float* total, float* mean, float* y)
{
    if (threadIdx.x == 0) *mean += momentum * (*total / 4 - *mean);
    if (threadIdx.x < 2) y[threadIdx.x] = *total;
}

extern "C" __global__ void clear(float* mean) { *mean = 0; }
"""


def kernel(device, name, kinds, places):
    function = source_module(SOURCE, device=device).get_function(name)
    return Kernel(function, kinds, places, (1, 1, 1), (4, 1, 1))


def test_launches_share_tensors_and_update_in_place(device):
    x, mean = torch.arange(4.0, device=device), torch.full((1,), 10.0, device=device)
    total, y = torch.zeros(1, device=device), torch.zeros(4, device=device)
    kernels = [
        kernel(device, "sum", ["in", "out"], [0, 2]),
        kernel(device, "update", ["float32", "in", "inout", "out"], [4, 2, 1, 3]),
    ]
    backend_of(device).launch(kernels, [x, mean, total, y], [0.5], x.device.index)
    assert (total.item(), mean.item(), y[:2].tolist()) == (6.0, 5.75, [6.0, 6.0])
    if device.type == "cpu":
        assert y[2:].isnan().all()  # "out" promises to write all of y


def test_kernel_with_one_argument(device):
    mean = torch.ones(1, device=device)
    backend_of(device).launch([kernel(device, "clear", ["out"], [0])], [mean], [], mean.device.index)
    assert mean.item() == 0


def test_launches_share_scratch(device):
    x, mean, y = torch.arange(4.0, device=device), torch.zeros(1, device=device), torch.zeros(2, device=device)
    kernels = [
        kernel(device, "sum", ["in", "out"], [0, 4]),
        kernel(device, "update", ["float32", "in", "inout", "out"], [5, 4, 1, 2]),
    ]
    backend = backend_of(device)
    blocks, _memory = backend.allocate(Scratch([300, 4]), x.device.index)
    backend.launch(kernels, [x, mean, y], [0.5], x.device.index, blocks)
    assert (mean.item(), y.tolist()) == (0.75, [6.0, 6.0])


def test_blocks_of_scratch_are_aligned_and_apart():
    scratch = Scratch([4, 256, 257, 1])
    assert (scratch.offsets, scratch.total) == ((0, 256, 512, 1024), 1280)


@needs_emulator
def test_the_emulator_sees_an_access_between_blocks_of_scratch(device):
    blocks, _ = EMULATOR.allocate(Scratch([4, 256]), None)
    with watch() as seen:
        EMULATOR.launch([kernel(device, "sum", ["in", "out"], [1, 0])], [torch.zeros(4)], [], None, blocks)
    assert {finding.kind for finding in seen.findings} == {"out-of-bounds", "uninitialised"}


def test_emulator_stands_for_the_default_of_plans():
    assert EMULATOR.target(None) == EMULATED
    assert plan(KERNELBENCH_73) == plan(KERNELBENCH_73, *EMULATED[:2])


class FakeModule:
    """Refers to nothing; its functions refer to it, as PyCUDA's do."""

    def get_function(self):
        return FakeFunction(self)


class FakeFunction:
    def __init__(self, module):
        self.module = module


@pytest.fixture
def loaded(monkeypatch):
    """Return a cache of up to two unused fake modules, with an empty machine code each."""
    monkeypatch.setattr(modules, "pushed", lambda index: contextlib.nullcontext())
    cache = LoadedModules(most_unused=2)
    cache.synchronized = 0
    monkeypatch.setattr(cache, "_load", lambda code: modules.keep(FakeModule()))

    def synchronize():
        cache.synchronized += 1

    monkeypatch.setattr(cache, "_synchronize", synchronize)
    return cache


def load(cache, name):
    """Return a weak reference to the module ``name``."""
    return weakref.ref(cache.get(name, 0, lambda: b""))


def test_least_recently_used_modules_are_unloaded(loaded):
    a, b = load(loaded, "a"), load(loaded, "b")
    assert load(loaded, "a")() is a()
    c = load(loaded, "c")
    load(loaded, "d")
    gc.collect()
    assert b() is None  # a was used after it
    assert a() is not None
    assert c() is not None
    assert loaded.synchronized == 1
    assert loaded.get("b", 0, lambda: b"") is not None  # loaded again


def test_a_module_in_use_stays_loaded(loaded):
    function = loaded.get("a", 0, lambda: b"").get_function()
    for name in "bcdef":
        load(loaded, name)
    assert loaded.get("a", 0, lambda: pytest.fail("loaded again")) is function.module
    a = weakref.ref(function.module)
    del function
    for name in "bcdef":
        load(loaded, name)
    gc.collect()
    assert a() is None


def test_thousands_of_modules_leave_few_loaded(loaded):
    references = [load(loaded, str(number)) for number in range(2000)]
    gc.collect()
    assert sum(reference() is not None for reference in references) == 3  # two unused ones, and the latest


class FakeDriver:
    """Stands in for PyCUDA's context, a stream and its twin; ``log`` has their calls."""

    def __init__(self, monkeypatch, handle, capturing=False):
        self.log = []
        self.lock = contextlib.nullcontext()
        monkeypatch.setattr(backend_module, "raw_stream", lambda index: handle)
        monkeypatch.setattr(backend_module, "pushed", self.pushed)
        monkeypatch.setattr(backend_module, "twin_of", lambda index, handle: self)
        monkeypatch.setattr(backend_module, "keep", lambda thing: self.log.append("keep"))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)

    @contextlib.contextmanager
    def pushed(self, index):
        self.log.append("push")
        try:
            yield
        finally:
            self.log.append("pop")

    def fork(self):
        self.log.append("fork")
        return "twin"

    def join(self):
        self.log.append("join")

    def _launch_kernel(self, grid, block, arguments, shared, stream):
        self.log.append((struct.unpack("Pfq", arguments), grid, block, shared, stream))


@pytest.mark.parametrize(("handle", "capturing"), [(0, False), (7, False), (7, True)])
def test_gpu_launches_in_one_context_and_stream(monkeypatch, handle, capturing):
    driver = FakeDriver(monkeypatch, handle, capturing)
    x = torch.ones(3)
    places = [[0, 3, 4], [2, 3, 4]]
    kernels = [Kernel(driver, ["in", "float32", "int64"], each, (2, 1, 1), (32, 1, 1), 16) for each in places]
    GPU.launch(kernels, [x, None], [0.5, 2**40], 0, [4096])
    stream = "twin" if handle else None
    launches = [((address, 0.5, 2**40), (2, 1, 1), (32, 1, 1), 16, stream) for address in (x.data_ptr(), 4096)]
    kept = ["keep", "keep"] if capturing else []  # so that the graph can launch them again
    assert driver.log == (["push", "fork", *kept, *launches, "join", "pop"] if handle else launches)


def test_gpu_launches_again_in_the_right_context(monkeypatch):
    driver = FakeDriver(monkeypatch, handle=0)

    def launch(*arguments):
        if "push" not in driver.log:
            raise RuntimeError("invalid device context")
        driver.log.append("launch")

    driver._launch_kernel = launch
    GPU.launch([Kernel(driver, ["int64"], [0], (1, 1, 1), (1, 1, 1))] * 2, [], [3], 0)
    assert driver.log == ["push", "launch", "launch", "pop"]


def test_gpu_takes_scratch_from_one_allocation(monkeypatch):
    memory, asked = torch.zeros(512, dtype=torch.uint8), []
    monkeypatch.setattr(GPU, "new", lambda *arguments: asked.append(arguments) or [memory])
    addresses, owner = GPU.allocate(Scratch([4, 8]), 0)
    assert asked == [((((512,), (1,), torch.uint8),), 0)]
    assert addresses == [memory.data_ptr(), memory.data_ptr() + 256]
    assert owner is memory


def test_gpu_pops_the_context_after_an_error(monkeypatch):
    driver = FakeDriver(monkeypatch, handle=0)
    with pytest.raises(struct.error):
        GPU.launch([Kernel(driver, ["float32"], [0], (1, 1, 1), (1, 1, 1))], [], ["text"], 0)
    assert driver.log == ["push", "pop"]
