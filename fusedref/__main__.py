"""The command line: ``python -m fusedref validate [FILE]`` and ``python -m fusedref bench``."""

from __future__ import annotations

import argparse
import re
import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fusedref.commandline import expect_interrupts

if __name__ == "__main__":
    expect_interrupts("python -m fusedref")  # before torch, which takes seconds to import

import torch
from rich.console import Console
from torch import nn

from fusedref import FusedConvBnScale, Problem, bench, cuda, validate
from fusedref.commandline import DONE, REFUSED, help_texts, not_run, picture_file, progress_bar, run
from fusedref.cuda.compile import source_module
from fusedref.problem import KERNELBENCH_73, SMALL_73
from fusedref.validation import MODES, Report, candidate_from_kernel, cases_of

PROGRAM = "python -m fusedref"
OUT_OF_MEMORY = re.compile(r": raised (OutOfMemory|Memory)Error: ")  # torch's; PyCUDA's, Python's and the emulator's
SCALE = 1.7  # of the modules that are validated: one that takes it for 2 is refused
SIZES = "BATCH,IN_CHANNELS,OUT_CHANNELS,HEIGHT,WIDTH,KERNEL_SIZE"


class NotRun(Exception):
    """Say why a command is not run."""


def problem(text: str) -> Problem:
    """Return the Problem that the six numbers of SIZES describe, for argparse."""
    sizes = text.replace("x", ",").split(",")
    try:
        if len(sizes) != 6:
            raise ValueError(f"these are {len(sizes)} sizes, not 6")
        if int(sizes[0]) == 0:
            raise ValueError("batch must be at least 1, got 0")  # the operator serves it, but nothing can be compared
        return Problem(*map(int, sizes))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{SIZES} expected, got {_shortened(text)} ({error})") from None


def seed(text: str) -> int:
    """Return the seed, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer, at least 0 and below 2**63, got {_shortened(text)}")
    return number


def batch(text: str) -> int:
    """Return the batch, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {_shortened(text)}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=PROGRAM,
        **help_texts(
            "Validate a CUDA kernel of your own, or time this package beside PyTorch.",
            f"{PROGRAM} validate mine.cu --kernel fused",
            "0 done, 1 refused",
        ),
    )
    commands = result.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "validate",
        help="say whether a kernel or module of your own computes convolution + BatchNorm + scale",
        **help_texts(
            "Compare a kernel, a module or this package with float64 on inputs of several shapes and kinds. The kernel "
            "in FILE.cu needs the signature of `fused` in kernels/04_fused.cu and is launched like it: a thread for "
            "each output, in blocks of 256. FILE.py defines ModelNew as for KernelBench's problem 73: "
            "ModelNew(in_channels, out_channels, kernel_size, scaling_factor) makes a module with conv and bn. Without "
            "FILE, this package's module is validated. Without a GPU, kernels run on the emulator.",
            f"{PROGRAM} validate kernels/04_fused.cu --kernel fused --problem 2,8,16,20,24,3",
            "0 validated, 1 refused",
        ),
    )
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="CUDA C source, or Python with ModelNew")
    command.add_argument("--kernel", metavar="NAME", help='the name of the kernel in FILE.cu, marked extern "C"')
    command.add_argument(
        "--mode",
        choices=MODES,
        default="eval",
        help="eval: y by the running statistics; train: y by the batch's, and the running statistics after it; "
        "backward: all gradients (default: eval; a kernel in FILE.cu is validated in eval)",
    )
    command.add_argument(
        "--problem",
        type=problem,
        metavar=SIZES,
        help="sizes to validate at (default: 128,8,64,128,128,3 on a GPU, 2,8,64,18,23,3 on the emulator)",
    )
    command.add_argument("--seed", type=seed, default=0, help="of the random inputs (default: 0)")

    command = commands.add_parser(
        "bench",
        help="time the floor, PyTorch and this package on a GPU",
        **help_texts(
            "Time the floor (a copy on the device), PyTorch (eager, compiled, folded by hand) and this package in all "
            "precisions at problem 73 and at twelve other problems, each with its error against float64: evaluation "
            "mode, then training and gradients with the memory that they take; then as KernelBench's harness does; and "
            "the time that the host takes for a call. It takes minutes and needs a GPU.",
            f"{PROGRAM} bench --json build/times.json --plot build/times.png",
            "0 done",
        ),
    )
    part = command.add_mutually_exclusive_group()
    part.add_argument(
        "--only", choices=bench.PARTS, action="append", help="time this part alone; may be given several times"
    )
    part.add_argument(
        "--models",
        choices=bench.MODELS,
        nargs="*",
        metavar="MODEL",
        help="time, instead, every convolution of these models of torchvision's beside the best that can be had by "
        f"hand, in each precision and layout; without a name, of all: {', '.join(bench.MODELS)}",
    )
    part.add_argument(
        "--networks",
        choices=bench.NETWORKS,
        nargs="*",
        metavar="NETWORK",
        help="time, instead, inference and a training step of these networks of torchvision's: eager, compiled, and as "
        f"fusedref.fuse makes them; without a name, of all: {', '.join(bench.NETWORKS)}",
    )
    part.add_argument("--growth", action="store_true", help="measure, instead, how the cost grows around problem 73")
    for name, choices in (("precision", bench.DTYPES), ("layout", bench.LAYOUTS)):
        command.add_argument(
            f"--{name}", choices=choices, action="append", help=f"with --models: this {name} alone; may be repeated"
        )
    command.add_argument(
        "--batch", type=batch, action="append", metavar="N", help="with --models: this batch alone (default: 1 and 32)"
    )
    command.add_argument("--json", type=bench.rows_file, metavar="FILE", help="add the rows to FILE")
    command.add_argument(
        "--plot",
        type=picture_file,
        metavar="FILE",
        help="draw evaluation mode, the models or the growth into FILE (.png, .svg or .pdf)",
    )
    return result


