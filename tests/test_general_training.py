"""Training by the general path: values against float64 autograd, running statistics, planted bugs, and what is ours."""

import dataclasses
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fusedref import Problem
from fusedref.csrc import TRAINING
from fusedref.emulator import watch
from fusedref.ops.general_training import GeneralTraining, library_rounds_to_tf32
from fusedref.ops.training import Running
from fusedref.plans import KernelVariant, general_training
from fusedref.target import EMULATED
from tests import nvcc
from tests.cases import library_in_float32  # noqa: F401  # for every test here
from tests.nvcc import assert_no_spills, needs_nvcc
from tests.sources import inlined
from tests.tiles import needs_emulator

SCALE, EPS = -1.7, 1e-3
NAMES = ("y", "dx", "dweight", "dbias", "dgamma", "dbeta")
SMALL = Problem(2, 4, 6, 5, 8, 3, padding=1, groups=2)  # the library convolves


class Inputs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    gamma: torch.Tensor | None
    beta: torch.Tensor | None
    dy: torch.Tensor


def inputs_of(problem, device, channels_last=False, vectors=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*shape, dtype=problem.dtype):
        return torch.randn(shape, generator=generator).to(device, dtype)

    vector = [normal(problem.out_channels, dtype=vectors or problem.dtype) for _ in range(3)]
    return Inputs(
        normal(*problem.input_shape).contiguous(memory_format=order),
        (normal(*problem.weight_shape) / math.sqrt(problem.taps)),
        vector[0] if problem.bias else None,
        *vector[1:],
        normal(*problem.output_shape).contiguous(memory_format=order),
    )


def by_torch(problem, inputs, dtype, running=None, training=True):
    """Return y and the five gradients by torch's operators in ``dtype``."""
    leaves = [None if t is None else t.to(dtype).requires_grad_() for t in inputs[:5]]
    x, weight, bias, gamma, beta = leaves
    mean, var = (running.mean, running.var) if running else (None, None)
    z = F.conv2d(x, weight, bias, **problem.conv_options)
    ones = torch.ones_like(z[0, :, 0, 0]) if gamma is None else gamma  # without it, torch 2.11 fails on a GPU
    y = F.batch_norm(z, mean, var, ones, beta, training, 0.1, EPS) * SCALE
    wanted = [t for t in leaves if t is not None]
    gradients = iter(torch.autograd.grad(y, wanted, inputs.dy.to(dtype)))
    return [y.detach(), *[None if t is None else next(gradients) for t in leaves]]


def runner_of(problem, inputs, channels_last=False):
    vectors = None if inputs.beta is None else inputs.beta.dtype
    return GeneralTraining(problem, inputs.x.device, channels_last=channels_last, vectors=vectors)


def ours(problem, inputs, channels_last=False, running=None, training=True, needs=(True,) * 5):
    """Return y and the five gradients by the general path."""
    runner = runner_of(problem, inputs, channels_last)
    x, weight, bias, gamma, beta, dy = inputs
    needs = tuple(need and t is not None for need, t in zip(needs, inputs[:5], strict=True))
    if training:
        y, mean, var, saved = runner.forward(x, weight, bias, gamma, beta, SCALE, EPS, running)
    else:
        y, mean, var, saved = None, running.mean, running.var, None
    return [y, *runner.backward(dy, x, weight, bias, gamma, mean, var, saved, SCALE, EPS, needs)]


