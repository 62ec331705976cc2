"""What is checked in training: a function, or a module with the layers ``conv`` and ``bn``.

Both become a subject: it holds the tensors of a call, makes the call and returns results by name. They are y,
running_mean, running_var and num_batches_tracked, and the gradients dx, dweight, dbias, dgamma and dbeta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusedref.parameters import Parameters
from fusedref.validation.call import copied_in_place
from fusedref.validation.training_reference import GRADIENTS

LAYERS = ("conv", "bn", "scaling_factor")
BATCHES = 3  # that a module has seen before each call
Results = dict[str, object]


class Subject(Protocol):
    """A candidate, called in one way whatever it is."""

    is_module: bool

    @property
    def evaluates(self) -> bool:
        """Return whether it computes evaluation mode as well, with the running statistics."""

    def fitted(self, inputs: Parameters) -> Parameters:
        """Return the inputs as the candidate can take them: a module has its own scale, eps and dtypes."""

    def momentum(self, drawn: float) -> float:
        """Return by how much the running statistics move: ``drawn``, or what a module has."""

    def given(self, inputs: Parameters, before: Parameters | None) -> Parameters:
        """Return the tensors that the candidate works with, with the values of ``inputs``."""

    def run(self, given: Parameters, momentum: float, training: bool) -> Results:
        """Call it without gradients; return y and the running statistics."""

    def differentiate(self, given: Parameters, dy: Tensor, training: bool, needs: Sequence[str]) -> Results:
        """Return the gradients of the inputs in ``needs``, and whatever else a call with gradients gives."""


class FunctionSubject:
    """A function with the signature that ``validate`` states for the mode."""

    is_module = False
    evaluates = False

    def __init__(self, candidate: Callable[..., Any]) -> None:
        self.candidate = candidate

    def fitted(self, inputs: Parameters) -> Parameters:
        """Return ``inputs``: a function takes any."""
        return inputs

    def momentum(self, drawn: float) -> float:
        """Return ``drawn``: a function takes any."""
        return drawn

    def given(self, inputs: Parameters, before: Parameters | None) -> Parameters:
        """Copy the inputs, into the memory of the copies before where it fits."""
        return copied_in_place(inputs, before)

    def run(self, given: Parameters, momentum: float, training: bool) -> Results:
        """Call the function; it updates the running statistics in place."""
        with torch.no_grad():
            y = self.candidate(*given, momentum)
        return {"y": y, "running_mean": given.running_mean, "running_var": given.running_var}

    def differentiate(self, given: Parameters, dy: Tensor, training: bool, needs: Sequence[str]) -> Results:
        """Call the function, which returns all five gradients."""
        rest = given.bias, given.gamma, given.beta, given.scaling_factor, given.eps
        with torch.no_grad():
            found = self.candidate(dy.clone(), given.x, given.weight, *rest)
        if not isinstance(found, (tuple, list)) or len(found) != len(GRADIENTS):
            got = f"{len(found)} values" if isinstance(found, (tuple, list)) else type(found).__name__
            raise TypeError(f"a tuple (dx, dweight, dbias, dgamma, dbeta) is needed, got {got}")
        return {name: gradient for name, gradient in zip(GRADIENTS, found, strict=True) if name in needs}


class ModuleSubject:
    """A module with ``conv``, ``bn`` and ``scaling_factor``, as ``ConvBnScale`` and KernelBench's ModelNew have."""

    is_module = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        layers: Any = module
        self.conv: Any = layers.conv
        self.bn: Any = layers.bn

    @property
    def evaluates(self) -> bool:
        """Return whether ``bn`` has running statistics."""
        return self.bn.running_mean is not None

    @property
    def device(self) -> torch.device:
        """Return where the module is."""
        device: torch.device = self.conv.weight.device
        return device

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """Return weight, bias, gamma and beta."""
        return self.conv.weight, self.conv.bias, self.bn.weight, self.bn.bias

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the module's mode, numbers and choice of gradients at the end."""
        mode, states = [(part, part.training) for part in self.module.modules()], self.module.state_dict()
        numbers = {name: value.clone() for name, value in states.items() if isinstance(value, Tensor)}
        needs = [(parameter, parameter.requires_grad) for parameter in self.module.parameters()]
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in numbers.items():
                    states[name].copy_(value)
            for part, training in mode:
                part.training = training
            for parameter, needed in needs:
                parameter.requires_grad_(needed)

    def fitted(self, inputs: Parameters) -> Parameters:
        """Return the inputs with the module's scale, eps and dtypes, without what the module does not have."""
        weight, bias, gamma, beta = (
            None if own is None or value is None else value.to(own.dtype)
            for own, value in zip(self.parameters, (inputs.weight, inputs.bias, inputs.gamma, inputs.beta), strict=True)
        )
        if weight is None or weight.shape != self.conv.weight.shape:
            raise ValueError(
                f"problem must be the module's: its weight is {tuple(self.conv.weight.shape)}, "
                f"the problem's is {tuple(inputs.weight.shape)}"
            )
        mean, var = inputs.running_mean, inputs.running_var
        if self.bn.running_mean is not None:
            mean, var = mean.to(self.bn.running_mean.dtype), var.to(self.bn.running_var.dtype)
        return Parameters(inputs.x, weight, bias, mean, var, gamma, beta, self._scaling_factor, self.bn.eps)

    @property
    def _scaling_factor(self) -> float:
        module: Any = self.module
        return float(module.scaling_factor)

    def momentum(self, drawn: float) -> float:
        """Return what ``bn`` has; None is the cumulative average."""
        return 1 / (BATCHES + 1) if self.bn.momentum is None else float(self.bn.momentum)

    def given(self, inputs: Parameters, before: Parameters | None) -> Parameters:
        """Copy the inputs into the module; return its tensors."""
        own = inputs._replace(
            weight=self.conv.weight.detach(),
            bias=None if self.conv.bias is None else self.conv.bias.detach(),
            gamma=None if self.bn.weight is None else self.bn.weight.detach(),
            beta=None if self.bn.bias is None else self.bn.bias.detach(),
        )
        if self.bn.running_mean is not None:
            own = own._replace(running_mean=self.bn.running_mean, running_var=self.bn.running_var)
            self.bn.num_batches_tracked.fill_(BATCHES)
        with torch.no_grad():
            for tensor, value in zip(own.tensors[1:], inputs.tensors[1:], strict=True):
                if tensor is not None and value is not None and tensor is not value:
                    tensor.copy_(value)
        x = copied_in_place(inputs, before).x
        return own._replace(x=x)

    def evaluated(self, x: Tensor, *_: object) -> Any:
        """Call the module in evaluation mode, as a candidate whose other arguments the module has already."""
        self.module.eval()
        return self.module(x)

    def run(self, given: Parameters, momentum: float, training: bool) -> Results:
        """Call the module without gradients."""
        self.module.train(training)
        with torch.no_grad():
            y = self.module(given.x)
        return {"y": y, **self._statistics()}

    def differentiate(self, given: Parameters, dy: Tensor, training: bool, needs: Sequence[str]) -> Results:
        """Call the module with gradients of what is in ``needs``, and differentiate it."""
        self.module.train(training)
        x = given.x.detach()
        tensors = {
            name: tensor for name, tensor in zip(GRADIENTS, (x, *self.parameters), strict=True) if tensor is not None
        }
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in needs)
        with torch.enable_grad():
            y = self.module(x)
            wanted = [name for name in tensors if name in needs]
            found = torch.autograd.grad(y, [tensors[name] for name in wanted], dy.clone(), allow_unused=True)
        return {"y": y, **dict(zip(wanted, found, strict=True)), **self._statistics()}

    def _statistics(self) -> Results:
        if self.bn.running_mean is None:
            return {}
        names = "running_mean", "running_var", "num_batches_tracked"
        return {name: getattr(self.bn, name) for name in names}


