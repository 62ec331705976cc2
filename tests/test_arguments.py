"""fused_conv_bn_scale refuses wrong arguments; the error names the argument and the reason."""

import re

import pytest
import torch

from fusedref import Problem, fused_conv_bn_scale, fused_conv_bn_scale_training
from fusedref.ops import calls
from fusedref.validation import random_inputs

X, W, V = torch.zeros(2, 6, 9, 11), torch.zeros(8, 3, 3, 3), torch.ones(8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
        ({"running_var": None}, TypeError, "running_var must be a torch.Tensor, got NoneType"),
        ({"beta": 0.0}, TypeError, "beta must be a torch.Tensor or None, got float"),
        ({"x": X[0]}, ValueError, r"x must be \[batch, in_channels, height, width\], got shape \(6, 9, 11\)"),
        ({"weight": W[0]}, ValueError, r"weight must be \[out_channels, .*, got shape \(3, 3, 3\)"),
        (
            {"groups": 1},
            ValueError,
            r"weight must be \(8, 6, 3, 3\) for x with 6 channels and groups=1, .*\(8, 3, 3, 3\)",
        ),
        ({"groups": 4}, ValueError, r"in_channels must be a multiple of groups \(4\), got 6"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"x": X.half()}, TypeError, "weight must have the dtype of x, torch.float16, got torch.float32"),
        ({"x": X.double()}, TypeError, "weight must have the dtype of x, torch.float64, got torch.float32"),
        (
            {"x": X.double(), "weight": W.double()},
            TypeError,
            "bias must have the dtype of x, torch.float64, got torch.float32",
        ),
        ({"x": X.long()}, TypeError, "x must be float32, float16, bfloat16 or float64, got torch.int64"),
        ({"gamma": V.long()}, TypeError, "gamma must be float32, float16, bfloat16 or float64, got torch.int64"),
        ({"gamma": V.half()}, TypeError, "gamma must have the dtype of x, .*float32, or float32, got torch.float16"),
        (
            {"x": X.half(), "weight": W.half(), "running_mean": V.bfloat16()},
            TypeError,
            "running_mean must have the dtype of x, torch.float16, or float32, got torch.bfloat16",
        ),
        (
            {"x": X.half(), "weight": W.half(), "beta": V.half()},
            TypeError,
            "beta must have the dtype of running_mean, torch.float32, got torch.float16",
        ),
        (
            {"x": X.half(), "weight": W.half(), "running_mean": V.half()},
            TypeError,
            "bias must have the dtype of running_mean, torch.float16, got torch.float32",
        ),
        ({"precision": "fp16"}, ValueError, "precision must be 'fp32' or 'tf32', got 'fp16'"),
        ({"precision": None}, ValueError, "precision must be 'fp32' or 'tf32', got None"),
        (
            dict.fromkeys(("bias", "running_mean", "running_var", "gamma", "beta"), V.half())
            | {"x": X.half(), "weight": W.half(), "precision": "tf32"},
            ValueError,
            "precision='tf32' is for float32 tensors, got torch.float16: their products are exact as they are",
        ),
        ({"bias": V.to("meta")}, ValueError, "bias must be on the device of x, .*, got meta"),
        ({"bias": V[:7]}, ValueError, r"bias must be \[out_channels\] = \(8,\), got shape \(7,\)"),
        ({"running_mean": V[None]}, ValueError, r"running_mean must be \[out_channels\] = \(8,\), got shape \(1, 8\)"),
        ({"running_var": V[:1]}, ValueError, r"running_var must be \[out_channels\] = \(8,\), got shape \(1,\)"),
        ({"gamma": V.repeat(2)}, ValueError, r"gamma must be \[out_channels\] = \(8,\), got shape \(16,\)"),
        (
            {"x": X[:, :, :2]},
            ValueError,
            "the kernel must fit into the padded input: .* 3 x 3, the padded input is 2 x 11",
        ),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1, got stride=2"),
        ({"stride": {}}, TypeError, r"stride must be an integer or a pair of them, got \{\}"),
        ({"padding": [[1], [2]]}, TypeError, r"padding must be an integer or a pair of them, got \(\[1\], \[2\]\)"),
        ({"dilation": {1}}, TypeError, r"dilation must be an integer or a pair of them, got \{1\}"),
        ({"groups": {}}, TypeError, r"groups must be an integer, got \{\}"),
        ({"groups": [2]}, TypeError, r"groups must be an integer, got \(2,\)"),
        ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got a torch.sparse_coo one"),
        ({"weight": W.to_sparse()}, TypeError, "weight must be a dense tensor, got a torch.sparse_coo one"),
        ({"beta": V.to_sparse()}, TypeError, "beta must be a dense tensor, got a torch.sparse_coo one"),
        ({"x": X[0].to_sparse_csr()}, TypeError, "x must be a dense tensor, got a torch.sparse_csr one"),
        ({"weight": W[:0]}, ValueError, r"weight must have no size of 0, got shape \(0, 3, 3, 3\)"),
        ({"scaling_factor": 10**400}, ValueError, "scaling_factor must fit into a float, got a number above 1e308"),
        ({"eps": 10**400}, ValueError, "eps must fit into a float, got a number above 1e308"),
        ({"eps": -1e-5}, ValueError, "eps must be at least 0, got -1e-05"),
        ({"scaling_factor": V}, ValueError, r"scaling_factor must be a number or a tensor of one, got shape \(8,\)"),
        ({"scaling_factor": "2"}, TypeError, "scaling_factor must be a number, got str"),
        ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
    ],
)
def test_wrong_arguments(device, change, error, words):
    arguments = {
        "x": X, "weight": W, "bias": V, "running_mean": V, "running_var": V, "gamma": V, "beta": V,
        "scaling_factor": 2.0, "groups": 2,
    }  # fmt: skip
    arguments = {
        name: value.to(device) if isinstance(value, torch.Tensor) and value.device.type != "meta" else value
        for name, value in {**arguments, **change}.items()
    }
    for _ in range(2):  # the cache must not make the second call pass
        with pytest.raises(error, match=words):
            fused_conv_bn_scale(**arguments)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("value", [1.0, True, (1.0, 1), (1, True)])
