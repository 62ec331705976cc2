"""torch.ops.fusedref: the operator in both modes and its backward, registered with torch.library.

A trace records these in the place of a launch (``tracing``). They take the tensors and numbers of the functions;
stride and dilation are two integers, padding is two, or none for 'same'. Each has an implementation, a fake kernel
(shapes, dtypes and strides), a formula for its gradient, autocast's casts and a rule for vmap. They are functional: the
training operator returns the statistics of the batch, and what traces updates the running ones by torch's operators.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from fusedref.ops import autocast, autograd, by_torch, inference
from fusedref.ops.calls import Case, find, is_channels_last
from fusedref.ops.tracing import options
from fusedref.ops.training_runner import training_runner
from fusedref.parameters import TENSOR_NAMES, Parameters
from fusedref.problem import ELEMENTS, Problem

_CONVOLUTION = "int[2] stride, int[] padding, int[2] dilation, int groups, str precision"
_TAGS = (torch.Tag.pt2_compliant_tag,)

torch.library.define(
    "fusedref::conv_bn_scale",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor running_mean, Tensor running_var, Tensor? gamma, Tensor? beta, "
    f"float scaling_factor, float eps, {_CONVOLUTION}) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "fusedref::conv_bn_scale_training",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, float scaling_factor, float eps, "
    f"{_CONVOLUTION}) -> (Tensor y, Tensor mean, Tensor var, Tensor saved)",
    tags=_TAGS,
)
torch.library.define(
    "fusedref::conv_bn_scale_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor? gamma, Tensor mean, Tensor var, Tensor? saved, "
    f"float scaling_factor, float eps, {_CONVOLUTION}, bool training, bool[5] needs) -> Tensor[]",
    tags=_TAGS,
)
_EVALUATION = torch.ops.fusedref.conv_bn_scale.default
_TRAINING = torch.ops.fusedref.conv_bn_scale_training.default
_BACKWARD = torch.ops.fusedref.conv_bn_scale_backward.default


def _evaluate(
    x: Tensor, weight: Tensor, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, gamma: Tensor | None,
    beta: Tensor | None, scaling_factor: float, eps: float, *convolution: Any,
) -> Tensor:  # fmt: skip
    tensors = (x, weight, bias, running_mean, running_var, gamma, beta)
    case, ready = _case(tensors, convolution)
    if case.by_torch:
        y = by_torch.evaluate(Parameters(*tensors, scaling_factor, eps), case.problem.conv_options)
    else:
        bias = bias if bias is None else bias.to(case.vector_dtype)
        y = inference.evaluate(case, (x, weight, bias, *tensors[3:]), scaling_factor, eps, ready)
    return y.contiguous(memory_format=case.memory_format)


def _train(
    x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, scaling_factor: float,
    eps: float, *convolution: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    case, ready = _case((x, weight, bias, None, None, gamma, beta), convolution, training=True)
    runner = case.training_runner
    if runner is not None:
        bias = bias if bias is None else bias.to(case.vector_dtype)
        return autograd.train(runner, case, (x, weight, bias, gamma, beta), scaling_factor, eps, None, ready)
    y, mean, var, z = by_torch.forward(x, weight, bias, gamma, beta, scaling_factor, eps, case.problem.conv_options)
    y, z = (tensor.contiguous(memory_format=case.memory_format) for tensor in (y, z))
    return y, mean, var, z


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, mean: Tensor, var: Tensor,
    saved: Tensor | None, scaling_factor: float, eps: float, *rest: Any,
) -> list[Tensor]:  # fmt: skip
    *convolution, training, needs = rest
    statistics = (None, None) if training else (mean, var)
    case, _ = _case((x, weight, bias, *statistics, gamma, None), convolution, training)
    vector = bias if bias is None else bias.to(case.vector_dtype)
    with torch.no_grad():
        dx, dweight, dbias, dgamma, dbeta = autograd.gradients(
            case, dy, x, weight, vector, gamma, mean, var, saved, scaling_factor, eps, tuple(needs), training
        )
    if dx is not None:
        dx = dx.contiguous(memory_format=case.memory_format)
    if dweight is not None:
        dweight = dweight.contiguous(memory_format=_format_of(weight))
    if bias is not None and dbias is not None:
        dbias = dbias.to(bias.dtype)
    return [gradient for gradient in (dx, dweight, dbias, dgamma, dbeta) if gradient is not None]


def _case(tensors: tuple[Tensor | None, ...], convolution: Any, training: bool = False) -> tuple[Case, bool]:
    *numbers, precision = convolution
    call = find(tensors, **options(*numbers), precision=sys.intern(precision), training=training)
    return call.case, call.ready


def _format_of(weight: Tensor, x: Tensor | None = None) -> torch.memory_format:
    """Return channels_last where the weight or x is in that order, else the contiguous format."""
    last = is_channels_last(weight) or (x is not None and is_channels_last(x))
    return torch.channels_last if last else torch.contiguous_format


def _fake_evaluate(
    x: Tensor, weight: Tensor, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, gamma: Tensor | None,
    beta: Tensor | None, scaling_factor: float, eps: float, *convolution: Any,
) -> Tensor:  # fmt: skip
    return _fake_y(x, weight, (bias, running_mean, running_var, gamma, beta), convolution)


def _fake_train(
    x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, scaling_factor: float,
    eps: float, *convolution: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y = _fake_y(x, weight, (bias, None, None, gamma, beta), convolution)
    if y.shape[0] * y.shape[2] * y.shape[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")
    statistics = x.new_empty(weight.shape[:1], dtype=torch.promote_types(x.dtype, torch.float32))
    elements = _saved_elements(x, weight, bias, gamma, convolution)
    saved = x.new_empty(elements, dtype=torch.float64) if elements else torch.empty_like(y)
    return y, statistics, torch.empty_like(statistics), saved


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, mean: Tensor, var: Tensor,
    saved: Tensor | None, scaling_factor: float, eps: float, *rest: Any,
) -> list[Tensor]:  # fmt: skip
    vector = mean if gamma is None else gamma
    like = (
        (x, _format_of(weight, x)),
        (weight, _format_of(weight)),
        (weight if bias is None else bias, None),
        (vector, None),
        (vector, None),
    )
    return [
        tensor.new_empty(weight.shape[:1]) if form is None else torch.empty_like(tensor, memory_format=form)
        for (tensor, form), needed in zip(like, rest[-1], strict=True)
        if needed
    ]


def _fake_y(x: Tensor, weight: Tensor, vectors: tuple[Tensor | None, ...], convolution: Any) -> Tensor:
    *numbers, _ = convolution
    for name, vector in zip(TENSOR_NAMES[2:], vectors, strict=True):
        if vector is not None and (vector.dim() != 1 or vector.shape[0] != weight.shape[0]):
            raise ValueError(f"{name} must be [out_channels], got shape {tuple(vector.shape)}")
    z = by_torch.convolve(x, weight, None, **options(*numbers))
    return torch.empty_like(z, memory_format=_format_of(weight, x))


def _saved_elements(x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, convolution: Any) -> int:
    """Return how many float64 numbers the runner saves for backward, 0 where the convolution is saved."""
    *numbers, precision = convolution
    if x.dtype not in ELEMENTS or x.device.type not in ("cpu", "cuda") or (x.is_cuda and not torch.cuda.is_available()):
        return 0
    batch, in_channels, height, width = [_hint(size) for size in x.shape]
    out_channels, _, *kernel = [_hint(size) for size in weight.shape]
    problem = Problem(
        batch, in_channels, out_channels, height, width, (kernel[0], kernel[1]), bias=bias is not None, dtype=x.dtype,
        **options(*numbers),
    )  # fmt: skip
    vectors = next((vector for vector in (gamma, bias) if vector is not None), x)
    last = _format_of(weight, x) == torch.channels_last
    with _disable_current_modes():  # what a runner makes for itself is no fake tensor
        runner = training_runner(problem, x.device, precision, last, vectors.dtype)
    return 0 if runner is None else runner.saved_elements


def _hint(size: Any) -> int:
    """Return a size that stands for an open one; the choice of a runner does not depend on it."""
    return size if type(size) is int else int(size.node.hint or 16)


def _set_up_evaluation(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, mean, var, gamma, _, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias, gamma, mean, var)


def _differentiate_evaluation(ctx: Any, dy: Tensor) -> Any:
    x, weight, bias, gamma, mean, var = ctx.saved_tensors
    needs = (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[5:7])
    dx, dweight, dbias, dgamma, dbeta = _placed(
        _BACKWARD(dy, x, weight, bias, gamma, mean, var, None, *ctx.options, False, needs), needs
    )
    return dx, dweight, dbias, None, None, dgamma, dbeta, *[None] * len(ctx.options)


def _set_up_training(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, gamma, _, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, gamma, *output[1:])


def _differentiate_training(ctx: Any, dy: Tensor, *_: Any) -> Any:
    needs = ctx.needs_input_grad[:5]
    found = _placed(_BACKWARD(dy, *ctx.saved_tensors, *ctx.options, True, needs), needs)
    return *found, *[None] * len(ctx.options)


def _placed(found: list[Tensor], needs: Any) -> list[Tensor | None]:
    """Return the gradients at their places, None where they are not needed."""
    following = iter(found)
    return [next(following) if needed else None for needed in needs]


def _set_up_backward(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[8:]


def _differentiate_backward(ctx: Any, grads: list[Tensor | None]) -> Any:
    """Differentiate backward itself: torch's formulas for it, written in torch's operators, are differentiated."""
    scaling_factor, eps, *numbers, _, training, needs = ctx.options
    tensors = ctx.saved_tensors
    again = torch.is_grad_enabled()
    dy, x, weight, bias, gamma, mean, var = tensors
    with torch.enable_grad():
        found = by_torch.backward(
            dy, x, weight, bias, gamma, mean, var, None, scaling_factor, eps, options(*numbers), needs, training
        )
        pairs = [
            (gradient, given)
            for gradient, given in zip([g for g in found if g is not None], grads, strict=True)
            if given is not None and gradient.requires_grad
        ]
        places = [place for place, needed in enumerate(ctx.needs_input_grad[:5]) if needed]
        results = torch.autograd.grad(
            [first for first, _ in pairs], [tensors[place] for place in places], [second for _, second in pairs],
            create_graph=again, allow_unused=True,
        )  # fmt: skip
    answer: list[Any] = [None] * 8
    for place, result in zip(places, results, strict=True):
        answer[place] = result
    # torch takes an empty list for one of tensors, and wants as many gradients.
    return *answer, *[[] if option == [] else None for option in ctx.options]


def _decomposed_evaluation(*arguments: Any) -> Tensor:
    *parameters, stride, padding, dilation, groups, _ = arguments
    return by_torch.evaluate(Parameters._make(parameters), options(stride, padding, dilation, groups))


def _decomposed_training(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, bias, gamma, beta, scaling_factor, eps, *numbers, _ = arguments
    return by_torch.forward(x, weight, bias, gamma, beta, scaling_factor, eps, options(*numbers))


def _decomposed_backward(*arguments: Any) -> list[Tensor]:
    dy, x, weight, bias, gamma, mean, var, _, scaling_factor, eps, *numbers, _, training, needs = arguments
    found = by_torch.backward(
        dy, x, weight, bias, gamma, mean, var, None, scaling_factor, eps, options(*numbers), needs, training
    )
    return [gradient for gradient in found if gradient is not None]


def _batched_evaluation(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> Any:
    if any(isinstance(dim, int) for dim in in_dims[1:]):
        return _one_by_one(_EVALUATION, info, in_dims, x, *rest)
    images = x.movedim(in_dims[0], 0)
    y = _EVALUATION(images.flatten(0, 1), *rest)
    return y.view(*images.shape[:2], *y.shape[1:]), 0


def _one_by_one(operator: Any, info: Any, in_dims: Any, *inputs: Any) -> Any:
    results = [
        operator(*[
            value.select(dim, i) if isinstance(dim, int) else value  # of a list there is a list of None
            for value, dim in zip(inputs, in_dims, strict=True)
        ])
        for i in range(info.batch_size)
    ]  # fmt: skip
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = type(results[0])(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, type(results[0])(0 for _ in stacked)


def _autocast(operator: Any) -> Any:
    def cast(_: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        """Cast as a convolution does and call the operator below autocast."""
        kind = x.device.type
        x, weight, bias = autocast.cast_to(torch.get_autocast_dtype(kind), kind, x, weight, bias)
        *others, precision = rest
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return operator(x, weight, bias, *others, precision if x.dtype == torch.float32 else "fp32")

    return cast


def _flops(x: Any, weight: Any, *_: Any, out_val: Any, **__: Any) -> int:
    out = out_val if isinstance(out_val, Tensor) else out_val[0]
    count: int = conv_flop_count(list(x.shape), list(weight.shape), list(out.shape))
    return count


def _backward_flops(dy: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Count a convolution for the gradient of x, and one for that of the weight."""
    count: int = conv_flop_count(list(x.shape), list(weight.shape), list(dy.shape))
    return count * int(sum(rest[-1][:2]))