def run_validate(file: Path | None, kernel: str | None, mode: str, problem: Problem | None, seed: int) -> int:
    """Validate a kernel, a module or this package and print the report; return the exit status.

    Raises NotRun where there is nothing to validate.
    """
    device = torch.device("cuda" if cuda.device() == "gpu" else "cpu")
    candidate: Callable[..., Any]
    if file is None:
        candidate = _own_module(problem or (KERNELBENCH_73 if device.type == "cuda" else SMALL_73), device)
    else:
        candidate = _candidate(file, kernel, mode, problem or SMALL_73, device)
    try:
        report = _validated(candidate, kernel or "a module", mode, problem, device, seed)
    except ValueError as error:  # it names the argument
        return not_run(PROGRAM, str(error))
    except (MemoryError, RuntimeError) as error:  # torch's, of memory for the inputs or the comparison
        return not_run(PROGRAM, f"validation at these sizes fails: {type(error).__name__}: {error}")
    out_of_memory = next((reason for reason in report.reasons if OUT_OF_MEMORY.search(reason)), None)
    if out_of_memory is not None:  # of the launch: a kernel takes no memory
        return not_run(PROGRAM, f"validation at these sizes fails: {out_of_memory}")
    print(report)
    return DONE if report.ok else REFUSED


def _own_module(problem: Problem, device: torch.device) -> nn.Module:
    """Return this package's module for the problem."""
    return FusedConvBnScale(problem.in_channels, problem.out_channels, problem.kernel, SCALE).to(device)


