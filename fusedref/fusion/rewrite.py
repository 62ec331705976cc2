"""Leave the multiplication after a BatchNorm to the fused convolution: rewrite the forward that multiplies.

A forward is rewritten where its trace says all that it does: it computes local variables and returns, without branches,
contexts or effects, and reads no attribute but the factor. The module then gets a subclass of its own class with the
traced forward.
"""

from __future__ import annotations

import dis
import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fusedref.fusion.layers import scaled
from fusedref.fusion.source import definitions
from fusedref.fusion.trace import quiet

_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
# POP_TOP drops the result of a statement that is a call; LOAD_SPECIAL enters a context.
_EFFECTS = (
    "POP_TOP", "STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "STORE_SUBSCR", "DELETE_", "RAISE_", "BEFORE_WITH",
    "SETUP_", "LOAD_SPECIAL", "IMPORT_", "FOR_ITER", "YIELD_",
)  # fmt: skip
_OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}


class Rewritten:
    """What a rewritten module's class has beside the class of the module."""

    _plain: type[nn.Module]
    _source: str
    _names: dict[str, Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Say how to copy and pickle a module whose class has no name in a file."""
        said: Any = super().__reduce_ex__(protocol)
        return (_make, (self._plain, self._source, self._names), *said[2:])


def product_after(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """Return the multiplication that alone takes the output of ``node``, and its factor; None where there is none."""
    users = list(node.users)
    if len(users) != 1 or users[0].target not in _PRODUCTS or len(users[0].args) != 2 or users[0].kwargs:
        return None
    first, second = users[0].args
    factor = second if first is node else first
    is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if is_number or (isinstance(factor, fx.Node) and factor.op == "get_attr"):
        return users[0], factor
    return None


class Rewrite:
    """The rewritten forward of a module, a copy of the user's, as far as it can be.

    ``factors`` has the pairs whose multiplication the convolution takes: the names of convolution and BatchNorm in the
    module, and the number or the attribute of the module that is the factor.
    """

    def __init__(self, module: nn.Module) -> None:
        self.factors: dict[tuple[str, str], float | str] = {}
        self.reason = ""  # why nothing can be rewritten
        graphs, reads = [], set()
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        if isinstance(module, fx.GraphModule) or type(module).__module__.startswith("torch."):
            self.reason = "its module's class is torch's"
        elif any(p.default is not p.empty or p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
            self.reason = "forward has optional arguments"
        elif _does_more(type(module)):
            self.reason = "forward does more than compute from its arguments and layers"
        if self.reason:
            return
        for training in (True, False):
            module.train(training)
            try:
                with quiet(), _recorded(module) as seen:
                    graphs.append(_Own().trace(module))
            except Exception as error:  # whatever forward raises
                self.reason = f"{type(error).__name__} in forward"
                return
            reads |= seen
        if str(graphs[0]) != str(graphs[1]):
            self.reason = "forward reads self.training"
            return
        self._take(module, graphs[0], reads)

    def _take(self, module: nn.Module, graph: fx.Graph, reads: set[str]) -> None:
        """Rewrite the multiplications in ``graph``."""
        for node in list(graph.nodes):
            found = product_after(node) if node.op == "call_module" else None
            convolved = node.args[0] if node.args else None
            if found is None or not isinstance(convolved, fx.Node) or convolved.op != "call_module":
                continue
            product, factor = found
            named = isinstance(factor, fx.Node)
            if not named:
                known = reads & {name for name in reads if _is_number(vars(module)[name], factor)}
                if reads - known or len(known) > 1:
                    self.reason = f"forward reads {', '.join(f'self.{name}' for name in sorted(reads))}"
                    continue
                name = next(iter(known), "")
            else:
                name = str(factor.target)
                if reads or not _fits(module, name):
                    self.reason = "the factor is not one number of the layers' dtype"
                    continue
            with graph.inserting_before(product):
                layer = graph.get_attr(str(convolved.target))
                given = factor if named or not name else graph.get_attr(name)
                product.replace_all_uses_with(graph.call_function(scaled, (layer, node, given)))
            graph.erase_node(product)
            self.factors[str(convolved.target), str(node.target)] = name or float(factor)
        if self.factors:
            code = graph.python_code("self")
            self.source, self.names = code.src, dict(code.globals)

    def apply(self, module: nn.Module) -> None:
        """Give the user's module the rewritten forward."""
        names = {
            name: _Import(value.__name__) if isinstance(value, ModuleType) else value
            for name, value in self.names.items()
        }
        module.__class__ = _class(type(module), self.source, names)


class _Import(str):
    """The name of a module to import: modules cannot be pickled."""


def restore(module: nn.Module) -> None:
    """Give a rewritten module its own class again."""
    if isinstance(module, Rewritten):
        module.__class__ = module._plain  # type: ignore[assignment]


def _class(plain: type[nn.Module], source: str, names: dict[str, Any]) -> Any:
    """Return the class of a rewritten module."""
    namespace = {name: import_module(value) if isinstance(value, _Import) else value for name, value in names.items()}
    exec(compile(source, "<the forward that fusedref.fuse wrote>", "exec"), namespace)
    members = {"forward": namespace["forward"], "__doc__": plain.__doc__, "__module__": plain.__module__}
    hidden = {"_plain": plain, "_source": source, "_names": names}
    return type(f"Fused{plain.__name__}", (Rewritten, plain), members | hidden)


def _make(plain: type[nn.Module], source: str, names: dict[str, Any]) -> nn.Module:
    """Return a rewritten module without state."""
    cls = _class(plain, source, names)
    module: nn.Module = cls.__new__(cls)
    return module


def _does_more(cls: type[nn.Module]) -> bool:
    """Return whether forward may do what a trace does not show: branch, enter a context, call a method, or store."""
    forward = cls.forward
    code = forward.__code__
    if hasattr(forward, "__wrapped__") or any(True for name in code.co_names for _ in definitions(cls, name)):
        return True
    return any(
        instruction.opname.startswith(_EFFECTS) or "JUMP_IF" in instruction.opname
        for instruction in dis.get_instructions(code)
    )


class _Own(fx.Tracer):
    """Traces one module's forward, with a call for each module that it calls, and refuses contexts of functions."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node; raise TraceError in a context that a graph cannot have."""
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.is_autocast_enabled():
            raise fx.proxy.TraceError("no_grad or autocast")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return that no other forward is traced."""
        return True


@contextmanager
def _recorded(module: nn.Module) -> Iterator[set[str]]:
    """Record the attributes that are read of ``module``, those apart that every module has."""
    plain = type(module)
    own, seen = set(vars(module)) - _OF_EVERY_MODULE, set()

    def read(self: nn.Module, name: str) -> Any:
        """Record an attribute of the module, and return it."""
        if name in own and self is module:
            seen.add(name)
        return plain.__getattribute__(self, name)

    module.__class__ = type(plain.__name__, (plain,), {"__getattribute__": read})
    try:
        yield seen
    finally:
        module.__class__ = plain


def _is_number(value: object, factor: float) -> bool:
    """Return whether an attribute is the factor of a product."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and float(value) == float(factor)


def _fits(module: nn.Module, name: str) -> bool:
    """Return whether an attribute is a tensor of one element, as a factor may be."""
    owner, _, last = name.rpartition(".")
    value = getattr(module.get_submodule(owner), last)
    return isinstance(value, Tensor) and value.numel() == 1 and value.dim() <= 1 and value.is_floating_point()
