"""Helpers for the tests of pipeline.cu and implicit_gemm.cu: wide ranges, errors of float32, changed kernels."""

import dataclasses
import math

import torch

from fusedref.emulator import driver, watch
from fusedref.ops.runner import run_plan
from fusedref.parameters import Parameters
from fusedref.plans import folded_plan
from fusedref.reference import oracle
from tests.strategies import options

UNIT = 2.0**-24  # half of float32's spacing at 1
LARGEST = torch.finfo(torch.float32).max


def convolution(x, weight):
    """Return parameters whose y is the plain convolution."""
    zeros, ones = (function(weight.shape[0], device=x.device) for function in (torch.zeros, torch.ones))
    return Parameters(x, weight, None, zeros, ones, None, None, 1.0, 0.0)


def folded(problem, inputs):
    """Return the float32 sums that errors are measured by."""
    return run_plan(folded_plan(problem), problem, inputs)


def spread(shape, decades, seed=0):
    """Return random numbers whose magnitudes are spread evenly over so many decades."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
    return signs * 10 ** ((torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * decades).float()


def x_of(problem, kind):
    """Return an x of random numbers, scaled by ``kind`` or with the ranges that its name says."""
    shape, middle = problem.input_shape, problem.width // 2
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if isinstance(kind, float):
        return x * kind
    if kind == "mean 1000":
        return x + 1000
    if kind == "an outlier":
        x[0, 3, 4, middle] = 1e9
    if kind == "a huge outlier":
        x[-1, 3, 4, middle] = -1e30
    if kind == "zeros and one":
        x = torch.zeros_like(x)
        x[0, 0, 3, 3] = 1e-20
    if kind == "a wall":  # windows left of it see small numbers only
        x[:, :, :, 6 * problem.width // 10 :] *= 1e12
    if kind == "halves apart":
        x[:, problem.in_channels // 2 :] *= 1e-30
    if kind == "no first channel":
        x[:, 0] = 0.0
    if kind == "12 decades":
        x = spread(shape, 12)
    if kind == "60 decades":
        x = spread(shape, 60)
    if kind == "one tile of 12 decades":
        x[-1, :, 3:] = spread(x[-1, :, 3:].shape, 12)
    return x


def weight_of(problem, kind):
    """Return weights of random numbers, scaled by ``kind`` or with the ranges that its name says."""
    weight = torch.randn(problem.weight_shape, generator=torch.Generator().manual_seed(2)) / 8
    if isinstance(kind, float):
        return weight * kind
    if kind == "12 decades":
        weight = spread(weight.shape, 12)
    if kind == "a heavy first channel":
        weight[:, 0] *= 1e12
    if kind == "12 decades between channels":
        weight *= 10 ** torch.linspace(-6, 6, len(weight))[:, None, None, None]
    if kind == "one channel of 12 decades":
        weight[17] = spread(weight[17].shape, 12)
    if kind == "a dead channel":
        weight[3] = 0.0
    return weight


def roundings(problem, inputs):
    """Return the largest error of rounding each output's sum once, with all its products taken as positive."""
    return oracle(*convolution(inputs.x.abs(), inputs.weight.abs()), **options(problem)) * UNIT + 2.0**-149


def assert_errors_are_those_of_float32(problem, run, device, x, weight, of_split=0.0):
    """Check the sums of ``run`` on numbers of these ranges.

    Neither the mean nor the largest error exceeds the float32 sum's (or one and eight roundings), and results beyond
    float32's range are not finite. ``of_split`` is what splitting may add to the mean square.
    """
    inputs = convolution(x_of(problem, x).to(device), weight_of(problem, weight).to(device))
    truth, sizes = oracle(*inputs, **options(problem)), roundings(problem, inputs)
    normal = sizes < LARGEST * UNIT  # elsewhere a sum may overflow on the way
    y = run(problem, inputs)
    ours, plain = (((sums.double() - truth).abs() / sizes)[normal] for sums in (y, folded(problem, inputs)))
    if normal.any():
        assert ours.max() <= max(8, plain.max())
        assert ours.square().mean() <= max(1, 1.05 * plain.square().mean()) + of_split
    assert not y[truth.abs() > 1.01 * LARGEST].isfinite().any()


NOT_FINITE = [math.nan, math.inf, -math.inf]
TENSORS = ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"]


def assert_not_finite_where_the_formula_is(problem, run, inputs, name, value, *, place=1, rtol=1e-5, atol=1e-5):
    """Check y for inputs of which ``name`` has one element that is NaN or infinite."""
    getattr(inputs, name).view(-1)[place] = value
    expected = oracle(*inputs, **options(problem))
    torch.testing.assert_close(run(problem, inputs).double(), expected, rtol=rtol, atol=atol, equal_nan=True)


def run_text(text, plan, problem, inputs):
    """Return y by ``plan`` with the kernel's text replaced."""
    (launch,) = plan.launches
    changed = dataclasses.replace(plan, launches=(dataclasses.replace(launch, source=text),))
    return run_plan(changed, problem, inputs)


def shown(run) -> set[str]:
    """Return the kinds of findings of a watched launch, or of the error that ends it, and the faults of its results.

    ``run`` launches and returns the names of the faults of the results.
    """
    with watch() as seen:
        try:
            wrong = run()
        except (driver.FindingError, driver.DeadlockError) as error:
            wrong = {type(error).__name__}
    return set(wrong) | {finding.kind for finding in seen.findings}