def _candidate(file: Path, kernel: str | None, mode: str, problem: Problem, device: torch.device) -> Callable[..., Any]:
    """Return the kernel or the module of ``file``; raise NotRun where there is none."""
    if not file.is_file():
        raise NotRun(f"there is no file {file}")
    try:
        file.read_text(encoding="utf-8")
    except OSError as error:
        raise NotRun(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise NotRun(f"{file} is not text in UTF-8") from None
    if file.suffix == ".py":
        return _model_new(file, problem, device)
    if kernel is None:
        raise NotRun(f"--kernel must name a kernel in {file}")
    if mode != "eval":
        raise NotRun(f"a kernel is validated with --mode eval, got --mode {mode}: give a module in FILE.py")
    try:
        torch.zeros(1, device=device)  # on a GPU: the context that the module is loaded into
        module = source_module(file, device=device)
    except Exception as error:  # nvcc's, PyCUDA's or the emulator's
        raise NotRun(f"{file} does not compile: {type(error).__name__}: {error}") from error
    try:
        module.get_function(kernel)
    except Exception as error:  # as above
        raise NotRun(f'{file} has no kernel {kernel!r} marked extern "C": {type(error).__name__}: {error}') from error
    return candidate_from_kernel(file, kernel)


def _model_new(file: Path, problem: Problem, device: torch.device) -> nn.Module:
    """Return the module that ``file`` defines as ModelNew; raise NotRun where it defines none."""
    try:
        model_new = runpy.run_path(str(file)).get("ModelNew")
        if model_new is not None:
            module: nn.Module = model_new(problem.in_channels, problem.out_channels, problem.kernel[0], SCALE)
            return module.to(device)
    except Exception as error:  # whatever the file raises
        raise NotRun(f"ModelNew of {file} cannot be made: {type(error).__name__}: {error}") from error
    raise NotRun(f"{file} defines no ModelNew")


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command line; return its exit status."""
    args = parser().parse_args(arguments)
    try:
        device = cuda.device()
    except (RuntimeError, ValueError) as error:  # FUSEDREF_DEVICE names a device that is not here
        return not_run(PROGRAM, str(error))
    if args.command == "validate":
        try:
            return run_validate(args.file, args.kernel, args.mode, args.problem, args.seed)
        except (NotRun, TypeError) as error:  # TypeError: of ModelNew; it names what is missing
            return not_run(PROGRAM, str(error))
    if args.models is None and (args.batch or args.precision or args.layout):
        return not_run(PROGRAM, "--batch, --precision and --layout are for --models")
    if args.networks is not None and find_spec("torchvision") is None:
        return not_run(PROGRAM, "--networks needs torchvision: pip install torchvision")
    if device != "gpu":
        return not_run(
            PROGRAM,
            "times are measured on a GPU alone, and there is no NVIDIA GPU with PyCUDA here (or FUSEDREF_DEVICE hides "
            "it).\nWithout one, `make ladder` shows what can be counted, beside the committed times of a card.",
        )
    try:
        if args.growth:
            bench.bench_growth(args.json, args.plot, Console())
        elif args.networks is not None:
            bench.bench_networks(args.json, Console(), tuple(args.networks) or bench.NETWORKS)
        elif args.models is not None:
            bench.bench_models(
                args.json, args.plot, Console(), tuple(args.models) or bench.MODELS, args.batch or bench.BATCHES,
                args.precision or tuple(bench.DTYPES), args.layout or bench.LAYOUTS,
            )  # fmt: skip
        else:
            bench.bench_all(args.json, args.plot, Console(), tuple(args.only or bench.PARTS))
    except torch.OutOfMemoryError as error:
        return not_run(PROGRAM, f"the GPU's memory is too small: {error}")
    return DONE


def _validated(
    candidate: Callable[..., Any], name: str, mode: str, problem: Problem | None, device: torch.device, seed: int
) -> Report:
    # torch's own convolutions, which a module may call, use tf32 unless they are told not to.
    with progress_bar() as progress, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        total = len(cases_of(problem or SMALL_73, mode, candidate))
        task = progress.add_task(f"validating {name}", total=total)
        return validate(
            candidate,
            problem,
            mode=mode,
            device=device,
            seed=seed,
            on_case=lambda case: progress.advance(task),
        )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


if __name__ == "__main__":
    run(PROGRAM, main)
