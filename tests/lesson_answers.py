"""Right answers of several forms to the exercises of lessons 00 to 09 and of the one on warps; and more wrong ones."""

import copy

import numpy as np
import torch
from torch import nn

from lessons.exercises import e00, e01, e02, e03, e04, e05, e06, e07, e08, e09, warp
from tests.training_answers import changed


def as_list(answer):
    return lambda *given: list(answer(*given))


def as_array(answer):
    return lambda *given: np.array(answer(*given))


def as_floats(answer):
    return lambda *given: tuple(float(value) for value in answer(*given))


DIGITS, GUARD, STRIDE = e01.digits.answer, e01.guard.answer, e01.stride.answer
LAST, RSQRT, BY_GRID = e02.channels_last.answer, e02.rsqrt.answer, e02.by_grid.answer
BN_SCALE, FUSED, BOX = e03.bn_scale.answer, e04.fused.answer, e06.box.answer
FOUR_EACH, TRANSPOSE, BLUR = warp.four_each.answer, warp.transpose.answer, warp.blur.answer

DIGITS_BY_STEPS = changed(
    DIGITS,
    (
        "const int column = output % out_width;",
        "int rest = output;\n    const int column = rest % out_width; rest /= out_width;",
    ),
    ("const int row = output / out_width % out_height;", "const int row = rest % out_height; rest /= out_height;"),
    (
        "const int channel = output / (out_width * out_height) % out_channels;",
        "const int channel = rest % out_channels; rest /= out_channels;",
    ),
    ("const int image = output / (out_width * out_height * out_channels);", "const int image = rest;"),
)
DIGITS_BY_SUBTRACTION = changed(
    DIGITS,
    (
        "const int column = output % out_width;",
        "const int column = output - output / out_width * out_width;",
    ),
)
INSIDE = "    if (output < batch * out_channels * out_height * out_width) {\n"
GUARD_INSIDE = changed(
    GUARD,
    ("    if (output >= batch * out_channels * out_height * out_width) return;\n", INSIDE),
    ("y[output] = sum;\n", "y[output] = sum;\n    }\n"),
)
GUARD_SWAPPED = changed(
    GUARD,
    (
        "output >= batch * out_channels * out_height * out_width",
        "batch * out_channels * out_height * out_width <= output",
    ),
)
STRIDE_ROUNDED = changed(
    STRIDE,
    ("(height - kernel_size) / stride + 1", "(height - kernel_size + stride) / stride"),
    ("(width - kernel_size) / stride + 1", "(width - kernel_size + stride) / stride"),
)
STRIDE_TOP_LEFT = changed(
    STRIDE,
    ("    float sum = bias", "    const int top = row * stride, left = column * stride;\n    float sum = bias"),
    ("row * stride + i", "top + i"),
    ("column * stride + j", "left + j"),
)
RSQRT_NAMED = changed(
    RSQRT,
    ("    y[index]", "    const float r = rsqrtf(eps + running_var[channel]);\n    y[index]"),
    ("rsqrtf(running_var[channel] + eps)", "r"),
)
RSQRT_FMA = changed(
    RSQRT,
    (
        "(x[index] - running_mean[channel]) * rsqrtf(running_var[channel] + eps) * gamma[channel] + beta[channel]",
        "fmaf((x[index] - running_mean[channel]) * rsqrtf(running_var[channel] + eps), gamma[channel], beta[channel])",
    ),
    ("index / plane % channels", "(index / plane) % channels"),
)
BY_GRID_INSIDE = changed(
    BY_GRID,
    ("if (pixel >= plane) return;", "const bool inside = pixel < plane;"),
    ("    y[index]", "    if (inside) y[index]"),
)
BY_GRID_BY_PLANES = changed(
    BY_GRID, ("(blockIdx.z * channels + channel) * plane + pixel", "pixel + plane * (channel + gridDim.y * blockIdx.z)")
)
BN_SCALE_AFFINE = changed(
    BN_SCALE,
    (
        "    const float normalised = (x[index] - running_mean[channel]) / sqrtf(running_var[channel] + eps);\n"
        "    y[index] = (normalised * gamma[channel] + beta[channel]) * scaling_factor;",
        "    const float a = scaling_factor * gamma[channel] / sqrtf(running_var[channel] + eps);\n"
        "    y[index] = a * (x[index] - running_mean[channel]) + scaling_factor * beta[channel];",
    ),
)
BN_SCALE_IN_DOUBLE = changed(BN_SCALE, ("const float normalised = (x", "const double normalised = (double)(x"))
FUSED_IN_DOUBLE = changed(FUSED, ("float sum", "double sum"))
FUSED_BIAS_LAST = changed(
    FUSED, ("float sum = bias[channel]", "float sum = 0"), ("((sum - running", "((sum + bias[channel] - running")
)
BOX_ROWS = changed(
    BOX, ("for (int i = thread; i < 10 * 34; i += 256) {", "for (int i = 339 - thread; i >= 0; i -= 256) {")
)
BOX_WIDE = changed(BOX, ("tile[10][34]", "tile[10][36]"))
FOUR_EACH_STRIDE = changed(
    FOUR_EACH,
    ("blockIdx.x * 4 * blockDim.x + threadIdx.x", "blockIdx.x * blockDim.x + threadIdx.x"),
    ("i * blockDim.x", "i * gridDim.x * blockDim.x"),
)
FOUR_EACH_RETURN = changed(FOUR_EACH, ("if (index < size) y", "if (index >= size) return;\n        y"))
TRANSPOSE_35 = changed(TRANSPOSE, ("[33]", "[35]"))
TRANSPOSE_FLAT = changed(
    TRANSPOSE,
    ("tile[32][33]", "tile[32 * 33]"),
    ("tile[threadIdx.y][threadIdx.x]", "tile[threadIdx.y * 33 + threadIdx.x]"),
    ("tile[threadIdx.x][threadIdx.y]", "tile[threadIdx.x * 33 + threadIdx.y]"),
)
BLUR_IN_REGISTERS = changed(
    BLUR,
    (
        "    tile[threadIdx.x + 1] = index < size ? x[index] : 0;\n",
        "    const float mine = index < size ? x[index] : 0;\n    tile[threadIdx.x + 1] = mine;\n",
    ),
    ("tile[threadIdx.x] + tile[threadIdx.x + 1] +", "tile[threadIdx.x] + mine +"),
)
BLUR_LAST_LANE = changed(
    BLUR,
    (
        "if (threadIdx.x == 0) tile[0] = index > 0 ? x[index - 1] : 0;",
        "if (threadIdx.x < 1) tile[0] = index ? x[index - 1] : 0;",
    ),
)


