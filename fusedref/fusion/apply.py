"""Fuse the convolutions of a model with the BatchNorms after them, and take that back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fusedref.fusion.copies import Model, copied
from fusedref.fusion.find import find
from fusedref.fusion.layers import PLAIN_TYPES, Pair, join, part
from fusedref.fusion.rewrite import restore


def fuse(model: Model, *, inplace: bool = False) -> Model:
    """Return ``model`` with each BatchNorm2d computed by the convolution before it, in one operator.

    The fused model computes what the model computes, in training and in evaluation mode, with gradients and running
    statistics. Its parameters, buffers and modules keep their names and places, so the keys of its state_dict, their
    order and an optimizer that has the parameters stay valid. A convolution becomes a ``FusedConvBnScale`` that has the
    convolution's own parameters and returns what its BatchNorm returned, and the BatchNorm returns its input. They
    are still instances of nn.Conv2d and nn.BatchNorm2d (or nn.SyncBatchNorm).

    ``fusion_report`` of the returned model says what was fused, and for each other layer why it was not; print it.
    torch.fx follows forward in training and in evaluation mode, and along every branch on data. A pair is fused where
    on all paths the convolution runs once and its output goes to the BatchNorm alone, which takes nothing else. A
    module that cannot be traced does not hinder the modules that it calls. Layers with hooks or computed parameters,
    subclasses, BatchNorm without running statistics and layers in different modes are left alone.

    ``fuse`` trusts that forward goes the same way later: attributes that it reads, such as flags, are to stay. A layer
    that is replaced or gets a hook later makes its pair two layers again. Call ``unfuse`` to use the layers elsewhere,
    and before torch.jit.script. Compile and distribute the model after fusing it.

    Without ``inplace`` a copy is fused and ``model`` stays as it is.

    Raises TypeError for anything but a torch.nn.Module, for a compiled, scripted or distributed one, and for one that
    copy.deepcopy cannot copy (even with ``inplace``: a copy is traced). ``model`` is then as it was.
    """
    _check(model)
    fused = model if inplace else copied(model)
    found = find(fused)
    pairs = [_pair(fused, *names) for names in found.pairs]
    # Nothing was changed so far, and nothing below fails.
    fused.fusion_report = found.report  # type: ignore[assignment]  # an attribute of our own
    for pair in pairs:
        join(pair)
    for name, rewrite in found.rewrites.items():
        rewrite.apply(fused.get_submodule(name))
    return fused


def unfuse(model: Model, *, inplace: bool = False) -> Model:
    """Return ``model`` with the layers that it had before ``fuse``: their types, with the parameters of now.

    Without ``inplace`` a copy is changed and ``model`` stays as it is. A model that is not fused is returned as it is.
    Raises TypeError as ``fuse`` does.
    """
    _check(model)
    plain = model if inplace else copied(model)
    for module in plain.modules():
        restore(module)
        if type(module) in PLAIN_TYPES:
            part(module)
        vars(module).pop("fusion_report", None)
    return plain


def _check(model: Any) -> None:
    """Raise TypeError for what cannot be fused, with what to do instead."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}: make an instance" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must be a torch.nn.Module, got {got}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model must not be a ScriptModule: fuse the module that it was scripted from")
    if hasattr(model, "_orig_mod"):
        raise TypeError("model must not be compiled: torch.compile the fused model instead")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(f"model must not be a {type(model).__name__}: fuse the module before it is wrapped")


def _pair(model: nn.Module, conv: str, bn: str, factor: float | str) -> Pair:
    """Return the pair of the two layers with these names."""
    return Pair(
        model.get_submodule(conv),  # type: ignore[arg-type]  # find chose them by their types
        model.get_submodule(bn),  # type: ignore[arg-type]  # the same
        _place(model, conv),
        _place(model, bn),
        _common(model, [conv, bn, factor] if isinstance(factor, str) else [conv, bn]),
        _place(model, factor) if isinstance(factor, str) else factor,
    )


def _common(model: nn.Module, names: list[str]) -> nn.Module:
    """Return the innermost module that has all of these within."""
    common = model
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common = common.get_submodule(parts[0])
    return common


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that has the layer or attribute, and its name in it."""
    owner, _, last = name.rpartition(".")
    return model.get_submodule(owner), last
