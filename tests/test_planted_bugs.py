"""Kernels and functions with one bug each: the validator must refuse them all.

Each is the right kernel or function with one change. Where the report has words for the bug, they are tested too.
"""

import functools
import sys

import pytest
import torch
import torch.nn.functional as F

from fusedref import Problem, folding, validate
from fusedref.reference import conv_bn_scale
from fusedref.validation import candidate_from_kernel

PLAIN = Problem(2, 4, 6, 9, 9, 3)  # square on purpose: other shapes must show what this one hides
PADDED = Problem(2, 4, 6, 9, 9, 3, stride=2, padding=1, dilation=2, groups=2)


def right(x, weight, bias, mean, var, gamma, beta, s, eps):
    return conv_bn_scale(x, weight, bias, mean, var, gamma, beta, s, eps)


def altered(change):
    """Return the right operator on inputs changed by ``change``, which takes a dict of them."""

    def candidate(*inputs):
        names = ("x", "weight", "bias", "running_mean", "running_var", "gamma", "beta", "scaling_factor", "eps")
        given = dict(zip(names, inputs, strict=True))
        return conv_bn_scale(**{**given, **change(given)})

    return candidate


def spoilt(change):
    """Return a candidate with the right result, changed by ``change``."""
    return lambda *inputs: change(right(*inputs).clone())


def filled(value, place):
    def change(y):
        y[place] = value
        return y

    return spoilt(change)


def unwritten(select):
    """Return a candidate that writes only the part of y that ``select`` gives, into new memory."""

    def candidate(*inputs):
        whole = right(*inputs)
        y = torch.empty_like(whole)
        select(y).copy_(select(whole))
        return y

    return candidate


def to_tf32(tensor):
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def accumulated_in(dtype):
    """Products in float32, and a sum that is rounded to ``dtype`` at every step."""

    def candidate(x, weight, bias, *rest):
        out_channels, _, kernel, _ = weight.shape
        patches = F.unfold(x, kernel)  # [batch, taps, outputs]
        sums = torch.zeros(len(x), out_channels, patches.shape[2], dtype=dtype)
        for tap, column in enumerate(weight.view(out_channels, -1).T):
            sums = (sums.float() + patches[:, tap, None, :] * column[:, None]).to(dtype)
        height, width = (size - kernel + 1 for size in x.shape[2:])
        one = torch.eye(out_channels)[:, :, None, None]
        return conv_bn_scale(sums.float().view(len(x), out_channels, height, width), one, bias, *rest)

    return candidate


def split_bfloat16(x, weight, *rest):
    """Two bfloat16 pieces for each number: about 16 bits, better than tf32 and still not float32."""
    (x0, x1), (w0, w1) = ([t.bfloat16().float(), (t - t.bfloat16().float()).bfloat16().float()] for t in (x, weight))
    sums = F.conv2d(x0, w1) + F.conv2d(x1, w0) + F.conv2d(x0, w0)
    return conv_bn_scale(sums, torch.eye(len(weight))[:, :, None, None], *rest)


