"""Training and gradients follow torch's: by its own operators, by a runner made of them, by kernels (``how``)."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusedref import ConvBnScale, FusedConvBnScale, fused_conv_bn_scale, fused_conv_bn_scale_training
from fusedref.ops import calls
from tests.cases import library_in_float32  # noqa: F401
from tests.runners import TorchRunner

FAMILIES = {
    "default": {},
    "all": {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False, "eps": 0.1, "momentum": 0.3},
    "same": {"padding": "same"},
    "not affine": {"affine": False},
    "cumulative": {"momentum": None},
    "not tracked": {"track_running_stats": False},
    "factor trained": {"scaling_factor": "0-dim"},
    "factor of one element": {"scaling_factor": "1-dim"},
}


class Runners(list):
    """The runners that were made of torch's operators; ``served`` says whether any runner serves."""

    served = emulated = False


@pytest.fixture(params=["torch", "runner", "kernels"])
def how(request, monkeypatch, device):
    """Return the runners that were made of torch's operators."""
    made = Runners()
    made.served = request.param != "torch"
    made.emulated = request.param == "kernels" and device.type == "cpu"

    def runner(*arguments):
        made.append(TorchRunner(*arguments))
        return made[-1]

    if request.param != "kernels":
        monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    if request.param == "runner":
        monkeypatch.setattr(calls, "training_runner", runner)
    calls.forget()
    with torch.device(device if request.param == "kernels" else "cpu"):
        yield made
    calls.forget()


def pair(dtype=torch.float32, **arguments):
    """Return the reference and the fused module with the same random parameters, in training mode."""
    factors = {"0-dim": torch.tensor(1.7), "1-dim": torch.tensor([1.7])}
    factor = arguments.pop("scaling_factor", 1.7)
    models = []
    for model in (ConvBnScale, FusedConvBnScale):
        torch.manual_seed(0)
        made = model(4, 6, 2, nn.Parameter(factors[factor].clone()) if factor in factors else factor, **arguments)
        if made.bn.affine:
            nn.init.uniform_(made.bn.weight, -2, 2)
            nn.init.uniform_(made.bn.bias)
        models.append(made.to(dtype))
    return models


def x_of(seed=1, batch=2, dtype=torch.float32):
    return randn(batch, 4, 9, 8, seed=seed).to(dtype)


def randn(*size, seed):
    """Return random numbers that are the same on every device."""
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed), device="cpu")
    return numbers.to(torch.get_default_device())


def close(first, second, tolerance=5e-5):
    assert (first is None) == (second is None)
    if first is not None:
        assert first.dtype == second.dtype
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def compare_states(fused, reference):
    for ours, theirs in zip(fused.state_dict().values(), reference.state_dict().values(), strict=True):
        close(ours, theirs)
    for (name, ours), theirs in zip(fused.named_parameters(), reference.parameters(), strict=True):
        # The gradient of bias is zero in training, where torch's operators return rounding noise.
        close(ours.grad, theirs.grad, tolerance=1e-3 if name == "conv.bias" else 5e-5)


@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps(how, family, evaluated):
    """Outputs, gradients (summed over the steps), running statistics and their counter."""
    reference, fused = pair(**FAMILIES[family])
    if evaluated:
        reference(x_of(5)), fused(x_of(5))
        reference.eval(), fused.eval()
    for seed in range(3):
        x = x_of(seed)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        results = [model(given) for model, given in zip((fused, reference), inputs, strict=True)]
        close(*results)
        for y in results:
            (y.square().mean() + y[:, 0].sum()).backward()
        close(inputs[0].grad, inputs[1].grad)
    compare_states(fused, reference)


def test_a_runner_serves(how):
    _, fused = pair()
    fused(x_of()).sum().backward()
    assert sum(runner.forwards for runner in how) == len(how)
    (case,) = [call.case for call in calls._recent.values()]
    assert (case.training_runner is not None) == how.served


