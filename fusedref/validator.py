"""validate(candidate, problem) -> Report: is this function, or this kernel, the operator, to rounding?

The candidate is called on fresh random inputs, in several shapes around the problem, with every parameter of BatchNorm,
eps and the scale drawn anew, so that nothing can be left out unseen. Memory that it allocates through torch starts as
NaN. What it returns is compared, element by element, with float64.

The rounding bound. Let u = 2**-24, K the number of products in an output, m the output with every term made positive:

    m = (conv(|x|, |weight|) + |bias| + |running_mean|) / sqrt(running_var + eps) * |gamma| + |beta|, times |scale|

Each element must be within 32 u m of float64. After the sum come at most eight roundings, each of at most u m. In the
sum, the terms have random signs (the inputs are drawn so): its partial sums grow as sqrt(K) where m grows as K, and the
error of a sequential float32 sum has a standard deviation of 0.5 u m, whatever K is, and three times that if it starts
from a folded bias instead of zero. The bound is three times what the largest of many such errors need. With inputs
rounded to tf32 the largest errors are some 3000 u m at K = 72 and 500 at K = 4608.

The error of all elements together, in the L2 norm, must be within (8 + sqrt(K)) u of the result's: the sequential sum
gives 0.3 sqrt(K) u, tf32 2000 u and more. Where the terms of a result happen to cancel, its norm counts as
|m| / sqrt(K + 3) at least, which is no more than terms of random signs would give.

At precision tf32 the factors of the products may have been rounded to tf32 as well, nothing else. Let t = 2**-11, the
largest relative error of that rounding, and

    q = sqrt(conv(x**2, weight**2)) / sqrt(running_var + eps) * |gamma|, times |scale|

The errors of the products are independent, so an element is off by 0.6 t q in standard deviation, whatever K is. Where
the low bits are cut off instead of rounded, as tensor cores do with what nobody has rounded, it is 1.6 t q, and with
bfloat16 factors 4.8 t q. Each element may be 10 t q farther off than in float32, six times the deviation of cut ones,
and all together, in the L2 norm, 2.5 t |q|: a single product, rounded, is off by 2 t q at most. So bfloat16 is
refused, by the norm at the latest.

Where the tensors are float16 or bfloat16, float64 gets them as they are, for the arithmetic is to be float32's on them,
with one rounding at the end: each element may be half the distance between two numbers of y's dtype farther off, and
all together by the norm of that. A second rounding, of the sum or of folded weights, or one through another dtype, is
more than that wherever the first does not leave room for it, which it seldom does.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import Out, launch
from fusedref.fused import forced_to_emulator
from fusedref.planning import check_precision
from fusedref.problem import KERNELBENCH_73, SMALL_73, Problem
from fusedref.reference import oracle
from fusedref.report import Case, Errors, Report, Worst, rounding_of

Candidate = Callable[..., Tensor]

UNIT = 2.0**-24  # half the distance from 1 to the next float32: the largest relative error of one rounding
ELEMENT_LIMIT = 32  # units of UNIT * m
TF32_UNIT = 2.0**-11  # the same for tf32
TF32_ELEMENT_LIMIT = 10  # units of TF32_UNIT * q
TF32_NORM_LIMIT = 2.5


class Inputs(NamedTuple):
    """The arguments of a candidate, in order."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor
    beta: Tensor
    scaling_factor: float
    eps: float


def draw(problem: Problem, seed: int, device: torch.device | str = "cpu", vectors: torch.dtype | None = None) -> Inputs:
    """Random inputs in which no parameter is near 0 or the default, so that none can be left out unseen.

    The sums have a standard deviation of 2, and what is added to them afterwards is of that order. All are rounded to
    the problem's dtype; bias, running_mean, running_var, gamma and beta to ``vectors`` if given.
    """
    vectors = vectors or problem.dtype
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        """Of mean 0 and standard deviation 1."""
        return torch.randn(shape, generator=generator, device=device)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        """Between ``low`` and ``high``."""
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    def signed(low: float, high: float, *shape: int) -> Tensor:
        """Magnitudes between ``low`` and ``high``, of either sign."""
        sign = torch.randint(0, 2, shape, generator=generator, device=device) * 2.0 - 1.0
        return sign * uniform(low, high, *shape)

    channels = problem.out_channels
    return Inputs(
        x=normal(*problem.input_shape).to(problem.dtype),
        weight=(normal(*problem.weight_shape) * 2 / math.sqrt(problem.taps)).to(problem.dtype),
        bias=signed(0.25, 1.0, channels).to(vectors) if problem.bias else None,
        running_mean=signed(0.25, 1.0, channels).to(vectors),
        running_var=uniform(0.25, 4.0, channels).to(vectors),
        gamma=signed(0.5, 1.5, channels).to(vectors),
        beta=signed(0.25, 1.0, channels).to(vectors),
        scaling_factor=signed(1.1, 1.9).item(),
        eps=uniform(0.01, 0.1).item(),
    )