_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_LIBRARY: Any = torch.library.Library("fusedref", "FRAGMENT")  # type: ignore[no-untyped-call]


def _register(
    operator: Any,
    implementation: Any,
    fake: Any,
    set_up: Any,
    formula: Any,
    decomposition: Any,
    batched: Any,
    flops: Any,
) -> None:
    name = operator.name()
    torch.library.impl(name, ("cpu", "cuda"), implementation)
    torch.library.register_fake(name, fake)
    differentiable = make_autograd_impl(operator, Info(formula, set_up))

    def differentiate(keys: Any, *arguments: Any) -> Any:
        """Do as ``torch.library.register_autograd`` does, which neither functorch nor forward mode can differentiate.

        They get torch's own operators.
        """
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if torch._C._are_functorch_transforms_active() or autograd.has_tangent(tensors):
            return decomposition(*arguments)
        return differentiable(keys, *arguments)

    _LIBRARY.impl(operator._name, differentiate, "Autograd", with_keyset=True)
    torch.library.register_vmap(name, batched)
    register_flop_formula(operator.overloadpacket, get_raw=True)(flops)


_register(
    *(_EVALUATION, _evaluate, _fake_evaluate, _set_up_evaluation, _differentiate_evaluation),
    *(_decomposed_evaluation, _batched_evaluation, _flops),
)
_register(
    *(_TRAINING, _train, _fake_train, _set_up_training, _differentiate_training),
    *(_decomposed_training, partial(_one_by_one, _TRAINING), _flops),
)
_register(
    *(_BACKWARD, _backward, _fake_backward, _set_up_backward, _differentiate_backward),
    *(_decomposed_backward, partial(_one_by_one, _BACKWARD), _backward_flops),
)
for _operator in (_EVALUATION, _TRAINING):  # in backward everything has been cast
    for _key in ("AutocastCPU", "AutocastCUDA"):
        _LIBRARY.impl(_operator._name, _autocast(_operator), _key, with_keyset=True)
