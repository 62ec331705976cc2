"""Check a candidate in training: call it on all families of data, twice, and compare all results with float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fusedref.parameters import Parameters
from fusedref.problem import Problem
from fusedref.validation.call import Needed, changed_inputs, checked, device_is_lost, guarded, same_bits
from fusedref.validation.cases import Case
from fusedref.validation.families import FAMILIES, NORMAL, Family, family_dy, family_inputs
from fusedref.validation.inputs import shapes_around
from fusedref.validation.subjects import BATCHES, Results, Subject
from fusedref.validation.training_compare import Call, compare_tensor, eager_results
from fusedref.validation.training_reference import GRADIENTS, forward, pixels_of
from fusedref.validation.training_slips import Slips

STATISTICS = ("running_mean", "running_var")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One case: its name, data, whether BatchNorm trains, and which inputs need a gradient."""

    name: str
    problem: Problem
    family: Family = NORMAL
    training: bool = True
    needs: tuple[str, ...] = GRADIENTS


def settings(problem: Problem, mode: str, subject: Subject) -> list[Setting]:
    """Return the cases of ``mode``: several shapes, all families at the problem, and what only a module can do."""
    result = [Setting(name, shape) for name, shape in shapes_around(problem)]
    result += [Setting(family.name, problem, family) for family in FAMILIES if _is_for(family, problem, mode)]
    if subject.evaluates:
        result.append(Setting("evaluation mode", problem, training=False))
    if subject.is_module and mode == "backward":
        result.append(Setting("no gradient of x", problem, needs=GRADIENTS[1:]))
        result.append(Setting("gradient of x alone", problem, needs=GRADIENTS[:1]))
    return result


def training_cases(subject: Subject, problem: Problem, mode: str, device: torch.device, seed: int) -> Iterator[Case]:
    """Check the subject in each setting; stop where the device is lost."""
    given: Parameters | None = None
    for number, setting in enumerate(settings(problem, mode, subject)):
        case, given = _case(subject, setting, mode, device, seed + number, given)
        yield case
        if device_is_lost(device):
            return


def _case(
    subject: Subject, setting: Setting, mode: str, device: torch.device, seed: int, given: Parameters | None
) -> tuple[Case, Parameters]:
    problem = setting.problem
    inputs = subject.fitted(family_inputs(setting.family, problem, seed, device))
    momentum = subject.momentum(0.15 + 0.3 * torch.rand((), generator=torch.Generator().manual_seed(seed)).item())
    found = forward(problem, inputs, training=setting.training)
    dy = family_dy(setting.family, problem, found, seed) if mode == "backward" else None
    call = Call(problem, inputs, momentum, found, dy, setting.training)

    def run(given: Parameters) -> Results:
        """Call the candidate."""
        if dy is None:
            return subject.run(given, momentum, setting.training)
        return subject.differentiate(given, dy, setting.training, setting.needs)

    reasons: list[str] = []
    given = subject.given(inputs, given)
    if setting.training and pixels_of(problem) == 1:
        return Case(setting.name, problem, math.nan, None, None, tuple(_refusal(run, given, device))), given
    first = _results(run, given, call, setting, reasons)
    if first is None:
        if device_is_lost(device):
            reasons.append("the GPU is lost to this process: restart it")
        return Case(setting.name, problem, math.nan, None, None, tuple(reasons)), given
    kept = {name: value.clone() for name, value in first.items()}
    given = subject.given(inputs, given)
    again: list[str] = []
    second = _results(run, given, call, setting, again)
    if second is None:
        reasons += [f"the second call {words}" for words in again]
        return _compared(setting, call, kept, reasons), given
    changed = [name for name in first if name not in STATISTICS and not same_bits(first[name], kept[name])]
    if changed:
        reasons.append(f"the next call changes {', '.join(changed)} of the call before: results must be new memory")
    differing = [name for name in kept if name not in second or not same_bits(kept[name], second[name])]
    if differing:
        reasons.append(
            f"two calls with the same inputs differ in {', '.join(differing)}: "
            "a sum must be taken in the same order in every run"
        )
    return _compared(setting, call, kept, reasons), given


