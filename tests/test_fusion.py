"""``fuse`` computes what the model computes and keeps its names and state; ``unfuse`` takes it back."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from fusedref import ConvBnScale, FusedConvBnScale, fuse, unfuse
from fusedref.fusion.layers import FusedConv2d
from tests.fusion_models import NETWORKS, Residual, Scaled, build, conv_bn, with_statistics
from tests.strategies import fast


@pytest.fixture(autouse=True)
def by_torch(monkeypatch):
    """Let torch's operators compute on the CPU: which layers are fused is what is tested here."""
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)


def x_like(model, channels=4):
    dtype = next(model.parameters()).dtype
    return torch.randn(2, channels, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))


def assert_same(fused, model, x, steps=2):
    """Compare outputs, gradients and statistics of training and evaluation mode."""
    for training in (True,) * steps + (False,):
        results = []
        for each in (fused, model):
            each.train(training).zero_grad()
            own = x.clone().requires_grad_()
            y = each(own)
            y.square().mean().backward()
            gradients = [parameter.grad for parameter in each.parameters()]
            results.append([y, own.grad, *gradients, *each.buffers()])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert len(fused.fusion_report.fused) == NETWORKS[name][1], fused.fusion_report
    assert sum(isinstance(module, FusedConvBnScale) for module in fused.modules()) == NETWORKS[name][1]
    assert_same(fused, model, x_like(model))
    assert list(fused.state_dict()) == list(before)
    assert fused.state_dict()._metadata == model.state_dict()._metadata
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in model.named_parameters()]
    fused.load_state_dict(before)
    plain = unfuse(fused)
    if name != "traced":  # a GraphModule has a class of its own
        assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    model.load_state_dict(before)
    assert torch.equal(plain.eval()(x_like(model)), model.eval()(x_like(model)))


def test_fused_layers_run_by_the_operators(monkeypatch):
    calls = []
    monkeypatch.setattr("fusedref.fusion.layers.run_layers", lambda x, conv, bn, *_: calls.append((conv, bn)) or x)
    fused = fuse(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert torch.equal(fused(x_like(fused)), x_like(fused))
    assert calls == [(fused[0], fused[1])]


def test_inplace_shares_everything():
    model = build("residual")
    modules, parameters = list(model.modules()), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fused = fuse(model, inplace=True)
    assert fused is model
    assert all(ours is theirs for ours, theirs in zip(fused.modules(), modules, strict=True))
    assert all(ours is theirs for ours, theirs in zip(fused.parameters(), parameters, strict=True))
    before = model[1].bn1.weight.clone()
    fused(x_like(fused)).mean().backward()
    optimizer.step()
    assert not torch.equal(model[1].bn1.weight, before)
    assert unfuse(fused, inplace=True) is model
    assert type(model[1].conv1) is nn.Conv2d
    assert not hasattr(model, "fusion_report")
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))


def test_a_copy_leaves_the_model_alone():
    model = build("number")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    modes = [module.training for module in model.modules()]
    fused = fuse(model)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert [type(module) for module in model.modules()] == [Scaled, nn.Conv2d, nn.BatchNorm2d]
    assert [module.training for module in fused.modules()] == modes
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in model.parameters()}


def test_fusing_traces_without_effect():
    class Counts(Residual):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            self.seen = x
            self.count += 1
            return super().forward(x) * torch.rand(())

    model = Counts(4, 4)
    model.count = nn.Buffer(torch.zeros(()))
    state = torch.get_rng_state()
    assert len(fuse(model, inplace=True).fusion_report.fused) == 2
    assert not hasattr(model, "calls")
    assert not hasattr(model, "seen")
    assert model.count == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_other_threads_run_their_models_meanwhile():
    other = build("residual").eval()
    x = x_like(other)
    expected, found = other(x), []

    class Waits(Residual):
        def forward(self, x):
            thread = threading.Thread(target=lambda: found.append(other(x_like(other))))
            thread.start()
            thread.join()
            return super().forward(x)

    model = Waits(4, 4)
    model.other = other  # its parameters are traced
    assert len(fuse(model, inplace=True).fusion_report.fused) == 2
    assert len(found) == 2
    assert all(torch.equal(y, expected) for y in found)


def test_a_pair_that_is_recomputed():
    class Recomputes(Residual):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    model = with_statistics(nn.Sequential(conv_bn(4, 4), Recomputes(4, 4)))
    fused = fuse(model)
    assert len(fused.fusion_report.fused) == 3
    assert_same(fused, model, x_like(model))


