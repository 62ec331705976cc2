"""The ladder: how each rung is launched, what it teaches, and what it must move.

Every rung computes the whole operator, y = BatchNorm(conv(x)) * scaling_factor, and takes over more of torch's three
calls than the rung before. A rung's ``candidate`` is what ``fusedref.validate`` wants: a function
``(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps) -> y`` of torch tensors and numbers.
It takes the device from the tensors: a GPU's, or the CPU's for the emulator.
"""

from __future__ import annotations

import dataclasses
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
THREADS = 256  # in a block of one thread per number
SHARED_MEMORY = 48 * 1024  # bytes that a block has on every card without asking for more
MOST_BLOCKS = 65535  # of a grid, along y and z


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way to compute the whole operator."""

    number: int
    name: str
    how: str  # who computes what
    idea: str  # what the rung teaches
    candidate: Callable[..., Tensor]
    launches: int  # passes over the tensors, ours and the library's
    round_trips: int  # how often a tensor of y's size is written and read again before y is finished
    most_threads: int | None = None  # output pixels per image and channel that the launch geometry allows
    precision: str = "fp32"  # at which it validates

    @property
    def title(self) -> str:
        """Return the number and the name."""
        return f"{self.number:02d} {self.name}"

    def bytes_moved(self, problem: Problem) -> int:
        """Return the bytes that move if every launch reads each of its tensors once and writes its result once."""
        y = problem.dtype.itemsize * math.prod(problem.output_shape)
        return problem.least_bytes + 2 * y * self.round_trips

    def fits(self, problem: Problem) -> bool:
        """Whether the rung can be launched on ``problem`` at all."""
        if isinstance(self.candidate, Tiled) and self.candidate.refusal(problem):
            return False
        return self.most_threads is None or problem.out_height * problem.out_width <= self.most_threads


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rung 01's kernel: a convolution of stride 1 without padding, by a square kernel."""
    batch, in_channels, height, width = x.shape
    out_channels, _, kernel_size, _ = weight.shape
    y = x.new_empty(batch, out_channels, height - kernel_size + 1, width - kernel_size + 1)
    sizes = map(np.int32, (batch, in_channels, height, width, out_channels, kernel_size))
    _one_thread_each("01_conv2d", "conv2d", y, x, weight, _or_zeros(bias, weight), Out(y), *sizes)
    return y