def test_sgd_follows_the_reference(how):
    reference, fused = pair(padding=1)
    target = randn(4, 6, 10, 9, seed=3)
    steps = 20 if how.emulated else 200
    losses = []
    for model in (reference, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        losses.append([])
        for step in range(steps):
            optimizer.zero_grad()
            loss = (model(x_of(step % 4, batch=4)) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    theirs, ours = (torch.stack(values) for values in losses)
    assert theirs[-1] < (0.9 if how.emulated else 0.5) * theirs[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0.0)
    compare_states(*(copy.deepcopy(model).requires_grad_(False) for model in (fused, reference)))


@pytest.mark.parametrize("trained", ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "x", "conv.weight bn.bias"])
@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
def test_frozen_parameters_cost_nothing(how, trained, evaluated):
    reference, fused = pair()
    names = ["x", "conv.weight", "conv.bias", "bn.weight", "bn.bias"]
    for model in (reference, fused):
        model.train(not evaluated)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained.split())
        x = x_of().requires_grad_(trained == "x")
        model(x).square().mean().backward()
    compare_states(fused, reference)
    for runner in how:
        assert runner.needs in ([], [tuple(name in trained.split() for name in names)])


def test_nothing_is_kept_without_gradients(how):
    _, fused = pair()
    fused.requires_grad_(False)
    assert not fused(x_of()).requires_grad
    fused.requires_grad_(True)
    with torch.no_grad():
        assert not fused(x_of()).requires_grad
    assert int(fused.bn.num_batches_tracked) == 2


def test_batch_norm_in_evaluation_mode_in_a_model_that_trains(how):
    reference, fused = pair()
    for model in (reference, fused):
        model.bn.running_mean.copy_(randn(6, seed=0))
        model.bn.eval()
        model(x_of()).square().mean().backward()
    compare_states(fused, reference)
    assert int(fused.bn.num_batches_tracked) == 0


def test_statistics_that_are_tracked_no_longer(how):
    """In training those of the batch are used and nothing is updated; in evaluation mode the running ones are used."""
    reference, fused = pair()
    for training in (True, False):
        results = []
        for model in (fused, reference):
            model(x_of())
            model.bn.track_running_stats = False
            results.append(model.train(training)(x_of(2)))
            model.bn.track_running_stats = True
        close(*results)
    compare_states(fused, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [False, True], ids=["all", "bn kept in float32"])
def test_halves(how, dtype, kept):
    reference, fused = pair(dtype)
    if kept:
        reference.bn.float(), fused.bn.float()
    exact = copy.deepcopy(reference).double()
    x = x_of(dtype=dtype)
    results = [model(given) for model, given in ((fused, x), (exact, x.double()))]
    for y in results:
        y.square().mean().backward()
    assert results[0].dtype == dtype
    for ours, theirs in zip(fused.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == ours.dtype
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.05, atol=0.05)
    torch.testing.assert_close(fused.bn.running_var.double(), exact.bn.running_var, rtol=0.02, atol=0.02)


def test_channels_last(how):
    reference, fused = pair()
    for which in ("x", "weight", "both"):
        for model in (reference, fused):
            model.zero_grad()
            last = torch.channels_last if which != "x" else torch.contiguous_format
            model.conv.weight.data = model.conv.weight.data.contiguous(memory_format=last)
        x = x_of().contiguous(memory_format=torch.channels_last if which != "weight" else torch.contiguous_format)
        results = [model(x) for model in (fused, reference)]
        close(*results)
        assert [y.is_contiguous(memory_format=torch.channels_last) for y in results] == [True, True]
        for y in results:
            y.square().mean().backward()
        compare_states(fused, reference)


@pytest.mark.parametrize("size", [(1, 4, 2, 2), (1, 4, 8, 2)])
def test_one_pixel_per_channel_is_refused_in_torchs_words(how, size):
    reference, fused = pair(stride=7)
    x = torch.randn(size)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as theirs:
        reference(x)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as ours:
        fused(x)
    assert str(ours.value) == str(theirs.value)
    assert fused.eval()(x).shape == (1, 6, 1, 1)


