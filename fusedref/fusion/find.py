"""Find the pairs of a convolution and a BatchNorm that may compute as one, and say why the others may not."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fusedref.fusion.layers import kind_of, pair_of
from fusedref.fusion.report import ALREADY, FusionReport, Line
from fusedref.fusion.rewrite import Rewrite, product_after
from fusedref.fusion.trace import Trace, has_hook, is_layer, trace
from fusedref.module import FusedConvBnScale

SERVED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Found:
    """What ``find`` says of a model: the pairs to fuse, by the names of their layers, and the report.

    A factor is a number, or the name of the attribute that has it. ``rewrites`` has the modules whose forward leaves a
    multiplication to a pair.
    """

    pairs: list[tuple[str, str, float | str]]
    rewrites: dict[str, Rewrite]
    report: FusionReport


def find(model: nn.Module) -> Found:
    """Return the pairs of ``model`` that may be fused, and a report of all layers."""
    built = [module for module in model.modules() if _is_built(module)]
    inside = {part for module in built for part in module.modules()}
    layers = {
        name: module for name, module in model.named_modules() if name and is_layer(module) and module not in inside
    }
    names = {module: name for name, module in layers.items()}
    shown = trace(model)
    calls = _Calls(shown, {name for name, layer in layers.items() if not isinstance(layer, nn.Conv2d)})
    products = _Products(shown, calls)
    pairs: list[tuple[str, str, float | str]] = []
    lines: list[Line] = []
    used: set[str] = set()
    for name, layer in layers.items():
        if not isinstance(layer, nn.Conv2d):
            continue
        pair = pair_of(layer)
        if pair is not None and pair.is_fused(layer):
            bn, reason = names[pair.bn], ALREADY
        else:
            bn, reason = calls.batch_norm_after(name)
            if bn and not reason:
                reason = _against(layers[name], layers[bn])
        factor = ""
        if not reason:
            value, factor = products.factor_of(name, bn)
            pairs.append((name, bn, value))
        lines.append(Line(name, bn, reason, factor))
        used.add(bn)
    lines += [Line(name, "", ALREADY) for name, module in model.named_modules() if module in built]
    for name, layer in layers.items():
        if name not in used and not isinstance(layer, nn.Conv2d):
            lines.append(Line("", name, calls.input_of(name)))
    return Found(pairs, products.applied, FusionReport(tuple(lines), shown.untraced))


def _is_built(module: nn.Module) -> bool:
    """Return whether ``module`` is a FusedConvBnScale that somebody built."""
    return isinstance(module, FusedConvBnScale) and not isinstance(module, nn.Conv2d)


class _Calls:
    """The calls of the layers in all traces."""

    def __init__(self, shown: Trace, norms: set[str]) -> None:
        self.shown, self.norms = shown, norms
        self.nodes: dict[str, list[tuple[str, int, fx.Node]]] = {}  # of a layer, with the traced module and the path
        for path, (root, graph) in enumerate(shown.graphs):
            for node in graph.nodes:
                if node.op == "call_module":
                    self.nodes.setdefault(str(node.target), []).append((root, path, node))

    def batch_norm_after(self, name: str) -> tuple[str, str]:
        """Return the name of the BatchNorm that takes all of a convolution's output, or why there is none.

        Both are there where the BatchNorm takes other inputs too.
        """
        reason = self._not_once(name)
        if reason:
            return "", reason
        users = {user for _, _, node in self.nodes[name] for user in node.users}
        if not users:
            return "", "its output is not used"
        others = sorted({_described(user) for user in users if not self._is_batch_norm(user)})
        norms = {str(user.target) for user in users if self._is_batch_norm(user)}
        if others:
            also = " also" if norms else ""
            return (norms.pop() if len(norms) == 1 else ""), f"its output{also} goes to {', '.join(others)}"
        if len(norms) > 1:
            return "", f"its output goes to {' and '.join(sorted(norms))}"
        if any(len(node.users) != 1 for _, _, node in self.nodes[name]):
            return norms.pop(), "on some paths its output is not used"
        bn = norms.pop()
        reason = self._not_once(bn)
        if reason:
            return bn, f"{bn}: {reason}"
        if len(self.nodes[bn]) != len(self.nodes[name]):
            return bn, f"{bn} also takes another input"
        if any(node.meta["context"] != next(iter(node.users)).meta["context"] for *_, node in self.nodes[name]):
            return bn, "no_grad, inference_mode or a checkpoint is around one of them alone"
        return bn, ""

    def input_of(self, name: str) -> str:
        """Return why a BatchNorm that no convolution feeds is left alone."""
        reason = self._not_once(name)
        if reason:
            return reason
        sources = sorted({_described(node.args[0]) for _, _, node in self.nodes[name] if node.args})
        return f"its input comes from {', '.join(sources)}"

    def _not_once(self, name: str) -> str:
        """Return why a layer may be called otherwise than once in a call of the model; "" if it may not."""
        if name in self.shown.called_by:
            caller = self.shown.called_by[name]
            return f"{caller or 'the model'} calls it and cannot be traced: {self.shown.untraced[caller]}"
        if name not in self.nodes:
            above = [parent for parent in self.shown.untraced if not parent or name.startswith(f"{parent}.")]
            if above:
                parent = max(above, key=len)
                return f"{parent or 'the model'} cannot be traced: {self.shown.untraced[parent]}"
            return "forward does not call it"
        if name in self.shown.apart:
            return f"{self.shown.apart[name]} and cannot be traced"
        calls = self.nodes[name]
        if len({path for _, path, _ in calls}) < len(calls):
            return "it is called more than once"
        roots = sorted({root for root, _, _ in calls})
        if len(roots) > 1:
            return f"it is called in {' and in '.join(root or 'the model' for root in roots)}"
        if any(len(node.args) != 1 or node.kwargs for _, _, node in calls):
            return "it is called with other arguments than one tensor"
        return ""

    def _is_batch_norm(self, node: fx.Node) -> bool:
        """Return whether a node is the call of a BatchNorm."""
        return node.op == "call_module" and node.target in self.norms


class _Products:
    """The multiplications after pairs, and the rewritten forwards of the modules that multiply."""

    def __init__(self, shown: Trace, calls: _Calls) -> None:
        self.shown, self.calls = shown, calls
        self.tried: dict[str, Rewrite] = {}
        self.applied: dict[str, Rewrite] = {}

    def factor_of(self, conv: str, bn: str) -> tuple[float | str, str]:
        """Return the factor that the pair takes, 1.0 where there is none, and what the report says of it."""
        found = [product_after(node) for _, _, node in self.calls.nodes[bn]]
        if not all(found):
            return 1.0, ""
        nodes = [node for name in (conv, bn) for _, _, node in self.calls.nodes[name]]
        nodes += [product[0] for product in found if product]
        callers = {node.meta["caller"] for node in nodes}
        if len(callers) > 1:
            return 1.0, ", without the factor: another module multiplies"
        module = callers.pop() or self.calls.nodes[bn][0][0]
        if module not in self.tried:
            self.tried[module] = Rewrite(self.shown.model.get_submodule(module))
        rewrite, inside = self.tried[module], f"{module}." if module else ""
        factor = rewrite.factors.get((conv.removeprefix(inside), bn.removeprefix(inside)))
        if factor is None:
            return 1.0, f", without the factor: {rewrite.reason}"
        self.applied[module] = rewrite
        factor = f"{inside}{factor}" if isinstance(factor, str) else factor
        return factor, f", with the factor {factor}"


def _described(node: object) -> str:
    """Return a node as a reader of forward knows it."""
    if not isinstance(node, fx.Node):
        return "a constant"
    if node.op == "placeholder":
        return f"the argument {node.target}"
    if node.op == "output":
        return "the caller"
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", str(node.target))


def _against(conv: nn.Module, bn: nn.Module) -> str:
    """Return why two layers that follow each other are left alone; "" if they may be fused."""
    for layer, kinds in ((conv, (nn.Conv2d,)), (bn, (nn.BatchNorm2d, nn.SyncBatchNorm))):
        reason = _special(layer, kinds)
        if reason:
            return reason
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm))
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}"
    if bn.num_features != conv.out_channels:
        return f"BatchNorm has {bn.num_features} channels, the convolution {conv.out_channels}"
    if not bn.track_running_stats or bn.running_mean is None or bn.running_var is None:
        return "BatchNorm has no running statistics"
    if bn.training != conv.training:
        mode = {True: "training", False: "evaluation"}
        return f"BatchNorm is in {mode[bn.training]} mode, the convolution in {mode[conv.training]} mode"
    tensors = (conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var)
    for what, values in (
        ("devices", {str(tensor.device) for tensor in tensors if tensor is not None}),
        ("dtypes", {str(tensor.dtype) for tensor in tensors if tensor is not None}),
    ):
        if len(values) > 1:
            return f"the layers have different {what}: {' and '.join(sorted(values))}"
    if conv.weight.dtype not in SERVED:
        return f"the dtype {conv.weight.dtype} is not served"
    return ""


def _special(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    """Return what makes a layer another one than a plain layer of ``kinds``; "" if nothing does."""
    what = type(layer).__name__
    if parametrize.is_parametrized(layer):
        return f"the parameters of {what.removeprefix('Parametrized')} are parametrized"
    if isinstance(layer, LazyModuleMixin):
        return f"{what} has no parameters yet: call the model once before"
    if kind_of(layer) not in kinds:
        return f"{what} is a subclass of {next(kind for kind in kinds if isinstance(layer, kind)).__name__}"
    own = vars(layer)
    if "forward" in own or "_conv_forward" in own:
        return f"forward of {what} was replaced"
    if "weight" not in own["_parameters"] or "bias" not in own["_parameters"]:
        return f"the parameters of {what} are computed (weight_norm, spectral_norm, prune)"
    if has_hook(layer):
        return f"{what} has a hook"
    if any(value for key, value in own.items() if key.endswith("_hooks") and "state_dict" in key):
        return f"{what} has a hook of its state_dict"
    if own["_modules"]:
        return f"{what} has modules of its own"
    return ""