@pytest.mark.parametrize("name", ["residual", "number", "parameter"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_fused_apart(name, duplicate):
    model = build(name)
    fused = duplicate(fuse(model))
    own = set(fused.modules())
    pairs = [module._pair for module in own if isinstance(module, FusedConv2d)]
    assert len(pairs) == NETWORKS[name][1]
    assert all({pair.conv, pair.bn, pair.conv_place[0], pair.bn_place[0]} <= own for pair in pairs)
    assert_same(fused, model, x_like(model))


def test_a_copied_layer_is_itself():
    fused = fuse(build("residual"))
    x = x_like(fused)
    for copied in (copy.deepcopy(fused[0][0]), copy.deepcopy(fused[0])[0]):
        plain = torch.nn.functional.conv2d(x, fused[0][0].weight, padding=1)
        assert torch.equal(copied(x), plain) is (copied._pair is None)
    assert copy.deepcopy(fused[0][0])._pair is None
    assert copy.deepcopy(fused[0])[0]._pair is not None


def replace_conv(model):
    model[0] = nn.Conv2d(4, 4, 3, padding=1, bias=False)


def replace_bn(model):
    model[1] = nn.GroupNorm(2, 4)


def hook(model):
    model[0].register_forward_hook(lambda layer, inputs, output: output + 1)


def pruned(model):
    prune.random_unstructured(model[0], "weight", 0.5)


def pad(model):
    model[0].padding_mode = "circular"


@pytest.mark.parametrize("change", [replace_conv, replace_bn, hook, pruned, pad])
def test_a_pair_that_is_changed_later_is_two_layers(change):
    torch.manual_seed(0)
    model = with_statistics(conv_bn(4, 4))
    fused = fuse(model)
    for each in (fused, model):
        torch.manual_seed(1)
        change(each)
    x = x_like(model)
    for training in (True, False):
        y = fused.train(training)(x)
        torch.testing.assert_close(y, model.train(training)(x), rtol=1e-5, atol=1e-5)
    pair = next(layer._pair for layer in fused if hasattr(layer, "_pair"))
    assert not pair.is_fused(pair.conv)


def test_replacing_a_scaled_layer_keeps_the_factor():
    model = build("number")
    fused = fuse(model)
    for each in (fused, model):
        torch.manual_seed(1)
        each.conv = nn.Conv2d(4, 4, 1)
        each.factor = 3.0
    assert_same(fused, model, x_like(model))


def test_the_factor_is_read_in_every_call():
    model = build("number")
    fused = fuse(model)
    assert fused.conv.scaling_factor == 1.5
    fused.factor = model.factor = -0.5
    assert_same(fused, model, x_like(model))
    assert fuse(build("literal")).conv.scaling_factor == 0.5
    fused = fuse(build("parameter"))
    assert fused.conv.scaling_factor is fused.factor


def test_the_product_is_left_to_the_convolution(monkeypatch):
    fused = fuse(build("number")).eval()
    monkeypatch.setattr("fusedref.fusion.layers.run_layers", lambda x, conv, bn, factor, precision: x * factor)
    x = x_like(fused)
    assert torch.equal(fused(x), torch.relu(1.5 * x))


def test_fusing_again():
    fused = fuse(fuse(build("residual")))
    report = fused.fusion_report
    assert not report.fused
    assert {line.result for line in report.lines} == {"already fused"}
    assert "6 were fused already" in str(report)
    fused[1].bn2 = nn.BatchNorm2d(4)  # a pair that is two layers is fused anew
    assert [line.conv for line in fuse(fused).fusion_report.fused] == ["1.conv2"]


def test_modes_and_dtypes_follow(monkeypatch):
    fused = fuse(build("residual"))
    fused.eval()
    fused[1].bn1.train()  # as for a layer of a model that is not fused
    before = fused[1].bn1.running_mean.clone()
    fused(x_like(fused))
    assert not torch.equal(fused[1].bn1.running_mean, before)
    fused.bfloat16().apply(lambda module: module.reset_parameters() if isinstance(module, nn.BatchNorm2d) else None)
    assert fused(x_like(fused)).dtype == torch.bfloat16


def test_functional_call_takes_other_parameters():
    model = build("residual")
    fused = fuse(model).eval()
    other = {name: value + 0.5 for name, value in model.eval().state_dict().items() if value.is_floating_point()}
    x = x_like(model)
    ours, theirs = (torch.func.functional_call(each, other, (x,)) for each in (fused, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compile_without_a_break():
    model = with_statistics(nn.Sequential(conv_bn(4, 4), Scaled(4, 1.5)))
    fused = fuse(model)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = x_like(model)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_export():
    model = build("residual").eval()
    x = x_like(model)
    with torch.no_grad():
        program = torch.export.export(fuse(model), (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)
    assert [str(node.target) for node in program.graph.nodes].count("fusedref.conv_bn_scale.default") == 6


def test_a_user_traces_the_fused_model():
    model = build("residual").eval()
    x = x_like(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(fuse(model))(x), model(x), rtol=1e-5, atol=1e-5)


def test_replicas_of_data_parallel_run_two_layers():
    fused = fuse(build("residual")).eval()
    layers = [fused[0][0], fused[0][1]]
    replicas = [layer._replicate_for_data_parallel() for layer in layers]
    for replica, layer in zip(replicas, layers, strict=True):
        replica._parameters = layer._parameters
    x = x_like(fused)
    torch.testing.assert_close(replicas[1](replicas[0](x)), fused[0][:2](x), rtol=1e-5, atol=1e-5)
    assert not torch.equal(replicas[0](x), layers[0](x))


def test_branches_are_followed_both_ways():
    model = build("branches")
    fused = fuse(model).eval()
    model.eval()
    for shift in (-3.0, 3.0):
        for each in (fused, model):
            each.stem[1].bias.data.fill_(shift)
        for side in (None, True):
            y = fused(x_like(model), side)
            torch.testing.assert_close(y, model(x_like(model), side), rtol=1e-5, atol=1e-5)


def test_synchronised_statistics():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(with_statistics(conv_bn(4, 4)))
    fused = fuse(model).eval()
    assert isinstance(fused[1], nn.SyncBatchNorm)
    assert len(fused.fusion_report.fused) == 1
    torch.testing.assert_close(fused(x_like(model)), model.eval()(x_like(model)), rtol=1e-5, atol=1e-5)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fuse(with_statistics(conv_bn(4, 4)))).eval()
    plain = converted[2](converted[1](torch.nn.functional.conv2d(x_like(model), converted[0].weight, padding=1)))
    assert torch.equal(converted(x_like(model)), plain)


WAYS = ["residual", "bn", "plain", "twice", "branch", "scale", "tap"]


class Drawn(nn.Module):
    """A network of random parts, some of which must not be fused."""

    def __init__(self, ways):
        super().__init__()
        self.ways = ways
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in ways])
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in ways])

    def forward(self, x):
        for way, conv, bn in zip(self.ways, self.convs, self.norms, strict=True):
            if way == "residual":
                x = x + bn(conv(x))
            elif way == "bn":
                x = bn(conv(torch.relu(x)))
            elif way == "plain":
                x = bn(torch.relu(conv(x)))
            elif way == "twice":
                x = bn(conv(x)) + conv(torch.relu(x))
            elif way == "branch":
                x = bn(conv(x)) if x.mean() > 0 else conv(x)
            elif way == "scale":
                x = bn(conv(x)) * 0.5
            else:
                y = conv(x)
                x = bn(y) - y.tanh()
        return x