EVERYWHERE = {
    "zeros": (spoilt(torch.zeros_like), "every element is zero"),
    "NaN": (filled(torch.nan, ...), "every element is wrong"),
    "bias ignored": (altered(lambda given: {"bias": None}), "bias is left out"),
    "mean ignored": (
        altered(lambda given: {"running_mean": given["running_mean"] * 0}),
        "running_mean is left out",
    ),
    "mean added": (altered(lambda given: {"running_mean": -given["running_mean"]}), "running_mean is added"),
    "variance ignored": (
        altered(lambda given: {"running_var": torch.ones_like(given["running_var"])}),
        "running_var is left out",
    ),
    "statistics of a fresh BatchNorm": (
        altered(lambda given: {"running_mean": given["running_mean"] * 0, "running_var": given["running_var"] * 0 + 1}),
        "every element is wrong",
    ),
    "gamma ignored": (altered(lambda given: {"gamma": None}), "gamma is left out"),
    "gamma's sign ignored": (altered(lambda given: {"gamma": given["gamma"].abs()}), "channel"),
    "beta ignored": (altered(lambda given: {"beta": None}), "beta is left out"),
    "beta not scaled": (
        altered(lambda given: {"beta": given["beta"] / given["scaling_factor"]}),
        "beta is added after the scale",
    ),
    # 1e-30 stands for no eps at all: torch 2.11 takes no zero.
    "eps ignored": (altered(lambda given: {"eps": 1e-30}), "eps is left out"),
    "eps fixed": (altered(lambda given: {"eps": 1e-5}), "eps is 1e-5, whatever is given"),
    "eps outside the root": (
        altered(lambda given: {"running_var": (given["running_var"].sqrt() + given["eps"]) ** 2, "eps": 1e-30}),
        "eps is added after the square root",
    ),
    "no root": (
        altered(lambda given: {"running_var": (given["running_var"] + given["eps"]) ** 2, "eps": 1e-30}),
        "the square root is forgotten",
    ),
    "unbiased variance": (altered(lambda given: {"running_var": given["running_var"] * 100 / 99}), "every element"),
    "scale ignored": (altered(lambda given: {"scaling_factor": 1.0}), "scaling_factor is left out"),
    "scale fixed": (altered(lambda given: {"scaling_factor": 2.0}), "scaling_factor is 2, whatever is given"),
    "scale doubled": (altered(lambda given: {"scaling_factor": given["scaling_factor"] * 2}), "every element"),
    "filter flipped": (altered(lambda given: {"weight": given["weight"].flip(2, 3)}), "the filter is flipped"),
    "filter transposed": (
        altered(lambda given: {"weight": given["weight"].transpose(2, 3)}),
        "the filter's rows and columns are swapped",
    ),
    "filters in another order": (altered(lambda given: {"weight": given["weight"].roll(1, 0)}), "every element"),
    "input channels in another order": (altered(lambda given: {"x": given["x"].roll(1, 1)}), "every element"),
    "image repeated": (altered(lambda given: {"x": given["x"][:1].expand_as(given["x"])}), "image 0 is right"),
    "tf32": (altered(lambda given: {name: to_tf32(given[name]) for name in ("x", "weight")}), "bits"),
    "fp16 inputs": (altered(lambda given: {name: given[name].half().float() for name in ("x", "weight")}), "bits"),
    "fp16 sum": (accumulated_in(torch.float16), "bits"),
    "bf16 sum": (accumulated_in(torch.bfloat16), ""),
    "two bf16 pieces": (split_bfloat16, "elements"),
    "one ulp too many": (spoilt(lambda y: y * (1 + 3e-6)), "elements"),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_wrong_arithmetic(name):
    candidate, words = EVERYWHERE[name]
    report = validate(candidate, PLAIN, device="cpu")
    assert not report.ok
    assert any(words in reason for reason in report.reasons), str(report)


ACCEPTED_AT_TF32 = ("tf32", "fp16 inputs", "fp16 sum", "two bf16 pieces", "one ulp too many")


@pytest.mark.parametrize("name", [name for name in EVERYWHERE if name not in ACCEPTED_AT_TF32])
def test_wrong_arithmetic_at_precision_tf32(name):
    candidate, _ = EVERYWHERE[name]  # the words may be others: a wider bound takes one slip for its neighbour
    report = validate(candidate, PLAIN, precision="tf32", device="cpu")
    assert not report.ok


@pytest.mark.parametrize("name", ["tf32", "fp16 inputs", "two bf16 pieces"])  # fp16 keeps as many bits as tf32
def test_what_precision_tf32_accepts(name):
    candidate, _ = EVERYWHERE[name]
    report = validate(candidate, PLAIN, precision="tf32", device="cpu")
    assert report.ok, str(report)


def test_bf16_inputs_are_refused_at_precision_tf32():
    bfloat16 = altered(lambda given: {name: given[name].bfloat16().float() for name in ("x", "weight")})
    report = validate(bfloat16, PLAIN, precision="tf32", device="cpu")
    assert not report.ok


IN_PLACES = {
    "last column": (filled(0.0, (..., -1)), "the last column (6) is wrong (84 of 588 elements)"),
    "first column": (filled(0.0, (..., 0)), "the first column (0) is wrong"),
    "last row": (filled(0.0, (..., slice(-1, None), slice(None))), "the last row (6) is wrong"),
    "two rows": (filled(0.0, (..., slice(3, 5), slice(None))), "2 rows (3 to 4) are wrong"),
    "every second row": (
        filled(0.0, (..., slice(1, None, 2), slice(None))),
        "every second row from 1 on is wrong",
    ),
    "every third column": (filled(0.0, (..., slice(0, None, 3))), "every third column from 0 on is wrong"),
    "one channel": (filled(0.0, (slice(None), 3)), "channel 3 is wrong (98 of 588 elements)"),
    "the last image": (filled(0.0, -1), "the last image (1) is wrong"),
    "all channels but one": (filled(0.0, (slice(None), [0, 1, 3, 4, 5])), "channel 2 is right, all others are wrong"),
    "a row of a channel": (
        filled(0.0, (slice(None), 3, 2)),
        "where these meet: channel 3 is wrong; row 2 is wrong (14 of 588 elements)",
    ),
    "one element": (filled(0.0, (1, 2, 3, 4)), "one element is wrong: y[1, 2, 3, 4] (1 of 588 elements)"),
    "two elements in a row": (
        filled(0.0, (1, 2, 3, slice(4, 6))),
        "a run of elements is wrong, from y.view(-1)[417] to y.view(-1)[418] (2 of 588 elements)",
    ),
    "the last element, NaN": (filled(torch.nan, (-1, -1, -1, -1)), "one element is wrong: y[1, 5, 6, 6]"),
    "infinity": (filled(torch.inf, (0, 0, 0, 0)), "one element is wrong: y[0, 0, 0, 0]"),
    "last element unwritten": (
        unwritten(lambda y: y.view(-1)[:-1]),
        "NaN, which y's memory held before the call, in 1 of 588: never written?",
    ),
    "last row unwritten": (unwritten(lambda y: y[:, :, :-1]), "the last row (6) is wrong"),
    "last column unwritten": (unwritten(lambda y: y[:, :, :, :-1]), "the last column (6) is wrong"),
    "last block unwritten": (
        unwritten(lambda y: y.view(-1)[: y.numel() // 256 * 256]),
        "the last 76 elements in memory are wrong, from y.view(-1)[512] on (76 of 588 elements)",
    ),
    "nothing written": (unwritten(lambda y: y[:0]), "in 588 of 588: never written?"),
}


@pytest.mark.parametrize("name", IN_PLACES)
def test_wrong_places(name):
    candidate, words = IN_PLACES[name]
    report = validate(candidate, PLAIN, device="cpu")
    assert not report.ok
    assert any(words in reason for reason in report.reasons), str(report)
    assert not validate(candidate, PLAIN, precision="tf32", device="cpu").ok


def test_bugs_that_a_square_image_hides():
    def swapped(x, *rest):
        """Read x with its row and column strides swapped, which a square image allows."""
        height, width = x.shape[2:]
        transposed = x.reshape(*x.shape[:2], width, height).transpose(2, 3)
        return right(transposed if height == width else x.reshape(*x.shape[:2], width, height).transpose(2, 3), *rest)

    def transposed(*inputs):
        return right(*inputs).transpose(2, 3)

    assert not validate(swapped, PLAIN, device="cpu").ok
    report = validate(transposed, PLAIN, device="cpu")
    assert any("height and width are swapped" in reason for reason in report.reasons), str(report)


def test_bugs_that_full_blocks_hide():
    """Right wherever the outputs fill the blocks, as at (2, 64, 8, 8)."""
    report = validate(
        unwritten(lambda y: y.view(-1)[: y.numel() // 256 * 256]), Problem(2, 4, 64, 10, 10, 3), device="cpu"
    )
    assert report.cases[0].ok
    assert not report.ok


def with_options(**changed):
    """Return the right operator with an option changed, padded to the right shape."""

    def candidate(*inputs):
        options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
        shape = conv_bn_scale(*inputs, **options).shape
        y = conv_bn_scale(*inputs, **{**options, **changed})
        return F.pad(y, (0, shape[3] - y.shape[3], 0, shape[2] - y.shape[2]))

    return candidate


def wrong_groups(x, weight, *rest):
    """Output channel c reads the input channels of group c % groups, where it is group c // (channels / groups)."""
    order = torch.arange(len(weight)).view(-1, 2).T.reshape(-1)
    y = conv_bn_scale(x, weight[order], *[None if v is None else v[order] for v in rest[:5]], *rest[5:], **OPTIONS)
    return y[:, order.argsort()]


OPTIONS = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}


def padded_as(mode):
    def candidate(x, *rest):
        return conv_bn_scale(F.pad(x, (1, 1, 1, 1), mode=mode), *rest, **{**OPTIONS, "padding": 0})

    return candidate


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (functools.partial(conv_bn_scale, **{**OPTIONS, "padding": 0}), "returned shape"),
        (with_options(padding=0), "element"),
        (with_options(dilation=1), "element"),
        (with_options(stride=1), "element"),
        (lambda x, *rest: conv_bn_scale(x.roll(1, 3), *rest, **OPTIONS), "element"),
        (wrong_groups, "channel"),
        (padded_as("replicate"), "the border is wrong: exactly the outputs whose windows reach into the padding"),
        (padded_as("constant_wrong"), "raised"),
    ],
    ids=[
        "padding left out", "padding off by one", "dilation ignored", "stride ignored", "shifted by a column",
        "wrong group", "padded with the edge", "a mode that does not exist",
    ],
)  # fmt: skip
def test_wrong_geometry(candidate, words):
    assert validate(functools.partial(conv_bn_scale, **OPTIONS), PADDED, device="cpu").ok
    report = validate(candidate, PADDED, device="cpu")
    assert not report.ok
    assert any(words in reason for reason in report.reasons), str(report)


class Stale:
    """Computes once for each shape and returns that again."""

    def __init__(self):
        self.results = {}

    def __call__(self, *inputs):
        return self.results.setdefault(inputs[0].shape, right(*inputs)).clone()


class FoldedOnce:
    """Folds BatchNorm and the scale once for each address of gamma."""

    def __init__(self):
        self.folded = {}

    def __call__(self, x, weight, *rest):
        a, b = self.folded.setdefault(rest[3].data_ptr(), folding.affine(*rest))
        return F.conv2d(x, weight) * a[:, None, None] + b[:, None, None]


class PackedOnce:
    """Keeps a copy of the filter, as another layout of it would be kept, for each address of it."""

    def __init__(self):
        self.packed = {}

    def __call__(self, x, weight, *rest):
        return right(x, self.packed.setdefault(weight.data_ptr(), weight.clone()), *rest)


class Reused:
    """Right each time, in memory that the next call overwrites."""

    def __init__(self):
        self.results = {}

    def __call__(self, *inputs):
        return self.results.setdefault(inputs[0].shape, torch.empty_like(right(*inputs))).copy_(right(*inputs))


class NotWrittenTwice:
    """Writes the last row only at the first call for a shape: later ones leave what the memory held."""

    def __init__(self):
        self.memory = {}

    def __call__(self, *inputs):
        y = right(*inputs)
        memory = self.memory.setdefault(inputs[0].shape, y.clone())
        memory[:, :, :-1] = y[:, :, :-1]
        return memory.clone()


def modifies(*inputs):
    y = right(*inputs)
    inputs[0].relu_()
    return y


def returns_input(*inputs):
    y = right(*inputs)
    memory = inputs[0].view(-1)[: y.numel()]
    if memory.numel() < y.numel():
        return y
    return memory.copy_(y.view(-1)).view(y.shape)


def raises(*inputs):
    raise IndexError("out of range")


def leaves(*inputs):
    sys.exit("enough")


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (Stale(), "the same shape again: every element is wrong"),
        (Reused(), "the result of an earlier call changes with the next call: y must be new memory each time"),
        (FoldedOnce(), "tall, odd sizes, the same shape again, wide, one image, one pixel: every element is wrong"),
        (PackedOnce(), "tall, odd sizes, the same shape again, wide, one image, one pixel: every element is wrong"),
        (NotWrittenTwice(), "the same shape again: the last row (16) is wrong"),
        (modifies, "changes its input x"),
        (returns_input, "returned the memory of its input x: y must be new memory"),
        (spoilt(lambda y: y.double()), "returned torch.float64, torch.float32 is needed"),
        (spoilt(lambda y: y.half()), "returned torch.float16, torch.float32 is needed"),
        (spoilt(lambda y: y[:, :, :, :-1]), "returned shape (2, 6, 7, 6), (2, 6, 7, 7) is needed"),
        (spoilt(lambda y: y.numpy()), "returned ndarray, a torch.Tensor is needed"),
        (spoilt(lambda y: y.to("meta")), "returned a tensor on meta"),
        (spoilt(lambda y: y.to_sparse()), "every case: returned a torch.sparse_coo tensor, a dense one is needed"),
        (raises, "every case: raised IndexError: out of range"),
        (leaves, "every case: raised SystemExit: enough"),
    ],
    ids=[
        "stale", "memory used again", "folded once", "packed once", "not written twice", "modifies its input",
        "returns its input", "float64", "float16", "wrong shape", "NumPy", "wrong device", "sparse", "raises", "leaves",
    ],
)  # fmt: skip
def test_wrong_results_and_side_effects(candidate, words):
    problem = Problem(2, 8, 6, 9, 9, 3) if candidate is returns_input else PLAIN  # x must have room for y
    report = validate(candidate, problem, device="cpu")
    assert not report.ok
    assert any(words in reason for reason in report.reasons), str(report)


