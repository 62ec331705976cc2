import torch
import torch.nn.functional as F
from hypothesis import given

from fusedref import folding
from fusedref.reference import oracle
from fusedref.validation import random_inputs
from tests.strategies import fast, options, problems


def in_float64(inputs):
    return type(inputs)(*[value.double() if isinstance(value, torch.Tensor) else value for value in inputs])


@fast
@given(problems())
def test_folding_matches_the_oracle(problem):
    x, weight, *rest = inputs = in_float64(random_inputs(problem, seed=0))
    a, b = folding.affine(*rest)
    expected = oracle(*inputs, **options(problem))
    convolved = F.conv2d(x, weight, None, **options(problem))
    torch.testing.assert_close(convolved * a.view(-1, 1, 1) + b.view(-1, 1, 1), expected, rtol=1e-12, atol=1e-12)
    folded = F.conv2d(x, folding.fold(weight, a), b, **options(problem))
    torch.testing.assert_close(folded, expected, rtol=1e-12, atol=1e-12)


def test_vectors_left_out():
    mean, var = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    a, b = folding.affine(None, mean, var, None, None, 2.0, 1.0)
    assert torch.equal(a, torch.tensor([1.0, 2.0 / 5.0**0.5]))
    assert torch.equal(b, torch.tensor([-1.0, -4.0 / 5.0**0.5]))


def test_dtype_of_the_result():
    vector = torch.ones(3)
    assert [t.dtype for t in folding.affine(vector, vector, vector, vector, vector, 2.0)] == [torch.float32] * 2
