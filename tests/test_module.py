import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat

from fusedref import ConvBnScale, FusedConvBnScale
from fusedref.module import fused_conv_bn_scale
from tests.cases import library_in_float32  # noqa: F401

ARGUMENTS = {
    "stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False, "eps": 0.1, "momentum": 0.3, "affine": False,
    "padding_mode": "zeros", "track_running_stats": True,
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """Return the calls that reach the fused function."""
    made = []

    def counted(*arguments, **options):
        made.append(options)
        return fused_conv_bn_scale(*arguments, **options)

    monkeypatch.setattr("fusedref.module.fused_conv_bn_scale", counted)
    return made


def pair(device, **arguments):
    """Return the reference and the fused module from one seed, with statistics unlike a fresh BatchNorm's."""
    models = []
    for model in (ConvBnScale, FusedConvBnScale):
        torch.manual_seed(0)
        models.append(model(4, 6, 3, 1.7, **arguments).to(device))
    reference, fused = models
    reference.bn.running_mean.uniform_(-1, 1)
    reference.bn.running_var.uniform_(0.5, 2)
    if reference.bn.affine:
        nn.init.uniform_(reference.bn.weight, -2, 2)
        nn.init.uniform_(reference.bn.bias)
    fused.load_state_dict(reference.state_dict())
    return reference.eval(), fused.eval()


def x_on(device):
    return torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1)).to(device)


