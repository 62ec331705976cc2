"""Training with few channels by the kernels of csrc/training, from x to the gradients."""

import pytest
import torch

from fusedref import ConvBnScale, FusedConvBnScale, Problem
from fusedref.cuda.backend import backend_of
from fusedref.emulator import watch
from fusedref.ops import calls
from fusedref.ops.fast_training import FastTraining
from fusedref.ops.general_training import GeneralTraining
from fusedref.ops.training_runner import training_runner
from fusedref.plans import KernelVariant
from fusedref.plans.training import backward_launches, forward_launches, unserved_by_fast_training
from fusedref.target import EMULATED, Target
from tests.cases import library_in_float32  # noqa: F401  # for every test here
from tests.tiles import needs_emulator

NARROW = Problem(2, 8, 64, 9, 12, 3)
PADDED = Problem(3, 5, 33, 6, 19, (3, 2), padding=1)
NAMES = ("y", "dx", "dweight", "dgamma", "dbeta", "running_mean", "running_var")


@pytest.fixture(autouse=True)
def kernels(monkeypatch, device):
    """Run kernels on the CPU, too, and count their launches."""
    if device.type == "cpu":
        monkeypatch.setenv("FUSEDREF_DEVICE", "emulator")
    calls.forget()
    backend, made = backend_of(device), []
    launch = backend.launch

    def counted(kernels, *rest):
        made.append(len(kernels))
        return launch(kernels, *rest)

    monkeypatch.setattr(backend, "launch", counted)
    yield made
    calls.forget()


def modules(problem, device, dtype=torch.float32):
    """Return the fused module, the reference in ``dtype``, and in float64, with the same random parameters."""
    torch.manual_seed(0)
    made = []
    for kind in (FusedConvBnScale, ConvBnScale, ConvBnScale):
        module = kind(problem.in_channels, problem.out_channels, problem.kernel, -1.7, padding=problem.padding)
        if made:
            module.load_state_dict(made[0].state_dict())
        else:
            torch.nn.init.uniform_(module.bn.weight, -2, 2)
            torch.nn.init.uniform_(module.bn.bias)
            module.bn.running_mean.uniform_(-1, 1)
            module.bn.running_var.uniform_(0.5, 2)
        made.append(module.to(device, dtype if len(made) < 2 else torch.float64))
    if dtype != torch.float32:  # the same rounded parameters
        made[2].load_state_dict(made[0].state_dict())
    return made


def errors(problem, device, x, training=True, dtype=torch.float32, follow=0.0):
    """Return the relative errors by name, ours and those of torch; dy is random plus ``follow`` (y + 1)."""
    trio, results = [module.train(training) for module in modules(problem, device, dtype)], []
    inputs = [x.to(device, module.conv.weight.dtype, copy=True).requires_grad_() for module in trio]
    outputs = [module(given) for module, given in zip(trio, inputs, strict=True)]
    dy = torch.randn(problem.output_shape, generator=torch.Generator().manual_seed(2)).to(device)
    dy = (dy + follow * (outputs[2].detach() + 1)).to(dtype)
    for module, given, y in zip(trio, inputs, outputs, strict=True):
        y.backward(dy.to(y.dtype))
        conv, bn = module.conv, module.bn
        gradients = (given.grad, conv.weight.grad, bn.weight.grad, bn.bias.grad)
        results.append([y.detach(), *gradients, bn.running_mean, bn.running_var])
    fused, reference, truth = results
    return {
        name: tuple(((value.double() - true).norm() / true.norm()).item() for value in (ours, theirs))
        for name, ours, theirs, true in zip(NAMES, fused, reference, truth, strict=True)
    }


