"""fused_conv_bn_scale: the kernel (``device`` is a GPU, or the CPU for the emulator), the CPU path, what is refused."""

import dataclasses
import math
import re
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from fusedref import Problem, fused_conv_bn_scale, plan, validate
from fusedref.emulator import driver
from fusedref.ops import inference
from fusedref.ops.runner import run_plan
from fusedref.plans import KernelVariant, folded_plan
from fusedref.reference import conv_bn_scale, oracle
from fusedref.target import Target
from fusedref.validation import compare, random_inputs
from tests import processes
from tests.sources import inlined
from tests.strategies import compiling, fast, options, problems

PROBLEM = Problem(2, 6, 8, 9, 11, 3, stride=2, padding=1, groups=2)


@pytest.fixture(autouse=True)
def library_in_float32():
    """On a card the library would otherwise take tf32, or sum gradients in another order each time."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def torch_on_the_cpu(monkeypatch):
    """CPU tensors go to torch's folded convolution, as they do for a user without FUSEDREF_DEVICE."""
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)


HALVES = [torch.float16, torch.bfloat16]


def case_of(problem, device, seed=0, vectors=None, channels_last=False):
    inputs = random_inputs(problem, seed, device, vectors)
    if channels_last:
        inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
    return compare("", problem, inputs, fused_conv_bn_scale(*inputs, **options(problem)))


