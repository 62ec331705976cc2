"""The command line: `python -m fusedref validate FILE.cu --kernel NAME` and `python -m fusedref bench`.

Exit status: 0 for success, 1 for a kernel that is refused, 2 for a command that cannot be carried out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from fusedref import Problem, bench, cuda, validate
from fusedref.cuda.compile import source_module
from fusedref.validation import candidate_from_kernel

SIZES = "BATCH,IN_CHANNELS,OUT_CHANNELS,HEIGHT,WIDTH,KERNEL_SIZE"


def problem(text: str) -> Problem:
    """A Problem from the six numbers that SIZES names."""
    sizes = text.replace("x", ",").split(",")
    try:
        if len(sizes) != 6:
            raise ValueError(f"these are {len(sizes)} sizes, not 6")
        if int(sizes[0]) == 0:
            raise ValueError("batch must be at least 1, got 0")  # nothing to compare, though the operator serves it
        return Problem(*map(int, sizes))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{SIZES} expected, got {text!r} ({error})") from None


def run_validate(file: Path, kernel: str, problem: Problem | None, seed: int) -> int:
    """Validates one kernel and prints the report; returns the exit status."""
    device = torch.device("cuda" if cuda.device() == "gpu" else "cpu")
    if not file.is_file():
        return _cannot(f"there is no file {file}")
    try:
        torch.zeros(1, device=device)  # on a GPU: the context that the module is loaded into
        module = source_module(file, device=device)
    except Exception as error:  # nvcc's, PyCUDA's or the emulator's, or of a file that is no text
        return _cannot(f"{file} does not compile: {type(error).__name__}: {error}")
    try:
        module.get_function(kernel)
    except Exception as error:
        return _cannot(f'{file} has no kernel {kernel!r} marked extern "C": {type(error).__name__}: {error}')
    try:
        report = validate(candidate_from_kernel(file, kernel), problem, device=device, seed=seed)
    except ValueError as error:  # it names the argument
        return _cannot(str(error))
    print(report)
    return 0 if report.ok else 1


def main(arguments: list[str] | None = None) -> int:
    """Carries out the command line; returns its exit status: 0 done, 1 refused, 2 not run."""
    parser = argparse.ArgumentParser(prog="python -m fusedref", description="Validate a kernel, or time this package.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "validate",
        help="say whether a kernel of your own computes convolution + BatchNorm + scale",
        description="Compare a kernel with float64 on random inputs of several shapes. It needs the signature of "
        "`fused` in kernels/04_fused.cu and is launched like it: a thread for each output, in blocks of 256. Without a "
        "GPU it runs on the emulator. Exit status: 0 validated, 1 refused, 2 not run.",
    )
    command.add_argument("file", type=Path, metavar="FILE.cu", help="CUDA C source")
    command.add_argument("--kernel", required=True, metavar="NAME", help='the kernel\'s name, marked extern "C"')
    command.add_argument(
        "--problem", type=problem, metavar=SIZES,
        help="sizes to validate at (default: 128,8,64,128,128,3 on a GPU, a small problem on the emulator)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")

    command = commands.add_parser(
        "bench",
        help="time the floor, PyTorch and this package on a GPU",
        description="Time the floor (a copy on the device), what PyTorch offers (eager, compiled, folded by hand) and "
        "this package in every precision at problem 73 and at twelve other problems, each with its error against "
        "float64, and what the host spends on a call. It takes minutes. Exit status: 0 done, 2 no GPU.",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="add the rows to FILE")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the rows into FILE (.png, .svg or .pdf)")

    given = parser.parse_args(arguments)
    try:
        cuda.device()
    except (RuntimeError, ValueError) as error:  # FUSEDREF_DEVICE names what is not here
        return _cannot(str(error))
    if given.command == "validate":
        return run_validate(given.file, given.kernel, given.problem, given.seed)
    return bench.main(given.json, given.plot, Console())


def _cannot(why: str) -> int:
    print(f"python -m fusedref: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