def x_of(problem, dtype=torch.float32):
    return torch.randn(problem.input_shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("problem", [NARROW, PADDED], ids=["narrow", "padded"])
def test_errors_are_those_of_torch(device, kernels, problem, training):
    for name, (ours, theirs) in errors(problem, device, x_of(problem), training).items():
        assert ours <= max(2 * theirs, 3e-7), name
    # Forward: moments, then statistics and y. Backward: the pass over dy, sums, and in training composites and dx;
    # in evaluation, the moments of x first.
    assert kernels == ([1, 2, 4] if training else [1, 4])


def test_a_mean_costs_no_accuracy(device):
    found = errors(NARROW, device, x_of(NARROW) + 100)
    assert found["y"][0] < 2e-7 < 1e-6 < found["y"][1]
    assert found["dgamma"][0] < 2e-7


@needs_emulator
def test_a_large_pivot_does_not_widen_the_range_of_tiles_without_padding(device):
    """A tile of too wide a range reads x and the weights again, in plain float32: slowly."""
    x = x_of(NARROW).to(device)
    x[:, 7] += 1000

    def loaded():
        training = FastTraining(NARROW, device, "fp32", torch.float32)
        with watch() as seen:
            *_, moments = training.forward(x, torch.ones(NARROW.weight_shape), None, None, None, 1.0, 1e-5, None)
        return seen.counters["pipeline"].global_load_bytes_used, moments[-16].item()  # the pivot of channel 0

    before, pivot = loaded()
    x[0, 0, 4, 6] += x[0, 0, 4, 5] - (pivot + 1e-7)  # the mean stays
    x[0, 0, 4, 5] = pivot + 1e-7
    assert loaded() == (before, pytest.approx(pivot, abs=1e-7))


@pytest.mark.parametrize("problem", [NARROW, PADDED], ids=["narrow", "padded"])
def test_a_dx_that_is_a_small_difference(device, problem):
    """A dy that follows y nearly vanishes before the convolution: dx is what is left of two large terms."""
    ours, theirs = errors(problem, device, x_of(problem), follow=5.0)["dx"]
    assert ours <= 2 * theirs


def test_half_precision(device):
    problem = Problem(2, 8, 64, 9, 12, 3, dtype=torch.float16)
    for name, (ours, theirs) in errors(problem, device, x_of(NARROW, torch.float16), dtype=torch.float16).items():
        assert ours <= max(2 * theirs, 1e-3), name


def test_what_needs_no_gradient_is_not_computed(device, kernels):
    fused, *_ = modules(NARROW, device)
    x = x_of(NARROW).to(device)
    fused(x).sum().backward()
    assert kernels == [1, 2, 2]  # backward: the pass over dy, and the sums
    fused.requires_grad_(False).eval()
    fused(x.requires_grad_()).sum().backward()
    assert kernels == [1, 2, 2, 1, 1]  # the pass over dy
    assert fused.conv.weight.grad is not None


def test_the_same_bits_on_every_run(device):
    fused, *_ = modules(PADDED, device)
    x, runs = x_of(PADDED).to(device).requires_grad_(), []
    for _ in range(2):
        y = fused(x)
        runs.append([y, *torch.autograd.grad(y.square().sum(), [x, *fused.parameters()])])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_which_runner_serves(device):
    def kind(problem, channels_last=False):
        return type(training_runner(problem, device, "fp32", channels_last, problem.dtype))

    fast = FastTraining if device.type == "cpu" or torch.cuda.get_device_capability() == (9, 0) else GeneralTraining
    assert kind(NARROW) is fast
    assert kind(NARROW, channels_last=True) is GeneralTraining
    assert kind(Problem(2, 9, 64, 9, 12, 3)) is GeneralTraining
    assert kind(Problem(2, 8, 65, 9, 12, 3)) is GeneralTraining
    assert kind(Problem(2, 8, 64, 9, 12, 5)) is GeneralTraining
    assert kind(Problem(2, 8, 64, 9, 12, 3, stride=2)) is GeneralTraining
    assert "sm_80" in unserved_by_fast_training(NARROW, Target("sm_80", 108), KernelVariant())


def test_launches():
    def symbols(launches):
        return [launch.symbol for launch in launches]

    variant = KernelVariant("fp32", False, torch.float32)
    forward = forward_launches(NARROW, EMULATED, variant)
    assert symbols(forward) == ["moments", "finish_statistics", "pipeline"]
    assert dict(forward[2].macros)["PIVOT"] == 72 + 72 * 72
    assert "centre" in [argument.name for argument in forward[2].signature]
    few = forward_launches(Problem(2, 3, 8, 9, 12, 3), EMULATED, variant)[2]  # the pipeline does not serve it
    assert "mean" in [argument.name for argument in few.signature]
    assert "centre" not in [argument.name for argument in few.signature]

    both = ["backward", "finish_backward"]
    statistics = ["moments", "finish_statistics"]
    backward = {
        (True, True, True): [*both, "composites", "input_gradient"],
        (True, False, True): both,
        (False, True, True): [*statistics, *both],
        (False, True, False): both[:1],
        (False, False, True): [*statistics, *both],
    }
    for key, expected in backward.items():
        assert symbols(backward_launches(NARROW, EMULATED, variant, *key)) == expected