def batch_norm(
    x: Tensor, running_mean: Tensor, running_var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Tensor:
    """Rung 02's kernel."""
    y = torch.empty_like(x)
    vectors = running_mean, running_var, _or_ones(gamma, running_mean), _or_zeros(beta, running_mean)
    _one_thread_each("02_batch_norm", "batch_norm", y, x, *vectors, np.float32(eps), Out(y), *_planes(x))
    return y


def scale(x: Tensor, scaling_factor: float) -> Tensor:
    """Rung 03's kernel."""
    y = torch.empty_like(x)
    _one_thread_each("03_scale", "scale", y, x, np.float32(scaling_factor), Out(y), np.int32(x.numel()))
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
    """Rung 03's other kernel."""
    y = torch.empty_like(x)
    vectors = running_mean, running_var, _or_ones(gamma, running_mean), _or_zeros(beta, running_mean)
    numbers = np.float32(scaling_factor), np.float32(eps)
    _one_thread_each("03_scale", "bn_scale", y, x, *vectors, *numbers, Out(y), *_planes(x))
    return y


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    """Rung 04's kernel, one thread per output."""
    y, arguments = _fused_arguments(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
    _one_thread_each("04_fused", "fused", y, *arguments)
    return y


def fused_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    """Rung 04's other kernel, one block per image and channel."""
    y, arguments = _fused_arguments(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
    batch, out_channels, out_height, out_width = y.shape
    function = source_module(KERNELS / "04_fused.cu", device=x.device).get_function("fused_block")
    launch(function, *arguments, block=(out_width, out_height, 1), grid=(out_channels, batch, 1))
    return y


@dataclasses.dataclass(frozen=True)
class Tiled:
    """The candidate of a rung whose blocks compute a tile of the output each, with its sizes compiled in (06 on)."""

    file: str
    kernel: str
    block: tuple[int, int, int]
    channels: int | None  # of a tile; None: all
    rows: int
    columns: int
    shared: Callable[[int, int], int]  # bytes of shared memory, from in_channels and kernel_size
    dynamic: bool = True  # whether the launch gives them; else the kernel declares them
    declared: int = 0  # bytes that the kernel declares beside them

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        scaling_factor: float,
        eps: float,
    ) -> Tensor:
        """Return y of the nine arguments. Raise ValueError if the rung cannot be launched on them."""
        problem = Problem(
            x.shape[0], x.shape[1], weight.shape[0], x.shape[2], x.shape[3], (weight.shape[2], weight.shape[3])
        )
        refusal = self.refusal(problem)
        if refusal:
            raise ValueError(refusal)
        y = x.new_empty(problem.output_shape)
        vectors = _or_zeros(bias, running_mean), running_mean, running_var, _or_ones(gamma, running_mean)
        numbers = np.float32(scaling_factor), np.float32(eps)
        launch(
            source_module(KERNELS / f"{self.file}.cu", self.options(problem), x.device).get_function(self.kernel),
            *(x, weight, *vectors, _or_zeros(beta, running_mean), *numbers, Out(y)),
            block=self.block,
            grid=self.grid(problem),
            shared=self.shared(problem.in_channels, problem.kernel[0]) if self.dynamic else 0,
        )
        return y

    def options(self, problem: Problem) -> tuple[str, ...]:
        """nvcc's, with the sizes."""
        sizes = {
            "IN_CHANNELS": problem.in_channels,
            "OUT_CHANNELS": problem.out_channels,
            "HEIGHT": problem.height,
            "WIDTH": problem.width,
            "KERNEL_SIZE": problem.kernel[0],
        }
        return tuple(f"-D{name}={size}" for name, size in sizes.items())

    def grid(self, problem: Problem) -> tuple[int, int, int]:
        """Return the grid with a block for every tile: columns, rows, and images times groups of channels."""
        groups = 1 if self.channels is None else math.ceil(problem.out_channels / self.channels)
        across, down = math.ceil(problem.out_width / self.columns), math.ceil(problem.out_height / self.rows)
        return across, down, problem.batch * groups

    def refusal(self, problem: Problem) -> str | None:
        """Why the kernel cannot be launched on ``problem``; None if it can."""
        plain = Problem(*problem.input_shape[:2], problem.out_channels, *problem.input_shape[2:], problem.kernel[0])
        if problem.output_shape != plain.output_shape or problem.groups > 1:
            return f"{self.kernel} serves stride 1, no padding, no dilation and one group, by a square kernel"
        needed = self.shared(problem.in_channels, problem.kernel[0]) + self.declared
        if needed > SHARED_MEMORY:
            return (
                f"{self.kernel} needs {needed} bytes of shared memory for {problem.in_channels} input channels and a "
                f"{problem.kernel[0]}x{problem.kernel[0]} kernel, a block has {SHARED_MEMORY}"
            )
        if max(self.grid(problem)[1:]) > MOST_BLOCKS:
            return f"{self.kernel} needs {self.grid(problem)} blocks, of which only the first may pass {MOST_BLOCKS}"
        return None


def _bytes_of_06(in_channels: int, kernel_size: int) -> int:
    halo = (8 + kernel_size - 1) * (32 + kernel_size - 1)
    return 4 * in_channels * (halo + 16 * kernel_size**2)


def _bytes_of_07(in_channels: int, kernel_size: int) -> int:
    halo = (4 + kernel_size - 1) * (128 + kernel_size - 1)
    return 4 * in_channels * (halo + (64 + 4) * kernel_size**2)


def _bytes_of_08(in_channels: int, kernel_size: int) -> int:
    pixels = (6 + kernel_size - 1) * (64 + kernel_size - 1)
    return 16 * math.ceil(in_channels / 8) * (2 * pixels + (2 * 64 + 1) * kernel_size**2)


def _bytes_of_09(in_channels: int, kernel_size: int) -> int:
    runs = 8 * 8 * (32 + 8)
    return _bytes_of_08(in_channels, kernel_size) + 4 * runs


shared_tile = Tiled("06_shared_tile", "shared_tile", (32, 8, 1), None, 8, 32, _bytes_of_06, dynamic=False)
register_tile = Tiled("07_register_tile", "register_tile", (32, 8, 1), 64, 4, 128, _bytes_of_07)
tensor_cores = Tiled("08_tensor_cores", "tensor_cores", (256, 1, 1), 64, 6, 64, _bytes_of_08)
split_fp32 = Tiled("09_split_fp32", "split_fp32", (256, 1, 1), 64, 6, 64, _bytes_of_09, declared=784)


def library_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return torch's convolution in fp32; by default cuDNN may round the inputs to tf32."""
    with bench.arithmetic("fp32"):
        return F.conv2d(x, weight, bias)


def folded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    """Rung 05's kernel."""
    out_channels, in_channels, *kernel = weight.shape
    batch, _, height, width = x.shape
    problem = Problem(batch, in_channels, out_channels, height, width, (kernel[0], kernel[1]), bias=bias is not None)
    parameters = Parameters(x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
    return run_plan(folded_plan(problem), problem, parameters)


def _rung_01(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    return F.batch_norm(conv2d(x, weight, bias), running_mean, running_var, gamma, beta, eps=eps) * scaling_factor


def _rung_02(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    return batch_norm(conv2d(x, weight, bias), running_mean, running_var, gamma, beta, eps) * scaling_factor


def _rung_03(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    return scale(batch_norm(conv2d(x, weight, bias), running_mean, running_var, gamma, beta, eps), scaling_factor)


def _rung_03_bn_scale(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    convolved = library_convolution(x, weight, bias)
    return bn_scale(convolved, running_mean, running_var, gamma, beta, scaling_factor, eps)


def _rung_05_weights(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> Tensor:
    a, b = folding.affine(bias, running_mean, running_var, gamma, beta, scaling_factor, eps)
    return library_convolution(x, folding.fold(weight, a), b)


LADDER = [
    Rung(1, "conv2d", "our conv2d, torch's BatchNorm and scale",
         "one thread per output: a thread's number tells it which output it owns", _rung_01, 3, 2),
    Rung(2, "batch_norm", "our conv2d and BatchNorm, torch's scale",
         "a kernel that changes every number a little costs as much as the memory takes to carry them", _rung_02, 3, 2),
    Rung(3, "scale", "three kernels of ours",
         "three launches: the intermediate result goes out to memory and comes back, twice", _rung_03, 3, 2),
    Rung(3, "bn_scale", "library convolution, our BatchNorm and scale in one",
         "fusing the two cheap operators saves one of the two round trips", _rung_03_bn_scale, 2, 1),
    Rung(4, "fused", "one kernel, one thread per output",
         "the sum stays in its register: no kernel can move fewer bytes, and yet fewer bytes are not all", fused, 1, 0),
    Rung(4, "fused_block", "one kernel, one block per image and channel",
         "a launch has limits: a block holds 1024 threads, so this serves small planes alone", fused_block, 1, 0,
         most_threads=1024),
    Rung(5, "folded", "fusedref's kernel for any problem",
         "BatchNorm and scale are one multiply-add per channel, and sizes known to the compiler cost nothing",
         folded, 1, 0),
    Rung(5, "folded_weights", "one library convolution",
         "the multiply-add folds into the weights: any library's convolution computes the operator",
         _rung_05_weights, 1, 0),
    Rung(6, "shared_tile", "one kernel, a tile of inputs in shared memory",
         "a block fetches once what its outputs share: the barrier parts the copying from the reading",
         shared_tile, 1, 0),
    Rung(7, "register_tile", "one kernel, 8 channels x 4 pixels in a thread's registers",
         "12 numbers fetched serve 32 multiply-adds, and the multiply-adds are the wall", register_tile, 1, 0),
    Rung(8, "tensor_cores", "one kernel, on the tensor cores, in tf32",
         "an instruction of a warp multiplies small matrices: past the wall, at the price of 13 of 24 bits",
         tensor_cores, 1, 0, precision="tf32"),
    Rung(9, "split_fp32", "one kernel, on the tensor cores, every number two of fp16",
         "three products of halves and the order of their sums give fp32's accuracy back", split_fp32, 1, 0),
    Rung(10, "pipeline", "what `import fusedref` runs",
         "loading, multiplying and storing are different warps' work, and all of it happens at the same time",
         fused_conv_bn_scale, 1, 0),
]  # fmt: skip


def _fused_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scaling_factor: float,
    eps: float,
) -> tuple[Tensor, tuple[Any, ...]]:
    """y, still empty, and the arguments that both kernels of rung 04 take."""
    batch, in_channels, height, width = x.shape
    out_channels, _, kernel_size, _ = weight.shape
    y = x.new_empty(batch, out_channels, height - kernel_size + 1, width - kernel_size + 1)
    vectors = _or_zeros(bias, running_mean), running_mean, running_var, _or_ones(gamma, running_mean)
    sizes = map(np.int32, (batch, in_channels, height, width, out_channels, kernel_size))
    numbers = np.float32(scaling_factor), np.float32(eps)
    return y, (x, weight, *vectors, _or_zeros(beta, running_mean), *numbers, Out(y), *sizes)


def _one_thread_each(file: str, kernel: str, y: Tensor, *arguments: Any) -> None:
    """Launch ``kernel`` of ``file`` with a thread for each number of ``y``."""
    function = source_module(KERNELS / f"{file}.cu", device=y.device).get_function(kernel)
    launch(function, *arguments, block=(THREADS, 1, 1), grid=(math.ceil(y.numel() / THREADS), 1, 1))


def _planes(x: Tensor) -> tuple[np.int32, np.int32, np.int32]:
    """batch, channels and the size of a plane."""
    return np.int32(x.shape[0]), np.int32(x.shape[1]), np.int32(x.shape[2] * x.shape[3])


def _or_zeros(vector: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.shape[0]) if vector is None else vector


def _or_ones(vector: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(like.shape[0]) if vector is None else vector
