"""The layers of a fused model: a convolution that computes its BatchNorm too, and a BatchNorm that passes that on.

``fuse`` gives the layers of a pair these classes and unfusing takes them back. Nothing else about the layers changes:
parameters, buffers, names and the layers themselves stay where they are.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from fusedref.module import FusedConvBnScale, fuses, is_plain, run_layers


@dataclasses.dataclass(eq=False, repr=False)
class Pair:
    """A convolution and the BatchNorm that takes its output, where they are in the model, and the factor after them.

    ``factor`` is a number, or the module and the attribute that has it.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d | nn.SyncBatchNorm
    conv_place: tuple[nn.Module, str]
    bn_place: tuple[nn.Module, str]
    common: nn.Module  # both places are in it
    factor: float | tuple[nn.Module, str] = 1.0

    def is_fused(self, layer: nn.Module) -> bool:
        """Return whether the convolution computes the pair, in a call of ``layer``, one of the two.

        Each layer is itself where one of the two was replaced, where a hook was registered, and in a replica that
        nn.DataParallel makes.
        """
        conv, bn = self.conv, self.bn
        (conv_owner, conv_name), (bn_owner, bn_name) = self.conv_place, self.bn_place
        return (
            "_is_replica" not in layer.__dict__
            and conv_owner._modules.get(conv_name) is conv
            and bn_owner._modules.get(bn_name) is bn
            and is_plain(conv, (FusedConv2d,))
            and is_plain(bn, (FusedBatchNorm2d, FusedSyncBatchNorm))
            and fuses(bn)
        )

    def scaling_factor(self) -> float | Tensor:
        """Return the factor as it is now."""
        if isinstance(self.factor, float):
            return self.factor
        owner, name = self.factor
        value: float | Tensor = getattr(owner, name)
        return value if isinstance(value, Tensor) else float(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pair | None:
        """Return a pair of the copied layers, None in a copy that lacks one of them: there the layers are themselves.

        A torch.fx.GraphModule copies itself in a way that hides the copy; it has to be fused again.
        """
        if id(self.common) not in memo:
            return None
        copied = copy.copy(self)
        memo[id(self)] = copied
        for field in dataclasses.fields(self):
            setattr(copied, field.name, copy.deepcopy(getattr(self, field.name), memo))
        return copied


class FusedConv2d(FusedConvBnScale, nn.Conv2d):
    """A FusedConvBnScale in the place of its convolution: a convolution of a fused model, with its own parameters.

    ``fuse`` makes it of an nn.Conv2d. It returns what the BatchNorm after it returned.
    """

    _pair: Pair | None

    @property
    def conv(self) -> nn.Conv2d:  # type: ignore[override]  # an attribute of FusedConvBnScale
        """The convolution: this module."""
        return self

    @property
    def bn(self) -> nn.BatchNorm2d | nn.SyncBatchNorm | None:  # type: ignore[override]  # the same
        """The BatchNorm that is computed here; None where there is none."""
        return None if self._pair is None else self._pair.bn

    @property
    def scaling_factor(self) -> float | Tensor:  # type: ignore[override]  # the same
        """The factor after BatchNorm."""
        return self._pair.scaling_factor() if self._pair else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return scaling_factor * bn(conv(x)), or conv(x) where the pair runs as two layers."""
        pair = self._pair
        if pair is None or not pair.is_fused(self):
            return nn.Conv2d.forward(self, x)
        return run_layers(x, self, pair.bn, pair.scaling_factor(), "fp32")

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the convolution."""
        return str(nn.Conv2d.extra_repr(self))  # type: ignore[no-untyped-call]  # torch has no type hints for it


class FusedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d of a fused model, whose work the convolution before it does."""

    _pair: Pair | None

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or BatchNorm of it where the pair runs as two layers."""
        pair = self._pair
        return x if pair is not None and pair.is_fused(self) else super().forward(x)


class FusedSyncBatchNorm(nn.SyncBatchNorm):
    """A SyncBatchNorm of a fused model, whose work the convolution before it does."""

    _pair: Pair | None

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or BatchNorm of it where the pair runs as two layers."""
        pair = self._pair
        return x if pair is not None and pair.is_fused(self) else super().forward(x)


FUSED_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.SyncBatchNorm: FusedSyncBatchNorm,
}
PLAIN_TYPES = {fused: plain for plain, fused in FUSED_TYPES.items()}


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """Return the type that ``layer`` has when it is not fused."""
    return PLAIN_TYPES.get(type(layer), type(layer))


def pair_of(layer: nn.Module) -> Pair | None:
    """Return the pair that a layer is fused in, None where it is not."""
    return layer.__dict__.get("_pair") if type(layer) in PLAIN_TYPES else None


def join(pair: Pair) -> None:
    """Make the two layers compute as one."""
    layer: Any
    for layer in (pair.conv, pair.bn):
        layer.__class__ = FUSED_TYPES[kind_of(layer)]
        layer._pair = pair


def part(layer: nn.Module) -> None:
    """Make a layer of a fused model a plain one again."""
    layer.__class__ = kind_of(layer)
    layer.__dict__.pop("_pair", None)


def scaled(conv: nn.Module, y: Tensor, factor: float | Tensor) -> Tensor:
    """Return y * factor, where ``conv`` did not multiply already."""
    pair = pair_of(conv)
    return y if pair is not None and pair.is_fused(conv) else y * factor
