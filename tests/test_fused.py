"""fused_conv_bn_scale: the kernel (``device`` is a GPU, or the CPU for the emulator), the CPU path, what is refused."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from fusedref import Problem, fused_conv_bn_scale, plan, validate
from fusedref.emulator import driver
from fusedref.ops import calls
from fusedref.ops.runner import run_plan
from fusedref.plans import KernelVariant, folded_plan
from fusedref.reference import conv_bn_scale, oracle
from fusedref.target import Target
from fusedref.validation import compare, random_inputs
from tests import processes
from tests.cases import PROBLEM, case_of, library_in_float32  # noqa: F401
from tests.sources import inlined
from tests.strategies import compiling, fast, options, problems

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture
def torch_on_the_cpu(monkeypatch):
    """CPU tensors go to torch's folded convolution, as they do for a user without FUSEDREF_DEVICE."""
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)


@pytest.fixture(params=["planned", "general"])
def kernel(request, monkeypatch):
    """Return the kernel that the plan chooses, or the general one, chosen for a card without newer tensor cores."""
    if request.param == "general":
        monkeypatch.setattr(calls, "target_of", lambda device: Target("sm_75", 40))
    calls.forget()
    yield
    calls.forget()


@pytest.mark.usefixtures("kernel")
class TestKernel:
    @compiling
    @given(problems())
    def test_any_problem(self, device, problem):
        case = case_of(problem, device)
        assert case.ok, case.reasons

    @compiling
    @given(problems(), st.sampled_from([torch.float32, *HALVES]), st.booleans(), st.booleans())
    def test_any_dtype_and_layout(self, device, problem, dtype, float32_vectors, channels_last):
        problem = dataclasses.replace(problem, dtype=dtype)
        case = case_of(problem, device, 0, torch.float32 if float32_vectors else None, channels_last)
        assert case.ok, case.reasons

    @pytest.mark.parametrize(
        "problem",
        [
            Problem(1, 3, 4, 40, 37, 7, stride=2, padding=3),
            Problem(2, 4, 8, 9, 9, 1),
            Problem(2, 6, 6, 9, 8, 3, padding=1, groups=6),
            Problem(1, 2, 2, 12, 13, (2, 4), padding="same", dilation=(2, 1)),
            Problem(1, 1, 2, 13, 33, (12, 31)),  # too many taps to unroll
            Problem(1, 1, 1, 4, 4, 3, padding=9),  # windows that lie in the padding altogether
            Problem(1, 2, 300, 3, 3, 3),  # one pixel
        ],
        ids=["7x7 stride 2", "1x1", "depthwise", "even, same", "large filter", "far padding", "one pixel"],
    )
    def test_kinds_of_problem(self, device, problem):
        case = case_of(problem, device)
        assert case.ok, case.reasons

    def test_validates(self, device):
        report = validate(lambda *inputs: fused_conv_bn_scale(*inputs, **options(PROBLEM)), PROBLEM, device=device)
        assert report.ok, str(report)

    @pytest.mark.parametrize("missing", ["bias", "gamma", "beta"])
    def test_vectors_left_out(self, device, missing):
        inputs = random_inputs(PROBLEM, 0, device)._replace(**{missing: None})
        neutral = torch.ones if missing == "gamma" else torch.zeros
        filled = inputs._replace(**{missing: neutral(PROBLEM.out_channels, device=device)})
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        assert torch.equal(y, fused_conv_bn_scale(*filled, **options(PROBLEM)))

    def test_batch_is_no_constant(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        whole = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        single = fused_conv_bn_scale(*inputs._replace(x=inputs.x[1:]), **options(PROBLEM))
        assert torch.equal(whole[1:], single)
        one, many = (folded_plan(Problem(batch, 6, 8, 9, 11, 3)).launches[0] for batch in (1, 100))
        assert one.macros == many.macros
        assert many.grid[0] == 100 * one.grid[0]

    def test_non_contiguous_inputs(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        strided = inputs._replace(
            x=inputs.x.transpose(2, 3).contiguous().transpose(2, 3),
            weight=inputs.weight.transpose(2, 3).contiguous().transpose(2, 3),
            gamma=torch.stack([inputs.gamma, inputs.beta], 1)[:, 0],
        )
        assert not strided.x.is_contiguous()
        assert not strided.gamma.is_contiguous()
        again = fused_conv_bn_scale(*strided, **options(PROBLEM))
        assert torch.equal(y, again)
        assert again.is_contiguous()
        channels_last = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
        filters_last = inputs._replace(weight=inputs.weight.contiguous(memory_format=torch.channels_last))
        for last in (channels_last, filters_last):
            again = fused_conv_bn_scale(*last, **options(PROBLEM))
            assert torch.equal(y, again)
            assert again.is_contiguous(memory_format=torch.channels_last)

    def test_inputs_stay(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        before = [value.clone() for value in inputs[:7]]
        fused_conv_bn_scale(*inputs, **options(PROBLEM))
        assert all(torch.equal(*pair) for pair in zip(inputs[:7], before, strict=True))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
    def test_nan_and_infinity(self, device, name, value):
        problem = Problem(1, 2, 3, 6, 7, 3, padding=1)
        inputs = random_inputs(problem, 0, device)
        getattr(inputs, name).view(-1)[1] = value
        y = fused_conv_bn_scale(*inputs, **options(problem)).double()
        torch.testing.assert_close(y, oracle(*inputs, **options(problem)), rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_negative_variance(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        inputs.running_var[3] = -1.0
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        assert y[:, 3].isnan().all()
        assert not y[:, [0, 1, 2, 4, 5, 6, 7]].isnan().any()

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_halves_with_nan_infinity_and_overflow(self, device, dtype):
        problem = Problem(1, 2, 3, 6, 7, 3, padding=1, dtype=dtype)
        inputs = random_inputs(problem, 0, device)._replace(scaling_factor=1e38 if dtype == torch.bfloat16 else 3e4)
        for place, value in enumerate((math.nan, math.inf, -math.inf)):
            inputs.x[0, 0, 0, 3 * place] = value
        expected = oracle(*inputs, **options(problem)).to(dtype)
        y = fused_conv_bn_scale(*inputs, **options(problem))
        assert y.dtype == dtype
        assert expected.isnan().any()
        assert expected[:, :, 2:].isinf().any()
        torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=0.0, equal_nan=True)

    def test_tf32(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM), precision="tf32")
        assert compare("", PROBLEM, inputs, y, precision="tf32").ok

    @pytest.mark.parametrize("factor", [0, 0.0, -2, 1e-30, 1e30, math.nan, math.inf, -math.inf, 1e300])
    def test_any_scaling_factor(self, device, factor):
        inputs = random_inputs(PROBLEM, 0, device)._replace(scaling_factor=factor)
        expected = conv_bn_scale(*inputs, **options(PROBLEM))
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        tolerance = 1e-5 * abs(factor) if math.isfinite(factor) else 0.0
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=tolerance, equal_nan=True)


def test_statistics_that_are_columns_of_one_row(device):
    """One output channel: a vector of stride 5 counts as contiguous."""
    problem = Problem(2, 3, 1, 6, 7, 3)
    inputs = random_inputs(problem, 0, device)
    table = torch.rand(4, 5, device=device)
    inputs = inputs._replace(running_mean=table[:1, 1], gamma=table[2:3, 4])
    assert inputs.running_mean.stride() == (5,)
    assert compare("", problem, inputs, fused_conv_bn_scale(*inputs)).ok


class TestTorchOnTheCpu:
    pytestmark = pytest.mark.usefixtures("torch_on_the_cpu")

    @fast
    @given(problems())
    def test_any_problem(self, problem):
        case = case_of(problem, "cpu")
        assert case.ok, case.reasons

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
    def test_any_dtype_and_layout(self, dtype, channels_last):
        problem = dataclasses.replace(PROBLEM, dtype=dtype)
        for vectors in (None, torch.float32):
            case = case_of(problem, "cpu", 0, vectors, channels_last)
            assert case.ok, case.reasons
        inputs = random_inputs(problem, 0)
        if channels_last:
            inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
        y = fused_conv_bn_scale(*inputs, **options(problem))
        assert y.dtype == dtype
        assert y.is_contiguous() != channels_last
        assert y.is_contiguous(memory_format=torch.channels_last) == channels_last

    def test_no_compiler_and_no_device(self, monkeypatch):
        monkeypatch.setattr("fusedref.ops.runner.source_module", None)
        monkeypatch.setattr("fusedref.ops.runner.backend_of", None)
        assert case_of(PROBLEM, "cpu").ok

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
    def test_nan_infinity_and_negative_variance(self, name, value):
        problem = Problem(1, 2, 3, 6, 7, 3, padding=1)
        inputs = random_inputs(problem, 0)
        getattr(inputs, name).view(-1)[1] = value
        y, expected = (f(*inputs, **options(problem)) for f in (fused_conv_bn_scale, conv_bn_scale))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_without_a_driver_or_a_compiler(self):
        """In a process of its own, whose PATH holds no compiler: nothing of CUDA is imported on the way."""
        script = (
            "import sys, torch, fusedref\n"
            "v = torch.ones(2)\n"
            "y = fusedref.fused_conv_bn_scale(torch.ones(1, 1, 3, 3), torch.ones(2, 1, 3, 3), v, v, v, v, v, 2.0)\n"
            "assert y.shape == (1, 2, 1, 1)\n"
            "assert not {'pycuda', 'pycuda.driver', 'fusedref.emulator'} & set(sys.modules)\n"
        )
        processes.python(script, FUSEDREF_DEVICE=None, PATH="")


class TestGradient:
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "gamma", "beta"])
    def test_gradients(self, device, name):
        gradients = []
        for function in (fused_conv_bn_scale, conv_bn_scale):
            inputs = random_inputs(PROBLEM, 0, device)
            tensor = getattr(inputs, name).requires_grad_()
            function(*inputs, **options(PROBLEM)).square().mean().backward()
            gradients.append(tensor.grad)
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_gradients_of_halves(self, device, dtype):
        problem = dataclasses.replace(PROBLEM, dtype=dtype)
        inputs = random_inputs(problem, 0, device, torch.float32)
        inputs.weight.requires_grad_()
        y = fused_conv_bn_scale(*inputs, **options(problem))
        y.sum().backward()
        assert y.dtype == inputs.weight.grad.dtype == dtype
        torch.testing.assert_close(y.double(), oracle(*inputs, **options(problem)), rtol=0.05, atol=0.1)

    def test_forward_mode(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        results = []
        for function in (fused_conv_bn_scale, conv_bn_scale):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(inputs.x, torch.ones_like(inputs.x))
                y = function(*inputs._replace(x=dual), **options(PROBLEM))
                results.append(forward_ad.unpack_dual(y).tangent)
        assert torch.equal(*results)

    def test_no_graph_without_gradients(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        inputs.weight.requires_grad_()
        with torch.no_grad():
            assert not fused_conv_bn_scale(*inputs, **options(PROBLEM)).requires_grad
        with torch.inference_mode():
            assert fused_conv_bn_scale(*inputs, **options(PROBLEM)).is_inference()


@pytest.mark.parametrize("emulated", [False, True], ids=["torch", "kernel"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_bias_beside_float32_statistics(device, monkeypatch, dtype, emulated):
    """As ``conv.half()`` before a float32 BatchNorm has it."""
    if not emulated:
        monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    problem = dataclasses.replace(PROBLEM, dtype=dtype)
    inputs = random_inputs(problem, 0, device, torch.float32)
    inputs = inputs._replace(bias=inputs.bias.to(dtype))
    case = compare("", problem, inputs, fused_conv_bn_scale(*inputs, **options(problem)))
    assert case.ok, case.reasons


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_with_a_factor_beyond_float32(device, dtype, factor):
    inputs = random_inputs(dataclasses.replace(PROBLEM, dtype=dtype), 0, device)._replace(scaling_factor=factor)
    y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    assert y.dtype == dtype
    assert torch.equal(y.isnan(), oracle(*inputs, **options(PROBLEM)).isnan())


PLANTED = {
    "the sum is rounded": ("sum += value * float(", "sum = float(Element(sum)) + value * float("),
    "the result is rounded twice": ("Element(a * (sum + shift) + b)", "Element(a * float(Element(sum + shift)) + b)"),
    "a is rounded": ("Element(a * (sum + shift) + b)", "Element(float(Element(a)) * (sum + shift) + b)"),
    "the vectors are read as elements": ("using Vector = float;", "using Vector = Element;"),
    "columns lie beside each other": ("COLUMN_STEP = CHANNELS_LAST ? IN_CHANNELS : 1", "COLUMN_STEP = 1"),
    "channels lie behind each other": ("CHANNEL_STEP = CHANNELS_LAST ? 1 : IN_PLANE", "CHANNEL_STEP = IN_PLANE"),
    "channels take turns by the run": ("CHANNELS_LAST ? place % OUT_CHANNELS : run", "CHANNELS_LAST ? run : run"),
}


@pytest.mark.parametrize("name", [None, *PLANTED])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_planted_bugs_in_folded(device, tmp_path, name, dtype):
    if name is not None and device.type == "cuda":
        pytest.skip("what reads beyond its tensors would end the context")
    right, wrong = PLANTED.get(name, ("", ""))
    problem = dataclasses.replace(PROBLEM, dtype=dtype)
    chosen = folded_plan(problem, KernelVariant(channels_last=True, vectors=torch.float32))
    (launch,) = chosen.launches
    text = inlined(launch.source)
    assert right in text
    (tmp_path / "folded.cu").write_text(text.replace(right, wrong))
    chosen = dataclasses.replace(chosen, launches=(dataclasses.replace(launch, source=tmp_path / "folded.cu"),))
    inputs = random_inputs(problem, 0, device, torch.float32)
    inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
    try:
        y = run_plan(chosen, problem, inputs)
        assert compare("", problem, inputs, y).ok == (name is None)
    except (driver.LogicError, driver.LaunchError):
        assert name is not None  # the emulator noticed by itself


@pytest.mark.parametrize("emulated", [False, True], ids=["torch", "kernel"])
def test_empty_batch(device, monkeypatch, emulated):
    if not emulated:
        monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    inputs = random_inputs(PROBLEM, 0, device)
    y = fused_conv_bn_scale(*inputs._replace(x=inputs.x[:0]), **options(PROBLEM))
    assert y.shape == (0, *PROBLEM.output_shape[1:])
    assert y.device.type == device.type


def test_plan_of_folded():
    chosen = plan(PROBLEM, "sm_75", 40)
    (launch,) = chosen.launches
    assert (chosen.kernel, launch.block, launch.grid) == ("folded", (256, 1, 1), (2 * 8 * 1, 1, 1))
    assert dict(launch.macros)["PAD_TOP"] == 1
    assert dict(launch.macros)["OUT_WIDTH"] == 6
    with pytest.raises(ValueError, match=r"must be below 2\*\*31"):
        plan(Problem(1, 1, 1, 2**31, 1, 1))
