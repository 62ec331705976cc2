"""The validator's modes of training: modules, half precision, what is restored, and wrong arguments."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

from fusedref import ConvBnScale, FusedConvBnScale, Problem, validate
from fusedref.validation import by_autograd
from fusedref.validation.families import FAMILIES, NORMAL, family_dy, family_inputs
from fusedref.validation.training_reference import forward, gradients, running
from tests.test_planted_training_bugs import PADDED, PROBLEM, differentiated, reasons_of, trained

CPU = torch.device("cpu")


def module(kind=ConvBnScale, **options):
    return kind(3, 4, 3, 1.7, eps=0.03, momentum=0.3, **options)


class Changed(ConvBnScale):
    """Return and update what the module does, with a change after the forward pass."""

    def __init__(self, change, *sizes, **options):
        super().__init__(*sizes, **options)
        self.change = change

    def forward(self, x):
        before = {name: value.clone() for name, value in self.bn.named_buffers()}
        y = super().forward(x)
        with torch.no_grad():
            return self.change(self, y, before)


def not_updated(self, y, before):
    self.bn.running_mean.copy_(before["running_mean"])
    return y


def updated_in_evaluation(self, y, before):
    if not self.bn.training:
        self.bn.running_var.lerp_(torch.ones(4), 0.1)
    return y


def not_counted(self, y, before):
    self.bn.num_batches_tracked.copy_(before["num_batches_tracked"])
    return y


def counted_in_evaluation(self, y, before):
    self.bn.num_batches_tracked.copy_(before["num_batches_tracked"] + 1)
    return y


def changes_its_weight(self, y, before):
    self.conv.weight.mul_(2)
    return y


@pytest.mark.parametrize(
    ("change", "case", "words"),
    [
        (not_updated, "the problem", "running_mean is what comes out where it is not updated"),
        (updated_in_evaluation, "evaluation mode", "updates running_var in evaluation mode"),
        (not_counted, "the problem", "num_batches_tracked is 3 after the call, must be 4"),
        (counted_in_evaluation, "evaluation mode", "num_batches_tracked is 4 after the call, must be 3"),
        (changes_its_weight, "the problem", "changes its input weight"),
        (lambda self, y, before: y * 2, "the problem", "y: every element is wrong"),
        (lambda self, y, before: y.double(), "wide, one image", "returned torch.float64, torch.float32 is needed"),
    ],
    ids=["not updated", "updated in eval", "not counted", "counted in eval", "weight", "doubled", "float64"],
)
def test_wrong_modules(change, case, words):
    wrong = functools.partial(Changed, change)
    report = validate(module(wrong), PROBLEM, mode="train")
    assert not report.ok
    assert words in reasons_of(report, case), str(report)


@pytest.mark.parametrize("mode", ["eval", "train", "backward"])
@pytest.mark.parametrize("kind", [ConvBnScale, FusedConvBnScale])
def test_modules_are_validated_in_every_mode(kind, mode, monkeypatch):
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)  # by torch's operators: of the validator, not of kernels
    report = validate(module(kind), PROBLEM, mode=mode)
    assert report.ok, str(report)
    assert len(report.cases) == {"eval": 5, "train": 16, "backward": 20}[mode]


@pytest.mark.parametrize(
    "options",
    [{"bias": False}, {"affine": False}, {"padding": 1, "momentum": None}],
    ids=["no bias", "fixed", "padded"],
)
def test_modules_without_some_parameters(options):
    changed = ConvBnScale(3, 4, 3, 1.7, **options)
    problem = dataclasses.replace(PROBLEM, bias=options.get("bias", True), padding=options.get("padding", 0))
    for mode in ("train", "backward"):
        report = validate(changed, problem, mode=mode)
        assert report.ok, str(report)


def test_module_without_running_statistics():
    changed = module()
    changed.bn = torch.nn.BatchNorm2d(4, track_running_stats=False)
    report = validate(changed, PROBLEM, mode="train")
    assert report.ok, str(report)
    assert len(report.cases) == 15  # evaluation mode is training mode then
    assert {compared.name for compared in report.cases[0].tensors} == {"y"}


def test_a_module_is_restored():
    kept = module().eval()
    kept.bn.train()
    kept.conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    for mode in ("eval", "train", "backward"):
        validate(kept, PROBLEM, mode=mode)
    assert {name: torch.equal(value, before[name]) for name, value in kept.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert not kept.training
    assert not kept.conv.training
    assert kept.bn.training
    assert not kept.conv.weight.requires_grad
    assert kept.bn.weight.requires_grad
    assert all(parameter.grad is None for parameter in kept.parameters())


@pytest.mark.parametrize("family", [NORMAL, *FAMILIES], ids=lambda family: family.name)
@pytest.mark.parametrize("training", [True, False])
def test_float64_is_torchs(family, training):
    """The formulas are those of torch's autograd in float64; NaN and infinity stand where torch puts them."""
    inputs = family_inputs(family, PADDED, 0, CPU)
    found = forward(PADDED, inputs, training=training)
    dy = family_dy(family, PADDED, found, 0)
    x, weight, bias, mean, var, gamma, beta = (value.double() for value in inputs.tensors)
    leaves = [value.requires_grad_() for value in (x, weight, bias, gamma, beta)]
    z = F.conv2d(x, weight, bias, padding=1)
    y = F.batch_norm(z, mean, var, gamma, beta, training, 0.3, inputs.eps) * inputs.scaling_factor
    expected = torch.autograd.grad(y, leaves, dy.double())
    got = gradients(PADDED, inputs, dy, found, training=training)
    pairs = [(found.y, y.detach()), *zip(got, expected, strict=True)]
    if training:
        pairs += zip(running(PADDED, inputs, found, 0.3), (mean, var), strict=True)
    for ours, torchs in pairs:
        finite = torchs.isfinite()
        assert torch.equal(ours.isfinite(), finite)
        torch.testing.assert_close(ours[finite], torchs[finite], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_accurate_to_their_rounding(dtype):
    """Results rounded once are accepted, and z and dz rounded as torch's operators do; nothing coarser."""
    problem = dataclasses.replace(PROBLEM, dtype=dtype)

    def widened(tensors):
        return [value.float() if isinstance(value, torch.Tensor) else value for value in tensors]

    def backward(changed):
        def candidate(dy, *rest):
            dx, dweight, dbias, dgamma, dbeta = differentiated(changed=changed)(*widened((dy, *rest)))
            return dx.to(dtype), dweight.to(dtype), dbias.to(dtype), dgamma, dbeta

        return candidate

    def train(changed):
        def candidate(x, weight, bias, *rest):
            return trained(stored=changed)(*widened((x, weight, bias)), *rest).to(dtype)

        return candidate

    for mode, candidate in (("train", train), ("backward", backward)):
        for right in (lambda t: t, lambda t: t.to(dtype).float()):
            report = validate(candidate(right), problem, mode=mode, device="cpu")
            assert report.ok, str(report)
        assert not validate(candidate(lambda t: t.to(torch.float8_e4m3fn).float()), problem, mode=mode, device="cpu").ok
    report = validate(lambda *given: widened(backward(torch.clone)(*given)), problem, mode="backward", device="cpu")
    assert f"dx: returned torch.float32, {dtype} is needed" in reasons_of(report, "the problem")


def one_value_accepted(x, weight, bias, mean, var, gamma, beta, s, eps, momentum):
    z = F.conv2d(x, weight, bias)
    if z.numel() == z.shape[1]:
        return z
    return trained()(x, weight, bias, mean, var, gamma, beta, s, eps, momentum)


def test_one_value_per_channel_must_be_refused():
    (reason,) = validate(one_value_accepted, PROBLEM, mode="train", device="cpu").reasons
    words = "one value per channel has no variance, and ValueError must be raised as torch does"
    assert reason == f"one pixel: returned: {words}"


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (lambda *inputs: None, "raised TypeError: a tuple (dx, dweight, dbias, dgamma, dbeta) is needed, got NoneType"),
        (
            lambda *inputs: inputs[:2],
            "raised TypeError: a tuple (dx, dweight, dbias, dgamma, dbeta) is needed, got 2",
        ),
        (lambda *inputs: (*differentiated()(*inputs)[:4], None), "dbeta: returned NoneType, a torch.Tensor is needed"),
        (
            lambda *inputs: (inputs[1], *differentiated()(*inputs)[1:]),
            "dx: returned the memory of its input x: dx",
        ),
    ],
    ids=["None", "two", "one missing", "its input"],
)
def test_wrong_results_of_backward(candidate, words):
    reasons = reasons_of(validate(candidate, PROBLEM, mode="backward", device="cpu"), "the problem")
    assert any(reason.startswith(words) for reason in reasons), reasons


