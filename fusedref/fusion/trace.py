"""Follow the calls of a model's layers by torch.fx, through branches and around what cannot be traced.

A module that cannot be traced is one call in its parent's trace, and is traced alone. There, a branch on data is
followed both ways. If even that is impossible, the children that the module uses by calling them are traced alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx, nn

from fusedref.fusion.copies import copied
from fusedref.fusion.source import used_otherwise
from fusedref.module import FusedConvBnScale

MOST_PATHS = 64  # through one module
MOST_BRANCHES = 32  # in one path


@dataclasses.dataclass
class Trace:
    """What the traces of a model show."""

    model: nn.Module  # a copy, which shares the parameters
    graphs: list[tuple[str, fx.Graph]] = dataclasses.field(default_factory=list)  # with the module that was traced
    untraced: dict[str, str] = dataclasses.field(default_factory=dict)  # modules that cannot be traced, and why
    called_by: dict[str, str] = dataclasses.field(default_factory=dict)  # layers that one of these calls directly
    apart: dict[str, str] = dataclasses.field(default_factory=dict)  # modules that one of these uses in another way


def trace(model: nn.Module) -> Trace:
    """Trace ``model`` in training and in evaluation mode; raise TypeError where copy.deepcopy cannot copy it.

    A copy is traced, because forward may store what it computes. It shares the parameters.
    """
    copy = copied(model, shares_parameters=True)
    names = {module: name for name, module in copy.named_modules()}
    found = Trace(copy)
    waiting, seen = [copy], {copy}
    while waiting:
        root = waiting.pop(0)
        tracer = _RootTracer(root, names, found)
        failure = tracer.run()
        alone = tracer.alone
        if failure is not None:
            name = names[root]
            found.untraced[name] = failure
            alone = alone | set(_parts(root))
            for child, use in used_otherwise(root).items():
                found.apart |= {names[module]: use for module in child.modules()}
        waiting += [module for module in alone if module not in seen and not is_leaf(module)]
        seen |= alone
    return found


def is_layer(module: nn.Module) -> bool:
    """Return whether ``module`` is a convolution or a BatchNorm."""
    return isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm))


def is_leaf(module: nn.Module) -> bool:
    """Return whether a trace takes ``module`` for one call: a layer, or a module without layers."""
    return (
        is_layer(module) or isinstance(module, FusedConvBnScale) or not any(is_layer(part) for part in module.modules())
    )


def has_hook(module: nn.Module) -> bool:
    """Return whether a hook runs when ``module`` is called."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


class _RootTracer:
    """The traces of one module's forward: in both modes, with and without optional arguments, along every branch."""

    def __init__(self, root: nn.Module, names: dict[nn.Module, str], found: Trace) -> None:
        self.root, self.names, self.found = root, names, found
        self.alone: set[nn.Module] = set()  # modules within that have to be traced alone

    def run(self) -> str | None:
        """Add the graphs to what is found; return why the module cannot be traced, None if it can."""
        if "forward" in vars(self.root):
            return "its forward was replaced"
        while True:  # until all traces agree on what has to be traced alone
            graphs: list[fx.Graph] = []
            known = len(self.alone)
            for training in (True, False):
                for module in self.root.modules():
                    module.training = training
                for with_defaults in (True, False) if _has_defaults(self.root) else (True,):
                    failure = self._follow(with_defaults, graphs)
                    if failure is not None:
                        return failure
            if len(self.alone) == known:
                self.found.graphs += [(self.names[self.root], graph) for graph in graphs]
                return None

    def _follow(self, with_defaults: bool, graphs: list[fx.Graph]) -> str | None:
        """Trace every path in one mode; return why that cannot be done, None if it can."""
        waiting: list[list[bool]] = [[]]
        for _ in range(MOST_PATHS):
            decided = waiting.pop()
            tracer = _Tracer(self.names, self.alone, decided, with_defaults)
            with quiet():
                try:
                    graphs.append(tracer.trace(self.root))
                except Exception as error:  # whatever forward raises
                    if not (tracer.taken and _is_raised_by(self.root, error)):
                        self.found.called_by |= dict.fromkeys(tracer.direct_calls(), self.names[self.root])
                        return _reason(error)
            waiting += [[*tracer.taken[:i], False] for i in range(len(decided), len(tracer.taken))]
            if not waiting:
                return None
        return f"more than {MOST_PATHS} paths"