def test_value_equal_to_a_cached_integer(device, name, value):
    inputs = random_inputs(Problem(1, 2, 2, 5, 5, 3), 0, device)
    fused_conv_bn_scale(*inputs, **{name: 1})
    if name != "groups":
        fused_conv_bn_scale(*inputs, **{name: (1, 1)})
    needed = "an integer" if name == "groups" else "an integer or a pair of them"
    with pytest.raises(TypeError, match=f"{name} must be {needed}, got {re.escape(repr(value))}"):
        fused_conv_bn_scale(*inputs, **{name: value})


@pytest.mark.parametrize("by_torch", [False, True], ids=["kernel", "torch"])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
def test_freed_storage(device, monkeypatch, name, by_torch):
    if by_torch:
        monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    inputs = random_inputs(Problem(1, 2, 2, 5, 5, 3), 0, device)
    fused_conv_bn_scale(*random_inputs(Problem(1, 2, 2, 5, 5, 3), 1, device))  # the checks are in the cache now
    getattr(inputs, name).untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=rf"{name} must have memory, got a tensor of \(.*\) whose storage was freed"):
        fused_conv_bn_scale(*inputs)


@pytest.mark.parametrize("absent", [(), ("bias",), ("bias", "gamma", "beta")], ids=len)
@pytest.mark.parametrize("training", [False, True])
def test_arguments_are_checked_once(device, monkeypatch, training, absent):
    """Afterwards their properties are compared alone, also if the registered operators are called."""
    calls.forget()
    described, describe = [], calls.describe
    monkeypatch.setattr(calls, "describe", lambda tensors: described.append(1) or describe(tensors))
    inputs = random_inputs(Problem(2, 2, 2, 5, 5, 3), 0, device)._replace(**dict.fromkeys(absent))
    function = fused_conv_bn_scale_training if training else fused_conv_bn_scale
    for _ in range(3):
        function(*inputs)
    assert len(described) == 1
    function(*inputs._replace(x=inputs.x[:1]))
    assert len(described) == 2
    operator = torch.ops.fusedref.conv_bn_scale_training if training else torch.ops.fusedref.conv_bn_scale
    tensors = [*inputs[:3], *inputs[5:7]] if training else inputs[:7]
    for _ in range(3):
        operator(*tensors, 1.0, 1e-5, [1, 1], [0, 0], [1, 1], 1, "fp" + str(32))
    assert len(described) == 3