def _compared(setting: Setting, call: Call, results: dict[str, Tensor], reasons: list[str]) -> Case:
    """Return the case of one call's results."""
    problem = setting.problem
    slips = None  # only for random numbers: on other data, several slips often give the same result
    if setting.family is NORMAL:
        slips = Slips(problem, call.inputs, call.momentum, call.found, call.dy, call.training)
    expected = call.expected()
    has_eager = problem.dtype == torch.float32 or call.found.y.is_cuda  # fp16 crashes on some processors
    eager = eager_results(call) if has_eager else {}
    tensors = tuple(
        compare_tensor(name, call, results[name], expected[name], eager.get(name), slips)
        for name in expected
        if name in results
    )
    reasons = reasons + [reason for compared in tensors for reason in compared.reasons]
    if not tensors:
        return Case(setting.name, problem, math.nan, None, None, tuple(reasons))
    worst = max((compared.worst for compared in tensors), key=lambda worst: worst.bounds)
    wrong = next((compared.errors for compared in tensors if compared.errors.wrong), tensors[0].errors)
    relative = max(compared.relative_l2 for compared in tensors)
    return Case(setting.name, problem, relative, worst, wrong, tuple(reasons), tensors)


def _results(
    run: Callable[[Parameters], Results], given: Parameters, call: Call, setting: Setting, reasons: list[str]
) -> dict[str, Tensor] | None:
    """Call the candidate; return the tensors that can be compared, or None where it raises."""
    device = given.x.device
    returned = guarded(lambda: run(given), device, reasons)
    if returned is None:
        return None
    (found,) = returned
    assert isinstance(found, dict)
    if setting.training:
        reasons += changed_inputs(given, call.inputs, allowed=STATISTICS)
    else:
        updated = changed_inputs(given, call.inputs)
        reasons += [
            reason.replace("changes its input running", "updates running") + " in evaluation mode"
            if "running" in reason
            else reason
            for reason in updated
        ]
    batches = found.pop("num_batches_tracked", None)
    if batches is not None and int(batches) != BATCHES + setting.training:
        reasons.append(f"num_batches_tracked is {int(batches)} after the call, must be {BATCHES + setting.training}")
    results = {}
    for name, needed in _needed(call).items():
        if name not in found or (name in GRADIENTS and name not in setting.needs):
            continue
        value = found[name]
        if name in STATISTICS and isinstance(value, Tensor):
            value = value.clone()
        tensor = checked(value, needed, given, reasons)
        if tensor is not None:
            results[name] = tensor
    return results


def _needed(call: Call) -> dict[str, Needed]:
    """Return what each result must be."""
    problem, inputs, device = call.problem, call.inputs, call.inputs.x.device
    result = {"y": Needed(problem.output_shape, problem.dtype, device)}
    sources = {"running_mean": inputs.running_mean, "running_var": inputs.running_var}
    if call.dy is not None:
        leaves = inputs.x, inputs.weight, inputs.bias, inputs.gamma, inputs.beta
        sources |= {name: leaf for name, leaf in zip(GRADIENTS, leaves, strict=True) if leaf is not None}
    for name, source in sources.items():
        result[name] = Needed(tuple(source.shape), source.dtype, device, name)
    return result


def _refusal(run: Callable[[Parameters], Results], given: Parameters, device: torch.device) -> list[str]:
    """Return a reason unless the candidate raises ValueError, as torch does for one value per channel."""
    reasons: list[str] = []
    guarded(lambda: run(given), device, reasons)
    if reasons and reasons[0].startswith("raised ValueError"):
        return []
    got = reasons[0] if reasons else "returned"
    return [f"{got}: one value per channel has no variance, and ValueError must be raised as torch does"]


def _is_for(family: Family, problem: Problem, mode: str) -> bool:
    """Return whether the family applies to this mode and dtype: float16 cannot represent a small dy."""
    about_dy = family.dy_nan or family.dy_scale != 1
    return (mode == "backward" or not about_dy) and not (family.dy_scale < 1 and problem.dtype == torch.float16)