@pytest.fixture(params=["planned", "general"])
def kernel(request, monkeypatch):
    """The kernel that the plan chooses, and the general one, which it chooses for a card without newer tensor cores."""
    if request.param == "general":
        monkeypatch.setattr(inference, "target_of", lambda device: Target("sm_75", 40))
    inference._case.cache_clear()
    yield
    inference._case.cache_clear()


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

    def test_the_validator_agrees(self, device):
        report = validate(lambda *inputs: fused_conv_bn_scale(*inputs, **options(PROBLEM)), PROBLEM, device=device)
        assert report.ok, str(report)

    @pytest.mark.parametrize("missing", ["bias", "gamma", "beta"])
    def test_vectors_left_out(self, device, missing):
        inputs = random_inputs(PROBLEM, 0, device)._replace(**{missing: None})
        neutral = torch.ones if missing == "gamma" else torch.zeros
        filled = inputs._replace(**{missing: neutral(PROBLEM.out_channels, device=device)})
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        assert torch.equal(y, fused_conv_bn_scale(*filled, **options(PROBLEM)))

    def test_another_batch_is_the_same_kernel(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        whole = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        single = fused_conv_bn_scale(*inputs._replace(x=inputs.x[1:]), **options(PROBLEM))
        assert torch.equal(whole[1:], single)
        one, many = (folded_plan(Problem(batch, 6, 8, 9, 11, 3)).launches[0] for batch in (1, 100))
        assert one.macros == many.macros and many.grid[0] == 100 * one.grid[0]

    def test_non_contiguous_inputs(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        strided = inputs._replace(
            x=inputs.x.transpose(2, 3).contiguous().transpose(2, 3),
            weight=inputs.weight.contiguous(memory_format=torch.channels_last),
            gamma=torch.stack([inputs.gamma, inputs.beta], 1)[:, 0],
        )
        assert not strided.x.is_contiguous() and not strided.gamma.is_contiguous()
        again = fused_conv_bn_scale(*strided, **options(PROBLEM))
        assert torch.equal(y, again) and again.is_contiguous()
        channels_last = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
        again = fused_conv_bn_scale(*channels_last, **options(PROBLEM))
        assert torch.equal(y, again) and again.is_contiguous(memory_format=torch.channels_last)

    def test_inputs_and_their_neighbours_stay(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        before = [value.clone() for value in inputs[:7]]
        fused_conv_bn_scale(*inputs, **options(PROBLEM))
        assert all(torch.equal(*pair) for pair in zip(inputs[:7], before))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
    def test_nan_and_infinity_come_out_where_the_formula_puts_them(self, device, name, value):
        problem = Problem(1, 2, 3, 6, 7, 3, padding=1)
        inputs = random_inputs(problem, 0, device)
        getattr(inputs, name).view(-1)[1] = value
        y = fused_conv_bn_scale(*inputs, **options(problem)).double()
        torch.testing.assert_close(y, oracle(*inputs, **options(problem)), rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_negative_variance_is_nan_in_its_channel_alone(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        inputs.running_var[3] = -1.0
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        assert y[:, 3].isnan().all() and not y[:, [0, 1, 2, 4, 5, 6, 7]].isnan().any()

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_halves_overflow_and_hold_nan_and_infinity_where_the_formula_does(self, device, dtype):
        problem = Problem(1, 2, 3, 6, 7, 3, padding=1, dtype=dtype)
        inputs = random_inputs(problem, 0, device)._replace(scaling_factor=1e38 if dtype == torch.bfloat16 else 3e4)
        for place, value in enumerate((math.nan, math.inf, -math.inf)):
            inputs.x[0, 0, 0, 3 * place] = value
        expected = oracle(*inputs, **options(problem)).to(dtype)
        y = fused_conv_bn_scale(*inputs, **options(problem))
        assert y.dtype == dtype and expected.isnan().any() and expected[:, :, 2:].isinf().any()
        torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=0.0, equal_nan=True)

    def test_tf32_is_allowed_to_round(self, device):
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
        assert y.dtype == dtype and y.is_contiguous() != channels_last
        assert y.is_contiguous(memory_format=torch.channels_last) == channels_last

    def test_no_compiler_and_no_device_are_asked_for(self, monkeypatch):
        monkeypatch.setattr("fusedref.ops.runner.source_module", None)
        monkeypatch.setattr("fusedref.ops.runner.backend_of", None)
        assert case_of(PROBLEM, "cpu").ok

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
    def test_nan_infinity_and_negative_variance_give_what_torch_gives(self, name, value):
        problem = Problem(1, 2, 3, 6, 7, 3, padding=1)
        inputs = random_inputs(problem, 0)
        getattr(inputs, name).view(-1)[1] = value
        y, expected = (f(*inputs, **options(problem)) for f in (fused_conv_bn_scale, conv_bn_scale))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_import_and_run_without_a_driver_or_a_compiler(self):
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
    def test_gradients_are_those_of_torch(self, device, name):
        gradients = []
        for function in (fused_conv_bn_scale, conv_bn_scale):
            inputs = random_inputs(PROBLEM, 0, device)
            tensor = getattr(inputs, name).requires_grad_()
            function(*inputs, **options(PROBLEM)).square().sum().backward()
            gradients.append(tensor.grad)
        assert torch.equal(*gradients)

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_halves_have_gradients_in_their_dtype(self, device, dtype):
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

    def test_none_is_recorded_where_none_is_needed(self, device):
        inputs = random_inputs(PROBLEM, 0, device)
        inputs.weight.requires_grad_()
        with torch.no_grad():
            assert not fused_conv_bn_scale(*inputs, **options(PROBLEM)).requires_grad
        with torch.inference_mode():
            assert fused_conv_bn_scale(*inputs, **options(PROBLEM)).is_inference()


@pytest.mark.parametrize("emulated", [False, True], ids=["torch", "kernel"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_bias_of_x_s_dtype_beside_float32_statistics(device, monkeypatch, dtype, emulated):
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
    assert y.dtype == dtype and torch.equal(y.isnan(), oracle(*inputs, **options(PROBLEM)).isnan())


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
def test_planted_bugs_of_the_general_kernel_show(device, tmp_path, name, dtype):
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
def test_an_empty_batch_gives_an_empty_result(device, monkeypatch, emulated):
    if not emulated:
        monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    inputs = random_inputs(PROBLEM, 0, device)
    y = fused_conv_bn_scale(*inputs._replace(x=inputs.x[:0]), **options(PROBLEM))
    assert y.shape == (0, *PROBLEM.output_shape[1:]) and y.device.type == device.type


X, W, V = torch.zeros(2, 6, 9, 11), torch.zeros(8, 3, 3, 3), torch.ones(8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
        ({"running_var": None}, TypeError, "running_var must be a torch.Tensor, got NoneType"),
        ({"beta": 0.0}, TypeError, "beta must be a torch.Tensor or None, got float"),
        ({"x": X[0]}, ValueError, r"x must be \[batch, in_channels, height, width\], got shape \(6, 9, 11\)"),
        ({"weight": W[0]}, ValueError, r"weight must be \[out_channels, .*, got shape \(3, 3, 3\)"),
        (
            {"groups": 1},
            ValueError,
            r"weight must be \(8, 6, 3, 3\) for x with 6 channels and groups=1, .*\(8, 3, 3, 3\)",
        ),
        ({"groups": 4}, ValueError, r"in_channels must be a multiple of groups \(4\), got 6"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"x": X.half()}, TypeError, "weight must have the dtype of x, torch.float16, got torch.float32"),
        ({"x": X.double()}, TypeError, "x must be float32, float16 or bfloat16, got torch.float64"),
        ({"gamma": V.long()}, TypeError, "gamma must be float32, float16 or bfloat16, got torch.int64"),
        ({"gamma": V.half()}, TypeError, "gamma must have the dtype of x, .*float32, or float32, got torch.float16"),
        (
            {"x": X.half(), "weight": W.half(), "running_mean": V.bfloat16()},
            TypeError,
            "running_mean must have the dtype of x, torch.float16, or float32, got torch.bfloat16",
        ),
        (
            {"x": X.half(), "weight": W.half(), "beta": V.half()},
            TypeError,
            "beta must have the dtype of running_mean, torch.float32, got torch.float16",
        ),
        (
            {"x": X.half(), "weight": W.half(), "running_mean": V.half()},
            TypeError,
            "bias must have the dtype of running_mean, torch.float16, got torch.float32",
        ),
        ({"precision": "fp16"}, ValueError, "precision must be 'fp32' or 'tf32', got 'fp16'"),
        ({"precision": None}, ValueError, "precision must be 'fp32' or 'tf32', got None"),
        (
            dict.fromkeys(("bias", "running_mean", "running_var", "gamma", "beta"), V.half())
            | {"x": X.half(), "weight": W.half(), "precision": "tf32"},
            ValueError,
            "precision='tf32' is for float32 tensors, got torch.float16: their products are exact as they are",
        ),
        ({"bias": V.to("meta")}, ValueError, "bias must be on the device of x, .*, got meta"),
        ({"bias": V[:7]}, ValueError, r"bias must be \[out_channels\] = \(8,\), got shape \(7,\)"),
        ({"running_mean": V[None]}, ValueError, r"running_mean must be \[out_channels\] = \(8,\), got shape \(1, 8\)"),
        ({"running_var": V[:1]}, ValueError, r"running_var must be \[out_channels\] = \(8,\), got shape \(1,\)"),
        ({"gamma": V.repeat(2)}, ValueError, r"gamma must be \[out_channels\] = \(8,\), got shape \(16,\)"),
        (
            {"x": X[:, :, :2]},
            ValueError,
            "the kernel must fit into the padded input: .* 3 x 3, the padded input is 2 x 11",
        ),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1, got stride=2"),
        ({"stride": {}}, TypeError, r"stride must be an integer or a pair of them, got \{\}"),
        ({"padding": [[1], [2]]}, TypeError, r"padding must be an integer or a pair of them, got \(\[1\], \[2\]\)"),
        ({"dilation": {1}}, TypeError, r"dilation must be an integer or a pair of them, got \{1\}"),
        ({"groups": {}}, TypeError, r"groups must be an integer, got \{\}"),
        ({"groups": [2]}, TypeError, r"groups must be an integer, got \(2,\)"),
        ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got a torch.sparse_coo one"),
        ({"weight": W.to_sparse()}, TypeError, "weight must be a dense tensor, got a torch.sparse_coo one"),
        ({"beta": V.to_sparse()}, TypeError, "beta must be a dense tensor, got a torch.sparse_coo one"),
        ({"x": X[0].to_sparse_csr()}, TypeError, "x must be a dense tensor, got a torch.sparse_csr one"),
        ({"weight": W[:0]}, ValueError, r"weight must have no size of 0, got shape \(0, 3, 3, 3\)"),
        ({"scaling_factor": 10**400}, ValueError, "scaling_factor must fit into a float, got a number above 1e308"),
        ({"eps": 10**400}, ValueError, "eps must fit into a float, got a number above 1e308"),
        ({"eps": -1e-5}, ValueError, "eps must be at least 0, got -1e-05"),
        ({"scaling_factor": torch.ones(())}, TypeError, "scaling_factor must be a number, got Tensor"),
        ({"scaling_factor": "2"}, TypeError, "scaling_factor must be a number, got str"),
        ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
    ],
)
def test_wrong_arguments_are_named(device, change, error, words):
    arguments = {
        "x": X, "weight": W, "bias": V, "running_mean": V, "running_var": V, "gamma": V, "beta": V,
        "scaling_factor": 2.0, "groups": 2,
    }  # fmt: skip
    arguments = {
        name: value.to(device) if isinstance(value, torch.Tensor) and value.device.type != "meta" else value
        for name, value in {**arguments, **change}.items()
    }
    for _ in range(2):  # what is remembered of the first call does not make the second one pass
        with pytest.raises(error, match=words):
            fused_conv_bn_scale(**arguments)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("value", [1.0, True, (1.0, 1), (1, True)])
def test_what_equals_a_remembered_integer_is_refused_all_the_same(device, name, value):
    inputs = random_inputs(Problem(1, 2, 2, 5, 5, 3), 0, device)
    fused_conv_bn_scale(*inputs, **{name: 1})
    if name != "groups":
        fused_conv_bn_scale(*inputs, **{name: (1, 1)})
    needed = "an integer" if name == "groups" else "an integer or a pair of them"
    with pytest.raises(TypeError, match=f"{name} must be {needed}, got {re.escape(repr(value))}"):
        fused_conv_bn_scale(*inputs, **{name: value})


def test_the_plan_says_how():
    chosen = plan(PROBLEM, "sm_75", 40)
    (launch,) = chosen.launches
    assert (chosen.kernel, launch.block, launch.grid) == ("folded", (256, 1, 1), (2 * 8 * 1, 1, 1))
    assert dict(launch.macros)["PAD_TOP"] == 1 and dict(launch.macros)["OUT_WIDTH"] == 6
    with pytest.raises(ValueError, match=r"must be below 2\*\*31"):
        plan(Problem(1, 1, 1, 2**31, 1, 1))


@pytest.mark.gpu
class TestGpu:
    """What only a card can show. Each compares with float64 on the card."""

    def test_a_side_stream(self):
        inputs = random_inputs(PROBLEM, 0, "cuda")
        expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = torch.zeros_like(inputs.x)
            torch.cuda._sleep(50_000_000)  # the kernel must wait for what the stream was given before it
            late += inputs.x
            y = fused_conv_bn_scale(*inputs._replace(x=late), **options(PROBLEM))
            twice = y * 2  # and what the stream is given after it must wait for the kernel
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(twice, expected * 2)

    def test_a_captured_graph_replays(self):
        inputs = random_inputs(PROBLEM, 0, "cuda")
        fused_conv_bn_scale(*inputs, **options(PROBLEM))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        for seed in (1, 2):
            fresh = random_inputs(PROBLEM, seed, "cuda")
            for tensor, value in zip(inputs[:7], fresh[:7]):
                tensor.copy_(value)
            y.fill_(torch.nan)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                graph.replay()
            torch.cuda.current_stream().wait_stream(side)
            kept = fresh._replace(scaling_factor=inputs.scaling_factor, eps=inputs.eps)
            case = compare("", PROBLEM, kept, y)
            assert case.ok, case.reasons

    def test_other_streams_work_while_one_is_captured(self):
        inputs = random_inputs(PROBLEM, 0, "cuda")
        expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        others = [torch.cuda.Stream() for _ in range(2)]
        for stream in others:
            with torch.cuda.stream(stream):
                fused_conv_bn_scale(*inputs, **options(PROBLEM))
        torch.cuda.synchronize()
        graph, found = torch.cuda.CUDAGraph(), []

        def run(stream):
            with torch.cuda.stream(stream):
                found.append(fused_conv_bn_scale(*inputs, **options(PROBLEM)))

        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
            threads = [threading.Thread(target=run, args=(stream,)) for stream in others]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        graph.replay()
        torch.cuda.synchronize()
        assert len(found) == 2 and all(torch.equal(result, expected) for result in [y, *found])

    def test_fresh_threads(self):
        """Many at once, in streams of their own; none may leave a context pushed, which would abort the process."""
        inputs = random_inputs(PROBLEM, 0, "cuda")
        expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        torch.cuda.synchronize()
        results = []

        def run(stream):
            with torch.cuda.stream(stream):
                for _ in range(20):
                    results.append(fused_conv_bn_scale(*inputs, **options(PROBLEM)))
                stream.synchronize()

        streams = [torch.cuda.default_stream(), *[torch.cuda.Stream() for _ in range(3)]]
        threads = [threading.Thread(target=run, args=(stream,)) for stream in streams * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 160 and all(torch.equal(result, expected) for result in results)

    def test_a_thread_of_autograd(self):
        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, gradient):
                found.append(fused_conv_bn_scale(*inputs, **options(PROBLEM)))
                return gradient

        found, inputs = [], random_inputs(PROBLEM, 0, "cuda")
        Doubled.apply(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()
        assert torch.equal(found[0], fused_conv_bn_scale(*inputs, **options(PROBLEM)))

    def test_a_process_that_ends_in_a_thread(self):
        script = (
            "import threading, torch, fusedref\n"
            "from fusedref.validation import random_inputs\n"
            "inputs = random_inputs(fusedref.Problem(1, 2, 2, 5, 5, 3), 0, 'cuda')\n"
            "thread = threading.Thread(target=lambda: fusedref.fused_conv_bn_scale(*inputs))\n"
            "thread.start(); thread.join(); torch.cuda.synchronize(); print('end')\n"
        )
        done = processes.run([sys.executable, "-c", script])
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")

    def test_the_second_card(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two GPUs")
        case = case_of(PROBLEM, "cuda:1")
        assert case.ok, case.reasons
        assert torch.cuda.current_device() == 0

    def test_more_than_2_to_the_31_elements(self):
        """x of 2**31 + 2**25 elements: the last images lie beyond 32-bit indices, in x and in y."""
        problem = Problem(65, 1, 1, 2**12, 2**13, 1)
        if torch.cuda.get_device_properties(0).total_memory < 30 * 2**30:
            pytest.skip("needs 30 GiB of GPU memory")
        inputs = random_inputs(problem, 0, "cuda")
        y = fused_conv_bn_scale(*inputs)
        assert y.numel() > 2**31
        case = compare("", problem, inputs, y)
        assert case.ok, case.reasons

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
    def test_nan_infinity_and_negative_variance_give_what_torch_gives(self, name, value):
        problem = Problem(1, 2, 3, 6, 7, 3)
        inputs = random_inputs(problem, 0, "cuda")
        getattr(inputs, name).view(-1)[1] = value
        expected = conv_bn_scale(*inputs)
        y = fused_conv_bn_scale(*inputs)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_tf32_of_the_library_is_refused(self):
        """torch's own convolution takes tf32 unless told not to: the validator sees the difference."""
        problem = Problem(8, 64, 64, 32, 32, 3)
        x, weight = random_inputs(problem, 0, "cuda")[:2]
        results = []
        for allow_tf32 in (False, True):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32):
                results.append(torch.nn.functional.conv2d(x, weight))
        if torch.equal(*results):
            pytest.skip("this cuDNN takes no tf32 here")
        assert validate(conv_bn_scale, problem).ok
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            assert not validate(conv_bn_scale, problem).ok