MATMUL = e07.matmul.answer
MATMUL_VECTOR = changed(
    MATMUL,
    ("__shared__ float ws", "__shared__ __align__(16) float ws"),
    (
        "for (int r = 0; r < 4; r++) weights[r] = ws[k][4 * warp + r];",
        "*reinterpret_cast<float4*>(weights) = *reinterpret_cast<float4*>(&ws[k][4 * warp]);",
    ),
    ("float weights[4]", "__align__(16) float weights[4]"),
)
MATMUL_BY_COLUMNS = changed(
    MATMUL,
    (
        "for (int r = 0; r < 4; r++)\n            for (int c = 0; c < 4; c++) sum",
        "for (int c = 0; c < 4; c++)\n            for (int r = 0; r < 4; r++) sum",
    ),
)


PRODUCT, DOTS = e08.product.answer, e09.dots.answer
PRODUCT_ADDED = changed(
    PRODUCT,
    (
        "ptx::mma_m16n8k8_tf32(sum, a0, a1, a2, a3, b0, b1, sum);",
        "float step[4], none[4] = {};\n"
        "        ptx::mma_m16n8k8_tf32(step, a0, a1, a2, a3, b0, b1, none);\n"
        "        for (int i = 0; i < 4; i++) sum[i] += step[i];",
    ),
)
PRODUCT_BACKWARDS = changed(PRODUCT, ("int k = 0; k < 24; k += 8", "int k = 16; k >= 0; k -= 8"))
DOTS_ONE_SUM = changed(
    DOTS,
    (
        "cross += product(w_lo, x_hi) + product(w_hi, x_lo);",
        "sum += (product(w_lo, x_hi) + product(w_hi, x_lo)) / 4096;",
    ),
    ("sum + cross / 4096", "sum"),
)
DOTS_FOUR = changed(
    DOTS,
    ("product(w_hi, x_lo);", "product(w_hi, x_lo) + product(w_lo, x_lo) / 4096;"),
    ("cross / 4096", "cross * (1 / 4096.0f)"),
)