def wrong(problem, *draws, channels_last=False):
    """Return the names of the results whose errors are more than twice those of torch, and than two roundings.

    Errors are those of all draws of inputs together: of a few numbers, one draw may cancel more than others.
    """
    squares = {name: torch.zeros(3, dtype=torch.float64) for name in NAMES}  # of our errors, torch's, and the truth
    for inputs in draws:
        got, true = ours(problem, inputs, channels_last), by_torch(problem, inputs, torch.float64)
        eager = by_torch(problem, inputs, problem.dtype if inputs.x.is_cuda else torch.float32)
        for name, result, truth, by_eager in zip(NAMES, got, true, eager, strict=True):
            assert (result is None) == (truth is None)
            if truth is None:
                continue
            assert result.shape == truth.shape
            if name == "dbias":  # torch returns the rounding errors of a sum that is zero
                truth = by_eager = torch.zeros_like(truth)
            vectors = result.double() - truth, by_eager.double() - truth, truth
            squares[name] += torch.stack([vector.square().sum() for vector in vectors]).cpu()
    names = set()
    for name, values in squares.items():
        error, of_eager, size = values.sqrt().tolist()
        if not error <= max(
            2 * of_eager, 2 * torch.finfo(problem.dtype).eps * size
        ):  # a rounding of dz, and of the sum
            names.add(name)
    return names


def wrong_running_statistics(inputs, momentum=0.1, counted=True):
    """Return the names of the running statistics that are not as torch updates them."""
    device = inputs.x.device
    bn = torch.nn.BatchNorm2d(SMALL.out_channels, EPS, momentum, device=device, dtype=torch.float64)
    batches = torch.tensor(2, device=device)
    mean, var = (torch.rand(SMALL.out_channels, device=device) for _ in range(2))
    bn.running_mean, bn.running_var = mean.double(), var.double()
    bn.num_batches_tracked = batches.clone() if counted else None
    bn(F.conv2d(*[t.double() for t in inputs[:3]], **SMALL.conv_options))
    ours(SMALL, inputs, running=Running(mean, var, batches if counted else None, momentum))
    pairs = {"running mean": (mean, bn.running_mean), "running var": (var, bn.running_var)}
    pairs["batches"] = batches, torch.tensor(3 if counted else 2, device=device)
    return {
        name
        for name, (new, expected) in pairs.items()
        if not torch.allclose(new.double(), expected.double(), rtol=1e-6, atol=1e-7)
    }


SHAPES = {
    "stride 2": (Problem(2, 3, 6, 9, 13, 3, stride=2, padding=1, groups=3), False),
    "groups, channels last": (Problem(2, 4, 12, 6, 7, 3, padding=1, groups=2), True),
    "depthwise": (Problem(3, 8, 8, 6, 8, 3, padding=1, groups=8), False),
    "depthwise, channels last": (Problem(2, 12, 12, 5, 7, 3, padding=1, groups=12), True),
    "channel groups and slices, channels last": (Problem(2, 1, 33, 5, 7, 1, bias=False), True),
    "slices": (Problem(2, 1, 3, 27, 25, 1), False),
    "dilation": (Problem(2, 4, 6, 9, 10, (2, 3), dilation=(2, 3), padding=(1, 2), groups=2), False),
    "one image": (Problem(1, 5, 3, 6, 8, 1), False),
    "one pixel": (Problem(5, 3, 4, 3, 3, 3), False),
    "a column": (Problem(3, 6, 4, 11, 1, (3, 1), groups=2), False),
    "uneven padding": (Problem(2, 4, 4, 5, 7, 2, padding="same", groups=2), False),
    "halves": (Problem(2, 4, 6, 6, 8, 3, padding=1, groups=2, dtype=torch.float16), False),
    "bfloat16, channels last": (Problem(2, 6, 12, 6, 5, 3, groups=3, dtype=torch.bfloat16), True),
}


@pytest.fixture
def masks(monkeypatch):
    """Return the list of which gradients (of x, weight and bias) the library is asked for."""
    seen, operator = [], torch.ops.aten.convolution_backward

    def recorded(*arguments):
        seen.append(arguments[-1])
        return operator(*arguments)

    monkeypatch.setattr("fusedref.ops.general_training.convolution_backward", recorded)
    return seen


