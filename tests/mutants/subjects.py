"""The files to mutate, and for each the checks, of which a mutant must fail at least one."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import itertools
import math
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import fusedref.emulator
from fusedref import Problem, validate
from fusedref.emulator import driver, watch
from fusedref.ops.runner import run_plan
from fusedref.parameters import Parameters
from fusedref.plans import EMULATED, KernelVariant, Target, folded_plan, gemm_tiles, implicit_gemm_plan, pipeline_plan
from fusedref.reference import oracle
from fusedref.validation import compare, random_inputs
from kernels import ladder
from tests.mutants import Mutant, chosen, cuda_rules, python_rules
from tests.strategies import options

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "fusedref" / "csrc"
CANDIDATES = Path(__file__).with_name("candidates.py")


@dataclass(frozen=True)
class Check:
    """A candidate and the problem that it is checked on."""

    candidate: Callable
    problem: Problem
    precision: str = "fp32"
    watched: bool = True
    shapes: bool = True  # whether the validator checks it on the shapes around the problem, too
    others: tuple[str, ...] = ()  # names of further inputs, from _other, to check it on

    @property
    def general(self) -> bool:
        """Whether the candidate takes strides, paddings and the like."""
        function = getattr(self.candidate, "func", self.candidate)
        return function in (folded, implicit_gemm, pipeline)


def folded(*inputs: object, variant: KernelVariant = KernelVariant(), **kept: object) -> torch.Tensor:
    """Run folded.cu, even if the plan would choose another kernel."""
    problem = problem_of(*inputs[:3], **kept)
    return run_plan(folded_plan(problem, variant), problem, Parameters(*inputs))


def implicit_gemm(
    *inputs: object, variant: KernelVariant = KernelVariant(), warp_channels: int = 16, idle: int = 0, **kept: object
) -> torch.Tensor:
    """Run implicit_gemm.cu with several chunks, several tiles per block, and ``idle`` blocks without a tile."""
    problem = problem_of(*inputs[:3], **kept)
    tiles = list(gemm_tiles(problem, Target("sm_90a", 1), variant))
    small = [tile for tile in tiles if tile.chunk == 8 and tile.warp_channels == warp_channels]
    tile = min(small or tiles, key=lambda tile: (-tile.slots, tile.cycles))
    chosen_plan = implicit_gemm_plan(problem, tile, variant)
    if idle:
        (launch,) = chosen_plan.launches
        tiles = problem.batch * -(-problem.out_height // tile.rows) * -(-problem.out_width // tile.columns)
        launch = dataclasses.replace(launch, grid=(launch.grid[0], tiles + idle, 1))
        chosen_plan = dataclasses.replace(chosen_plan, launches=(launch,))
    return run_plan(chosen_plan, problem, Parameters(*inputs))


def pipeline(*inputs: object, variant: KernelVariant = KernelVariant(), **kept: object) -> torch.Tensor:
    """Run pipeline.cu on one multiprocessor, so that its stages and buffers are used several times."""
    problem = problem_of(*inputs[:3], **kept)
    chosen_plan = pipeline_plan(problem, EMULATED._replace(multiprocessors=1), variant)
    return run_plan(chosen_plan, problem, Parameters(*inputs))


def problem_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **kept: object) -> Problem:
    """Return the problem that the arguments of a candidate belong to."""
    sizes = x.shape[0], x.shape[1], weight.shape[0], x.shape[2], x.shape[3], tuple(weight.shape[2:])
    return Problem(*sizes, bias=bias is not None, dtype=x.dtype, **kept)


PLAIN = Problem(2, 3, 5, 9, 12, 3)
GENERAL = Problem(2, 4, 6, 13, 17, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(3, 2), groups=2)
UNPADDED = Problem(2, 2, 5, 9, 11, (2, 3), stride=(1, 2))
ONE_SIDE = Problem(1, 2, 3, 5, 6, (1, 3), stride=(1, 3), padding=(0, 1))
GEMM = Problem(2, 12, 20, 8, 9, 3, stride=(1, 2), padding=(1, 0))
HALVES = Problem(2, 12, 40, 9, 8, (2, 3), padding=1, dtype=torch.float16)
ODD = Problem(2, 18, 20, 8, 9, 3, padding=1, groups=2)  # an odd number of weights per channel, in two groups
FEW = Problem(2, 1, 20, 8, 19, (2, 9))  # so few channels that taps share rows; the last tap has its own
UNITS = Problem(2, 32, 40, 8, 9, 3, padding=1, groups=2, dtype=torch.float16)  # an odd number of units per chunk
TILES = Problem(1, 8, 64, 13, 63, (3, 2), padding=(1, 2), dilation=(2, 1))  # several tiles
EVEN = Problem(1, 8, 60, 6, 66, 3)  # whole sectors, and fewer channels than a block computes
TINY = Problem(2, 8, 64, 3, 3, 3)  # runs that begin and end between two multiples of 16 bytes
LONG = Problem(1, 8, 64, 3, 260, 3)  # rows of two tiles
TURNS = Problem(5, 8, 64, 22, 128, 3)  # so many tiles that blocks read and store in turns
SPLIT = (Problem(2, 7, 70, 7, 67, 2), Problem(1, 7, 64, 8, 66, 3))  # an even and an odd number of products
LAST, TF32 = KernelVariant(channels_last=True), KernelVariant("tf32")

WIDE = ("wall", "huge", "heavy channel", "outliers", "infinity", "few numbers of x", "few weights")
RUNGS = {rung.name: rung for rung in ladder.LADDER}


def rung(name: str, problem: Problem) -> Check:
    """Return the check of a rung of the ladder."""
    others = ("huge",) if name == "split_fp32" else ()
    return Check(RUNGS[name].candidate, problem, RUNGS[name].precision, others=others)


def of_folded() -> list[Check]:
    """Return the checks of folded.cu."""
    last = functools.partial(folded, variant=LAST)
    shapes = (GENERAL, UNPADDED, ONE_SIDE)
    others = ("no vectors",)
    return [
        *[Check(folded, each, others=others) for each in shapes],
        Check(last, dataclasses.replace(GENERAL, dtype=torch.float16)),
    ]


def of_gemm() -> list[Check]:
    """Return the checks of implicit_gemm.cu: every kind of element, odd sizes, groups, and wide ranges."""
    last = functools.partial(implicit_gemm, variant=LAST, warp_channels=32)
    tf32 = functools.partial(implicit_gemm, variant=TF32, warp_channels=32)
    idle = functools.partial(implicit_gemm, idle=1)
    small = [Check(each, problem, shapes=False) for each, problem in (
        (implicit_gemm, ODD), (implicit_gemm, FEW), (implicit_gemm, UNITS), (idle, GEMM)
    )]  # fmt: skip
    return [
        Check(implicit_gemm, GEMM, others=(*WIDE, "no vectors", "not aligned")),
        Check(last, HALVES),
        Check(tf32, GEMM, "tf32"),
        *small,
    ]


def of_pipeline() -> list[Check]:
    """Return the checks of pipeline.cu: every kind of element, even, tiny and long runs, turns, and wide ranges."""
    halves = dataclasses.replace(TILES, dtype=torch.bfloat16)
    tf32 = functools.partial(pipeline, variant=TF32)
    return [
        Check(pipeline, TILES, others=(*WIDE, "no vectors")),
        Check(pipeline, halves),
        Check(tf32, TILES, "tf32"),
        Check(pipeline, EVEN, shapes=False),
        Check(pipeline, TINY, shapes=False),
        Check(pipeline, LONG, shapes=False),
        Check(pipeline, TURNS, shapes=False, watched=False),
    ]


PARTS_OF_GEMM = (".cu", "_tile.cuh", "_load.cuh", "_prepare.cuh", "_multiply.cuh", "_store.cuh")
PARTS_OF_PIPELINE = (".cu", "_tile.cuh", "_load.cuh", "_product.cuh", "_multiply.cuh", "_store.cuh")
# ptx.cuh is missing: the emulator has its own in its place. 05 and 10 include the kernels of csrc.
CUDA: dict[str, list[Check]] = {
    "01_conv2d.cu": [rung("conv2d", PLAIN)],
    "02_batch_norm.cu": [rung("batch_norm", PLAIN)],
    "03_scale.cu": [rung("scale", PLAIN), rung("bn_scale", PLAIN)],
    "04_fused.cu": [rung("fused", PLAIN), rung("fused_block", PLAIN)],
    "06_shared_tile.cu": [rung("shared_tile", Problem(2, 3, 20, 10, 38, 3))],
    "07_register_tile.cu": [rung("register_tile", Problem(2, 3, 70, 7, 131, 2))],
    "08_tensor_cores.cu": [rung("tensor_cores", Problem(2, 9, 70, 7, 67, 2))],
    "09_split_fp32.cu": [rung("split_fp32", each) for each in SPLIT],
    "folded.cu": of_folded(),
    "affine.cuh": of_folded(),
    "split.cuh": [*of_gemm()[:2], of_pipeline()[0]],
    **{f"implicit_gemm{part}": of_gemm() for part in PARTS_OF_GEMM},
    **{f"pipeline{part}": of_pipeline() for part in PARTS_OF_PIPELINE},
}
MOST = {"guard always": 3, "guard never": 3}  # mutants of a file; of every other rule 2, or 4 barriers


def path_of(file: str) -> Path:
    """Return the path of a mutated file in this checkout."""
    if file == CANDIDATES.name:
        return CANDIDATES
    (path,) = [path for folder in (ROOT / "kernels", CSRC) for path in folder.rglob(file)]
    return path


def files() -> list[str]:
    """Return the names of the files that mutants are made of."""
    return [*CUDA, CANDIDATES.name]


def mutants_of(file: str) -> list[Mutant]:
    """Return the mutants of a file that a run includes."""
    text = path_of(file).read_text()
    if file == CANDIDATES.name:
        return chosen(python_rules.mutants(file, text), 15)
    every = cuda_rules.mutants(file, text)
    part = re.match("(pipeline|implicit_gemm)", file)  # one of the files of a large kernel
    most = {rule: 4 if rule == "barrier" else 1 if part else MOST.get(rule, 2) for rule in cuda_rules.RULES}
    return [each for rule in most for each in chosen([each for each in every if each.rule == rule], most[rule])]


def original(file: str) -> Mutant:
    """Return a mutant without any change."""
    return Mutant(file, "none", 1, "", "", path_of(file).read_text())


class Uncompiled(Exception):
    """The mutant does not compile, so it does not count."""


def caught_by(mutant: Mutant, folder: Path) -> str | None:
    """Return the check that notices the mutant, or None. It changes the process, which must not be used again.

    Raises Uncompiled.
    """
    torch.set_num_threads(1)
    if mutant.file == CANDIDATES.name:
        return next(_checks_of_python(mutant), None)
    put_in_place(mutant, folder)
    return next((found for check in CUDA[mutant.file] for found in _checks_of_kernel(check)), None)


def put_in_place(mutant: Mutant, folder: Path) -> None:
    """Make this process compile the mutant's text instead of the file's, and include headers from ``folder``."""
    text, compile_ = path_of(mutant.file).read_text(), fusedref.emulator.SourceModule
    for header in CSRC.rglob("*.cu*"):
        copy = folder / header.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(mutant.text if header.name == mutant.file else header.read_text())

    def moved(directory: str) -> str:
        return str(folder / Path(directory).relative_to(CSRC)) if Path(directory).is_relative_to(CSRC) else directory

    def compiled(source: str, *, include_dirs: list[str], **kept: object) -> object:
        changed = source.replace(text, mutant.text)
        return compile_(changed, include_dirs=[moved(directory) for directory in include_dirs], **kept)

    fusedref.emulator.SourceModule = compiled


def _checks_of_kernel(check: Check) -> Iterator[str]:
    """Yield the name of every check that fails, the cheapest first."""
    problem = check.problem
    candidate = functools.partial(check.candidate, **(options(problem) if check.general else {}))
    inputs = random_inputs(problem, 0)

    def wrong(inputs: Parameters) -> bool:
        try:
            y = candidate(*copy.deepcopy(inputs))  # unlike clone(), it keeps the alignment of the tensors
        except driver.CompileError as error:
            raise Uncompiled(str(error)) from error
        except (driver.Error, IndexError):
            return True
        if not inputs.x.isfinite().all():  # which compare() has no bounds for
            expected = oracle(*inputs, **options(problem))
            return not torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        return not compare("", problem, inputs, y, precision=check.precision).ok

    if wrong(inputs):
        yield "the problem"
    for seed in (0, 1) if check.watched else ():
        with watch(seed=seed) as seen:
            failed = wrong(inputs)
        if failed or seen.findings:
            yield "the watched emulator"
    if check.shapes and not validate(candidate, problem, precision=check.precision, device="cpu").ok:
        yield "other shapes"
    for other in check.others:
        with watch() as seen:
            failed = wrong(_other(inputs, other))
        if failed or seen.findings:
            yield "other inputs"


def _other(inputs: Parameters, name: str) -> Parameters:
    """Return inputs of another kind: wide ranges of x or weight, no vectors, or tensors that are not aligned."""
    if name == "no vectors":
        return inputs._replace(bias=None, gamma=None, beta=None)
    if name == "not aligned":  # they begin 4 bytes after a multiple of 16
        moved = [torch.cat([each.new_zeros(1), each.flatten()])[1:].view(each.shape) for each in inputs[:2]]
        return inputs._replace(x=moved[0], weight=moved[1])
    x, weight = inputs.x.clone(), inputs.weight.clone()
    if name == "wall":  # windows left of it see small numbers only
        x[..., x.shape[3] // 2 :] *= 1e12
    if name == "huge":
        x, weight = x * 1e30, weight * 1e-20
    if name == "heavy channel":
        weight[:, 0] *= 1e12
    if name == "outliers":  # at odd and even places of the numbers whose range a thread finds
        x[0, 3, 4, 5] = x[-1, 0, 2, 4] = 1e9
        weight[1, 2, 0, 1] = weight[4, 3, 1, 0] = 1e9
    if name == "infinity":  # all other numbers of the image are zero
        x[0] = 0
        x[0, 3, 4, 5] = math.inf
    if name == "few numbers of x":  # windows see a large one or a small one
        few = torch.zeros_like(x)
        few[..., 0], few[..., -1], few[..., 5] = x[..., 0] * 1e20, x[..., -1] * 1e20, x[..., 5]
        x = few
    if name == "few weights":  # small ones at every place of a unit, and large ones that only zeros are multiplied by
        few = torch.zeros_like(weight)
        few[:, 0, 0] = weight[:, 0, 0] * 1e20
        for channel in range(len(few)):
            place = (1, channel // weight.shape[3] % weight.shape[2], channel % weight.shape[3])
            few[channel][place] = weight[channel][place]
        x[:, 0], weight = 0, few
    return inputs._replace(x=x, weight=weight)


def _checks_of_python(mutant: Mutant) -> Iterator[str]:
    """Yield the problems that the mutated candidate fails on."""
    functions = [node for node in ast.parse(path_of(mutant.file).read_text()).body if isinstance(node, ast.FunctionDef)]
    changed = [each.name for each in functions if each.lineno <= mutant.line <= each.end_lineno]
    names = changed or [each.name for each in functions]  # the original: all of them
    module = types.ModuleType("mutant")
    exec(compile(mutant.text, mutant.file, "exec"), module.__dict__)
    for name, (problem, words) in itertools.product(names, ((PLAIN, "the problem"), (GENERAL, "other options"))):
        kept = {**options(problem), "stride": problem.strides, "padding": [low for low, _ in problem.pads]}
        kept["dilation"] = problem.dilation if isinstance(problem.dilation, tuple) else (problem.dilation,) * 2
        if not validate(functools.partial(getattr(module, name), **kept), problem, device="cpu").ok:
            yield words
