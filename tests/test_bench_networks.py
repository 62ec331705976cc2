"""The bench of whole networks: the calls it times, the kernels it compiles before, and its table."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from fusedref import bench, fuse
from fusedref.__main__ import main
from fusedref.bench import networks
from tests.fusion_models import Residual, conv_bn


def model():
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(3, 4), Residual(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))


@pytest.fixture(autouse=True)
def by_torch(monkeypatch):
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def x():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_statistics_are_those_of_x():
    plain = networks.with_statistics(model(), x())
    var, mean = torch.var_mean(plain[0][0](x()), (0, 2, 3))
    torch.testing.assert_close(plain[0][1].running_mean, mean)
    torch.testing.assert_close(plain[0][1].running_var, var)
    assert plain[0][1].momentum == 0.1


def test_a_step_trains_the_fused_model_as_the_model():
    plain = networks.with_statistics(model(), x())
    losses = []
    for each in (plain, fuse(plain)):
        torch.manual_seed(1)
        step = networks.training_step(each, x(), "fp32")
        losses.append([step().item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][2] < losses[0][0]


def test_inference():
    plain = networks.with_statistics(model(), x()).eval()
    y = networks.inference(fuse(plain), x(), "fp32")()
    assert not y.requires_grad
    torch.testing.assert_close(y, plain(x()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_every_distinct_pair_is_run_once_beforehand(monkeypatch, training):
    plain = model().train(training)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    calls = []

    class Noted(networks.FusedConvBnScale):
        def forward(self, x):
            calls.append((tuple(x.shape), self.training, torch.is_grad_enabled()))
            return super().forward(x)

    monkeypatch.setattr(networks, "FusedConvBnScale", Noted)
    networks.compile_pairs(plain, x(), "fp32")
    assert sorted(calls) == [((4, 3, 8, 8), training, training), ((4, 4, 8, 8), training, training)]
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_the_table():
    def row(name, us, mode=networks.INFERENCE):
        return bench.Row(name, mode, "fp32", "NCHW", "resnet50, 32", us, 1.0, None, 5.0, 100.0)

    rows = [row("eager PyTorch", 3000.0), row("torch.compile", 2400.0), row("fusedref", 2000.0)]
    rows += [row("eager PyTorch", 9000.0, networks.TRAINING)]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(bench.networks_table(rows, "Test Card"))
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert [
        "resnet50,",
        "32",
        "inference",
        "fp32",
        "NCHW",
        "3.00",
        "100",
        "2.40",
        "100",
        "2.00",
        "100",
        "1.20",
    ] in lines
    assert ["resnet50,", "32", "training", "step", "fp32", "NCHW", "9.00", "100"] in lines


def test_the_table_of_the_readme():
    def row(name, us, layout="NCHW", mode=networks.INFERENCE):
        return bench.Row(name, mode, "bf16", layout, "resnet50, 32", us, 1.0, None, 5.0, 100.0)

    rows = [row("eager PyTorch", 3000.0), row("eager PyTorch", 2400.0, "channels_last"), row("fusedref", 2000.0)]
    rows += [row("fusedref", 2100.0, "channels_last"), row("torch.compile", 9000.0, mode=networks.TRAINING)]
    assert bench.networks_markdown(rows, "Test Card").splitlines()[2:] == [
        "| network, batch | | precision | eager PyTorch | torch.compile | fusedref | best other / fusedref |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        "| resnet50, 32 | inference | bf16 | 2.40 (100) |  | 2.00 (100) | 1.20 |",
        "| resnet50, 32 | training step | bf16 |  | 9.00 (100) |  |  |",
    ]


def test_without_torchvision(monkeypatch, capsys):
    monkeypatch.setattr("fusedref.__main__.find_spec", lambda name: None)
    assert main(["bench", "--networks"]) == 2
    assert "--networks needs torchvision: pip install torchvision" in capsys.readouterr().err