def shapes_around(problem: Problem) -> list[tuple[str, Problem]]:
    """The problem, and smaller ones with its channels, kernel, stride, padding, dilation and groups."""

    def resized(batch: int, out_height: int, out_width: int, rest: int = 0) -> Problem:
        """With so many outputs, and ``rest`` more rows and columns of input than they need, if the stride allows."""
        height, width = (
            max(1, span - sum(pads) + (out - 1) * stride + min(rest, stride - 1))
            for span, pads, out, stride in zip(problem.span, problem.pads, (out_height, out_width), problem.strides)
        )
        return dataclasses.replace(problem, batch=batch, height=height, width=width)

    return [
        ("the problem", problem),
        ("tall, odd sizes", resized(3, 17, 5)),
        ("the same shape again", resized(3, 17, 5)),
        ("wide, one image", resized(1, 9, 31, rest=1)),
        ("one pixel", resized(1, 1, 1)),
    ]


def validate(
    candidate: Candidate,
    problem: Problem | None = None,
    *,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Report:
    """Whether ``candidate`` computes convolution, BatchNorm with running statistics and scale as ``problem`` has them.

    ``candidate(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)`` takes torch tensors
    (bias is None where the problem has none) and two floats, and returns y. It is called several times, with batches
    and images of several sizes; channels, kernel, stride, padding, dilation and groups stay the problem's. It must
    leave its inputs alone and return new memory. An exception that it raises becomes a reason. Every input changes from
    call to call, also where it stays at its address. gamma and beta are never None here: whether a candidate takes None
    for them is not tested.

    ``problem`` is KERNELBENCH_73 on a GPU and SMALL_73 elsewhere if not given. ``device`` is the GPU if there is one
    (and FUSEDREF_DEVICE does not say emulator). The same ``seed``, at least 0 and below 2**63, draws the same inputs.
    ``precision="fp32"`` accepts the rounding of float32 arithmetic and refuses tf32; ``"tf32"`` accepts x and weight
    rounded to tf32 besides, and refuses bfloat16. All tensors have the problem's dtype; with float16 or bfloat16 the
    arithmetic must be float32's and y rounded once. The module's text has the bounds.

    Raises TypeError and ValueError where an argument is none of these; the message names it.
    """
    if not callable(candidate):
        raise TypeError(f"candidate must be callable, got {type(candidate).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not forced_to_emulator() else "cpu"
    device = _device(device)
    if problem is None:
        problem = KERNELBENCH_73 if device.type == "cuda" else SMALL_73
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}")
    if problem.batch == 0:
        raise ValueError(f"problem must have a batch of at least 1, got {problem}")
    check_precision(precision, problem.dtype)

    cases: list[Case] = []
    earlier: tuple[Tensor, Tensor] | None = None  # the result before, and what it was when it was returned
    given: Inputs | None = None  # what the candidate got
    for number, (name, shape) in enumerate(shapes_around(problem)):
        inputs = draw(shape, seed + number, device)
        reasons: list[str] = []
        given = _in_place(inputs, given)
        y = _call(candidate, given, inputs, shape, reasons)
        if y is None and _lost(device):
            reasons.append("the GPU is lost to this process: restart it")
            cases.append(Case(name, shape, math.nan, None, None, tuple(reasons)))
            break
        if earlier is not None and not _same_bits(*earlier):
            reasons.append("the result of an earlier call changes with the next call: y must be new memory each time")
        earlier = None
        if y is None:
            cases.append(Case(name, shape, math.nan, None, None, tuple(reasons)))
        else:
            cases.append(compare(name, shape, inputs, y, reasons, precision))
            if y.numel() <= 2**20:
                earlier = y, y.clone()
    return Report(problem, precision, str(device), seed, tuple(cases))


def _device(given: torch.device | str) -> torch.device:
    """The CPU or a GPU that is here, or the error that ``given`` deserves."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {given!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device must be here, got {str(device)!r} where torch finds {torch.cuda.device_count()} GPUs; "
            "on 'cpu' a kernel runs on the emulator"
        )
    return device


def candidate_from_kernel(path: str | Path, name: str) -> Candidate:
    """The kernel ``name`` of a .cu file as a candidate. It has the signature of ``fused`` in kernels/04_fused.cu.

    It is launched with blocks of 256 threads, ceil(outputs / 256) of them, for stride 1, no padding, a square kernel
    and one group. A null pointer never reaches it: where bias, gamma or beta is None it gets zeros, ones and zeros.

    Raises FileNotFoundError where there is no such file. The candidate raises TypeError where x is not float32.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")

    def candidate(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps):
        """y by the learner's kernel, between guards that it must leave alone."""
        if x.dtype != torch.float32:
            raise TypeError(f"the kernel takes float32 tensors, got {x.dtype}")
        batch, in_channels, height, width = x.shape
        out_channels, _, kernel_size, _ = weight.shape
        shape = batch, out_channels, height - kernel_size + 1, width - kernel_size + 1
        outputs = math.prod(shape)
        guard = 1024  # elements of NaN on both sides of y, which must stay so
        memory = torch.full((guard + outputs + guard,), torch.nan, device=x.device)
        y = memory[guard:-guard]
        zeros, ones = torch.zeros_like(running_mean), torch.ones_like(running_mean)
        launch(
            source_module(path, device=x.device).get_function(name),
            x, weight, zeros if bias is None else bias, running_mean, running_var,
            ones if gamma is None else gamma, zeros if beta is None else beta,
            np.float32(scaling_factor), np.float32(eps), Out(y),
            *[np.int32(size) for size in (batch, in_channels, height, width, out_channels, kernel_size)],
            grid=(math.ceil(outputs / 256), 1, 1), block=(256, 1, 1),
        )  # fmt: skip
        if not (memory[:guard].isnan().all() and memory[-guard:].isnan().all()):
            raise IndexError(f"{name} writes outside y, which has {outputs} elements: is its guard missing?")
        return y.view(shape)

    return candidate


def _in_place(inputs: Inputs, before: Inputs | None) -> Inputs:
    """Copies of ``inputs`` for the candidate, in the memory of those before where the shape is the same.

    So what a candidate keeps by an address is stale, and seen.
    """

    def copied(new: Tensor | float | None, old: Tensor | float | None) -> Tensor | float | None:
        """One of them; what is no tensor stays as it is."""
        if not isinstance(new, Tensor):
            return new
        with torch.no_grad():
            return old.copy_(new) if isinstance(old, Tensor) and old.shape == new.shape else new.clone()

    return Inputs(*map(copied, inputs, before or [None] * len(inputs)))


def _call(candidate: Candidate, given: Inputs, inputs: Inputs, problem: Problem, reasons: list[str]) -> Tensor | None:
    """What the candidate returns for ``given``, copies of ``inputs``, if it can be compared at all.

    What is wrong with the call goes to ``reasons``.
    """
    try:
        with _poisoned(), torch.no_grad():
            y = candidate(*given)
        if given.x.is_cuda:
            torch.cuda.synchronize(given.x.device)  # a kernel's error appears only here
    except (Exception, SystemExit) as error:
        reasons.append(f"raised {type(error).__name__}: {error}")
        return None

    tensors = {name: value for name, value in given._asdict().items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if not torch.equal(tensor, getattr(inputs, name)):
            reasons.append(f"changes its input {name}")
    if not isinstance(y, Tensor):
        reasons.append(f"returned {type(y).__name__}, a torch.Tensor is needed")
        return None
    if y.layout != torch.strided:
        reasons.append(f"returned a {y.layout} tensor, a dense one is needed")
        return None
    if y.device != given.x.device:
        reasons.append(f"returned a tensor on {y.device}, one on {given.x.device} is needed")
        return None
    if y.dtype != problem.dtype:
        reasons.append(f"returned {y.dtype}, {problem.dtype} is needed")
    if tuple(y.shape) != problem.output_shape:
        batch, channels, height, width = problem.output_shape
        swapped = ": height and width are swapped" if tuple(y.shape) == (batch, channels, width, height) else ""
        reasons.append(f"returned shape {tuple(y.shape)}, {problem.output_shape} is needed{swapped}")
        return None
    for name, tensor in tensors.items():
        if y.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            reasons.append(f"returned the memory of its input {name}: y must be new memory")
    return y


@contextmanager
def _poisoned() -> Iterator[None]:
    """Memory that torch allocates inside is filled with NaN (torch does so in its deterministic mode)."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")  # the candidate did not ask for this mode
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]


def _lost(device: torch.device) -> bool:
    """Whether the device refuses all further work, as CUDA does after an access to memory that is not there."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:
            return True
    return False


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def compare(
    name: str,
    problem: Problem,
    inputs: Inputs,
    y: Tensor,
    reasons: Sequence[str] = (),
    precision: str = "fp32",
) -> Case:
    """The case for ``y``: how far from float64 it is, where it is too far, and why, as far as can be seen.

    ``reasons`` are those already found; those found here join them in the case.
    """
    reasons = list(reasons)
    errors = Errors(problem)
    worst = None
    squares = torch.zeros(5, dtype=torch.float64)  # of the error, of the result, of m, of q, of the rounding of y
    images = max(1, 2**24 // math.prod(problem.output_shape[1:]))  # at a time, for the memory's sake
    for start in range(0, problem.batch, images):
        part = inputs._replace(x=inputs.x[start : start + images])
        got = y[start : start + images].double()
        expected, magnitude = _expected(problem, part), _magnitude(problem, part)
        spread = _spread(problem, part, precision)
        allowed = _allowed(magnitude, spread)
        rounding = _rounding(expected.abs() + allowed, problem.dtype)
        error = (got - expected).abs()
        bounds = (error / (allowed + rounding)).nan_to_num(nan=math.inf)
        errors.add(start, bounds > 1, got)
        summed = error, expected, magnitude, spread, rounding
        squares += torch.stack([values.square().sum() for values in summed]).cpu()
        index = int(bounds.argmax())
        if worst is None or bounds.reshape(-1)[index] > worst.bounds:
            image, *rest = (int(i) for i in np.unravel_index(index, bounds.shape))
            here = (image, *rest)
            worst = Worst((start + image, *rest), got[here].item(), expected[here].item(), bounds[here].item())

    error, result, magnitude, spread, rounding = squares.sqrt().tolist()
    relative_l2 = error / result
    limit = (8 + math.sqrt(problem.taps)) * UNIT * max(result, magnitude / math.sqrt(problem.taps + 3))
    limit += TF32_NORM_LIMIT * TF32_UNIT * spread + rounding
    if errors.wrong:
        reasons += errors.in_words()
        reasons += _explained(problem, inputs, y, relative_l2, errors, precision)
    elif not error <= limit:
        arithmetic = rounding_of(precision, problem.dtype)
        reasons.append(f"the relative L2 error is {relative_l2:.1e}, {arithmetic} stays below {limit / result:.1e}")
    return Case(name, problem, relative_l2, worst, errors, tuple(reasons))


def _expected(problem: Problem, inputs: Inputs) -> Tensor:
    return oracle(
        *inputs,
        stride=problem.stride, padding=problem.padding, dilation=problem.dilation, groups=problem.groups,
    )  # fmt: skip


def _magnitude(problem: Problem, inputs: Inputs) -> Tensor:
    """m of the module's text: the output with every term made positive."""
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = inputs
    positive = Inputs(
        x.abs(), weight.abs(), None if bias is None else bias.abs(), -running_mean.abs(), running_var,
        gamma.abs(), beta.abs(), abs(scaling_factor), eps,
    )  # fmt: skip
    return _expected(problem, positive)


def _spread(problem: Problem, inputs: Inputs, precision: str) -> Tensor:
    """q of the module's text; zero in float32, where it allows nothing."""
    if precision == "fp32":
        return torch.zeros((), dtype=torch.float64, device=inputs.x.device)
    # q squared is the operator too: of squares, and with the square of the variance, for its root is taken.
    x, weight, gamma = (tensor.double().square() for tensor in (inputs.x, inputs.weight, inputs.gamma))
    variance, nothing = (inputs.running_var.double() + inputs.eps) ** 2, torch.zeros_like(inputs.running_mean)
    squares = Inputs(x, weight, None, nothing, variance, gamma, nothing, inputs.scaling_factor**2, 0.0)
    return _expected(problem, squares).sqrt()


def _allowed(magnitude: Tensor, spread: Tensor) -> Tensor:
    """How far off an element may be before it is rounded to the dtype of y."""
    return ELEMENT_LIMIT * UNIT * magnitude + TF32_ELEMENT_LIMIT * TF32_UNIT * spread


def _rounding(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of the numbers of ``dtype`` from each other at these sizes; 0 where y is float32 anyway."""
    if dtype == torch.float32:
        return torch.zeros_like(sizes)
    numbers = torch.finfo(dtype)
    fraction = torch.frexp(sizes.clamp(min=numbers.tiny)).mantissa  # from 0.5 to 1
    return sizes.clamp(min=numbers.tiny) / (2 * fraction) * (numbers.eps / 2)


def _explained(
    problem: Problem, inputs: Inputs, y: Tensor, relative_l2: float, errors: Errors, precision: str
) -> list[str]:
    """What the candidate may have done instead, where one of the usual slips gives exactly its first image."""
    if not y.any():
        return ["every element is zero"]
    first = inputs._replace(x=inputs.x[:1])
    for slip, changed in _slips(first):
        expected = _expected(problem, changed)
        allowed = _allowed(_magnitude(problem, changed), _spread(problem, changed, precision))
        allowed = allowed + _rounding(expected.abs() + allowed, problem.dtype)
        if ((y[:1].double() - expected).abs() <= allowed).all():
            return [f"y is what comes out where {slip}"]
    if relative_l2 < 2.0**-6 and errors.wrong >= y.numel() / 4:  # a few wrong elements are no matter of precision
        bits = -math.log2(relative_l2)
        return [f"the errors are those of about {bits:.0f} bits (float32 keeps 24, tf32 and fp16 11, bf16 8)"]
    return []


def _slips(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """The usual mistakes, as inputs with which the right operator gives the wrong answer."""
    mean, var, eps = inputs.running_mean, inputs.running_var, inputs.eps
    if inputs.bias is not None:
        yield "bias is left out", inputs._replace(bias=None)
    yield "running_mean is left out", inputs._replace(running_mean=torch.zeros_like(mean))
    yield "running_mean is added", inputs._replace(running_mean=-mean)
    yield "running_var is left out", inputs._replace(running_var=torch.ones_like(var))
    yield "running_var and eps are left out", inputs._replace(running_var=torch.ones_like(var), eps=0.0)
    yield "gamma is left out", inputs._replace(gamma=torch.ones_like(mean))
    yield "beta is left out", inputs._replace(beta=torch.zeros_like(mean))
    yield "eps is left out", inputs._replace(eps=0.0)
    yield "eps is 1e-5, whatever is given", inputs._replace(eps=1e-5)
    yield "eps is added after the square root", inputs._replace(running_var=(var.double().sqrt() + eps) ** 2, eps=0.0)
    yield "the square root is forgotten", inputs._replace(running_var=(var.double() + eps) ** 2, eps=0.0)
    yield "scaling_factor is left out", inputs._replace(scaling_factor=1.0)
    yield "scaling_factor is 2, whatever is given", inputs._replace(scaling_factor=2.0)
    yield "beta is added after the scale", inputs._replace(beta=inputs.beta.double() / inputs.scaling_factor)
    yield "the filter is flipped", inputs._replace(weight=inputs.weight.flip(2, 3))
    if inputs.weight.shape[2] == inputs.weight.shape[3]:
        yield "the filter's rows and columns are swapped", inputs._replace(weight=inputs.weight.transpose(2, 3))