class _Tracer(fx.Tracer):
    """Traces one path through a module, whose branches go as ``decided`` says, and then the way of True."""

    def __init__(
        self, names: dict[nn.Module, str], alone: set[nn.Module], decided: list[bool], with_defaults: bool
    ) -> None:
        super().__init__()
        self.names, self.alone, self.decided, self.with_defaults = names, alone, decided, with_defaults
        self.taken: list[bool] = []
        self.thread = threading.get_ident()
        self.callers = [""]  # the modules whose forward runs; "" is the one that is traced

    def path_of_module(self, mod: nn.Module) -> str:
        """Return the name of a module in the model, and what one is that forward makes."""
        return self.names.get(mod) or f"a new {type(mod).__name__}"

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the call of a layer, or follow a module's forward; take it for one call where that fails."""
        if threading.get_ident() != self.thread:  # torch.fx patches the calls of all threads
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if not (is_leaf(m) or m in self.alone):
            if m not in self.names:  # such as a slice of a Sequential
                return m.forward(*args, **kwargs)
            if not has_hook(m):
                last = next(iter(reversed(self.graph.nodes)), None)
                self.callers.append(name)
                try:
                    return m.forward(*args, **kwargs)
                except Exception:  # whatever forward raises
                    for node in reversed(self.graph.nodes):
                        if node is last:
                            break
                        self.graph.erase_node(node)
                finally:
                    self.callers.pop()
            self.alone.add(m)
        return self.create_proxy("call_module", name, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record whose forward makes a node, and what autograd does there."""
        node = super().create_node(*args, **kwargs)
        context = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _checkpoints()
        node.meta |= {"caller": self.callers[-1], "context": context}
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module: to the thread that traces, a parameter's proxy."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def direct_calls(self) -> list[str]:
        """Return the layers that the forward of the traced module itself called so far."""
        return [node.target for node in self.graph.nodes if node.op == "call_module" and not node.meta["caller"]]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a branch of the module that is traced."""
        if len(self.callers) > 1 or len(self.taken) == MOST_BRANCHES:
            raise fx.proxy.TraceError("a branch depends on data")
        self.taken.append(self.decided[len(self.taken)] if len(self.taken) < len(self.decided) else True)
        return self.taken[-1]

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        """Make placeholders for the arguments of forward; those with a default may have it instead."""
        given: list[Any] = [self.root]
        named: dict[str, Any] = {}
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise fx.proxy.TraceError(f"forward takes any arguments ({parameter})")
            value = parameter.default
            if value is parameter.empty or not self.with_defaults:
                value = self.create_proxy("placeholder", parameter.name, (), {})
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            else:
                given.append(value)
        return lambda *values: root_fn(*values, **named), given


def _checkpoints() -> list[FrameType]:
    """Return the frames of torch.utils.checkpoint that run; while they are kept, each is one call."""
    found, frame = [], inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            found.append(frame)
        frame = frame.f_back
    return found


def _has_defaults(root: nn.Module) -> bool:
    """Return whether an argument of forward may be left out."""
    return any(p.default is not p.empty for p in inspect.signature(type(root).forward).parameters.values())


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children, and of children that only hold modules their children."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child)
        else:
            yield child


def _is_raised_by(root: nn.Module, error: BaseException) -> bool:
    """Return whether a ``raise`` or an ``assert`` in the source of forward raised ``error``."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None:
        return False
    code = frames.tb_frame.f_code
    operation = dis.opname[code.co_code[frames.tb_lasti]]
    forward = inspect.unwrap(type(root).forward)
    return code.co_filename == forward.__code__.co_filename and operation == "RAISE_VARARGS"


def _reason(error: BaseException) -> str:
    """Return an error in a line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 100 else f"{lines[0][:97]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the random numbers and the warnings of a trace to itself, and let it see where gradients are off."""
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        warnings.simplefilter("ignore")
        yield