RIGHT_KERNEL = """
extern "C" __global__ void kernel(
    const float* x, const float* weight, const float* bias, const float* running_mean, const float* running_var,
    const float* gamma, const float* beta, float scaling_factor, float eps, float* y,
    int batch, int in_channels, int height, int width, int out_channels, int kernel_size)
{
    const int out_height = height - kernel_size + 1;
    const int out_width = width - kernel_size + 1;
    const int outputs = batch * out_channels * out_height * out_width;
    const int output = blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const int column = output % out_width;
    const int row = output / out_width % out_height;
    const int channel = output / (out_width * out_height) % out_channels;
    const int image = output / (out_width * out_height * out_channels);
    float sum = bias[channel];
    for (int in_channel = 0; in_channel < in_channels; in_channel++)
        for (int i = 0; i < kernel_size; i++)
            for (int j = 0; j < kernel_size; j++)
                sum += x[((image * in_channels + in_channel) * height + row + i) * width + column + j]
                     * weight[((channel * in_channels + in_channel) * kernel_size + i) * kernel_size + j];
    const float normalised = (sum - running_mean[channel]) / sqrtf(running_var[channel] + eps);
    y[output] = (normalised * gamma[channel] + beta[channel]) * scaling_factor;
}
"""

KERNELS = {
    "no guard": ("    if (output >= outputs) return;\n", "", "raised"),
    "guard off by one": ("(output >= outputs)", "(output >= outputs - 1)", "never written?"),
    "reads a row too far": ("height + row + i)", "height + row + i + 1)", ""),
    "height for width": ("+ row + i) * width", "+ row + i) * height", ""),
    "channel and image swapped": (
        "channel = output / (out_width * out_height) % out_channels",
        "channel = output / (out_width * out_height) % batch",
        "",
    ),
    "sum not started": ("float sum = bias[channel];", "float sum; if (output % 2) sum = bias[channel];", ""),
    "every second output": ("y[output] =", "if (output % 2) y[output] =", "never written?"),
    "adds to y": ("y[output] =", "y[output] +=", "never written?"),
    "bias of the wrong channel": ("sum = bias[channel]", "sum = bias[0]", "channel 0 is right, all others are wrong"),
    "no barrier": (
        "y[output] = (normalised * gamma[channel] + beta[channel]) * scaling_factor;",
        "__shared__ float tile[256];\n"
        "    tile[threadIdx.x] = (normalised * gamma[channel] + beta[channel]) * scaling_factor;\n"
        "    const int other = blockIdx.x * 256 + (threadIdx.x ^ 128);\n"
        "    if (other < outputs) y[other] = tile[threadIdx.x ^ 128];",
        "",
    ),
    "does not compile": ("y[output] =", "y[outputt] =", "raised"),
    "another name": ("void kernel(", "void colonel(", "raised"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_wrong_kernels(name, tmp_path, device):
    """Real CUDA C, on the emulator or the card."""
    before, after, words = KERNELS[name]
    assert RIGHT_KERNEL.count(before) == 1
    path = tmp_path / "kernel.cu"
    path.write_text(RIGHT_KERNEL.replace(before, after))
    if device.type == "cuda" and name in ("reads a row too far", "no barrier"):
        pytest.skip("what a card does here is a matter of luck; the emulator shows it every time")
    report = validate(candidate_from_kernel(path, "kernel"), PLAIN, device=device)
    assert not report.ok
    assert any(words in reason for reason in report.reasons), str(report)


def test_right_kernel_and_right_function(tmp_path, device):
    """What all the bugs are slips of is accepted."""
    path = tmp_path / "kernel.cu"
    path.write_text(RIGHT_KERNEL)
    report = validate(candidate_from_kernel(path, "kernel"), PLAIN, device=device)
    assert report.ok, str(report)
    report = validate(right, PLAIN, device="cpu")
    assert report.ok, str(report)
    report = validate(accumulated_in(torch.float32), PLAIN, device="cpu")
    assert report.ok, str(report)