class TestValues:
    @pytest.mark.parametrize(("problem", "channels_last"), SHAPES.values(), ids=SHAPES)
    def test_kinds_of_shape(self, device, problem, channels_last):
        seeds = range(8 if math.prod(problem.output_shape) < 200 else 1)
        draws = [inputs_of(problem, device, channels_last, seed=seed) for seed in seeds]
        assert wrong(problem, *draws, channels_last=channels_last) == set()

    @pytest.mark.parametrize(("padding", "groups"), [(0, 2), ((1, 2), 1)])
    def test_convolutions_of_our_own(self, device, padding, groups, monkeypatch, masks):
        monkeypatch.setattr("fusedref.ops.general_training.library_convolves", lambda *_: False)
        problem = Problem(2, 4, 6, 7, 8, (2, 3), dilation=(2, 1), padding=padding, groups=groups)
        assert wrong(problem, inputs_of(problem, device)) == set()
        assert masks == [(False, True, False)]  # the library computes the gradient of the weight alone

    @pytest.mark.parametrize("name", [name for name in SHAPES if "slices" in name])
    def test_shapes_with_slices_have_some(self, name):
        problem, channels_last = SHAPES[name]
        for launch in general_training.forward_launches(problem, EMULATED, KernelVariant("fp32", channels_last)):
            assert min(launch.grid[:2]) > 1

    def test_the_same_bits_every_time(self, device):
        inputs = inputs_of(SMALL, device)
        first, second = ours(SMALL, inputs), ours(SMALL, inputs)
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))

    def test_a_gradient_that_is_not_aligned(self, device):
        inputs = inputs_of(SMALL, device)
        moved = torch.cat([inputs.dy.new_zeros(1), inputs.dy.flatten()])[1:].view(inputs.dy.shape)
        assert wrong(SMALL, inputs._replace(dy=moved)) == set()

    @pytest.mark.parametrize("missing", ["bias", "gamma", "beta"])
    def test_vectors_left_out(self, device, missing):
        inputs = inputs_of(SMALL, device)._replace(**{missing: None})
        assert wrong(dataclasses.replace(SMALL, bias=missing != "bias"), inputs) == set()

    def test_layout_and_dtypes(self, device):
        problem = dataclasses.replace(SMALL, dtype=torch.bfloat16)
        y, dx, dweight, dbias, dgamma, dbeta = ours(problem, inputs_of(problem, device, True, torch.float32), True)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert dx.is_contiguous(memory_format=torch.channels_last)
        assert {t.dtype for t in (y, dx, dweight)} == {torch.bfloat16}
        assert {t.dtype for t in (dbias, dgamma, dbeta)} == {torch.float32}


def scales(inputs):
    inputs.x.mul_(10 ** torch.linspace(-4, 4, inputs.x.shape[1], device=inputs.x.device)[:, None, None])


def outlier(inputs):
    inputs.x[0, 0, 0, 0] = 1e9


def tiny(inputs):
    inputs.x.mul_(1e-30)
    inputs.bias.zero_()


FAMILIES = {
    "mean 100": lambda inputs: inputs.x.add_(100),
    "large biases": lambda inputs: inputs.bias.add_(1000),
    "scales over 8 decades": scales,
    "an outlier first": outlier,
    "tiny": tiny,
    "dy follows y": lambda inputs: inputs.dy.copy_(inputs.dy * 0.01 + by_torch(SMALL, inputs, torch.float32)[0]),
}


