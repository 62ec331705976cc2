"""What ``fuse`` leaves alone, what its report says of it, and what it refuses."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from fusedref import FusionReport, fuse, unfuse
from tests.fusion_models import Loops, build, conv_bn


def only_line(model):
    """Return what the report says of the only convolution."""
    (line,) = [line for line in fuse(model).fusion_report.lines if line.conv]
    return line.result


class Pair(nn.Module):
    """A convolution and a BatchNorm, with the forward of a test."""

    def __init__(self, forward, conv=None, bn=None):
        super().__init__()
        self.conv, self.bn = conv or nn.Conv2d(4, 4, 1), bn or nn.BatchNorm2d(4)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


class WithFlag(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, raw=False):
        y = self.conv(x)
        return y if raw else self.bn(y)


class WithDefault(WithFlag):
    def forward(self, x, weight=None):
        y = self.conv(x)
        return self.bn(y) if weight is None else F.relu(y)


WAYS = {
    "twice": (lambda m, x: m.bn(m.conv(x)) + m.conv(x), "it is called more than once"),
    "bn twice": (lambda m, x: m.bn(m.bn(m.conv(x))), "bn: it is called more than once"),
    "tapped": (lambda m, x: (m.bn(y := m.conv(x)), F.relu(y)), "its output also goes to relu"),
    "returned": (lambda m, x: (m.bn(y := m.conv(x)), y), "its output also goes to the caller"),
    "list": (lambda m, x: [y := m.conv(x), m.bn(y)][-1] + [y][0], "its output also goes to add"),
    "between": (lambda m, x: m.bn(F.relu(m.conv(x))), "its output goes to relu"),
    "shape": (lambda m, x: m.bn(y := m.conv(x)) * y.shape[0], "its output also goes to getattr"),
    "unused": (lambda m, x: (m.conv(x), m.bn(x))[1], "its output is not used"),
    "training": (lambda m, x: m.bn(m.conv(x)) if m.training else m.conv(x), "its output also goes to the caller"),
    "data": (lambda m, x: m.bn(m.conv(x)) if x.sum() > 0 else m.conv(x), "its output also goes to the caller"),
    "dropped": (lambda m, x: m.bn(y) if (y := m.conv(x)).shape[0] > 1 else x, "its output also goes to getattr"),
    "bn alone": (lambda m, x: m.bn(m.conv(x) if x.sum() > 0 else x), "bn also takes another input"),
    "not called": (lambda m, x: x, "forward does not call it"),
    "loop": (
        lambda m, x: [m.bn(m.conv(x)) for _ in range(x.sum().item())],
        "the model cannot be traced: TypeError: 'Proxy' object cannot be interpreted as an integer",
    ),
    "many paths": (
        lambda m, x: m.bn(m.conv(x)) if sum(bool(x[i] > 0) for i in range(8)) else x,
        "the model cannot be traced: more than 64 paths",
    ),
    "no_grad": (
        lambda m, x: m.bn(torch.no_grad()(m.conv)(x)),
        "no_grad, inference_mode or a checkpoint is around one of them alone",
    ),
    "keyword": (lambda m, x: m.bn(m.conv(input=x)), "it is called with other arguments than one tensor"),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_of_calling(name):
    forward, reason = WAYS[name]
    assert only_line(Pair(forward)) == reason
    with torch.no_grad():
        assert only_line(Pair(forward)) == reason


@pytest.mark.parametrize(("kind", "user"), [(WithFlag, "the caller"), (WithDefault, "relu")])
def test_optional_arguments(kind, user):
    assert only_line(kind()) == f"its output also goes to {user}"


class Quiet(nn.BatchNorm2d):
    """A subclass that does the same."""


def apart(conv, bn):
    bn.eval()


def hooked(conv, bn):
    bn.register_full_backward_hook(lambda *_: None)


def state_hooked(conv, bn):
    conv.register_state_dict_post_hook(lambda *_: None)


def load_hooked(conv, bn):
    conv.register_load_state_dict_pre_hook(lambda *_: None)


def replaced(conv, bn):
    conv.forward = conv.forward


LAYERS = {
    "parametrized": (lambda c, b: parametrizations.weight_norm(c), "the parameters of Conv2d are parametrized"),
    "spectral norm": (lambda c, b: spectral_norm(c), "the parameters of Conv2d are computed"),
    "pruned": (lambda c, b: prune.l1_unstructured(b, "weight", 1), "the parameters of BatchNorm2d are computed"),
    "mode": (apart, "BatchNorm is in evaluation mode, the convolution in training mode"),
    "hook": (hooked, "BatchNorm2d has a hook"),
    "state_dict hook": (state_hooked, "Conv2d has a hook of its state_dict"),
    "load hook": (load_hooked, "Conv2d has a hook of its state_dict"),
    "forward": (replaced, "forward of Conv2d was replaced"),
    "dtype": (lambda c, b: c.double(), "the layers have different dtypes: torch.float32 and torch.float64"),
    "device": (lambda c, b: c.to("meta"), "the layers have different devices: cpu and meta"),
    "complex": (lambda c, b: (c.to(torch.cfloat), b.to(torch.cfloat)), "the dtype torch.complex64 is not served"),
}


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    change, reason = LAYERS[name]
    model = Pair(lambda m, x: m.bn(m.conv(x)))
    change(model.conv, model.bn)
    assert only_line(model).startswith(reason)


KINDS = {
    "subclass": (nn.Conv2d(4, 4, 1), Quiet(4), "Quiet is a subclass of BatchNorm2d"),
    "lazy": (nn.LazyConv2d(4, 1), nn.BatchNorm2d(4), "LazyConv2d has no parameters yet: call the model once before"),
    "padding": (nn.Conv2d(4, 4, 1, padding_mode="reflect"), nn.BatchNorm2d(4), "padding_mode is 'reflect'"),
    "channels": (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(5), "BatchNorm has 5 channels, the convolution 4"),
    "statistics": (
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), "BatchNorm has no running statistics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_layers(name):
    conv, bn, reason = KINDS[name]
    assert only_line(Pair(lambda m, x: m.bn(m.conv(x)), conv, bn)) == reason


def test_modules_that_forward_makes():
    model = Pair(lambda m, x: nn.Sequential(nn.ReLU(), *m.layers[:2])(nn.Sigmoid()(nn.Conv2d(4, 4, 1)(x))))
    model.layers = conv_bn(4, 4)
    assert [line.conv for line in fuse(model).fusion_report.fused] == ["layers.0"]
    assert only_line(Pair(lambda m, x: nn.BatchNorm2d(4)(m.conv(x)))) == "its output goes to a new BatchNorm2d"


class Iterates(nn.Module):
    """Cannot be traced, and takes its Sequential apart."""

    def __init__(self):
        super().__init__()
        self.features = conv_bn(4, 4)

    def forward(self, x):
        found = []
        for layer in self.features:
            x = layer(x)
            found.append(x)
        return found[int(x.sum()) % 2]


class ReachesIn(Iterates):
    def forward(self, x):
        return self.features(x) if int(x.sum()) else self.features[0](x)


class Helps(Iterates):
    def forward(self, x):
        return self.help(x)

    def help(self, x):
        return nn.Sequential(*list(self.children())[:1])(x) if int(x.sum()) else x


@pytest.mark.parametrize(
    ("kind", "use"),
    [(Iterates, "the model calls it"), (ReachesIn, "self.features[0]"), (Helps, "self.children")],
)
def test_a_module_that_cannot_be_traced_and_takes_its_children_apart(kind, use):
    assert use in only_line(kind()).splitlines()[0]


def test_a_shared_module_called_by_two():
    stem = conv_bn(4, 4)
    model = nn.Module()
    model.first, model.second = nn.Sequential(stem, nn.ReLU()), nn.Sequential(stem)
    assert only_line(model) == "it is called in first and in second"


class Times(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.conv, self.bn = conv_bn(4, 4, activation=None), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.vector = nn.Parameter(torch.ones(4, 1, 1))
        self.two, self.seen, self.pair = 2.0, [], (2.0, 3.0)

    def forward(self, x):
        return self.bn(self.conv(self.block(x) * 2.0)) * self.vector


class ReadsMore(Times):
    def forward(self, x):
        return self.bn(self.conv(x)) * self.two + self.pair[1]


class Asserts(Times):
    def forward(self, x):
        assert x is not None
        return self.bn(self.conv(x)) * 2.0


class Stores(Times):
    def forward(self, x):
        self.last = x
        return self.bn(self.conv(x)) * 2.0


class Prints(Times):
    def forward(self, x):
        print(x)
        return self.bn(self.conv(x)) * 2.0


class Enters(Times):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = torch.relu(x)
        return self.bn(self.conv(x)) * 2.0


class CallsAMethod(Times):
    def forward(self, x):
        return self.help(self.bn(self.conv(x)) * 2.0)

    def help(self, x):
        return x


class Decorated(Times):
    @torch.no_grad()
    def forward(self, x):
        return self.bn(self.conv(x)) * 2.0


class Optional(Times):
    def forward(self, x, unused=None):
        return self.bn(self.conv(x)) * 2.0


MORE = "forward does more than compute from its arguments and layers"
STAYING = {
    ReadsMore: "forward reads self.pair, self.two",
    Asserts: MORE,
    Stores: MORE,
    Prints: MORE,
    Enters: MORE,
    CallsAMethod: MORE,
    Decorated: MORE,
    Optional: "forward has optional arguments",
}


@pytest.mark.parametrize("kind", STAYING)
def test_factors_that_stay(kind):
    model = kind()
    fused = fuse(model)
    result = next(line.result for line in fused.fusion_report.lines if line.conv == "conv")
    assert result == f"fused, without the factor: {STAYING[kind]}"
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(fused(x), model(x))
    assert type(fused) is kind


def test_factors_elsewhere_and_of_other_shapes():
    first, second = fuse(Times()).fusion_report.lines
    assert first.result == "fused, without the factor: another module multiplies"
    assert second.result == "fused, without the factor: the factor is not one number of the layers' dtype"


def test_the_report_as_text():
    report = fuse(Loops(4)).fusion_report
    assert isinstance(report, FusionReport)
    why = "the model cannot be traced: TypeError: 'Proxy' object cannot be interpreted as an integer"
    assert str(report).splitlines() == [
        "fused 4 of 5 convolutions with the BatchNorm after them",
        "convolution     BatchNorm",
        "stem.0          stem.1        fused",
        "blocks.0.0      blocks.0.1    fused",
        "blocks.1.conv1  blocks.1.bn1  fused",
        "blocks.1.conv2  blocks.1.bn2  fused",
        f"conv                          {why}",
        f"                bn            {why}",
    ]
    assert repr(report) == str(report)
    assert list(report.untraced) == [""]
    assert [line.conv for line in report.left_alone] == ["conv", ""]
    for layer in (nn.ReLU(), nn.Conv2d(4, 4, 1)):
        assert str(fuse(layer).fusion_report) == "no convolution and no BatchNorm to fuse"


def test_the_report_of_the_readme():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    made, shown = re.search(
        r">>> model = (nn\..*)\n>>> print\(fusedref.fuse\(model\).fusion_report\)\n([^`]*)```", text
    ).groups()
    assert str(fuse(eval(made)).fusion_report) == shown.rstrip("\n")


def test_the_report_in_a_notebook():
    page = fuse(build("dense")).fusion_report._repr_html_()
    assert page.count("<tr>") == 7
    assert "<td style='text-align:left'>layers.0.norm2</td><td style='text-align:left'>fused</td>" in page
    assert "its input comes from cat" in page
    assert fuse(nn.ReLU()).fusion_report._repr_html_() == "<b>no convolution and no BatchNorm to fuse</b>"


class CannotBeCopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.source = conv_bn(4, 4), (i for i in range(3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("function", [fuse, unfuse])
def test_models_that_are_refused(function):
    for model, message in (
        (torch.ones(1), "model must be a torch.nn.Module, got Tensor"),
        (nn.Conv2d, "model must be a torch.nn.Module, got the class Conv2d: make an instance"),
        (torch.jit.script(nn.ReLU()), "model must not be a ScriptModule: fuse the module that it was scripted from"),
        (torch.compile(nn.ReLU()), "model must not be compiled: torch.compile the fused model instead"),
        (nn.DataParallel(nn.ReLU()), "model must not be a DataParallel: fuse the module before it is wrapped"),
        (CannotBeCopied(), "model must be one that copy.deepcopy can copy"),
    ):
        with pytest.raises(TypeError, match=message):
            function(model)


def test_nothing_changes_on_an_error(monkeypatch):
    model = build("residual")
    before = [type(module) for module in model.modules()]
    monkeypatch.setattr("fusedref.fusion.apply._common", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuse(model, inplace=True)
    assert [type(module) for module in model.modules()] == before
    assert not hasattr(model, "fusion_report")
    with pytest.raises(TypeError, match="can copy: TypeError"):
        fuse(CannotBeCopied(), inplace=True)
