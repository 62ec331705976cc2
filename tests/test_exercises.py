"""The exercises of the lessons tell right answers from wrong ones."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from lessons import execute
from lessons.exercises import (
    BLANK,
    Exercise,
    Wrong,
    e00,
    e01,
    e02,
    e03,
    e04,
    e05,
    e06,
    e07,
    e08,
    e09,
    e10,
    e10_product,
    e11,
    e12,
    e13,
    kernels,
    timeout,
    warp,
)
from tests import lesson_answers, pipeline_answers, training_answers
from tests.notebooks import LESSONS, code, read
from tests.training_answers import changed

MODULES = (e00, e01, e02, e03, e04, e05, e06, e07, e08, e09, e10, e10_product, e11, e12, e13, warp)
ASKED_IN = {**{f"e{path.name[:2]}": path for path in LESSONS}, "warp": execute.WATCHING}  # module -> its lesson
EXERCISES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, Exercise)
}


# --- right answers ---


def test_every_exercise_is_asked_in_its_lesson():
    for name in EXERCISES:
        path = ASKED_IN[name.split(".")[0].split("_")[0]]
        source = path.read_text()
        for part in ("check", "hint", "solution"):
            assert f"{name}.{part}(" in source, f"{name}.{part} is not in {path.name}"


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_accepted_and_shown(name):
    exercise = EXERCISES[name]
    verdict = exercise.check(exercise.answer)
    assert verdict.ok, verdict.text
    shown = exercise.solution().text
    assert "def " in shown or "__global__" in shown or re.search(r"\d", shown)
    assert "1 of" in exercise.hint().text


@pytest.mark.parametrize("name", EXERCISES)
def test_the_notebook_starts_unanswered(name):
    """Every exercise cell of a lesson says that it is not answered yet: nobody's answer was committed."""
    (cell,) = [
        cell for cell in code(read(ASKED_IN[name.split(".")[0].split("_")[0]])) if f"{name}.check(" in cell.source
    ]
    said = "".join(output["data"].get("text/plain", "") for output in cell.outputs if "data" in output)
    assert "Not answered yet" in said


def test_hints_come_one_at_a_time_and_stop_at_the_last():
    exercise = Exercise(lambda answer: "", ["first", "second"], 1)
    assert [exercise.hint().text[-6:].strip() for _ in range(3)] == ["first", "second", "second"]


def test_an_error_in_an_answer_is_a_verdict():
    verdict = e00.limit.check(lambda *_: 1 / 0)
    assert not verdict.ok
    assert "ZeroDivisionError" in verdict.text


# --- wrong answers, each with a word of what the learner must be told ---


def wrong_tensor_bytes():
    def tensor_bytes(x_rows=0, height_for_width=False, no_edges=False, size=4):
        def answer(batch, in_channels, out_channels, height, width, kernel_size):
            less = 0 if no_edges else kernel_size - 1
            columns = height if height_for_width else width
            return (
                size * batch * in_channels * height * width,
                size * batch * out_channels * (height - less) * (columns - less),
            )

        return answer

    yield tensor_bytes(no_edges=True), "y has"
    yield tensor_bytes(height_for_width=True), "y has"
    yield tensor_bytes(size=1), "x has"
    yield lambda *sizes: e00.tensor_bytes_answer(*sizes)[::-1], "x has"
    yield lambda *sizes: 7, "two numbers"


DIGITS, GUARD, STRIDE = e01.digits.answer, e01.guard.answer, e01.stride.answer
BY_GRID = e02.by_grid.answer
LAST, RSQRT, BN_SCALE, FUSED = e02.channels_last.answer, e02.rsqrt.answer, e03.bn_scale.answer, e04.fused.answer
BOX = e06.box.answer
FOUR_EACH, TRANSPOSE, BLUR = warp.four_each.answer, warp.transpose.answer, warp.blur.answer


A, B = "s * gamma / sqrt(var + eps)", "s * beta + a * (bias - mean)"


def fold_as(a: str = A, b: str = B):
    """Return an answer to e05.fold that computes these two."""

    def fold(bias, running_mean, running_var, gamma, beta, scaling_factor, eps):
        names = {
            "bias": bias,
            "mean": running_mean,
            "var": running_var,
            "gamma": gamma,
            "beta": beta,
            "s": scaling_factor,
            "eps": eps,
            "sqrt": torch.sqrt,
        }
        names["a"] = eval(a, names)
        return names["a"], eval(b, names)

    return fold


