"""Rung 13: all gradients from one pass over dy."""

import pytest
import torch
import torch.nn.functional as F

from fusedref import Problem, validate
from kernels import ladder, training
from kernels.training import backward, moments, statistics_of_moments
from tests.tiles import needs_emulator
from tests.training import training_inputs

(RUNG,) = [rung for rung in training.TRAINING if rung.mode == "backward"]
SMALL = Problem(2, 3, 9, 9, 37, 3, padding=1)
SHAPES = [
    Problem(2, 3, 9, 9, 37, 3),
    SMALL,
    Problem(1, 2, 9, 12, 5, 3, padding=2),
    Problem(3, 1, 4, 3, 6, 5, padding=2),  # images so small that every row and column is a class of its own
    Problem(1, 3, 17, 9, 8, 2),
    Problem(2, 2, 3, 4, 5, 1),
]
NAMES = "x", "weight", "gamma", "beta"


def random_dy(problem, device, seed=9):
    return torch.randn(problem.output_shape, generator=torch.Generator().manual_seed(seed)).to(device)


def by_autograd(given, dy, padding, dtype):
    """Return the gradients of x, weight, gamma and beta by torch's operators."""
    leaves = [given.x, given.weight, given.bias, given.gamma, given.beta]
    leaves = [leaf.to(dtype).detach().clone().requires_grad_() for leaf in leaves]
    x, weight, bias, gamma, beta = leaves
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        z = F.conv2d(x, weight, bias, padding=padding)
        y = F.batch_norm(z, None, None, gamma, beta, True, 0.0, given.eps) * given.scaling_factor
        return torch.autograd.grad(y, (x, weight, gamma, beta), dy.to(dtype))


def ours(given, dy, padding):
    """Return the gradients by rung 13, from rung 12's moments."""
    patches = moments(given, padding)
    _, var = statistics_of_moments(given, patches, padding)
    found = backward(dy, given, patches, var, padding)
    return found.x, found.weight, found.gamma, found.beta


def errors(found, right):
    """Return the relative L2 errors."""
    return [((one.double() - two).norm() / two.norm()).item() for one, two in zip(found, right, strict=True)]


@pytest.mark.parametrize("problem", SHAPES, ids=str)
def test_is_the_gradient(device, problem):
    given, dy, padding = training_inputs(problem, 1, device), random_dy(problem, device), problem.pads[0][0]
    assert max(errors(ours(given, dy, padding), by_autograd(given, dy, padding, torch.double))) <= 1e-6


FAMILIES = {
    "uniform": lambda x: torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device),
    "mean 100": lambda x: x + 100,
    "channels over 6 decades": lambda x: x * torch.logspace(-3, 3, 3, device=x.device).view(-1, 1, 1),
    "one large image": lambda x: torch.cat([x[:1] * 1e4, x[1:]]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_is_as_accurate_as_torch_in_float32(device, family):
    given, dy = training_inputs(SMALL, 2, device), random_dy(SMALL, device)
    given = given._replace(x=FAMILIES[family](given.x))
    right = by_autograd(given, dy, 1, torch.double)
    eager = errors(by_autograd(given, dy, 1, torch.float), right)
    for name, error, allowed in zip(NAMES, errors(ours(given, dy, 1), right), eager, strict=True):
        assert error <= max(2 * allowed, 1e-6), name


def test_without_bias_gamma_and_beta(device):
    given, dy = training_inputs(SHAPES[0], 3, device), random_dy(SHAPES[0], device)
    found = RUNG.candidate(dy, given.x, given.weight, None, None, None, 2.0, 1e-5)
    ones = torch.ones_like(given.gamma)
    plain = given._replace(gamma=ones, beta=0 * ones, bias=0 * ones, scaling_factor=2.0, eps=1e-5)
    assert found[2] is None
    expected = by_autograd(plain, dy, 0, torch.double)
    assert max(errors((found[0], found[1], found[3], found[4]), expected)) <= 1e-6


def test_the_rung_validates(device):
    report = validate(RUNG.candidate, training.SMALL, mode="backward", device=device)
    assert report.ok, str(report)


def test_the_same_bits_on_every_run(device):
    given, dy = training_inputs(SMALL, 5, device), random_dy(SMALL, device)
    assert all(one.equal(two) for one, two in zip(ours(given, dy, 1), ours(given, dy, 1), strict=True))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(q - h * inverse * dot[1]) / count", "(-h * inverse * dot[1]) / count"),  # forgotten c1
        ("= factor * h * inverse / count", "= 0"),  # forgotten c2
        ("- h * inverse * along", ""),
        ("patch_mean[k] - pivot[k / (K * K)]", "patch_mean[k]"),
        ("max(MARGIN, place - size + classes)", "MARGIN"),  # a missing border class
        ("(REACH - PADDING) * (PITCH + 1)", "0"),
    ],
)
def test_a_planted_bug_is_refused(device, plant, right, wrong):
    plant("13_backward.cu", right, wrong)
    given, dy = training_inputs(SMALL, 6, device), random_dy(SMALL, device) + 0.5
    given = given._replace(x=given.x + 1)
    assert max(errors(ours(given, dy, 1), by_autograd(given, dy, 1, torch.double))) > 1e-3


@needs_emulator
def test_memory_requests():
    """Read dy once, write T once, and meet no bank conflict where the work is."""
    from fusedref.emulator import watch

    problem = Problem(1, 8, 16, 8, 32, 3, padding=1)  # one tile
    given, dy = training_inputs(problem, 0, "cpu"), random_dy(problem, "cpu")
    with watch() as seen:
        ours(given, dy, 1)
    assert [finding.message for finding in seen.findings] == []
    counters = seen.counters["backward"]
    lines = (ladder.KERNELS / "13_backward.cu").read_text().splitlines()

    def at(text):
        (number,) = [number for number, line in enumerate(lines, 1) if text in line]
        return counters.by_line["13_backward.cu", number]

    assert at("inside ? dy_image[").global_load_bytes_used == 4 * dy.numel()
    assert at("t_image[").global_store_requests == 8 * 8
    assert at("window[K - 1] = line[").shared_load_requests == 16 * 8 * 32
    for text in ("window[K - 1] = line[", "const float d = own[", "into[c] += d *", "const float d = dy_tile["):
        assert at(text).bank_conflicts == 0, text


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (Problem(1, 11, 2, 5, 5, 3), "at most 87 products per output, got 99"),
        (Problem(1, 8, 100, 5, 5, 3), "backward needs 55888 bytes of shared memory for 8 input channels, 100 output"),
        (Problem(1, 40, 2, 5, 5, 1), "moments needs 83968 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(device, problem, words):
    given = training_inputs(problem, 0, device)
    with pytest.raises(ValueError, match=words):
        RUNG.candidate(random_dy(problem, device), given.x, given.weight, given.bias, *given[5:9])
