"""The ladder: the launch of every rung, what it teaches and how many bytes it moves.

Every rung computes the whole operator, y = BatchNorm(conv(x)) * scaling_factor, and replaces more of torch's three
calls than the rung before. A rung's ``candidate`` is a function for ``fusedref.validate``:
``(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps) -> y``, of torch tensors and numbers.
It runs on the tensors' device: a GPU, or the CPU for the emulator.

LADDER has the rungs of evaluation mode. ``kernels.training`` has those of training mode.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusedref import bench, folding, fused_conv_bn_scale
from fusedref.cuda.compile import source_module
from fusedref.cuda.launch import Out, launch
from fusedref.ops.runner import run_plan
from fusedref.parameters import Parameters
from fusedref.plans import folded_plan
from fusedref.problem import Problem

KERNELS = Path(__file__).parent
THREADS = 256  # per block, where a thread computes one element
MAX_SHARED_BYTES = 48 * 1024  # per block on every GPU, without an opt-in
MAX_GRID_YZ = 65535  # blocks of a grid along y and along z


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way to compute the whole operator."""

    number: int
    name: str
    implementation: str  # which kernels and library calls compute the operator
    idea: str  # what the rung teaches
    candidate: Callable[..., Any]
    launches: int  # of kernels: ours and the library's
    y_passes: int  # reads and writes of whole tensors of y's size
    x_passes: int = 1  # reads and writes of whole tensors of x's size
    mode: str = "eval"  # of BatchNorm: "eval" or "train"; "backward" for the gradients
    max_plane: int | None = None  # out_height * out_width that a launch can take at most; None: any
    precision: str = "fp32"  # in which the rung validates

    @property
    def title(self) -> str:
        """Return the number and the name."""
        return f"{self.number:02d} {self.name}"

    def bytes_moved(self, problem: Problem) -> int:
        """Return the bytes that move if every launch reads each of its tensors once and writes its result once."""
        x, y = (problem.dtype.itemsize * math.prod(shape) for shape in (problem.input_shape, problem.output_shape))
        return problem.least_bytes + (self.x_passes - 1) * x + (self.y_passes - 1) * y

    def fits(self, problem: Problem) -> bool:
        """Return whether the rung can be launched on ``problem``."""
        if isinstance(self.candidate, Tiled) and self.candidate.refusal(problem):
            return False
        return self.max_plane is None or problem.out_height * problem.out_width <= self.max_plane


def _candidate(compute: Callable[[Parameters], Tensor]) -> Callable[..., Tensor]:
    """Return ``compute`` as a function of the nine arguments."""

    @functools.wraps(compute)
    def candidate(*parameters: Any) -> Tensor:
        return compute(Parameters(*parameters))

    return candidate


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution by rung 01's kernel: a square filter, stride 1, no padding."""
    batch, in_channels, height, width = x.shape
    out_channels, _, kernel_size, _ = weight.shape
    y = x.new_empty(batch, out_channels, height - kernel_size + 1, width - kernel_size + 1)
    sizes = map(np.int32, (batch, in_channels, height, width, out_channels, kernel_size))
    bias = weight.new_zeros(out_channels) if bias is None else bias
    _launch_per_element("01_conv2d", "conv2d", y, x, weight, bias, Out(y), *sizes)
    return y


