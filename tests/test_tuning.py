"""tune: which convolutions a model has, which candidate is the fastest, and that it is remembered."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fusedref
from fusedref import FusedConvBnScale, Problem, fuse, tune
from fusedref.plans import KernelVariant, plan_for
from fusedref.plans.candidates import Choice
from fusedref.plans.choices import tuned
from fusedref.target import EMULATED
from fusedref.tuning import Layer, choose, fastest, layers_of

PROBLEM = Problem(2, 8, 16, 12, 10, 3)
CARD = EMULATED._replace(card="Test Card")


class Network(nn.Module):
    """Has a convolution that is used twice, one in a BatchNorm's company, and some that are not served."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding="valid")
        self.twice = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2, bias=False)
        self.same = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2, bias=False)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.fused = FusedConvBnScale(8, 4, 1, 2.0)

    def forward(self, x):
        z = self.same(self.twice(self.twice(self.first(x))))
        return self.fused(self.reflecting(z) + self.reflecting(z[0]))


EXPECTED = [
    Problem(2, 3, 8, 11, 9, (3, 3), stride=(2, 2), padding="valid", dilation=(1, 1)),
    Problem(2, 8, 8, 5, 4, (1, 3), stride=(1, 1), padding=(0, 1), dilation=(1, 1), groups=2, bias=False),
    Problem(2, 8, 4, 5, 4, (1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1)),
]


class TestLayers:
    def test_of_a_network(self):
        network = Network().eval()
        assert layers_of(network, torch.randn(2, 3, 11, 9)) == [Layer(problem, False) for problem in EXPECTED]
        assert not any(module._forward_pre_hooks for module in network.modules())

    def test_on_the_meta_device_and_in_channels_last(self):
        network = Network().eval().to("meta", memory_format=torch.channels_last)
        x = torch.empty(2, 3, 11, 9, device="meta").to(memory_format=torch.channels_last)
        assert layers_of(network, (x,)) == [Layer(problem, True) for problem in EXPECTED]

    def test_of_a_fused_network(self):
        network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)).eval()
        before = layers_of(network, torch.randn(2, 8, 9, 8))
        assert layers_of(fuse(network), torch.randn(2, 8, 9, 8)) == before != []

    def test_under_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            (layer,) = layers_of(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 5, 5))
        assert layer.problem.dtype == torch.bfloat16

    def test_what_is_left_out(self):
        assert layers_of(nn.Conv2d(3, 4, 1).double(), torch.randn(1, 3, 5, 5).double()) == []
        assert layers_of(nn.Conv1d(3, 4, 1), torch.randn(1, 3, 5)) == []

    def test_hooks_are_removed_after_an_error(self):
        conv = nn.Conv2d(3, 4, 1)
        with pytest.raises(RuntimeError):
            layers_of(conv, torch.randn(1, 5, 5, 5))
        assert not conv._forward_pre_hooks


def test_fastest():
    """One that comes later must be faster by two in a hundred."""
    a, b, c = map(Choice, "abc")
    assert fastest({a: 100.0}) == a
    assert fastest({a: 100.0, b: 99.0, c: 98.5}) == a
    assert fastest({a: 100.0, b: 97.0, c: 96.0}) == b
    assert fastest({a: 100.0, b: 97.0, c: 90.0}) == c


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Time on an emulated card where torch's convolution is the fastest; return the numbers of candidates timed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "_gpu", lambda device: torch.device("cpu"))
    monkeypatch.setattr(choose, "target_of", lambda device: CARD)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    numbers = []

    def microseconds(calls):
        numbers.append(len(calls))
        return [10.0 if call.args[0].kernel == "library" else 20.0 for call in calls]

    def runner_of(plan, problem, device):
        return SimpleNamespace(kernel=plan.kernel, memory_format=torch.contiguous_format)

    monkeypatch.setattr(choose, "runner_of", runner_of)
    monkeypatch.setattr(choose, "graph_microseconds", microseconds)
    plan_for.cache_clear()
    yield numbers
    plan_for.cache_clear()


class TestTune:
    def test_a_problem(self, timed):
        assert plan_for(PROBLEM, CARD, KernelVariant()).kernel == "pipeline"
        (result,) = tune(PROBLEM)
        assert (result.layer, result.precision, result.choice) == (Layer(PROBLEM, False), "fp32", Choice("library"))
        assert timed == [len(result.microseconds)]
        assert str(result).startswith(f"{PROBLEM}: library (pipeline 20.0, ")
        assert plan_for(PROBLEM, CARD, KernelVariant()).kernel == "library"
        assert plan_for(PROBLEM, EMULATED, KernelVariant()).kernel == "pipeline"

    def test_once(self, timed):
        assert len(tune([PROBLEM, PROBLEM])) == 1
        assert tune(PROBLEM) == []
        assert len(tune(PROBLEM, precision="tf32")) == 1
        assert len(tune(PROBLEM, channels_last=True)) == 1
        assert len(timed) == 3

    def test_a_model(self, timed):
        network, x = Network().eval(), torch.randn(2, 3, 11, 9)
        assert [result.layer.problem for result in tune(network, x)] == EXPECTED
        for problem in EXPECTED:
            assert tuned(problem, CARD, KernelVariant()) is not None

    @pytest.mark.parametrize(
        ("arguments", "keywords", "error", "words"),
        [
            ((3,), {}, TypeError, "what must be a torch.nn.Module, a Problem or a sequence of them, got 3"),
            (([PROBLEM, 3],), {}, TypeError, "what must be a torch.nn.Module, a Problem or a sequence of them, got "),
            ((nn.Conv2d(3, 4, 1),), {}, TypeError, "example must be an input of the model, or a tuple of its inputs"),
            ((PROBLEM, 3), {}, TypeError, "example is for a model; a Problem needs none"),
            ((PROBLEM,), {"precision": "fp16"}, ValueError, "precision must be 'fp32' or 'tf32', got 'fp16'"),
            ((PROBLEM,), {"channels_last": 1}, TypeError, "channels_last must be True or False, got 1"),
        ],
    )
    def test_wrong_arguments(self, timed, arguments, keywords, error, words):
        with pytest.raises(error, match=words):
            tune(*arguments, **keywords)

    def test_wrong_devices(self, monkeypatch):
        with pytest.raises(
            ValueError, match="device must be a CUDA device, got cpu: times are measured on a GPU alone"
        ):
            tune(PROBLEM, device="cpu")
        monkeypatch.setattr(choose, "can_launch", lambda device: False)
        with pytest.raises(RuntimeError, match="tune times kernels on a GPU, and there is no NVIDIA GPU with PyCUDA"):
            tune(PROBLEM)

    @pytest.mark.gpu
    def test_on_a_gpu(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        (result,) = tune(PROBLEM)
        assert all(us > 0 for us in result.microseconds.values())
        assert {"library", "folded"} <= {choice.kernel for choice in result.microseconds}
        assert fusedref.plan(PROBLEM, card=torch.cuda.get_device_name()).kernel == result.choice.kernel
        plan_for.cache_clear()