def tile_by(cost, room=lambda c, p: c * p + c + p):
    """Return an answer to e07.best_tile that makes `cost` least among the tiles for which there is `room`."""

    def best_tile(registers):
        tiles = [(c, p) for c in range(1, registers + 1) for p in range(1, registers + 1) if room(c, p) <= registers]
        return min(tiles, key=lambda tile: cost(*tile))

    return best_tile


def split_as(enlarge: float = 4096, left=lambda v, hi: v - np.float32(hi), kind: type = np.float16):
    """Return an answer to e09.split that enlarges what is left by this much."""

    def split(v):
        hi = np.float16(v)
        return hi, kind(np.float32(left(v, hi)) * np.float32(enlarge))

    return split


def folded_wrongly(conv, bn, scaling_factor, *, along=(-1, 1, 1, 1), copy=True, bias="right", keep_options=True):
    a = scaling_factor * bn.weight / torch.sqrt(bn.running_var + bn.eps)
    old_bias = torch.zeros_like(a) if conv.bias is None else conv.bias
    if copy:
        options = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups} if keep_options else {}
        folded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, dtype=conv.weight.dtype, **options)
    else:
        folded = conv
    folded.weight = nn.Parameter(conv.weight * a.reshape(along))
    folded.bias = nn.Parameter(
        scaling_factor * bn.bias + (a * (old_bias - bn.running_mean) if bias == "right" else old_bias)
    )
    return folded


