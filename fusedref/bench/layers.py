"""The convolutions of torchvision's models, kept as data so that the bench works without torchvision.

Where torchvision is installed, ``write_layers`` finds them and writes the file.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fusedref.commandline import written_whole
from fusedref.problem import Problem
from fusedref.tuning.layers import layers_of

FILE = Path(__file__).with_name("layers.json")
MODELS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_large"),
    *("efficientnet_b0", "densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
)
IMAGE = 3, 224, 224
SIZES = (
    *("in_channels", "out_channels", "height", "width", "kernel_size"),
    *("stride", "padding", "dilation", "groups"),
)


def model_problems(
    models: tuple[str, ...] = MODELS, batch: int = 1, dtype: torch.dtype = torch.float32
) -> dict[Problem, list[str]]:
    """Return the distinct convolutions of ``models``, each with the names of the models that have it.

    Whether a convolution has a bias does not count, because BatchNorm has one.
    """
    result: dict[Problem, list[str]] = {}
    for model in models:
        for row in _kept()[model]:
            sizes: list[Any] = [tuple(size) if isinstance(size, list) else size for size in row]
            named = dict(zip(SIZES, sizes, strict=True))
            problem = Problem(batch=batch, bias=False, dtype=dtype, **named)
            result.setdefault(problem, []).append(model)
    return result


@cache
def _kept() -> dict[str, list[list[Any]]]:
    """Return the sizes, in the order of SIZES, of the convolutions of each model."""
    kept: dict[str, list[list[Any]]] = json.loads(FILE.read_text(encoding="utf-8"))["models"]
    return kept


def write_layers() -> None:
    """Find the convolutions of MODELS by a forward pass on the meta device, and write FILE."""
    import torchvision  # type: ignore[import-not-found]  # installed where this is called

    lines = []
    for name in MODELS:
        model = getattr(torchvision.models, name)().eval().to("meta")
        problems = [layer.problem for layer in layers_of(model, torch.empty(1, *IMAGE, device="meta"))]
        distinct = dict.fromkeys(dataclasses.replace(problem, bias=False) for problem in problems)
        rows = ",\n".join(f"   {json.dumps([_plain(problem, size) for size in SIZES])}" for problem in distinct)
        lines.append(f'  "{name}": [\n{rows}\n  ]')
    text = f'{{\n "torchvision": "{torchvision.__version__.partition("+")[0]}",\n "models": {{\n' + ",\n".join(lines)
    with written_whole(FILE) as aside:
        aside.write_text(text + "\n }\n}\n", encoding="utf-8")


def _plain(problem: Problem, size: str) -> Any:
    """Return a size of the problem: a number, or the same number twice as one."""
    value = getattr(problem, size)
    return value[0] if isinstance(value, tuple) and value[0] == value[1] else value