def fold_conv_by_hand(conv, bn, scaling_factor):
    """Return a fresh Conv2d of the same options."""
    a = scaling_factor * bn.weight / torch.sqrt(bn.running_var + bn.eps)
    options = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **options)
    bias = 0 if conv.bias is None else conv.bias
    folded.weight.data = conv.weight.data * a[:, None, None, None]
    folded.bias.data = scaling_factor * bn.bias + a * (bias - bn.running_mean)
    return folded


def fold_conv_in_double(conv, bn, scaling_factor):
    """Return the answer computed and left in float64."""
    return e05.fold_into_convolution.answer(copy.deepcopy(conv).double(), copy.deepcopy(bn).double(), scaling_factor)


RIGHT = [
    ("e00.tensor_bytes", as_list(e00.tensor_bytes.answer)),
    ("e00.tensor_bytes", as_array(e00.tensor_bytes.answer)),
    ("e00.moved", as_list(e00.moved.answer)),
    ("e00.moved", as_floats(e00.moved.answer)),
    ("e00.limit", lambda *given: np.float32(e00.limit.answer(*given))),
    ("e00.limit", lambda *given: torch.tensor(e00.limit.answer(*given))),
    ("e01.digits", DIGITS_BY_STEPS),
    ("e01.digits", DIGITS_BY_SUBTRACTION),
    ("e01.guard", GUARD_INSIDE),
    ("e01.guard", GUARD_SWAPPED),
    ("e01.stride", STRIDE_ROUNDED),
    ("e01.stride", STRIDE_TOP_LEFT),
    ("e02.seconds", lambda b, c, h, w, bandwidth: np.float64(8) * b * c * h * w / bandwidth),
    ("e02.seconds", lambda b, c, h, w, bandwidth: np.float32(2 * 4 * np.prod([b, c, h, w]) / bandwidth)),
    ("e02.channels_last", changed(LAST, ("index % channels", "index - index / channels * channels"))),
    ("e02.channels_last", changed(LAST, ("index % channels", "(blockIdx.x * blockDim.x + threadIdx.x) % channels"))),
    ("e02.rsqrt", RSQRT_NAMED),
    ("e02.rsqrt", RSQRT_FMA),
    ("e02.by_grid", BY_GRID_INSIDE),
    ("e02.by_grid", BY_GRID_BY_PLANES),
    ("e03.bn_scale", BN_SCALE_AFFINE),
    ("e03.bn_scale", BN_SCALE_IN_DOUBLE),
    ("e03.bytes_moved", lambda numbers, groups: numbers * sum(8 + 4 * group.count("add") for group in groups)),
    ("e03.bytes_moved", lambda numbers, groups: np.int64(e03.bytes_moved.answer(numbers, groups))),
    ("e04.fused", FUSED_IN_DOUBLE),
    ("e04.fused", FUSED_BIAS_LAST),
    ("e04.limits", [126 * 126, 32]),
    ("e04.limits", np.array([15876.0, 32.0])),
    ("e04.grid", as_list(e04.grid.answer)),
    ("e04.grid", lambda b, c, h, w: (-(-w // 32), -(-h // 8), min(b * c, 32768))),
    ("e04.grid", lambda b, c, h, w: np.array([np.ceil(w / 32), np.ceil(h / 8), min(b * c, 65535)])),
    ("e05.fold", lambda **given: list(e05.fold.answer(**given))),
    ("e05.fold", lambda **given: torch.stack(e05.fold.answer(**given))),
    ("e05.fold_into_convolution", fold_conv_by_hand),
    ("e05.fold_into_convolution", fold_conv_in_double),
    ("e05.commutes", lambda s: np.bool_(s > 0) or s == 0),
    ("e05.commutes", lambda s: 1 if s >= 0 else 0),
    ("e06.box", BOX_ROWS),
    ("e06.box", BOX_WIDE),
    ("e08.product", PRODUCT_ADDED),
    ("e08.product", PRODUCT_BACKWARDS),
    ("e09.dots", DOTS_ONE_SUM),
    ("e09.dots", DOTS_FOUR),
    ("e07.matmul", MATMUL_VECTOR),
    ("e07.matmul", MATMUL_BY_COLUMNS),
    ("e07.best_tile", as_list(e07.best_tile.answer)),
    ("e07.best_tile", as_floats(e07.best_tile.answer)),
    ("e08.holder", as_list(e08.holder.answer)),
    ("e08.holder", as_array(e08.holder.answer)),
    ("e09.split", as_list(e09.split.answer)),
    ("e09.split", as_array(e09.split.answer)),
    ("e09.split", as_floats(e09.split.answer)),
    ("warp.sectors", lambda first, stride: np.unique((first + stride * np.arange(32)) // 8).size),
    ("warp.sectors", lambda first, stride: float(len({(first + stride * lane) // 8 for lane in range(32)}))),
    ("warp.four_each", FOUR_EACH_STRIDE),
    ("warp.four_each", FOUR_EACH_RETURN),
    ("warp.transpose", TRANSPOSE_35),
    ("warp.transpose", TRANSPOSE_FLAT),
    ("warp.blur", BLUR_IN_REGISTERS),
    ("warp.blur", BLUR_LAST_LANE),
]


def bytes_of(y_columns=lambda width, kernel_size: width - kernel_size + 1, size=4):
    def answer(batch, in_channels, out_channels, height, width, kernel_size):
        rows = height - kernel_size + 1
        return size * batch * in_channels * height * width, size * batch * out_channels * rows * y_columns(
            width, kernel_size
        )

    return answer


WRONG = [
    ("e00.tensor_bytes", bytes_of(lambda width, kernel_size: width), "y has"),
    ("e00.tensor_bytes", bytes_of(size=1), "x has"),
    ("e00.tensor_bytes", bytes_of(lambda width, kernel_size: width - kernel_size), "y has"),
    ("e00.tensor_bytes", lambda *sizes: "two", "two numbers"),
    ("e00.tensor_bytes", lambda *sizes: (1, 2, 3), "two numbers"),
    ("e00.moved", lambda x, y: (2 * x + 5 * y, x + y), "three operators"),
    ("e00.limit", lambda f, b, p, w: "fast", "the answer is"),
    ("e01.digits", changed(DIGITS, ("output % out_width", "output % 0")), "remainder by the constant 0"),
    ("e02.seconds", lambda b, c, h, w, bandwidth: 16 * b * c * h * w / bandwidth, "2 times"),
    ("e02.seconds", lambda b, c, h, w, bandwidth: None, "takes"),
    ("e02.channels_last", changed(LAST, ("index % channels", "index % batch")), "wrong"),
    (
        "e02.rsqrt",
        changed(
            RSQRT,
            ("rsqrtf(running_var[channel] + eps)", "(rsqrtf(1.0f) * 0 + powf(running_var[channel] + eps, -0.5f))"),
        ),
        "still calls `powf`",
    ),
    (
        "e02.rsqrt",
        changed(
            RSQRT,
            (
                "rsqrtf(running_var[channel] + eps)",
                "(1.0f / expf(0.5f * logf(running_var[channel] + eps)) + 0 * rsqrtf(1.0f))",
            ),
        ),
        "still divides",
    ),
    (
        "e02.by_grid",
        changed(BY_GRID, ("blockIdx.y", "BLOCK"), ("blockIdx.z", "blockIdx.y"), ("BLOCK", "blockIdx.z")),
        "are exchanged",
    ),
    (
        "e03.bn_scale",
        changed(
            BN_SCALE,
            (
                "y[index] = (normalised * gamma[channel] + beta[channel]) * scaling_factor;",
                "((volatile float*)y)[index] = normalised * gamma[channel] + beta[channel];\n"
                "    y[index] *= scaling_factor;",
            ),
        ),
        "come back",
    ),
    ("e03.bytes_moved", lambda numbers, groups: 4 * numbers * sum(1 + len(g) for g in groups), "should move"),
    (
        "e03.bytes_moved",
        lambda numbers, groups: numbers * sum(8 + 4 * g.count("add") for g in groups) // 4,
        "should move",
    ),
    ("e04.fused", changed(FUSED, ("sum - running_mean", "sum + bias[channel] - running_mean")), "bias is added twice"),
    ("e04.limits", (15876, 1000), "1024 threads"),
    ("e04.limits", 15876, "two numbers"),
    ("e04.grid", lambda b, c, h, w: (-(-w // 32), -(-h // 8)), "three numbers"),
    (
        "e05.fold",
        lambda **given: (
            e05.fold.answer(**given)[0],
            e05.fold.answer(**{**given, "bias": 0 * given["bias"]})[1] + given["bias"],
        ),
        "belongs before",
    ),
    (
        "e05.fold_into_convolution",
        lambda conv, bn, s: e05.fold_into_convolution.answer(conv, e05._with_eps(bn, 1e-5), s),
        "`bn.eps`",
    ),
    ("e05.fold_into_convolution", lambda conv, bn, s: conv.weight, "should return a Conv2d"),
    ("e05.commutes", lambda s: s > 0, "scaling_factor 0.0"),
    ("e05.commutes", lambda s: s <= 0, "relu"),
    (
        "e07.matmul",
        changed(
            MATMUL, ("sum[r][c] += weights[r] * pixels[c]", "sum[r][c] += ws[k][4 * warp + r] * xs[k][lane + 32 * c]")
        ),
        "par is 8",
    ),
    ("e07.matmul", changed(MATMUL, ("lane + 32 * c", "4 * lane + c")), "bank conflicts"),
    ("e07.matmul", changed(MATMUL, ("ws[k][4 * warp + r]", "ws[k][warp + r]")), "row"),
    ("e07.matmul", changed(MATMUL, ("(4 * warp + r) * 128", "(warp + 8 * r) * 128")), "Only row"),
    ("e07.matmul", changed(MATMUL, ("sum[r][c] +=", "sum[r][c] =")), "wrong"),
    ("e07.matmul", changed(MATMUL, ("lane + 32 * c] = sum", "lane] = sum")), "unwritten"),
    ("e08.product", changed(PRODUCT, ("b0, b1, sum);", "b0, b1, (const float[4]){});")), "last eight k"),
    ("e08.product", changed(PRODUCT, ("ptx::to_tf32(", "__float_as_uint(")), "`ptx::to_tf32` rounds"),
    ("e08.product", changed(PRODUCT, ("a0, a1, a2, a3", "a0, a2, a1, a3")), "a1 and a2 are exchanged"),
    ("e08.product", changed(PRODUCT, ("group + i / 2 * 8", "group + (1 - i / 2) * 8")), "row group + 8"),
    ("e08.product", changed(PRODUCT, ("member * 2 + i % 2", "member + i % 2 * 4")), "wrong"),
    ("e08.product", changed(PRODUCT, ("d[(group + i / 2 * 8) * 8", "d[group * 8")), "unwritten"),
    ("e09.dots", changed(DOTS, ("sum + cross / 4096", "sum")), "bring nothing"),
    ("e09.dots", changed(DOTS, (" + product(w_hi, x_lo)", "")), "one of the two cross terms"),
    ("e09.dots", changed(DOTS, ("sum + cross / 4096", "sum + cross")), "too large"),
    ("e09.dots", changed(DOTS, ("sum + cross / 4096", "sum - cross / 4096")), "bring nothing"),
    (
        "e09.dots",
        changed(
            DOTS,
            ("sum += product(w_hi, x_hi);", "sum += w[k * 256 + threadIdx.x] * x[k * 256 + threadIdx.x];"),
            ("sum + cross / 4096", "sum"),
        ),
        "only products of fp16",
    ),
    (
        "e09.dots",
        changed(DOTS, ("return __half2float(a) * __half2float(b)", "return float(a) * float(b)")),
        "Keep `product`",
    ),
    ("warp.sectors", lambda first, stride: 4, "the watch counts"),
    (
        "warp.blur",
        changed(
            BLUR,
            (
                "(tile[threadIdx.x] + tile[threadIdx.x + 1] + tile[threadIdx.x + 2])",
                "((index ? x[index - 1] : 0) + x[index] + (index + 1 < size ? x[index + 1] : 0))",
            ),
        ),
        "par is 25",
    ),
]
