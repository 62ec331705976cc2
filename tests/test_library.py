"""Plans whose convolution is torch's: what is computed, with which settings, and that nothing is kept between calls."""

import dataclasses

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem
from fusedref.csrc import INFERENCE
from fusedref.ops import runner
from fusedref.ops.runner import run_plan, runner_of, target_of
from fusedref.plans import KernelVariant, library_plan
from fusedref.plans.library import unserved_by_library, unserved_by_matmul
from fusedref.reference import oracle
from fusedref.target import EMULATED
from fusedref.validation import compare, random_inputs
from tests import nvcc, whole_numbers
from tests.sources import inlined

SMALL = Problem(3, 6, 8, 9, 11, 3, stride=2, padding=1, groups=2)
PROBLEMS = {
    "3x3": SMALL,
    "1x1": Problem(2, 5, 40, 7, 7, 1),
    "depthwise": Problem(2, 6, 6, 8, 9, (3, 2), padding=(2, 0), groups=6, dilation=2),
    "one pixel": Problem(4, 8, 20, 1, 1, 1),
    "many pixels": Problem(1, 3, 5, 60, 70, 2),
}
DTYPES = torch.float32, torch.float16, torch.bfloat16
KINDS = [(torch.float32, False), (torch.float16, False), (torch.bfloat16, True)]


PRODUCTS = {
    "1x1": Problem(2, 5, 40, 7, 7, 1),
    "one image": Problem(1, 5, 9, 6, 7, 1),
    "one pixel": Problem(4, 8, 20, 1, 1, 1),
    "stride": Problem(2, 5, 8, 7, 8, 1, stride=(2, 3)),
}


def run(problem, inputs, channels_last=False, plan=None):
    """Return y; x is channels last if that is asked for."""
    if channels_last:
        inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
    variant = KernelVariant(channels_last=channels_last, vectors=inputs.running_var.dtype)
    return run_plan(plan or library_plan(problem, target_of(inputs.x.device), variant), problem, inputs)


def whole(problem, device):
    """Return inputs for which float32, and float16 up to 2048, is exact."""
    inputs = random_inputs(problem, 0, device)
    numbers = [
        None if t is None else (torch.randint(-2, 3, t.shape, generator=torch.Generator().manual_seed(i)).to(t))
        for i, t in enumerate(inputs.tensors)
    ]
    variances = whole_numbers.variances(problem.out_channels, device).to(problem.dtype)
    return inputs._make((*numbers[:4], variances, *numbers[5:], 2.0, whole_numbers.EPS))