WRONG = [
    *[("e00.tensor_bytes", answer, word) for answer, word in wrong_tensor_bytes()],
    ("e00.moved", lambda x, y: (x + 3 * y, x + y), "three operators"),
    ("e00.moved", lambda x, y: (x + 5 * y, 2 * x + y), "one fused"),
    ("e00.moved", lambda x, y: (x + 5 * y, y), "one fused"),
    ("e00.moved", lambda x, y: x + 5 * y, "two numbers"),
    ("e00.limit", lambda f, b, p, w: f / p + b / w, "the answer is"),
    ("e00.limit", lambda f, b, p, w: min(f / p, b / w), "the answer is"),
    ("e00.limit", lambda f, b, p, w: b / w, "the answer is"),
    ("e00.limit", lambda f, b, p, w: max(p / f, w / b), "the answer is"),
    # Rows and columns swapped: unseen on square planes.
    ("e01.digits", changed(DIGITS, ("output / out_width % out_height", "output / out_height % out_width")), "row"),
    ("e01.digits", changed(DIGITS, ("output % out_width", "output % out_height")), "column"),
    (
        "e01.digits",
        changed(DIGITS, ("output / (out_width * out_height) % out_channels", "output / (out_width * out_height)")),
        "channel",
    ),
    (
        "e01.digits",
        changed(DIGITS, ("output / (out_width * out_height * out_channels)", "output / (out_width * out_height)")),
        "image",
    ),
    ("e01.digits", changed(DIGITS, ("y[output] = ", "if (row) y[output] = ")), "never written"),
    ("e01.digits", "int digits;", "__global__"),
    ("e01.digits", changed(DIGITS, ("const int image", "const imt image")), "compile"),
    ("e01.digits", 3, "source text"),
    ("e01.guard", e01.UNGUARDED, "past its end"),
    ("e01.guard", changed(GUARD, (">= batch", "> batch")), "past its end"),
    (
        "e01.guard",
        changed(GUARD, (">= batch * out_channels * out_height", ">= batch * out_channels * height")),
        "past its end",
    ),
    ("e01.guard", changed(GUARD, ("output >= batch * out_channels", "output >= out_channels")), "image 1"),
    ("e01.guard", changed(GUARD, ("return;", ";")), "past its end"),
    (
        "e01.guard",
        changed(GUARD, ("* kernel_size + i) * kernel_size + j]", "* kernel_size + j) * kernel_size + i]")),
        "wrong",
    ),
    ("e01.guard", changed(GUARD, ("float sum = bias[channel]", "float sum = 0")), "wrong"),
    ("e01.stride", changed(STRIDE, ("row * stride + i", "row + i")), "stride 2"),
    ("e01.stride", changed(STRIDE, ("column * stride + j", "column + j")), "stride 2"),
    ("e01.stride", changed(STRIDE, ("column * stride + j", "(column + j) * stride")), "stride 2"),
    (
        "e01.stride",
        changed(STRIDE, ("(height - kernel_size) / stride + 1", "height / stride - kernel_size + 1")),
        "stride 2",
    ),
    (
        "e01.stride",
        changed(STRIDE, ("(height - kernel_size) / stride + 1", "(height - kernel_size + 1) / stride")),
        "stride 2",
    ),
    ("e02.seconds", lambda b, c, h, w, bandwidth: 4 * b * c * h * w / bandwidth, "0.5 times"),
    ("e02.seconds", lambda b, c, h, w, bandwidth: 2 * b * c * h * w / bandwidth, "0.25 times"),
    ("e02.seconds", lambda b, c, h, w, bandwidth: bandwidth / (8 * b * c * h * w), "takes"),
    ("e02.channels_last", changed(LAST, ("index % channels", "index / plane % channels")), "wrong"),
    ("e02.channels_last", changed(LAST, ("index % channels", "index / channels % channels")), "wrong"),
    ("e02.channels_last", changed(LAST, ("index % channels", "threadIdx.x % channels")), "wrong"),
    ("e02.channels_last", changed(LAST, ("if (index >= batch * channels * plane) return;", "")), "past its end"),
    ("e02.rsqrt", changed(RSQRT, ("rsqrtf(running_var[channel] + eps)", "rsqrtf(running_var[channel])")), "wrong"),
    (
        "e02.rsqrt",
        changed(RSQRT, ("rsqrtf(running_var[channel] + eps)", "(rsqrtf(running_var[channel]) + eps)")),
        "wrong",
    ),
    ("e02.rsqrt", changed(RSQRT, ("* rsqrtf", "/ rsqrtf")), "still divides"),
    (
        "e02.rsqrt",
        changed(RSQRT, ("* rsqrtf(running_var[channel] + eps)", "/ sqrtf(running_var[channel] + eps)")),
        "no call of `rsqrtf`",
    ),
    ("e02.rsqrt", changed(RSQRT, ("* rsqrtf(", "/ sqrtf( /* rsqrtf( */ ")), "no call of `rsqrtf`"),
    (
        "e02.rsqrt",
        changed(RSQRT, ("rsqrtf(running_var[channel] + eps)", "powf(running_var[channel] + eps, -0.5f)")),
        "no call",
    ),
    ("e02.rsqrt", changed(RSQRT, ("(index >=", "(index >")), "past its end"),
    ("e02.by_grid", LAST, "remainder"),
    ("e02.by_grid", changed(BY_GRID, ("(pixel >= plane)", "(false)")), "past its end"),
    ("e02.by_grid", changed(BY_GRID, ("(pixel >= plane)", "(pixel > plane)")), "past its end"),
    ("e02.by_grid", changed(BY_GRID, ("channel = blockIdx.y", "channel = blockIdx.z")), "wrong"),
    ("e02.by_grid", changed(BY_GRID, ("blockIdx.z * channels", "blockIdx.z * batch")), "wrong"),
    ("e02.by_grid", changed(BY_GRID, ("(blockIdx.z * channels + channel) * plane + pixel", "pixel")), "wrong"),
    (
        "e03.bn_scale",
        changed(
            BN_SCALE,
            (
                "(normalised * gamma[channel] + beta[channel]) * scaling_factor",
                "normalised * gamma[channel] * scaling_factor + beta[channel]",
            ),
        ),
        "wrong",
    ),
    ("e03.bn_scale", changed(BN_SCALE, (" * scaling_factor;", ";")), "wrong"),
    ("e03.bn_scale", changed(BN_SCALE, ("index / plane % channels", "index / plane")), "wrong"),
    (
        "e03.bn_scale",
        changed(BN_SCALE, ("sqrtf(running_var[channel] + eps)", "(sqrtf(running_var[channel]) + eps)")),
        "wrong",
    ),
    ("e03.bn_scale", changed(BN_SCALE, (" + eps)", ")")), "wrong"),
    ("e03.bn_scale", changed(BN_SCALE, ("if (index >= batch * channels * plane) return;", "")), "past its end"),
    ("e03.bytes_moved", lambda numbers, groups: 8 * numbers * len(groups), "should move"),
    ("e03.bytes_moved", lambda numbers, groups: 8 * numbers * sum(map(len, groups)), "should move"),
    ("e03.bytes_moved", lambda numbers, groups: 4 * numbers * sum(2 + ("add" in g) for g in groups), "should move"),
    ("e04.fused", changed(FUSED, ("float sum = bias[channel]", "float sum = 0")), "bias"),
    (
        "e04.fused",
        changed(
            FUSED,
            (
                "gamma[channel] + beta[channel])\n              * scaling_factor",
                "gamma[channel] * scaling_factor + beta[channel])",
            ),
        ),
        "beta is added after the scale",
    ),
    ("e04.fused", changed(FUSED, ("sqrtf(running_var[channel] + eps)", "(sqrtf(running_var[channel]) + eps)")), "eps"),
    (
        "e04.fused",
        changed(FUSED, ("if (output >= batch * out_channels * out_height * out_width) return;", "")),
        "raised",
    ),
    ("e04.fused", changed(FUSED, ("* width + column + j]", "* height + column + j]")), "wrong"),
    ("e04.limits", (126, 32), "126 x 126"),
    ("e04.limits", (126 * 126, 1024), "1024 threads"),
    ("e04.limits", (126 * 126, 31), "1024 threads"),
    ("e04.grid", lambda b, c, h, w: (w // 32, -(-h // 8), min(b * c, 65535)), "cover"),
    ("e04.grid", lambda b, c, h, w: (w // 32 + 1, h // 8 + 1, min(b * c, 65535)), "no pixel"),
    ("e04.grid", lambda b, c, h, w: (-(-w // 32), -(-h // 8), b * c), "65535"),
    ("e04.grid", lambda b, c, h, w: (-(-h // 8), -(-w // 32), min(b * c, 65535)), "x"),
    ("e04.grid", lambda b, c, h, w: (-(-w // 32), -(-h // 8), b), "planes"),
    ("e04.grid", lambda b, c, h, w: (-(-w // 32), -(-h // 8), 65535), "planes"),
    ("e04.grid", lambda b, c, h, w: (w / 32, h / 8, b * c), "whole numbers"),
    ("e05.fold", fold_as(a="s * gamma / (sqrt(var) + eps)"), "under the root"),
    ("e05.fold", fold_as(a="s * gamma / sqrt(var)"), "eps is missing"),
    ("e05.fold", fold_as(a="gamma / sqrt(var + eps)"), "scaling_factor is missing"),
    ("e05.fold", fold_as(a="abs(s * gamma) / sqrt(var + eps)"), "stay negative"),
    ("e05.fold", fold_as(b="beta + a * (bias - mean)"), "beta is multiplied"),
    ("e05.fold", fold_as(b="s * beta - a * mean"), "where is it?"),
    ("e05.fold", fold_as(b="s * beta + a * bias - mean"), "multiplied by a"),
    ("e05.fold", lambda **_: 1, "two numbers, (a, b)"),
    ("e05.fold_into_convolution", lambda conv, bn, s: conv, "largest error"),
    # The weights are [out, in, kernel, kernel]: along another axis it is wrong without an error where sizes agree.
    ("e05.fold_into_convolution", lambda conv, bn, s: folded_wrongly(conv, bn, s, along=(1, -1, 1, 1)), ""),
    ("e05.fold_into_convolution", lambda conv, bn, s: folded_wrongly(conv, bn, s, along=(-1,)), ""),
    ("e05.fold_into_convolution", lambda conv, bn, s: folded_wrongly(conv, bn, s, copy=False), "changed"),
    ("e05.fold_into_convolution", lambda conv, bn, s: folded_wrongly(conv, bn, s, bias="raw"), "largest error"),
    ("e05.fold_into_convolution", lambda conv, bn, s: folded_wrongly(conv, bn, s, keep_options=False), "stride 2"),
    ("e05.commutes", lambda s: True, "relu"),
    ("e05.commutes", lambda s: False, "relu"),
    ("e05.commutes", lambda s: s > -0.01, "relu"),
    ("e06.box", changed(BOX, ("__syncthreads();", "")), "race"),
    ("e06.box", changed(BOX, ("__syncthreads();", "__syncwarp();")), "race"),
    ("e06.box", changed(BOX, ("i < 10 * 34", "i < 8 * 32")), "uninitialised"),
    ("e06.box", changed(BOX, ("[10][34]", "[8][32]")), "out-of-bounds"),
    (
        "e06.box",
        changed(BOX, ("row < height && column < width ? x[row * width + column] : 0", "x[row * width + column]")),
        "out-of-bounds",
    ),
    ("e06.box", changed(BOX, ("row < height && ", "")), "out-of-bounds"),
    ("e06.box", changed(BOX, ("[threadIdx.y + i][threadIdx.x + j]", "[threadIdx.y][threadIdx.x + j]")), "wrong"),
    (
        "e06.box",
        changed(BOX, ("tile[threadIdx.y + i][threadIdx.x + j]", "x[(row + i) * width + column + j]")),
        "requests",
    ),
    ("e06.box", changed(BOX, ("if (row >= height - 2 || column >= width - 2) return;", "")), "race"),
    ("e07.best_tile", lambda registers: (int(registers**0.5), int(registers**0.5)), "does not fit"),
    ("e07.best_tile", lambda registers: (1, (registers - 1) // 2), "There is a tile"),
    ("e07.best_tile", lambda registers: (8, 4), "does not fit"),
    ("e07.best_tile", lambda registers: 4, "two numbers, (channels, pixels)"),
    ("e07.best_tile", lambda registers: (1.5, 1.0), "two whole numbers"),
    ("e07.best_tile", tile_by(lambda c, p: (c + p) / (c * p), room=lambda c, p: c * p), "does not fit"),
    ("e07.best_tile", tile_by(lambda c, p: c + p), "There is a tile"),
    ("e07.best_tile", tile_by(lambda c, p: -c * p / (c + p) if c == p else 0), "There is a tile"),
    ("e08.holder", lambda row, column: (row % 8 * 4 + column // 2, row // 8 + column % 2 * 2), "register"),
    ("e08.holder", lambda row, column: (row % 8 * 4 + column // 2, column % 2), "register"),
    ("e08.holder", lambda row, column: (row * 4 + column // 2, row // 8 * 2 + column % 2), "Row 8"),
    ("e08.holder", lambda row, column: (row % 8 * 4 + column % 4, row // 8 * 2 + column // 4), "lane"),
    ("e08.holder", lambda row, column: (column * 4 + row // 2 % 4, row // 8 * 2 + row % 2), "lane"),
    ("e08.holder", lambda row, column: row * 8 + column, "two numbers, (lane, register)"),
    ("e09.split", split_as(enlarge=1), "comes back as"),
    ("e09.split", split_as(enlarge=2048), "comes back as"),
    ("e09.split", split_as(enlarge=2.0**20), "comes back as"),
    ("e09.split", split_as(left=lambda v, hi: v), "comes back as"),
    ("e09.split", split_as(left=lambda v, hi: np.float32(hi) - v), "comes back as"),
    ("e09.split", split_as(left=lambda v, hi: 0), "comes back as"),
    ("e09.split", split_as(left=lambda v, hi: np.float16(v) - hi), "comes back as"),
    ("e09.split", split_as(kind=np.float32), "np.float16"),
    ("e09.split", lambda v: np.float16(v), "two numbers"),
    ("e09.split", lambda v: (np.float16(0), np.float16(v)), "comes back as"),
    ("warp.sectors", lambda first, stride: min(32, max(1, 4 * abs(stride))), "First 1, stride 1"),
    ("warp.sectors", lambda first, stride: len({first + stride * lane for lane in range(32)}), "First 0, stride 1"),
    ("warp.sectors", lambda first, stride: (first % 8 + 31 * stride) // 8 + 1, "First 2, stride 33"),
    ("warp.sectors", lambda first, stride: len({(stride * lane) // 8 for lane in range(32)}), "First 1, stride 1"),
    (
        "warp.four_each",
        changed(FOUR_EACH, ("+ threadIdx.x", "+ 4 * threadIdx.x"), ("i * blockDim.x", "i")),
        "16 sectors",
    ),
    ("warp.four_each", changed(FOUR_EACH, ("+ threadIdx.x", "+ threadIdx.x + 1")), "unwritten"),
    ("warp.four_each", changed(FOUR_EACH, ("blockIdx.x * 4", "blockIdx.x")), "unwritten"),
    ("warp.four_each", changed(FOUR_EACH, ("if (index < size) ", "")), "out-of-bounds"),
    ("warp.four_each", changed(FOUR_EACH, ("* scaling_factor", "+ scaling_factor")), "wrong"),
    ("warp.transpose", changed(TRANSPOSE, ("[33]", "[32]")), "bank conflicts"),
    ("warp.transpose", changed(TRANSPOSE, ("[33]", "[34]")), "bank conflicts"),
    ("warp.transpose", changed(TRANSPOSE, ("[33]", "[31]")), "race"),
    ("warp.transpose", changed(TRANSPOSE, ("__syncthreads();", "")), "race"),
    ("warp.transpose", changed(TRANSPOSE, ("tile[threadIdx.x][threadIdx.y]", "tile[threadIdx.y][threadIdx.x]")), ""),
    (
        "warp.transpose",
        "__global__ void transpose(const float* x, float* y, int height, int width) {"
        "int row = blockIdx.y * 32 + threadIdx.y, column = blockIdx.x * 32 + threadIdx.x;"
        "if (row < height && column < width) y[column * height + row] = x[row * width + column]; }",
        "bytes move in global memory",
    ),
    ("warp.blur", warp.BLUR, "With 600 numbers, race"),
    ("warp.blur", changed(warp.BLUR, ("    y[index]", "    __syncthreads();\n    y[index]")), "divergent-barrier"),
    ("warp.blur", changed(BLUR, ("index < size ? x[index] : 0", "x[index]")), "out-of-bounds"),
    ("warp.blur", changed(BLUR, ("index + 1 < size ? x[index + 1] : 0", "x[index + 1]")), "reads x[768]"),
    (
        "warp.blur",
        changed(BLUR, ("index + 1 < size ? x[index + 1] : 0", "index < size ? x[index + 1] : 0")),
        "With 512 numbers, out-of-bounds",
    ),
    ("warp.blur", changed(BLUR, ("index > 0 ? x[index - 1] : 0", "x[index - 1]")), "reads x[-1]"),
    (
        "warp.blur",
        changed(BLUR, ("tile[threadIdx.x + 1] = index", "if (index < size) tile[threadIdx.x + 1] = index")),
        "uninitialised",
    ),
    (
        "warp.blur",
        changed(BLUR, ("if (threadIdx.x == 0) tile[0] = index > 0 ? x[index - 1] : 0;", "")),
        "uninitialised",
    ),
    ("warp.blur", changed(BLUR, ("__syncthreads();", "__syncwarp();")), "race"),
    ("warp.blur", changed(BLUR, (") / 3", ") / 2")), "wrong"),
    *lesson_answers.WRONG,
    *pipeline_answers.WRONG,
    *training_answers.WRONG,
]


RIGHT = [*lesson_answers.RIGHT, *pipeline_answers.RIGHT, *training_answers.RIGHT]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{n}" for n, (name, _) in enumerate(RIGHT)])
def test_right_answers_of_any_form_are_accepted(name, answer):
    verdict = EXERCISES[name].check(answer)
    assert verdict.ok, verdict.text


@pytest.mark.parametrize(("name", "answer", "word"), WRONG, ids=[f"{name}-{n}" for n, (name, _, _) in enumerate(WRONG)])
def test_a_wrong_answer_is_refused(name, answer, word):
    verdict = EXERCISES[name].check(answer)
    assert not verdict.ok
    assert word in verdict.text, verdict.text


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_answers(name):
    """Besides the solution, at least two right answers, and five wrong ones."""
    assert sum(name == other for other, _ in RIGHT) >= 2
    assert sum(name == other for other, _, _ in WRONG) >= 5


def test_what_does_not_end_is_stopped(monkeypatch):
    def endless(*sizes):
        while True:
            pass

    monkeypatch.setattr(timeout, "SECONDS", 0.2)
    kernel = changed(DIGITS, ("    const int column", "    while (out_width > 0) {}\n    const int column"))
    for exercise, answer in ((e00.limit, endless), (e01.digits, kernel)):
        verdict = exercise.check(answer)
        assert not verdict.ok
        assert "it does not end" in verdict.text
    assert e00.limit.check(e00.limit.answer).ok


@pytest.mark.parametrize("name", [name for name, exercise in EXERCISES.items() if isinstance(exercise.answer, str)])
def test_a_blank_is_not_an_answer(name):
    assert "Not answered yet" in EXERCISES[name].check(f"int x = {BLANK};").text


def test_the_comparison_is_strict():
    expected = np.arange(12.0).reshape(1, 2, 2, 3) + 1
    kernels.compare(expected.astype(np.float32), expected, e01.AXES)
    last_column = expected.copy()
    last_column[..., -1] += 0.01
    with pytest.raises(Wrong, match=r"Only column 2 \(of 3\)"):
        kernels.compare(last_column, expected, e01.AXES)
    with pytest.raises(Wrong, match="12 of 12"):
        kernels.compare(np.full_like(expected, np.nan), expected, e01.AXES)