def test_empty_batch(how):
    reference, fused = pair()
    for training in (True, False):
        results = []
        for model in (reference, fused):
            x = x_of()[:0].requires_grad_()
            y = model.train(training)(x)
            y.sum().backward()
            results.append((y.shape, x.grad.shape, model.conv.weight.grad))
        assert results[0][:2] == results[1][:2]
        close(results[0][2], results[1][2])
    compare_states(fused, reference)


@pytest.mark.parametrize("name", ["x", "conv.weight", "bn.weight"])
@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
def test_what_changes_after_forward_is_noticed(how, name, evaluated):
    _, fused = pair()
    x = x_of().requires_grad_()
    leaf = x * 1
    y = fused.train(not evaluated)(leaf)
    with torch.no_grad():
        (leaf if name == "x" else fused.get_parameter(name)).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_running_statistics_have_versions(how):
    _, fused = pair()
    before = [buffer._version for buffer in fused.buffers()]
    fused(x_of())
    if how.served:  # torch's own operator writes them without a new version
        assert all(buffer._version > version for buffer, version in zip(fused.buffers(), before, strict=True))


@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
def test_backward_twice_and_checkpoints(how, evaluated):
    reference, fused = pair()
    for model in (reference, fused):
        model.train(not evaluated)
        x = x_of().requires_grad_()
        y = model(x)
        y.square().mean().backward(retain_graph=True)
        y.square().mean().backward()
        checkpoint(model, x, use_reentrant=False).square().mean().backward()
    compare_states(fused, reference)


@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
@pytest.mark.parametrize("arguments", [{}, {"padding": "same", "affine": False}, {"stride": 2, "bias": False}])
def test_gradients_of_gradients(how, evaluated, arguments):
    results = []
    for model in pair(**arguments):
        model.train(not evaluated)
        x = x_of().requires_grad_()
        (dx,) = torch.autograd.grad(model(x).pow(3).mean(), x, create_graph=True)
        inputs = [x, *model.parameters()]
        results.append(torch.autograd.grad(dx.square().sum(), inputs, allow_unused=True))
    for theirs, ours in zip(*results, strict=True):
        close(ours if ours is not None else torch.zeros(()), theirs if theirs is not None else torch.zeros(()), 1e-4)


def function(training, tensors):
    """Return y of x, weight, bias, gamma and beta in float64."""
    x, weight, bias, gamma, beta = tensors
    if training:
        return fused_conv_bn_scale_training(x, weight, bias, None, None, gamma, beta, 1.7, padding=1)
    mean, var = torch.linspace(-1, 1, 2).double(), torch.linspace(0.5, 1, 2).double()
    return fused_conv_bn_scale(x, weight, bias, mean, var, gamma, beta, 1.7, padding=1)


@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(how, training):
    sizes = ((2, 2, 3, 2), (2, 2, 3, 3), (2,), (2,), (2,))
    tensors = [randn(*size, seed=0).double().requires_grad_() for size in sizes]
    assert torch.autograd.gradcheck(lambda *given: function(training, given), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: function(training, given), tensors)


@pytest.mark.parametrize("evaluated", [False, True], ids=["training", "evaluation"])
def test_forward_mode(how, evaluated):
    results = []
    for model in pair(track_running_stats=evaluated):
        model.train(not evaluated).requires_grad_(False)
        results.append(torch.func.jvp(model, (x_of(),), (x_of(2),)))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)


def test_copies_train_alike(how):
    reference, fused = pair(scaling_factor="0-dim")
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        reference.zero_grad()
        copied = copy.deepcopy(reference)
        for model in (copied, twin):
            model(x_of()).square().mean().backward()
        compare_states(twin, copied)


def test_a_factor_without_a_gradient(how):
    _, fused = pair()
    expected = fused(x_of()), fused.eval()(x_of())
    fused.scaling_factor = torch.tensor(1.7)
    fused.train()
    fused.bn.reset_running_stats()
    close(fused(x_of()), expected[0])
    close(fused.eval()(x_of()), expected[1])
