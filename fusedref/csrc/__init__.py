"""The CUDA C sources of the package: COMMON has headers, INFERENCE the kernels of evaluation, TRAINING the others."""

from pathlib import Path

COMMON = Path(__file__).parent / "common"
INFERENCE = Path(__file__).parent / "inference"
TRAINING = Path(__file__).parent / "training"