class TestFamilies:
    @pytest.mark.parametrize("change", FAMILIES.values(), ids=FAMILIES)
    def test_errors_are_those_of_torch(self, device, change):
        inputs = inputs_of(SMALL, device)
        change(inputs)
        assert wrong(SMALL, inputs) == set()

    def test_a_constant_channel(self, device):
        problem = Problem(2, 3, 3, 5, 8, 1, groups=3)
        inputs = inputs_of(problem, device)
        inputs.x.fill_(3.7)
        runner = runner_of(problem, inputs)
        y, mean, var, _ = runner.forward(*inputs[:5], SCALE, EPS, None)
        assert not var.any()
        assert y.equal((SCALE * inputs.beta)[:, None, None].expand_as(y))
        torch.testing.assert_close(mean, 3.7 * inputs.weight.flatten() + inputs.bias)

    @pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
    @pytest.mark.parametrize("name", ["x", "weight", "bias", "gamma", "beta", "dy"])
    def test_what_is_not_finite(self, device, name, value):
        inputs = inputs_of(SMALL, device)
        getattr(inputs, name).view(-1)[1] = value
        got, true = ours(SMALL, inputs), by_torch(SMALL, inputs, torch.float64)
        z = F.conv2d(*[t.double() for t in inputs[:3]], **SMALL.conv_options)
        zhat = F.batch_norm(z, None, None, None, None, True, 0.1, EPS)
        # torch on a CPU folds the operator, which an infinite gamma does not survive.
        true[0] = SCALE * (zhat * inputs.gamma.double()[:, None, None] + inputs.beta.double()[:, None, None])
        for which, result, truth in zip(NAMES, got, true, strict=True):
            if which == "dbias":
                assert result.isnan().equal(truth.isnan())
            else:
                torch.testing.assert_close(result.double(), truth, rtol=1e-4, atol=1e-5, equal_nan=True, msg=which)


