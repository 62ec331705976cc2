"""What traces or transforms torch's operators sees a registered operator or torch's own, where a launch would hide."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusedref import Problem, fused_conv_bn_scale
from fusedref.reference import conv_bn_scale
from fusedref.validation import random_inputs

PROBLEM = Problem(2, 3, 4, 6, 7, 3, padding=1)


@pytest.fixture
def inputs(device):
    return random_inputs(PROBLEM, 0, device)


def call(x, inputs, function=fused_conv_bn_scale):
    return function(x, *inputs[1:], padding=1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_jit_trace(inputs):
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: call(x, inputs), inputs.x)
    other = random_inputs(PROBLEM, 1, inputs.x.device).x
    torch.testing.assert_close(traced(other), call(other, inputs, conv_bn_scale))


def test_vmap(inputs):
    images = torch.stack([inputs.x, 2 * inputs.x])
    with torch.no_grad():
        y = torch.vmap(lambda x: call(x, inputs))(images)
    torch.testing.assert_close(y, torch.stack([call(x, inputs, conv_bn_scale) for x in images]))


def test_functionalize(inputs):
    with torch.no_grad():
        y = torch.func.functionalize(lambda x: call(x, inputs))(inputs.x)
    torch.testing.assert_close(y, call(inputs.x, inputs, conv_bn_scale))


def test_dispatch_mode_sees_the_convolution(inputs):
    with FlopCounterMode(display=False) as counter:
        call(inputs.x, inputs)
    assert counter.get_total_flops() == PROBLEM.flops


class Tagged(torch.Tensor):
    """A subclass that notes which functions see it."""

    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", ""))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_subclass_keeps_its_operators(inputs):
    Tagged.seen.clear()
    y = call(inputs.x.as_subclass(Tagged), inputs)
    assert type(y) is Tagged
    assert "conv2d" in Tagged.seen
    assert "batch_norm" in Tagged.seen


def test_parameters_and_buffers_are_plain(inputs, monkeypatch):
    monkeypatch.setattr("fusedref.ops.by_torch.conv_bn_scale", None)  # what a subclass would run by
    layers = nn.Parameter(inputs.x), nn.Buffer(inputs.weight)
    with torch.no_grad():
        fused_conv_bn_scale(*layers, *inputs[2:], padding=1)
