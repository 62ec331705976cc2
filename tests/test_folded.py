"""On the CPU the folded filter is kept for as long as nothing that it was made of changes."""

import copy
import gc
import threading

import pytest
import torch
from torch import nn

from fusedref import FusedConvBnScale, folding
from fusedref.ops import folded


@pytest.fixture
def folds(monkeypatch):
    """Return a list with an entry for every filter that was folded."""
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    made, original = [], folding.fold
    monkeypatch.setattr(folding, "fold", lambda *arguments: made.append(1) or original(*arguments))
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = FusedConvBnScale(2, 3, 3, 1.5).eval()
    made.bn.running_mean.uniform_()
    return made


X = torch.randn(2, 2, 6, 5, generator=torch.Generator().manual_seed(0))


def agrees(model):
    """Call the model; compare with its layers."""
    with torch.no_grad():
        torch.testing.assert_close(model(X), model.bn(model.conv(X)) * model.scaling_factor, rtol=1e-5, atol=1e-5)


def test_folded_once(model, folds):
    for _ in range(3):
        agrees(model)
    assert len(folds) == 1


def set_parameter(model):
    model.conv.weight = nn.Parameter(model.conv.weight.detach() + 1)


def train_once(model):
    model.train()(X)
    model.eval()


CHANGES = {
    "weight": lambda model: model.conv.weight.mul_(2),
    "bias": lambda model: model.conv.bias.add_(1),
    "gamma": lambda model: model.bn.weight.add_(1),
    "beta": lambda model: model.bn.bias.add_(1),
    "running_mean": lambda model: model.bn.running_mean.add_(1),
    "running_var": lambda model: model.bn.running_var.add_(1),
    "running_mean through .data": lambda model: model.bn.running_mean.data.add_(1),
    "a step of training": train_once,
    "another weight": set_parameter,
    "other memory": lambda model: setattr(model.conv.weight, "data", model.conv.weight.data + 1),
    "load_state_dict": lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
    "scaling_factor": lambda model: setattr(model, "scaling_factor", 0.5),
    "eps": lambda model: setattr(model.bn, "eps", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folded_anew_after_a_change(model, folds, change):
    agrees(model)
    with torch.no_grad():
        before = model(X)
        CHANGES[change](model)
        assert not torch.equal(model(X), before)
    agrees(model)
    agrees(model)
    assert len(folds) == 2


def test_folded_anew_in_another_dtype(model, folds):
    agrees(model)
    model.bfloat16()
    with torch.no_grad():
        model(X.bfloat16()), model(X.bfloat16())
    assert len(folds) == 2


def test_nothing_outlives_the_weight(folds):
    before = set(folded._kept)
    model = FusedConvBnScale(2, 3, 3, 1.5).eval()
    agrees(model)
    (key,) = set(folded._kept) - before
    agrees(copy.deepcopy(model))
    del model
    gc.collect()
    assert key not in folded._kept
    assert set(folded._kept) == before


def test_inference_tensors_are_folded_in_every_call(folds):
    with torch.inference_mode():
        model = FusedConvBnScale(2, 3, 3, 1.5).eval()
        model(X), model(X)
    assert len(folds) == 2


def test_nothing_is_folded_under_autocast(model, folds):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(X), model.bn(model.conv(X)) * 1.5)
    assert not folds


def test_infinity_is_not_kept(model, folds):
    agrees(model)
    with torch.no_grad():
        model.bn.running_var[1] = -1.0
        assert model(X)[:, 1].isnan().all()
        assert not model(X)[:, 0].isnan().any()
        model.bn.running_var[1] = 1.0
    agrees(model)


def test_threads(model, folds):
    """Some change the scale; none sees another's filter."""
    wrong = []

    def work(factor):
        own = FusedConvBnScale.from_modules(model.conv, model.bn, factor)
        with torch.no_grad():
            expected = model.bn(model.conv(X)) * factor
            for _ in range(50):
                if not torch.allclose(own(X), expected, rtol=1e-4, atol=1e-5):
                    wrong.append(factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in (1.0, 2.0, 3.0, 1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