class TestRunningStatistics:
    @pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
    @pytest.mark.parametrize("counted", [True, False])
    def test_as_torch_updates_them(self, device, momentum, counted):
        assert wrong_running_statistics(inputs_of(SMALL, device), momentum, counted) == set()

    def test_the_statistics_returned(self, device):
        inputs = inputs_of(SMALL, device)
        _, mean, var, saved = runner_of(SMALL, inputs).forward(*inputs[:5], SCALE, EPS, None)
        z = F.conv2d(*[t.double() for t in inputs[:3]], **SMALL.conv_options)
        torch.testing.assert_close(mean.double(), z.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(var.double(), z.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)
        torch.testing.assert_close(saved.double(), z - inputs.bias.double()[:, None, None], rtol=1e-5, atol=1e-6)

    def test_one_value_per_channel_is_refused_in_torchs_words(self, device):
        problem = Problem(1, 2, 3, 3, 3, 3)
        inputs = inputs_of(problem, device)
        with pytest.raises(ValueError, match="Expected more than 1 value") as expected:
            by_torch(problem, inputs, torch.float32)
        with pytest.raises(ValueError, match="Expected more than 1 value") as raised:
            ours(problem, inputs)
        assert str(raised.value) == str(expected.value)


class TestGradientsOfEvaluationMode:
    @pytest.mark.parametrize("problem", [SMALL, Problem(1, 2, 3, 3, 3, 3)], ids=["many pixels", "one pixel"])
    def test_values(self, device, problem):
        inputs = inputs_of(problem, device)
        mean, var = (torch.rand(problem.out_channels, device=device) + 0.5 for _ in range(2))
        running = Running(mean, var, None, 0.1)
        true = by_torch(problem, inputs, torch.float64, Running(mean.double(), var.double(), None, 0.1), training=False)
        got = ours(problem, inputs, running=running, training=False)
        for name, result, truth in zip(NAMES[1:], got[1:], true[1:], strict=True):
            torch.testing.assert_close(result.double(), truth, rtol=1e-5, atol=1e-5, msg=name)


@needs_emulator
class TestCosts:
    @pytest.mark.parametrize("only", range(5))
    @pytest.mark.parametrize("training", [True, False])
    def test_what_needs_no_gradient_costs_nothing(self, device, masks, only, training):
        inputs = inputs_of(SMALL, device)
        running = Running(*torch.ones(2, SMALL.out_channels), None, 0.1)
        complete = ours(SMALL, inputs, running=running, training=training)
        masks.clear()
        needs = tuple(i == only for i in range(5))
        with watch() as seen:
            got = ours(SMALL, inputs, running=running, training=training, needs=needs)
        assert [t is not None for t in got[1:]] == list(needs)
        assert got[1 + only].equal(complete[1 + only])
        assert masks == ([] if only > 1 else [(only == 0, only == 1, False)])
        written = seen.counters["apply_gradient"].global_store_bytes_used
        assert written == 4 * (math.prod(SMALL.output_shape) if only < 2 else SMALL.out_channels)
        assert ("reduce_gradient" in seen.counters) == (training or only > 1)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_each_pass_moves_a_tensor_once(self, device, channels_last):
        problem = Problem(2, 2, 4, 16, 16, 1, groups=2)
        with watch() as seen:
            ours(problem, inputs_of(problem, device, channels_last), channels_last)
        assert seen.findings == []
        size = 4 * math.prod(problem.output_shape)
        for kernel, reads, writes in (
            ("channel_statistics", 1, 0),
            ("normalize", 1, 1),
            ("reduce_gradient", 2, 0),
            ("apply_gradient", 2, 1),
        ):
            counters = seen.counters[kernel]
            assert reads * size <= counters.global_load_bytes_used < (reads + 0.5) * size, kernel
            assert writes * size <= counters.global_store_bytes_used < (writes + 0.1) * size, kernel
            assert counters.global_store_sectors < 1.1 * writes * size / 32 + 20, kernel


FORWARD, BACKWARD = "general_forward.cu", "general_backward.cu"
PLANTED = {
    "c1 forgotten": (BACKWARD, "c1[threadIdx.x] = q / count", "c1[threadIdx.x] = 0.0f", {"dx", "dweight"}),
    "c2 forgotten": (BACKWARD, "c2[threadIdx.x] = r / count", "c2[threadIdx.x] = 0.0f", {"dx", "dweight"}),
    "a sum over one image": (FORWARD, "double(batch) * plane", "double(plane)", {"y", "dx", "running var"}),
    "a biased running variance": (FORWARD, "variance * count / (count - 1.0)", "variance", {"running var"}),
    "momentum of the old statistics": (FORWARD, "(1.0 - share) * before", "share * before", {"running mean"}),
    "a running mean without the bias": (FORWARD, "share * (mean_of_z + shift)", "share * mean_of_z", {"running mean"}),
    "batches not counted": (FORWARD, "batches[0]++", "batches[0]", {"batches"}),
    "a scale forgotten": (BACKWARD, "Vector(float(scaling_factor * r))", "Vector(float(r))", {"dgamma"}),
    "an image forgotten": (FORWARD, "image + here / plane_units", "image", {"y", "running mean"}),
}


class Changed(NamedTuple):
    """Stands for the folder of the kernels: one of them has another text."""

    file: str
    text: str

    def __truediv__(self, name):
        return self.text if name == self.file else TRAINING / name


@needs_emulator
@pytest.mark.parametrize(("file", "right", "slip", "expected"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_shows(device, monkeypatch, file, right, slip, expected):
    text = inlined(TRAINING / file)
    assert text.count(right) >= 1
    monkeypatch.setattr(general_training, "TRAINING", Changed(file, text.replace(right, slip)))
    inputs = inputs_of(SMALL, device)
    assert expected <= wrong(SMALL, inputs) | wrong_running_statistics(inputs)


WIDE = Problem(32, 128, 128, 28, 28, 3, padding=1)
LAST = KernelVariant(channels_last=True)


@pytest.mark.parametrize(
    ("problem", "variant", "coarse", "library", "weight_by"),
    [
        (WIDE, KernelVariant(), False, False, "weight_gradient"),
        (WIDE, KernelVariant("tf32"), True, True, None),
        (dataclasses.replace(WIDE, groups=2), KernelVariant("tf32"), True, False, "weight_gradient"),
        (dataclasses.replace(WIDE, dtype=torch.float16), KernelVariant(), True, True, None),
        (dataclasses.replace(WIDE, groups=2, dtype=torch.float16), KernelVariant(), True, False, None),
        (dataclasses.replace(WIDE, groups=2, dtype=torch.float16), LAST, True, True, None),
        (dataclasses.replace(WIDE, groups=4, dtype=torch.float16), LAST, True, False, None),
        (Problem(32, 3, 32, 224, 224, 3), KernelVariant(), False, False, "weight_gradient"),
        (Problem(32, 3, 12, 224, 224, 3), KernelVariant(), False, True, "weight_gradient"),
        (Problem(32, 64, 64, 56, 56, 3, groups=64), KernelVariant(), False, False, "depthwise_gradient"),
        (Problem(32, 64, 64, 56, 56, 3, groups=64, dtype=torch.float16), KernelVariant(), True, True, None),
        (Problem(32, 512, 512, 7, 7, 3, padding=1), KernelVariant(), False, True, None),
        (Problem(32, 256, 512, 56, 56, 1, stride=2), KernelVariant(), False, True, "weight_gradient"),
        (Problem(32, 256, 512, 56, 56, 1), KernelVariant("tf32"), True, True, None),
    ],
    ids=str,
)
def test_who_computes(problem, variant, coarse, library, weight_by):
    assert general_training.library_convolves(problem, EMULATED, variant, coarse) == library
    chosen = general_training.weight_plan(problem, EMULATED, variant, coarse)
    assert (chosen and chosen.launches[0].symbol) == weight_by


class TestTheLibrary:
    def test_autocast_does_not_reach_it(self, device):
        inputs = inputs_of(SMALL, device)
        expected = ours(SMALL, inputs)
        with torch.autocast(device.type, torch.bfloat16):
            assert all(a.equal(b) for a, b in zip(ours(SMALL, inputs), expected, strict=True))

    @pytest.mark.parametrize(
        ("allowed", "precision", "by_plan"), [(False, "fp32", False), (True, "fp32", True), (True, "tf32", False)]
    )
    @needs_emulator
    def test_it_does_not_round_what_is_to_be_float32(self, device, allowed, precision, by_plan):
        inputs = inputs_of(SMALL, device)
        runner = GeneralTraining(SMALL, device, precision)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed), watch() as seen:
            runner.forward(*inputs[:5], SCALE, EPS, None)
        assert ("folded" in seen.counters) == by_plan

    @pytest.mark.parametrize("allowed", [True, False])
    def test_torchs_setting_is_seen(self, allowed):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert library_rounds_to_tf32() == allowed


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (Problem(2, 3, 4, 9, 9, 3), Problem(2, 4, 3, 7, 7, 3, padding=2, bias=False)),
        (Problem(2, 3, 4, 9, 9, 3, padding=1), Problem(2, 4, 3, 9, 9, 3, padding=1, bias=False)),
        (Problem(2, 3, 4, 9, 9, (3, 2), dilation=(2, 3), padding=(4, 0)), "padding=(0, 3)"),
        (Problem(2, 3, 4, 9, 9, 3, padding=3), None),
        (Problem(2, 3, 4, 9, 9, 3, stride=2), None),
        (Problem(2, 4, 6, 9, 9, 3, groups=2), Problem(2, 6, 4, 7, 7, 3, groups=2, padding=2, bias=False)),
        (Problem(2, 4, 4, 9, 9, 2, padding="same"), None),
    ],
    ids=str,
)
def test_the_convolution_that_is_dx(problem, expected):
    other = general_training.input_gradient_problem(problem)
    if isinstance(expected, str):
        assert expected in str(other)
    elif expected is None:
        assert other is None
    else:
        assert (other.input_shape, other.output_shape) == (problem.output_shape, problem.input_shape)
        assert (other.kernel, other.pads, other.groups) == (expected.kernel, expected.pads, expected.groups)


@needs_nvcc
@pytest.mark.parametrize(("architecture", "channels_last"), [("75", True), ("90", False)])
def test_compiles_without_spills(architecture, channels_last, tmp_path):
    problem, variant = Problem(32, 64, 64, 56, 56, 3), KernelVariant("fp32", channels_last)
    for launches in (
        general_training.forward_launches(problem, EMULATED, variant),
        general_training.backward_launches(problem, EMULATED, variant, True),
    ):
        assert_no_spills(nvcc.report(launches[0].source, tmp_path, architecture, launches[0].options))
