"""Which runner trains a problem."""

from __future__ import annotations

import torch

from fusedref.cuda.backend import can_launch
from fusedref.ops.fast_training import FastTraining
from fusedref.ops.general_training import GeneralTraining
from fusedref.ops.runner import target_of
from fusedref.ops.training import TrainingRunner
from fusedref.plans import KernelVariant
from fusedref.plans.training import unserved_by_fast_training
from fusedref.problem import Problem


def training_runner(
    problem: Problem, device: torch.device, precision: str, channels_last: bool, vector_dtype: torch.dtype
) -> TrainingRunner | None:
    """Return the runner that serves ``problem``, None where torch's own operators do.

    The choice does not depend on the batch or on the size of the images, so that a trace may leave them open.
    """
    if not can_launch(device):
        return None
    variant = KernelVariant(precision, channels_last, vector_dtype)
    if unserved_by_fast_training(problem, target_of(device), variant) is None:
        return FastTraining(problem, device, precision, vector_dtype)
    return GeneralTraining(problem, device, precision, channels_last, vector_dtype)
