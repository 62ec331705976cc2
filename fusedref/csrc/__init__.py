"""The CUDA C sources of the package: COMMON has the headers, INFERENCE the kernels of fused_conv_bn_scale."""

from pathlib import Path

COMMON = Path(__file__).parent / "common"
INFERENCE = Path(__file__).parent / "inference"