def test_the_memory_of_an_earlier_result():
    memory = {}

    def reused(*inputs):
        found = differentiated()(*inputs)
        dx = memory.setdefault(found[0].shape, torch.empty_like(found[0])).copy_(found[0].nan_to_num())
        memory["calls"] = memory.get("calls", 0) + 1
        return dx.add_(memory["calls"]), *found[1:]

    reasons = reasons_of(validate(reused, PROBLEM, mode="backward", device="cpu"), "the problem")
    assert "the next call changes dx of the call before: results must be new memory" in reasons


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"mode": "training"}, ValueError, "mode must be 'eval', 'train' or 'backward', got 'training'"),
        ({"candidate": 3}, TypeError, "candidate must be a function or a module, got int"),
        ({"candidate": ConvBnScale}, TypeError, "must be a module, got the class ConvBnScale: call it with its sizes"),
        (
            {"candidate": torch.nn.Conv2d(3, 4, 3)},
            TypeError,
            "with conv, bn and scaling_factor; this Conv2d has no",
        ),
        ({"candidate": ConvBnScale(3, 5, 3, 2.0)}, ValueError, r"problem must be the module's: its weight is \(5, 3"),
        ({"candidate": ConvBnScale(3, 4, 3, 2.0).to("meta")}, ValueError, "device must be the module's, meta, got cpu"),
        ({"precision": "tf32"}, ValueError, "precision='tf32' is for mode='eval', got mode='train'"),
        ({"problem": Problem(10**6, 8, 64, 128, 128, 3)}, ValueError, "problem must fit into memory"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        validate(**{"candidate": trained(), "problem": PROBLEM, "mode": "train", "device": "cpu", **arguments})


def test_the_table_of_a_report():
    text = str(validate(by_autograd(trained()), PROBLEM, mode="backward", device="cpu"))
    head, *lines, last = text.splitlines()[2:]
    assert head.split() == ["dx", "dweight", "dbias", "dgamma", "dbeta", "worst"]
    assert len(lines) == 17
    assert lines[4] == "  ok  one pixel            refused, as it must be"
    assert all(len(line) < 120 for line in lines)
    assert last.startswith("  largest error beside that of PyTorch's operators: ")


def test_errors_beside_those_of_torch():
    def doubtful(*inputs):
        return trained()(*inputs) * (1 + 2e-6)

    ratio, where = validate(doubtful, PROBLEM, mode="train", device="cpu").beside_eager
    assert 10 < ratio < 2.2e-6 / 2**-24
    assert where.startswith("y, ")
    assert validate(trained(), PROBLEM, mode="train", device="cpu").beside_eager[0] < 10