def batch_norm(
    x: Tensor, running_mean: Tensor, running_var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Tensor:
    """Return BatchNorm of x with the running statistics, by rung 02's kernel."""
    y = torch.empty_like(x)
    vectors = running_mean, running_var, *_scale_and_shift(running_mean, gamma, beta)
    _launch_per_element("02_batch_norm", "batch_norm", y, x, *vectors, np.float32(eps), Out(y), *_planes(x))
    return y


def scale(x: Tensor, scaling_factor: float) -> Tensor:
    """Return x * scaling_factor, by rung 03's first kernel."""
    y = torch.empty_like(x)
    _launch_per_element("03_scale", "scale", y, x, np.float32(scaling_factor), Out(y), np.int32(x.numel()))
    return y


def bn_scale(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    """Return BatchNorm of x, times scaling_factor, by rung 03's second kernel."""
    y = torch.empty_like(x)
    vectors = running_mean, running_var, *_scale_and_shift(running_mean, gamma, beta)
    numbers = np.float32(scaling_factor), np.float32(eps)
    _launch_per_element("03_scale", "bn_scale", y, x, *vectors, *numbers, Out(y), *_planes(x))
    return y


@_candidate
def fused(parameters: Parameters) -> Tensor:
    """Return y of the nine arguments, by rung 04's first kernel: one thread per output."""
    y, arguments = _fused_arguments(parameters)
    _launch_per_element("04_fused", "fused", y, *arguments)
    return y


@_candidate
def fused_block(parameters: Parameters) -> Tensor:
    """Return y of the nine arguments, by rung 04's second kernel: one block per image and channel."""
    y, arguments = _fused_arguments(parameters)
    batch, out_channels, out_height, out_width = y.shape
    function = source_module(KERNELS / "04_fused.cu", device=y.device).get_function("fused_block")
    launch(function, *arguments, block=(out_width, out_height, 1), grid=(out_channels, batch, 1))
    return y


@dataclasses.dataclass(frozen=True)
class Tiled:
    """The candidate of a rung whose blocks compute a tile of the output each, with the sizes compiled in (06 to 09)."""

    file: str
    kernel: str
    block: tuple[int, int, int]
    channels: int | None  # of a tile; None: all
    rows: int
    columns: int
    tile_bytes: Callable[[int, int], int]  # of shared memory, from in_channels and kernel_size
    dynamic: bool = True  # whether these bytes are dynamic shared memory; otherwise the kernel declares them
    declared: int = 0  # bytes of shared memory that the kernel declares in addition

    def __call__(self, *parameters: Any) -> Tensor:
        """Return y of the nine arguments. Raise ValueError if the kernel cannot be launched on them."""
        given = Parameters(*parameters)
        problem = _problem(given)
        refusal = self.refusal(problem)
        if refusal:
            raise ValueError(refusal)
        y = given.x.new_empty(problem.output_shape)
        launch(
            source_module(KERNELS / f"{self.file}.cu", self.options(problem), y.device).get_function(self.kernel),
            *_operands(given),
            Out(y),
            block=self.block,
            grid=self.grid(problem),
            shared=self.tile_bytes(problem.in_channels, problem.kernel[0]) if self.dynamic else 0,
        )
        return y

    def options(self, problem: Problem) -> tuple[str, ...]:
        """Return the options for nvcc that define the sizes."""
        sizes = {
            "IN_CHANNELS": problem.in_channels,
            "OUT_CHANNELS": problem.out_channels,
            "HEIGHT": problem.height,
            "WIDTH": problem.width,
            "KERNEL_SIZE": problem.kernel[0],
        }
        return tuple(f"-D{name}={size}" for name, size in sizes.items())

    def grid(self, problem: Problem) -> tuple[int, int, int]:
        """Return the grid, a block per tile: along the columns, along the rows, images times groups of channels."""
        groups = 1 if self.channels is None else math.ceil(problem.out_channels / self.channels)
        across, down = math.ceil(problem.out_width / self.columns), math.ceil(problem.out_height / self.rows)
        return across, down, problem.batch * groups

    def refusal(self, problem: Problem) -> str | None:
        """Return why the kernel cannot be launched on ``problem``; None if it can."""
        plain = Problem(*problem.input_shape[:2], problem.out_channels, *problem.input_shape[2:], problem.kernel[0])
        if problem.output_shape != plain.output_shape or problem.groups > 1:
            return f"{self.kernel} serves stride 1, no padding, no dilation and one group, by a square kernel"
        needed = self.tile_bytes(problem.in_channels, problem.kernel[0]) + self.declared
        if needed > MAX_SHARED_BYTES:
            return (
                f"{self.kernel} needs {needed} bytes of shared memory for {problem.in_channels} input channels and a "
                f"{problem.kernel[0]}x{problem.kernel[0]} kernel, a block has {MAX_SHARED_BYTES}"
            )
        if max(self.grid(problem)[1:]) > MAX_GRID_YZ:
            return f"{self.kernel} needs {self.grid(problem)} blocks, of which only the first may pass {MAX_GRID_YZ}"
        return None


def _shared_tile_bytes(in_channels: int, kernel_size: int) -> int:
    halo = (8 + kernel_size - 1) * (32 + kernel_size - 1)
    return 4 * in_channels * (halo + 16 * kernel_size**2)


def _register_tile_bytes(in_channels: int, kernel_size: int) -> int:
    halo = (4 + kernel_size - 1) * (128 + kernel_size - 1)
    return 4 * in_channels * (halo + (64 + 4) * kernel_size**2)


def _tensor_cores_bytes(in_channels: int, kernel_size: int) -> int:
    pixels = (6 + kernel_size - 1) * (64 + kernel_size - 1)
    return 16 * math.ceil(in_channels / 8) * (2 * pixels + (2 * 64 + 1) * kernel_size**2)


def _split_fp32_bytes(in_channels: int, kernel_size: int) -> int:
    runs = 8 * 8 * (32 + 8)
    return _tensor_cores_bytes(in_channels, kernel_size) + 4 * runs


shared_tile = Tiled("06_shared_tile", "shared_tile", (32, 8, 1), None, 8, 32, _shared_tile_bytes, dynamic=False)
register_tile = Tiled("07_register_tile", "register_tile", (32, 8, 1), 64, 4, 128, _register_tile_bytes)
tensor_cores = Tiled("08_tensor_cores", "tensor_cores", (256, 1, 1), 64, 6, 64, _tensor_cores_bytes)
split_fp32 = Tiled("09_split_fp32", "split_fp32", (256, 1, 1), 64, 6, 64, _split_fp32_bytes, declared=784)


def library_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return torch's convolution in fp32; by default cuDNN may round the inputs to tf32."""
    with bench.arithmetic("fp32"):
        return F.conv2d(x, weight, bias)


@_candidate
def folded(parameters: Parameters) -> Tensor:
    """Return y of the nine arguments, by rung 05's kernel."""
    problem = dataclasses.replace(_problem(parameters), bias=parameters.bias is not None)
    return run_plan(folded_plan(problem), problem, parameters)


@_candidate
def _rung_01(parameters: Parameters) -> Tensor:
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = parameters
    return F.batch_norm(conv2d(x, weight, bias), running_mean, running_var, gamma, beta, eps=eps) * scaling_factor


@_candidate
def _rung_02(parameters: Parameters) -> Tensor:
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = parameters
    return batch_norm(conv2d(x, weight, bias), running_mean, running_var, gamma, beta, eps) * scaling_factor


@_candidate
def _rung_03(parameters: Parameters) -> Tensor:
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = parameters
    return scale(batch_norm(conv2d(x, weight, bias), running_mean, running_var, gamma, beta, eps), scaling_factor)


@_candidate
def _rung_03_bn_scale(parameters: Parameters) -> Tensor:
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = parameters
    convolved = library_convolution(x, weight, bias)
    return bn_scale(convolved, running_mean, running_var, gamma, beta, scaling_factor, eps)


@_candidate
def _rung_05_weights(parameters: Parameters) -> Tensor:
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = parameters
    a, b = folding.affine(bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
    return library_convolution(x, folding.fold(weight, a), b)


LADDER = [
    Rung(1, "conv2d", "our conv2d, torch's BatchNorm and scale",
         "one thread per output: a thread computes from its index which output it owns", _rung_01, 3, 5),
    Rung(2, "batch_norm", "our conv2d and BatchNorm, torch's scale",
         "an elementwise kernel takes the time that the memory needs for its bytes", _rung_02, 3, 5),
    Rung(3, "scale", "three kernels of ours",
         "three launches: the intermediate result is written to memory and read again, twice", _rung_03, 3, 5),
    Rung(3, "bn_scale", "library convolution, our BatchNorm and scale in one",
         "fusing the two cheap operators saves one of the two round trips", _rung_03_bn_scale, 2, 3),
    Rung(4, "fused", "one kernel, one thread per output",
         "the sum stays in a register: no kernel moves fewer bytes, but bytes are not the only limit", fused, 1, 1),
    Rung(4, "fused_block", "one kernel, one block per image and channel",
         "a launch has limits: a block holds 1024 threads, so this serves small planes only", fused_block, 1, 1,
         max_plane=1024),
    Rung(5, "folded", "fusedref's kernel for any problem",
         "BatchNorm and scale are one multiply-add per channel, and compile-time sizes cost nothing",
         folded, 1, 1),
    Rung(5, "folded_weights", "one library convolution",
         "the multiply-add folds into the weights: any library's convolution computes the operator",
         _rung_05_weights, 1, 1),
    Rung(6, "shared_tile", "one kernel, a tile of inputs in shared memory",
         "a block loads once the inputs that its outputs share; a barrier separates copying from reading",
         shared_tile, 1, 1),
    Rung(7, "register_tile", "one kernel, 8 channels x 4 pixels in a thread's registers",
         "12 loaded numbers feed 32 multiply-adds, and now the multiply-adds are the limit", register_tile, 1, 1),
    Rung(8, "tensor_cores", "one kernel, on the tensor cores, in tf32",
         "an instruction of a warp multiplies small matrices: beyond that limit, with 11 instead of 24 bits",
         tensor_cores, 1, 1, precision="tf32"),
    Rung(9, "split_fp32", "one kernel, on the tensor cores, every number two of fp16",
         "three products of halves and the order of their sums give fp32's accuracy back", split_fp32, 1, 1),
    Rung(10, "pipeline", "what `import fusedref` runs",
         "different warps load, multiply and store, all at the same time",
         fused_conv_bn_scale, 1, 1),
]  # fmt: skip


def _problem(parameters: Parameters) -> Problem:
    """Return the problem with the shapes of x and weight, at stride 1 without padding."""
    batch, in_channels, height, width = parameters.x.shape
    out_channels, _, *kernel = parameters.weight.shape
    return Problem(batch, in_channels, out_channels, height, width, (kernel[0], kernel[1]))


def _operands(parameters: Parameters) -> tuple[Any, ...]:
    """Return the arguments that the kernels from rung 04 on read: with bias, gamma and beta, and numbers in float32."""
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps = parameters
    bias = torch.zeros_like(running_mean) if bias is None else bias
    vectors = bias, running_mean, running_var, *_scale_and_shift(running_mean, gamma, beta)
    return x, weight, *vectors, np.float32(scaling_factor), np.float32(eps)


def _fused_arguments(parameters: Parameters) -> tuple[Tensor, tuple[Any, ...]]:
    """Return an empty y and the arguments of rung 04's two kernels."""
    batch, in_channels, height, width = parameters.x.shape
    out_channels, _, kernel_size, _ = parameters.weight.shape
    y = parameters.x.new_empty(batch, out_channels, height - kernel_size + 1, width - kernel_size + 1)
    sizes = map(np.int32, (batch, in_channels, height, width, out_channels, kernel_size))
    return y, (*_operands(parameters), Out(y), *sizes)


def _launch_per_element(file: str, kernel: str, y: Tensor, *arguments: Any) -> None:
    """Launch ``kernel`` of ``file`` with one thread per element of ``y``."""
    function = source_module(KERNELS / f"{file}.cu", device=y.device).get_function(kernel)
    launch(function, *arguments, block=(THREADS, 1, 1), grid=(math.ceil(y.numel() / THREADS), 1, 1))


def _planes(x: Tensor) -> tuple[np.int32, np.int32, np.int32]:
    """Return the batch, the channels and the elements of a plane."""
    return np.int32(x.shape[0]), np.int32(x.shape[1]), np.int32(x.shape[2] * x.shape[3])


def _scale_and_shift(running_mean: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return gamma and beta, with ones and zeros for None."""
    gamma = torch.ones_like(running_mean) if gamma is None else gamma
    return gamma, torch.zeros_like(running_mean) if beta is None else beta
