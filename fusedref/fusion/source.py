"""Read from a module's source how its forward uses its children, where it cannot be traced."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType

from torch import nn

_EVERY_CHILD = {"children", "named_children", "modules", "named_modules", "get_submodule", "_modules", "__dict__"}
_ASKING = (ast.Compare, ast.If, ast.IfExp, ast.BoolOp, ast.UnaryOp)  # whether there is a child


def used_otherwise(module: nn.Module) -> dict[nn.Module, str]:
    """Return the children that ``module`` may use in other ways than by calling them, with how.

    A child that holds modules (ModuleList, ModuleDict) may be indexed and iterated over: its parts are then called.
    """
    children = dict(module.named_children())
    if "forward" in vars(module):
        return dict.fromkeys(children.values(), "its parent's forward was replaced")
    found: dict[nn.Module, str] = {}
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        for function in definitions(type(module), waiting.pop()):
            name = function.__qualname__
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
            except (OSError, TypeError, SyntaxError):
                return dict.fromkeys(children.values(), f"the source of {name} cannot be read")
            for attribute, use in _uses(tree, children):
                if attribute is None:
                    return dict.fromkeys(children.values(), f"{name} uses {use}")
                found[children[attribute]] = f"{name} uses {use}"
            called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            waiting += called - seen
            seen |= called
            if not any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(tree)):
                break
    return found


def definitions(cls: type[nn.Module], name: str) -> Iterator[FunctionType]:
    """Yield the functions of that name that ``cls`` defines or inherits, torch's own apart, in the order of super()."""
    for base in cls.__mro__:
        function = vars(base).get(name)
        function = function.fget if isinstance(function, property) else function
        if isinstance(function, FunctionType) and not base.__module__.startswith("torch."):
            yield function


def _uses(tree: ast.AST, children: dict[str, nn.Module]) -> Iterator[tuple[str | None, str]]:
    """Yield (name, what is used) of each use of a child other than a call; None is the name of all together."""
    parents = {part: node for node in ast.walk(tree) for part in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Name) and node.id == "self"):
            continue
        use = parents[node]
        if not isinstance(use, ast.Attribute) or use.attr in _EVERY_CHILD:
            yield None, ast.unparse(use)
        elif use.attr in children:
            around = parents[use]
            if isinstance(children[use.attr], (nn.ModuleList, nn.ModuleDict)):
                if isinstance(around, ast.Subscript) and isinstance(parents[around], ast.Attribute):
                    yield use.attr, ast.unparse(parents[around])
            elif not (isinstance(around, _ASKING) or (isinstance(around, ast.Call) and around.func is use)):
                yield use.attr, ast.unparse(around)