@given(st.lists(st.sampled_from(WAYS), min_size=1, max_size=4), st.booleans())
@settings(fast, max_examples=25)
def test_random_networks(ways, training):
    torch.manual_seed(0)
    model = with_statistics(Drawn(ways)).train(training)
    fused = fuse(model)
    assert len(fused.fusion_report.fused) == sum(way in ("residual", "bn", "scale") for way in ways)
    x = x_like(model, 3)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert list(fused.state_dict()) == list(model.state_dict())


def test_the_comparison_sees_a_wrong_fusion(monkeypatch):
    monkeypatch.setattr("fusedref.fusion.find._Calls._not_once", lambda self, name: "")
    model = with_statistics(Drawn(["twice"]))
    monkeypatch.setattr(
        "fusedref.fusion.find._Calls.batch_norm_after", lambda self, name: (name.replace("convs", "norms"), "")
    )
    fused = fuse(model)
    assert len(fused.fusion_report.fused) == 1
    with pytest.raises(AssertionError, match="not close"):
        assert_same(fused, model, x_like(model, 3))


def test_the_reference_of_this_package():
    model = with_statistics(ConvBnScale(4, 6, 3, 1.7))
    fused = fuse(model)
    assert "fused, with the factor scaling_factor" in str(fused.fusion_report)
    assert isinstance(fused, ConvBnScale)
    assert_same(fused, model, x_like(model))
    own = fuse(nn.Sequential(FusedConvBnScale(4, 6, 3, 1.7)))
    assert [line.result for line in own.fusion_report.lines] == ["already fused"]
    assert type(own[0].conv) is nn.Conv2d
    assert [line.result for line in fuse(own[0]).fusion_report.lines] == ["already fused"]