@pytest.mark.parametrize("arguments", [{}, ARGUMENTS, {"padding": "same"}], ids=["default", "all", "same"])
def test_matches_the_reference(device, calls, arguments):
    reference, fused = pair(device, **arguments)
    with torch.no_grad():
        torch.testing.assert_close(fused(x_on(device)), reference(x_on(device)), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("arguments", [{}, ARGUMENTS], ids=["default", "all"])
def test_seeds_and_state_dicts(arguments):
    states = []
    for model in (ConvBnScale, FusedConvBnScale):
        torch.manual_seed(3)
        states.append(model(4, 6, 3, 1.7, **arguments).state_dict())
    first, second = states
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(name.startswith(("conv.", "bn.")) for name in first)
    ConvBnScale(4, 6, 3, 1.7, **arguments).load_state_dict(second)
    FusedConvBnScale(4, 6, 3, 1.7, **arguments).load_state_dict(first)


def test_arguments_reach_their_layers():
    fused = FusedConvBnScale(4, 6, (3, 1), 1.7, **ARGUMENTS)
    assert (fused.conv.kernel_size, fused.conv.stride, fused.conv.padding) == ((3, 1), (2, 2), (1, 1))
    assert (fused.conv.dilation, fused.conv.groups, fused.conv.bias) == ((2, 2), 2, None)
    assert (fused.bn.eps, fused.bn.momentum, fused.bn.weight, fused.bn.bias) == (0.1, 0.3, None, None)
    assert "scaling_factor=1.7" in repr(fused)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_training(device, calls, momentum):
    reference, fused = pair(device, momentum=momentum)
    for model in (reference, fused):
        model.train()
        for _ in range(2):
            model(x_on(device)).square().mean().backward()
    assert not calls
    for ours, theirs in zip(fused.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(fused.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert int(fused.bn.num_batches_tracked) == 2


def test_gradients_in_evaluation_mode(device):
    reference, fused = pair(device)
    for model in (reference, fused):
        model(x_on(device)).square().mean().backward()
    for ours, theirs in zip(fused.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_frozen_layers_are_fused(device, calls):
    _, fused = pair(device)
    fused.requires_grad_(False).train()
    fused.bn.eval()
    before = copy.deepcopy(fused.state_dict())
    fused(x_on(device))
    assert len(calls) == 1
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())


def test_no_running_statistics(device, calls):
    bn = nn.BatchNorm2d(6, track_running_stats=False).to(device).eval()
    conv = nn.Conv2d(4, 6, 3).to(device)
    fused = FusedConvBnScale.from_modules(conv, bn, 2.0)
    with torch.no_grad():
        torch.testing.assert_close(fused(x_on(device)), bn(conv(x_on(device))) * 2.0, rtol=1e-5, atol=1e-5)
    assert not calls


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes(device, calls, mode):
    conv, bn = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode).to(device), nn.BatchNorm2d(6).to(device).eval()
    fused = FusedConvBnScale.from_modules(conv, bn, 2.0)
    with torch.no_grad():
        assert torch.equal(fused(x_on(device)), bn(conv(x_on(device))) * 2.0)
    assert not calls


HOOKS = {
    "forward": lambda layer, hook: layer.register_forward_hook(hook),
    "forward with kwargs": lambda layer, hook: layer.register_forward_hook(hook, with_kwargs=True),
    "forward pre": lambda layer, hook: layer.register_forward_pre_hook(hook),
    "full backward": lambda layer, hook: layer.register_full_backward_hook(hook),
    "full backward pre": lambda layer, hook: layer.register_full_backward_pre_hook(hook),
    "every forward": lambda layer, hook: nn.modules.module.register_module_forward_hook(hook),
    "every forward pre": lambda layer, hook: nn.modules.module.register_module_forward_pre_hook(hook),
    "every full backward": lambda layer, hook: nn.modules.module.register_module_full_backward_hook(hook),
    "every full backward pre": lambda layer, hook: nn.modules.module.register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("layer", ["conv", "bn"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_run(device, calls, kind, layer):
    _, fused = pair(device)
    fused.requires_grad_(False)
    x, seen = x_on(device).requires_grad_("backward" in kind), []
    handle = HOOKS[kind](getattr(fused, layer), lambda module, *arguments: seen.append(module))
    try:
        y = fused(x)
        if "backward" in kind:
            y.sum().backward()
    finally:
        handle.remove()
    assert seen.count(getattr(fused, layer)) == 1
    assert not calls
    with torch.no_grad():
        fused(x)
    assert len(calls) == 1  # fused again without the hook


@pytest.mark.parametrize("name", ["conv", "bn"])
def test_replaced_forward_runs(device, calls, name):
    _, fused = pair(device)
    layer = getattr(fused, name)
    with torch.no_grad():
        expected = nn.Sequential(fused.conv, fused.bn)(x_on(device)) * 1.7
        original, seen = layer.forward, []
        layer.forward = lambda x: seen.append(name) or original(x)
        assert torch.equal(fused(x_on(device)), expected)
        assert seen == [name]
        assert not calls


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", [nn.Identity(), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6)], ids=type)
def test_another_layer_in_the_place_of_bn(device, calls, layer, training):
    _, fused = pair(device)
    fused.bn = layer.to(device)
    fused.train(training)
    assert torch.equal(fused(x_on(device)), fused.bn(fused.conv(x_on(device))) * 1.7)
    assert not calls


def test_weight_that_is_no_parameter(device, calls):
    """As hypernetworks and replicas of DataParallel have it."""
    _, fused = pair(device)
    weight = fused.conv.weight.detach() * 2
    del fused.conv.weight
    fused.conv.weight = weight
    with torch.no_grad():
        expected = fused.bn(fused.conv(x_on(device))) * 1.7
        torch.testing.assert_close(fused(x_on(device)), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


def test_error_in_a_hook_is_raised_once(device):
    _, fused = pair(device)
    seen = []
    fused.conv.register_forward_hook(lambda *_: seen.append(1) or {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        fused(x_on(device))
    assert seen == [1]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantization_fuses_the_layers(device):
    _, fused = pair(device)
    torch.testing.assert_close(fuse_modules(fused, [["conv", "bn"]])(x_on(device)), fused(x_on(device)))
    assert fuse_modules_qat(fused.train(), [["conv", "bn"]])(x_on(device)).shape == (2, 6, 7, 6)


def test_device_and_dtype(device):
    for model in (ConvBnScale, FusedConvBnScale):
        made = model(4, 6, 3, 1.7, device="meta", dtype=torch.bfloat16)
        assert {(tensor.device.type, tensor.dtype) for tensor in made.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("training", [False, True])
def test_float64(device, training):
    reference, fused = (model.double().train(training) for model in pair(device))
    assert torch.equal(fused(x_on(device).double()), reference(x_on(device).double()))
    with torch.no_grad():
        assert torch.equal(fused(x_on(device).double()), reference(x_on(device).double()))


def test_parametrizations_run(device):
    _, fused = pair(device)
    with torch.no_grad():
        expected = fused(x_on(device))
        nn.utils.parametrizations.weight_norm(fused.conv)
        torch.testing.assert_close(fused(x_on(device)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kept", [False, True], ids=["all", "bn kept in float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(device, calls, dtype, kept):
    """The fused result is the float32 one of the same numbers, rounded once."""
    reference, fused = (model.to(dtype) for model in pair(device))
    if kept:
        reference.bn.float(), fused.bn.float()
    x = x_on(device).to(dtype)
    with torch.no_grad():
        y = fused(x)
        expected = reference.double()(x.double())
    assert y.dtype == dtype
    assert len(calls) == 1
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=2e-6)


def test_channels_last(device, calls):
    _, fused = pair(device)
    with torch.no_grad():
        expected = fused(x_on(device))
        y = fused.to(memory_format=torch.channels_last)(x_on(device).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert len(calls) == 2
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_precision(device, calls):
    torch.manual_seed(0)
    fused = FusedConvBnScale(4, 6, 3, 1.7, precision="tf32").to(device).eval()
    wrapped = FusedConvBnScale.from_modules(fused.conv, fused.bn, 1.7, precision="tf32")
    with torch.no_grad():
        fused(x_on(device)), wrapped(x_on(device)), fused.half()(x_on(device).half())
    assert [options["precision"] for options in calls] == ["tf32", "tf32", "fp32"]
    assert "precision='tf32'" in repr(fused)
    for make in (lambda: FusedConvBnScale(4, 6, 3, 1.7, precision="fp16"),
                 lambda: FusedConvBnScale.from_modules(fused.conv, fused.bn, 1.7, precision="fp16")):  # fmt: skip
        with pytest.raises(ValueError, match="precision must be 'fp32' or 'tf32', got 'fp16'"):
            make()


@pytest.mark.parametrize("training", [False, True])
def test_autocast(device, training):
    reference, fused = pair(device)
    reference.train(training), fused.train(training)
    exact = copy.deepcopy(reference).double()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for x in (x_on(device), x_on(device).bfloat16()):
            y, expected = fused(x), reference(x)
            assert y.dtype == expected.dtype == torch.bfloat16
            torch.testing.assert_close(y.double(), exact(x.double()), rtol=0.02, atol=0.05)
    reference, fused = pair(device)
    reference.train(training), fused.train(training)
    with torch.autocast(device.type, torch.bfloat16):
        assert fused(x_on(device).double().float()).dtype == torch.bfloat16
        fused(x_on(device)).float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in fused.parameters()} == {torch.float32}


def test_from_modules_shares_the_layers(device):
    conv, bn = nn.Conv2d(4, 6, 3).to(device), nn.BatchNorm2d(6).to(device)
    training = FusedConvBnScale.from_modules(conv, bn, 0.5)
    assert training.training
    assert training.conv is conv
    assert training.bn is bn
    fused = FusedConvBnScale.from_modules(conv, bn.eval(), 0.5)
    assert not fused.training
    with torch.no_grad():
        before = fused(x_on(device))
        conv.weight *= 2  # nothing was packed away
        torch.testing.assert_close(fused(x_on(device)), bn(conv(x_on(device))) * 0.5, rtol=1e-5, atol=1e-5)
        assert not torch.equal(fused(x_on(device)), before)
    assert set(fused.state_dict()) == set(FusedConvBnScale(4, 6, 3, 0.5).state_dict())


@pytest.mark.parametrize(
    ("conv", "bn", "error", "words"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm2d(6), TypeError, "conv must be a torch.nn.Conv2d, got Conv1d"),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm1d(6), TypeError, "bn must be a torch.nn.BatchNorm2d, got BatchNorm1d"),
        (nn.Conv2d(4, 6, 3), None, TypeError, "bn must be a torch.nn.BatchNorm2d, got NoneType"),
        (nn.BatchNorm2d(6), nn.Conv2d(4, 6, 3), TypeError, "conv must be a torch.nn.Conv2d, got BatchNorm2d"),
        (nn.Conv2d, nn.BatchNorm2d(6), TypeError, "conv must be a torch.nn.Conv2d, got Conv2d itself"),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(5), ValueError, "out_channels of conv, 6, as num_features, got 5"),
    ],
)
def test_from_modules_refuses(conv, bn, error, words):
    with pytest.raises(error, match=words):
        FusedConvBnScale.from_modules(conv, bn, 2.0)


@pytest.mark.parametrize("factor", [None, "2", True])
def test_from_modules_refuses_a_factor_that_is_no_number(factor):
    with pytest.raises(TypeError, match="scaling_factor must be a number, got"):
        FusedConvBnScale.from_modules(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), factor)


def test_wrong_inputs(device):
    _, fused = pair(device)
    for wrong, error, words in (
        (torch.ones(2, 4, 9), ValueError, "x must be"),
        (torch.ones(2, 3, 9, 9), ValueError, "weight must be"),
        (torch.ones(2, 4, 9, 9).long(), TypeError, "x must be float32, float16, bfloat16 or float64"),
        (torch.ones(2, 4, 9, 9).double(), TypeError, "weight must have the dtype of x, torch.float64"),
        (torch.ones(2, 4, 9, 9).half(), TypeError, "weight must have the dtype of x"),
    ):
        with torch.no_grad(), pytest.raises(error, match=words):
            fused(wrong.to(device))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        fused([1.0])


def test_copy_save_and_scale_by_nan(device):
    _, fused = pair(device)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    with torch.no_grad():
        expected = fused(x_on(device))
        for twin in (copy.deepcopy(fused), torch.load(file, weights_only=False)):
            assert torch.equal(twin(x_on(device)), expected)
        fused.scaling_factor = math.nan
        assert fused(x_on(device)).isnan().all()