class TestResults:
    @pytest.mark.parametrize(("dtype", "channels_last"), KINDS, ids=str)
    @pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
    def test_exact_on_whole_numbers(self, device, problem, dtype, channels_last):
        problem = dataclasses.replace(problem, dtype=dtype)
        inputs = whole(problem, device)
        expected = oracle(*inputs, **problem.conv_options).to(dtype)
        y = run(problem, inputs, channels_last)
        assert torch.equal(y, expected)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert y.is_contiguous(memory_format=memory_format)

    @pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
    def test_within_the_bound(self, device, problem):
        inputs = random_inputs(problem, 1, device)
        case = compare("", problem, inputs, run(problem, inputs))
        assert case.ok, case.reasons

    @pytest.mark.parametrize(("dtype", "channels_last"), KINDS, ids=str)
    @pytest.mark.parametrize("problem", PRODUCTS.values(), ids=PRODUCTS)
    def test_products_of_matrices(self, device, problem, dtype, channels_last, monkeypatch):
        monkeypatch.setattr(torch, "_convolution", None)
        problem = dataclasses.replace(problem, dtype=dtype)
        inputs = whole(problem, device)
        plan = library_plan(problem, target_of(device), KernelVariant(channels_last=channels_last), kernel="matmul")
        y = run(problem, inputs, channels_last, plan)
        assert torch.equal(y, oracle(*inputs, **problem.conv_options).to(dtype))
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert y.is_contiguous(memory_format=memory_format)

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_halves_are_rounded_after_the_convolution_and_at_the_end(self, device, dtype):
        problem = dataclasses.replace(SMALL, dtype=dtype)
        inputs = random_inputs(problem, 0, device, torch.float32)
        bare = inputs._replace(bias=None, running_mean=torch.zeros_like(inputs.running_mean), gamma=None, beta=None)
        bare = bare._replace(running_var=torch.ones_like(inputs.running_var), scaling_factor=1.0, eps=0.0)
        z = oracle(*bare, **problem.conv_options).to(dtype).double()
        eye = torch.eye(problem.out_channels, device=device)[:, :, None, None]
        expected = oracle(z, eye, *inputs[2:]).to(dtype)
        torch.testing.assert_close(run(problem, inputs), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)

    @pytest.mark.parametrize("missing", ["bias", "gamma", "beta"])
    def test_vectors_left_out(self, device, missing):
        inputs = random_inputs(SMALL, 0, device)
        getattr(inputs, missing).fill_(1.0 if missing == "gamma" else 0.0)
        assert torch.equal(run(SMALL, inputs), run(SMALL, inputs._replace(**{missing: None})))

    def test_infinity_is_where_torch_has_it(self, device):
        inputs = random_inputs(SMALL, 0, device)
        inputs.gamma[1], inputs.running_var[2], inputs.x[0, 0, 4, 4] = torch.inf, -1.0, torch.nan
        expected = oracle(*inputs, **SMALL.conv_options)
        torch.testing.assert_close(run(SMALL, inputs).double(), expected, equal_nan=True, rtol=1e-4, atol=1e-5)

    def test_an_empty_batch(self, device):
        problem = dataclasses.replace(SMALL, batch=0)
        assert run(problem, random_inputs(problem, 0, device)).shape == problem.output_shape

    def test_nothing_is_kept_between_calls(self, device):
        inputs = random_inputs(SMALL, 0, device)
        prepared = runner_of(library_plan(SMALL, target_of(inputs.x.device)), SMALL, inputs.x.device)
        for name in ("weight", "bias", "running_mean", "running_var", "gamma", "beta"):
            before = prepared(inputs.tensors, 2.0, 1e-5)
            getattr(inputs, name).data.mul_(1.5)  # which no version tells
            after = prepared(inputs.tensors, 2.0, 1e-5)
            assert not torch.equal(before, after)
            assert torch.equal(after, run(SMALL, inputs._replace(scaling_factor=2.0, eps=1e-5)))

    def test_freed_memory(self, device):
        inputs = random_inputs(SMALL, 0, device)
        for name in ("x", "weight"):
            freed = getattr(inputs, name).clone()
            freed.untyped_storage().resize_(0)
            with pytest.raises(ValueError, match=f"{name} must have memory"):
                run(SMALL, inputs._replace(**{name: freed}))


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_settings_of_the_convolution(device, precision, monkeypatch):
    """They are arguments: a setting of torch decides nothing but whether there is cuDNN."""
    given, convolution = [], torch._convolution
    monkeypatch.setattr(torch, "_convolution", lambda *all_: given.append(all_[9:]) or convolution(*all_))
    plan = library_plan(SMALL, target_of(device), KernelVariant(precision))
    for enabled in (True, False):
        with torch.backends.cudnn.flags(enabled=enabled, benchmark=False, deterministic=False, allow_tf32=True):
            run_plan(plan, SMALL, random_inputs(SMALL, 0, device))
    on_gpu = device.type == "cuda"
    assert given == [(on_gpu, True, enabled, precision == "tf32") for enabled in (True, False)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_convolution_stands_in_for_a_product_that_would_round_to_tf32(device, dtype, monkeypatch):
    given, convolution = [], torch._convolution
    monkeypatch.setattr(torch, "_convolution", lambda *all_: given.append(all_[12]) or convolution(*all_))
    problem = dataclasses.replace(PRODUCTS["1x1"], dtype=dtype)
    plan = library_plan(problem, target_of(device), kernel="matmul")
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        run_plan(plan, problem, random_inputs(problem, 0, device))
    torch.set_float32_matmul_precision(before)
    assert given == ([False] if dtype == torch.float32 else [])


def test_problems_that_it_does_not_serve():
    assert unserved_by_library(SMALL, EMULATED) is None
    same = Problem(2, 3, 4, 9, 9, 2, padding="same")
    assert unserved_by_library(same, EMULATED) == "torch's convolution pads both sides alike"
    for problem in (SMALL, Problem(2, 4, 4, 5, 5, 1, padding=1), Problem(2, 4, 4, 5, 5, 1, groups=2)):
        reason = "a matrix product computes 1x1 kernels without padding and groups"
        assert unserved_by_matmul(problem, EMULATED) == reason
    reason = "whether torch's matrix product rounds to tf32 is one of its settings"
    assert unserved_by_matmul(PRODUCTS["1x1"], EMULATED, KernelVariant("tf32")) == reason
    large = Problem(1, 1, 1, 2**16, 2**15, 1)
    assert unserved_by_matmul(large, EMULATED) == unserved_by_library(large, EMULATED)
    assert unserved_by_library(large, EMULATED) == "affine.cu counts the numbers of an image in 32 bits"


def test_text_of_a_plan():
    assert str(library_plan(KERNELBENCH_73, reason="because")).splitlines() == [
        "kernel         library: because",
        "convolution    torch's, before the launch",
        "launch         2241 blocks of 256 threads",
        "shared memory  24 bytes a block",
        "registers      at most 255 a thread",
        "limiter        memory, 339.1 us at the least on an H200 (CUDA cores 279.5, launch 2.3)",
    ]


BUGS = {
    "the bias is subtracted": ("affine_shift(channel + i", "-affine_shift(channel + i"),
    "a plane takes its neighbour's numbers": ("table[entry]", "table[entry ^ 1]"),
    "a unit that crosses planes keeps the first one's numbers": ("--left == 0", "--left == ~0u"),
    "the last unit is left out": ("if (first + place < size) {", "if (first + place + UNIT < size) {"),
}


@pytest.mark.parametrize(("right", "wrong"), BUGS.values(), ids=BUGS)
def test_planted_bugs(device, right, wrong, tmp_path):
    text = inlined(INFERENCE / "affine.cu")
    assert right in text
    (tmp_path / "affine.cu").write_text(text.replace(right, wrong))
    plan = library_plan(SMALL, target_of(device))
    (launch,) = plan.launches
    plan = dataclasses.replace(plan, launches=(dataclasses.replace(launch, source=tmp_path / "affine.cu"),))
    inputs = random_inputs(SMALL, 0, device)
    assert not compare("", SMALL, inputs, run(SMALL, inputs, plan=plan)).ok


@nvcc.needs_nvcc
def test_no_register_is_spilled(tmp_path):
    problem = dataclasses.replace(SMALL, out_channels=64, dtype=torch.bfloat16)
    (launch,) = library_plan(problem, EMULATED, KernelVariant(channels_last=True)).launches
    nvcc.assert_no_spills(nvcc.report(launch.source, tmp_path, "90", launch.options))


@pytest.mark.gpu
def test_a_captured_graph_reads_new_weights(device):
    inputs = random_inputs(SMALL, 0, device)
    prepared = runner_of(library_plan(SMALL, target_of(inputs.x.device)), SMALL, inputs.x.device)
    prepared(inputs.tensors, 1.7, 1e-5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = prepared(inputs.tensors, 1.7, 1e-5)
    inputs.weight.data.mul_(2.0)
    graph.replay()
    assert torch.equal(y, prepared(inputs.tensors, 1.7, 1e-5))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_tf32_is_the_plans_and_not_the_settings(device, precision):
    problem = Problem(8, 64, 64, 28, 28, 3, padding=1)
    inputs = random_inputs(problem, 0, device)
    plan = library_plan(problem, target_of(device), KernelVariant(precision))
    results = []
    for allowed in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            results.append(run_plan(plan, problem, inputs))
    assert torch.equal(*results)
    assert compare("", problem, inputs, results[0], precision=precision).ok
    assert compare("", problem, inputs, results[0]).ok == (precision == "fp32")
    assert runner.LibraryRunner is type(runner_of(plan, problem, device))
