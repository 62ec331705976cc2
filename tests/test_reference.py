import pytest
import torch
from hypothesis import given

from fusedref import ConvBnScale, FusedConvBnScale
from fusedref.reference import conv_bn_scale, oracle
from fusedref.validation import compare, random_inputs
from tests.strategies import fast, options, problems


@fast
@given(problems())
def test_float32_matches_the_oracle(problem):
    inputs = random_inputs(problem, seed=1)
    case = compare("", problem, inputs, conv_bn_scale(*inputs, **options(problem)))
    assert case.ok, case.reasons


@fast
@given(problems())
def test_float64_matches_the_oracle(problem):
    """The oracle writes BatchNorm out; torch's own float64 operators are a second opinion."""
    inputs = [value.double() if isinstance(value, torch.Tensor) else value for value in random_inputs(problem, seed=2)]
    expected = oracle(*inputs, **options(problem))
    assert expected.dtype == torch.float64
    torch.testing.assert_close(conv_bn_scale(*inputs, **options(problem)), expected, rtol=1e-12, atol=1e-12)


def test_model():
    torch.manual_seed(0)
    model = ConvBnScale(3, 4, 3, 1.5, padding=1, eps=0.1).eval()
    torch.manual_seed(0)
    conv, bn = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4, eps=0.1)
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(model(x), bn.eval()(conv(x)) * 1.5)
    assert "scaling_factor=1.5" in repr(model)


@pytest.mark.parametrize(
    "build",
    [
        lambda factor: ConvBnScale(3, 4, 3, factor),
        lambda factor: FusedConvBnScale(3, 4, 3, factor),
        lambda factor: FusedConvBnScale.from_modules(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), factor),
    ],
    ids=["ConvBnScale", "FusedConvBnScale", "from_modules"],
)
def test_wrong_scaling_factor(build):
    for wrong, kind in ((None, "NoneType"), ("2", "str"), (True, "bool")):
        with pytest.raises(TypeError, match=f"scaling_factor must be a number, got {kind}"):
            build(wrong)
    with pytest.raises(ValueError, match="scaling_factor must fit into a float"):
        build(10**400)
    with pytest.raises(ValueError, match=r"scaling_factor must be a number or a tensor of one, got shape \(3,\)"):
        build(torch.ones(3))
    assert build(2).scaling_factor == 2.0