def has_layers(candidate: object) -> bool:
    """Return whether the candidate is a module with conv, bn and scaling_factor."""
    return isinstance(candidate, nn.Module) and all(hasattr(candidate, name) for name in LAYERS)


def subject_of(candidate: object) -> Subject:
    """Return the subject of a candidate; raise TypeError for a module without the layers, and for no function."""
    if isinstance(candidate, nn.Module):
        if not has_layers(candidate):
            missing = next(name for name in LAYERS if not hasattr(candidate, name))
            raise TypeError(
                "candidate must be a function or a module with conv, bn and scaling_factor; "
                f"this {type(candidate).__name__} has no {missing}"
            )
        return ModuleSubject(candidate)
    if isinstance(candidate, type) and issubclass(candidate, nn.Module):
        raise TypeError(f"candidate must be a module, got the class {candidate.__name__}: call it with its sizes")
    if not callable(candidate):
        raise TypeError(f"candidate must be a function or a module, got {type(candidate).__name__}")
    return FunctionSubject(candidate)


def by_autograd(training_candidate: Callable[..., Tensor]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Return a candidate of ``mode="backward"`` that differentiates a candidate of ``mode="train"`` by autograd."""

    def gradients(
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        scaling_factor: float,
        eps: float,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias, gamma and beta."""
        inputs = [
            None if value is None else value.detach().requires_grad_() for value in (x, weight, bias, gamma, beta)
        ]
        mean, var = torch.zeros_like(beta), torch.ones_like(beta)
        with torch.enable_grad():
            y = training_candidate(*inputs[:3], mean, var, *inputs[3:], scaling_factor, eps, 0.1)
            present = [value for value in inputs if value is not None]
            found = iter(torch.autograd.grad(y, present, dy))
        return tuple(None if value is None else next(found) for value in inputs)

    return gradients
