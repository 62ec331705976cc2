"""The command line: ``python -m fusedref validate FILE.cu --kernel NAME`` and ``python -m fusedref bench``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from fusedref.commandline import expect_interrupts

if __name__ == "__main__":
    expect_interrupts("python -m fusedref")  # before torch, which takes seconds to import

import torch
from rich.console import Console

from fusedref import Problem, bench, cuda, validate
from fusedref.commandline import DONE, REFUSED, help_texts, not_run, picture_file, progress_bar, run
from fusedref.cuda.compile import source_module
from fusedref.problem import SMALL_73
from fusedref.validation import Report, candidate_from_kernel, shapes_around

PROGRAM = "python -m fusedref"
OUT_OF_MEMORY = re.compile(r": raised (OutOfMemory|Memory)Error: ")  # torch's; PyCUDA's, Python's and the emulator's
SIZES = "BATCH,IN_CHANNELS,OUT_CHANNELS,HEIGHT,WIDTH,KERNEL_SIZE"


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
        help="say whether a kernel of your own computes convolution + BatchNorm + scale",
        **help_texts(
            "Compare a kernel with float64 on random inputs of several shapes. It needs the signature of `fused` in "
            "kernels/04_fused.cu and is launched like it: a thread for each output, in blocks of 256. Without a GPU it "
            "runs on the emulator.",
            f"{PROGRAM} validate kernels/04_fused.cu --kernel fused --problem 2,8,16,20,24,3",
            "0 validated, 1 refused",
        ),
    )
    command.add_argument("file", type=Path, metavar="FILE.cu", help="CUDA C source")
    command.add_argument("--kernel", required=True, metavar="NAME", help='the kernel\'s name, marked extern "C"')
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
            "precisions at problem 73 and at twelve other problems, each with its error against float64; and the time "
            "that the host takes for a call. It takes minutes and needs a GPU.",
            f"{PROGRAM} bench --json build/times.json --plot build/times.png",
            "0 done",
        ),
    )
    command.add_argument("--json", type=bench.rows_file, metavar="FILE", help="add the rows to FILE")
    command.add_argument(
        "--plot", type=picture_file, metavar="FILE", help="draw the rows into FILE (.png, .svg or .pdf)"
    )
    return result


def run_validate(file: Path, kernel: str, problem: Problem | None, seed: int) -> int:
    """Validate one kernel and print the report; return the exit status."""
    device = torch.device("cuda" if cuda.device() == "gpu" else "cpu")
    if not file.is_file():
        return not_run(PROGRAM, f"there is no file {file}")
    try:
        file.read_text(encoding="utf-8")
    except OSError as error:
        return not_run(PROGRAM, f"{file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return not_run(PROGRAM, f"{file} is not text in UTF-8")
    try:
        torch.zeros(1, device=device)  # on a GPU: the context that the module is loaded into
        module = source_module(file, device=device)
    except Exception as error:  # nvcc's, PyCUDA's or the emulator's
        return not_run(PROGRAM, f"{file} does not compile: {type(error).__name__}: {error}")
    try:
        module.get_function(kernel)
    except Exception as error:  # as above
        return not_run(PROGRAM, f'{file} has no kernel {kernel!r} marked extern "C": {type(error).__name__}: {error}')
    try:
        report = _validated(file, kernel, problem, device, seed)
    except ValueError as error:  # it names the argument
        return not_run(PROGRAM, str(error))
    except (MemoryError, RuntimeError) as error:  # torch's, of memory for the inputs or the comparison
        return not_run(PROGRAM, f"validation at these sizes fails: {type(error).__name__}: {error}")
    out_of_memory = next((reason for reason in report.reasons if OUT_OF_MEMORY.search(reason)), None)
    if out_of_memory is not None:  # of the launch: a kernel takes no memory
        return not_run(PROGRAM, f"validation at these sizes fails: {out_of_memory}")
    print(report)
    return DONE if report.ok else REFUSED


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command line; return its exit status."""
    given = parser().parse_args(arguments)
    try:
        device = cuda.device()
    except (RuntimeError, ValueError) as error:  # FUSEDREF_DEVICE names a device that is not here
        return not_run(PROGRAM, str(error))
    if given.command == "validate":
        return run_validate(given.file, given.kernel, given.problem, given.seed)
    if device != "gpu":
        return not_run(
            PROGRAM,
            "times are measured on a GPU alone, and there is no NVIDIA GPU with PyCUDA here (or FUSEDREF_DEVICE hides "
            "it).\nWithout one, `make ladder` shows what can be counted, beside the committed times of a card.",
        )
    try:
        bench.bench_all(given.json, given.plot, Console())
    except torch.OutOfMemoryError as error:
        return not_run(PROGRAM, f"the GPU's memory is too small: {error}")
    return DONE


def _validated(file: Path, kernel: str, problem: Problem | None, device: torch.device, seed: int) -> Report:
    with progress_bar() as progress:
        task = progress.add_task(f"validating {kernel}", total=len(shapes_around(problem or SMALL_73)))
        return validate(
            candidate_from_kernel(file, kernel),
            problem,
            device=device,
            seed=seed,
            on_case=lambda case: progress.advance(task),
        )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


if __name__ == "__main__":
    run(PROGRAM, main)
