"""The report of the validator, its bounds and its arguments; test_planted_bugs.py has what it must refuse."""

import base64
import dataclasses
import io
import re
import sys

import pytest
import torch
from hypothesis import given
from PIL import Image

import fusedref
from fusedref import KERNELBENCH_73, Problem, cuda, validate
from fusedref.problem import SMALL_73
from fusedref.reference import conv_bn_scale, oracle
from fusedref.validation import candidate_from_kernel, compare, random_inputs, shapes_around
from fusedref.validation.bounds import spread_of
from tests import processes
from tests.strategies import fast, options, problems

SMALL = Problem(2, 3, 4, 8, 7, 3)


def wrong_in_the_last_column(*inputs):
    y = conv_bn_scale(*inputs)
    y[..., -1] = torch.nan
    return y


def test_right_candidate():
    report = validate(conv_bn_scale, SMALL, device="cpu", seed=5)
    assert report.ok
    assert report
    assert report.reasons == ()
    assert 0 < report.relative_l2 < 2e-7
    assert report.relative_l2 == report.cases[0].relative_l2
    assert 0 < report.worst.bounds < 1
    assert report.worst.bounds == max(case.worst.bounds for case in report.cases)
    assert str(report).startswith("right to float32 rounding (fp32, cpu, seed 5)")
    assert "<img" not in report._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.seed = 1


def test_wrong_candidate_and_where():
    report = validate(wrong_in_the_last_column, SMALL, device="cpu")
    assert not report.ok
    assert not report
    assert "the problem: the last column (4) is wrong (48 of 240 elements)" in report.reasons
    assert report.worst.index[3] == report.cases[0].problem.out_width - 1
    assert report.worst.bounds == float("inf")
    text = str(report)
    assert text.startswith("REFUSED (fp32, cpu, seed 0)")
    assert re.search(r"column  \.\.\.\.#$", text, re.MULTILINE)
    assert re.search(r"row     \+\+\+\+\+\+$", text, re.MULTILINE)
    assert repr(report) == text


@pytest.mark.parametrize(("rows", "bits"), [(1, False), (2, True)])
def test_bits_are_named_for_spread_errors(rows, bits):
    """Errors of tf32's size, in one row of six and in two."""

    def candidate(*inputs):
        y = conv_bn_scale(*inputs)
        y[:, :, :rows] *= 1 + 2**-11
        return y

    case = validate(candidate, SMALL, device="cpu").cases[0]
    assert case.errors.wrong >= 0.9 * rows * 40
    assert any("the errors are those of about" in reason for reason in case.reasons) == bits, case.reasons


def test_picture_shows_where():
    page = validate(wrong_in_the_last_column, SMALL, device="cpu")._repr_html_()
    assert "the last column (4) is wrong" in page
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^']+)'", page)[1]))).convert("RGB")
    red = [
        (x, y)
        for x in range(picture.width)
        for y in range(picture.height)
        for r, g, b in [picture.getpixel((x, y))]
        if r < 120 and g < 40 and b < 40 and r > 2 * g
    ]
    assert red  # the column, and every image and channel have some red, but only the column is wholly wrong
    left = [x for x, _ in red if x < picture.width / 2]
    assert left
    assert max(left) - min(left) < picture.width / 8


def test_exception_text_is_escaped_in_html():
    def raises(*inputs):
        raise ValueError("<script>")

    page = validate(raises, SMALL, device="cpu")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@fast
@given(problems())
def test_shapes_around_any_problem(problem):
    cases = dict(shapes_around(problem))
    assert cases["the problem"] == problem
    for shape in cases.values():
        for name in ("in_channels", "out_channels", "kernel", "stride", "padding", "dilation", "groups", "bias"):
            assert getattr(shape, name) == getattr(problem, name)
    tall = cases["tall, odd sizes"]
    height, width = tall.output_shape[2:]
    assert height > width
    # Odd, unless padding makes even the smallest input give more.
    assert height % 2 or tall.height == 1
    assert width % 2 or tall.width == 1
    height, width = cases["wide, one image"].output_shape[2:]
    assert width > height
    assert cases["wide, one image"].batch == 1
    smallest = cases["one pixel"]
    assert smallest.batch == 1
    # One pixel, unless padding makes even the smallest input give more.
    assert smallest.output_shape[2:] == (1, 1) or min(smallest.height, smallest.width) == 1


@fast
@given(problems())
def test_fp32_accepts_float32_and_refuses_tf32(problem):
    def to_tf32(tensor):
        return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def right(*inputs):
        return conv_bn_scale(*inputs, **options(problem))

    def rounded(x, weight, *rest):
        return right(to_tf32(x), to_tf32(weight), *rest)

    assert validate(right, problem, device="cpu").ok
    assert not validate(rounded, problem, device="cpu").ok


@fast
@given(problems())
def test_tf32_accepts_rounded_factors_and_refuses_bfloat16(problem):
    def with_factors(change):
        def candidate(x, weight, *rest):
            return conv_bn_scale(change(x), change(weight), *rest, **options(problem))

        return candidate

    def rounded(tensor):
        return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def nothing(tensor):
        return tensor

    for change in (nothing, rounded):
        report = validate(with_factors(change), problem, precision="tf32", device="cpu")
        assert report.ok, str(report)
        assert str(report).startswith("right to tf32 rounding (tf32, cpu, seed 0)"), str(report)
    assert not validate(with_factors(lambda t: t.bfloat16().float()), problem, precision="tf32", device="cpu").ok


@pytest.mark.parametrize("taps", [1, 8, 72, 4608])
def test_errors_of_tf32_in_units_of_the_bound(taps):
    """Errors in units of t q: what the module's text says of rounding, cutting off and bfloat16."""
    problem = Problem(256, taps, 64, 1, 1, 1)
    inputs = random_inputs(problem, seed=0)
    changes = {
        "rounded": lambda t: ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32),
        "cut": lambda t: (t.view(torch.int32) & ~0x1FFF).view(torch.float32),
        "bfloat16": lambda t: t.bfloat16().float(),
    }
    spread = spread_of(problem, inputs, "tf32")
    exact = oracle(*inputs)
    found = {}
    for name, change in changes.items():
        y = oracle(change(inputs.x), change(inputs.weight), *inputs[2:])
        found[name] = float((y - exact).norm() / spread.norm()) * 2**11
        case = compare("", problem, inputs, y.float(), precision="tf32")
        assert case.ok == (name != "bfloat16"), str(case)
    assert found == {
        "rounded": pytest.approx(0.6, rel=0.3),
        "cut": pytest.approx(1.6, rel=0.3),
        "bfloat16": pytest.approx(4.8, rel=0.3),
    }


@pytest.mark.parametrize("taps", [1, 72, 512, 4608])
def test_bounds_hold_for_any_number_of_taps(taps):
    """A sequential sum that starts from the folded bias, the worst order there is, keeps well inside both."""
    problem = Problem(64, taps, 64, 1, 1, 1)
    inputs = random_inputs(problem, seed=0)
    a, b = fusedref.folding.affine(*inputs[2:])
    x, weight = inputs.x.view(64, taps), fusedref.folding.fold(inputs.weight, a).view(64, taps)
    sums = b.expand(64, 64)
    for tap in range(taps):
        sums = torch.addcmul(sums, x[:, tap, None], weight[None, :, tap])
    case = compare("", problem, inputs, sums.view(problem.output_shape))
    assert case.ok
    assert case.worst.bounds < 0.5
    limit = (8 + taps**0.5) * 2**-24
    assert case.relative_l2 < limit / 2


HALVES = [torch.float16, torch.bfloat16]


def in_float32(x, weight, bias, *rest, **kept):
    """Compute the operator on tensors of any dtype in float32, and round y once."""
    x, weight, bias, *rest = (v.float() if isinstance(v, torch.Tensor) else v for v in (x, weight, bias, *rest))
    return conv_bn_scale(x, weight, bias, *rest, **kept)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@fast
@given(problem=problems())
def test_halves_need_float32_arithmetic_and_one_rounding(dtype, problem):
    problem = dataclasses.replace(problem, dtype=dtype)

    def right(*inputs):
        return in_float32(*inputs, **options(problem)).to(dtype)

    def eager(x, weight, bias, *rest):
        """Round after each operator as torch does; torch's own convolution of fp16 crashes on some processors."""
        *vectors, scaling_factor, eps = rest
        bias = None if bias is None else bias.float()
        convolved = torch.nn.functional.conv2d(x.float(), weight.float(), bias, **options(problem)).to(dtype)
        vectors = [vector.float() for vector in vectors]
        return torch.nn.functional.batch_norm(convolved.float(), *vectors, eps=eps).to(dtype) * scaling_factor

    report = validate(right, problem, device="cpu")
    assert report.ok, str(report)
    assert str(report).startswith(f"right to {str(dtype)[6:]} rounding (fp32, cpu, seed 0)"), str(report)
    assert not validate(eager, problem, device="cpu").ok


def rounded_through(dtype):
    return lambda *inputs: in_float32(*inputs).to(dtype).to(inputs[0].dtype)


def with_folded_weights_rounded(x, weight, *rest):
    a, b = fusedref.folding.affine(*[v if v is None or isinstance(v, float) else v.float() for v in rest])
    filters = fusedref.folding.fold(weight.float(), a).to(x.dtype)
    return (torch.nn.functional.conv2d(x.float(), filters.float()) + b.view(-1, 1, 1)).to(x.dtype)


def with_a_rounded_affine_map(x, weight, *rest):
    a, b = fusedref.folding.affine(*[v if v is None or isinstance(v, float) else v.float() for v in rest])
    a, b = (v.to(x.dtype).float().view(-1, 1, 1) for v in (a, b))
    return (torch.nn.functional.conv2d(x.float(), weight.float()) * a + b).to(x.dtype)


def summed_in_halves(x, weight, bias, *rest):
    patches = torch.nn.functional.unfold(x.float(), weight.shape[2:]).to(x.dtype)
    sums = torch.zeros(len(x), len(weight), patches.shape[2], dtype=x.dtype)
    for tap, column in enumerate(weight.flatten(1).T):
        sums = (sums.float() + column[:, None].float() * patches[:, None, tap].float()).to(x.dtype)
    sums = sums.view(len(x), -1, x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1).float()
    one = torch.eye(len(weight)).view(len(weight), len(weight), 1, 1)
    return in_float32(sums, one, bias, *rest).to(x.dtype)


def not_rounded(*inputs):
    return in_float32(*inputs)


def cut_off(*inputs):
    """bfloat16 by the upper half of a float32, whatever the lower half says."""
    return (in_float32(*inputs).view(torch.int32) & ~0xFFFF).view(torch.float32).to(inputs[0].dtype)


@pytest.mark.parametrize(
    ("candidate", "dtype"),
    [
        *[(slip, dtype) for dtype in HALVES for slip in (
            with_folded_weights_rounded, with_a_rounded_affine_map, summed_in_halves, not_rounded,
        )],
        (rounded_through(torch.bfloat16), torch.float16),
        (rounded_through(torch.float16), torch.bfloat16),
        (cut_off, torch.bfloat16),
    ],
)  # fmt: skip
def test_halves_with_other_roundings_are_refused(candidate, dtype):
    problem = Problem(2, 8, 16, 9, 10, 3, dtype=dtype)
    assert not validate(candidate, problem, device="cpu").ok


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_vectors_beside_halves_are_not_rounded(dtype):
    problem = Problem(2, 8, 16, 9, 10, 3, dtype=dtype)
    inputs = random_inputs(problem, 0, vectors=torch.float32)
    assert inputs.weight.dtype == dtype
    assert inputs.beta.dtype == torch.float32
    assert compare("", problem, inputs, in_float32(*inputs).to(dtype)).ok
    for name in ("bias", "running_mean", "running_var", "gamma", "beta"):
        changed = inputs._replace(**{name: getattr(inputs, name).to(dtype).float()})
        case = compare("", problem, inputs, in_float32(*changed).to(dtype))
        assert not case.ok, name


def test_kernel_candidate_refuses_halves(tmp_path):
    (tmp_path / "any.cu").write_text("")
    report = validate(candidate_from_kernel(tmp_path / "any.cu", "k"), Problem(1, 1, 1, 3, 3, 3, dtype=torch.float16))
    assert not report.ok
    assert "the kernel takes float32 tensors, got torch.float16" in report.reasons[0]


def test_random_inputs_follow_the_seed_and_avoid_defaults():
    one, same, other = (random_inputs(SMALL, seed) for seed in (1, 1, 2))
    for name, value in one._asdict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(same, name))
            assert not torch.equal(value, getattr(other, name))
        else:
            assert value == getattr(same, name) != getattr(other, name)
    many = random_inputs(Problem(1, 1, 1000, 3, 3, 3), 0)
    for vector in (many.bias, many.running_mean, many.beta):
        assert vector.abs().min() >= 0.25
        assert (vector < 0).any()
        assert (vector > 0).any()
    assert many.gamma.abs().min() >= 0.5
    assert (many.gamma < 0).any()
    assert many.running_var.min() >= 0.25
    assert many.running_var.max() > 3
    assert many.eps >= 0.01
    assert 1.1 <= abs(many.scaling_factor) <= 1.9


def test_problem_without_bias():
    def candidate(x, weight, bias, *rest):
        assert bias is None
        return conv_bn_scale(x, weight, bias, *rest)

    assert validate(candidate, dataclasses.replace(SMALL, bias=False), device="cpu").ok


def test_torchs_settings_are_restored():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    validate(conv_bn_scale, SMALL, device="cpu")
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled())


def test_interrupt_passes():
    def interrupted(*inputs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(interrupted, SMALL, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"candidate": 3}, TypeError, "candidate must be a function of the nine arguments that returns y, got int"),
        ({"candidate": None}, TypeError, "candidate must be a function of the nine arguments .* got NoneType"),
        ({"problem": 73}, TypeError, "problem must be a Problem, such as fusedref.KERNELBENCH_73, got int"),
        ({"problem": "73"}, TypeError, "problem must be a Problem, such as fusedref.KERNELBENCH_73, got str"),
        ({"problem": Problem}, TypeError, "problem must be a Problem, such as fusedref.KERNELBENCH_73, got type"),
        ({"precision": None}, ValueError, "precision must be 'fp32' or 'tf32', got None"),
        ({"precision": ["fp32"]}, ValueError, r"precision must be 'fp32' or 'tf32', got \['fp32'\]"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"on_case": 3}, TypeError, "on_case must be a function of one case, got int"),
        ({"precision": "fp16"}, ValueError, "precision must be 'fp32' or 'tf32', got 'fp16'"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"seed": True}, TypeError, "seed must be an integer, got True"),
        ({"seed": -1}, ValueError, r"seed must be at least 0 and below 2\*\*63, got -1"),
        ({"seed": 2**63}, ValueError, r"seed must be at least 0 and below 2\*\*63, got 9223372036854775808"),
        ({"device": "tpu"}, ValueError, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({"device": "meta"}, ValueError, "device must be 'cpu' or 'cuda', got 'meta'"),
        ({"device": 1.5}, ValueError, "device must be 'cpu' or 'cuda', got 1.5"),
        ({"device": "cuda:99"}, ValueError, "device must be here, got 'cuda:99' where torch finds [0-9]+ GPUs"),
        ({"problem": dataclasses.replace(SMALL, batch=0)}, ValueError, "a batch of at least 1"),
        (
            {"problem": dataclasses.replace(SMALL, dtype=torch.float16), "precision": "tf32"},
            ValueError,
            "precision='tf32' is for float32 tensors, got torch.float16",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        validate(**{"candidate": conv_bn_scale, "problem": SMALL, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_gpu_that_is_not_here():
    with pytest.raises(ValueError, match="got 'cuda' where torch finds 0 GPUs; on 'cpu' a kernel runs on the emulator"):
        validate(conv_bn_scale, SMALL, device="cuda")


@pytest.mark.parametrize(
    ("path", "name", "error", "words"),
    [
        ("missing.cu", "kernel", FileNotFoundError, "no such file: missing.cu"),
        (3, "kernel", TypeError, "path must be the path of a .cu file, got int"),
        ("any.cu", None, TypeError, "name must be the name of a kernel in the file, got NoneType"),
    ],
)
def test_wrong_arguments_of_candidate_from_kernel(path, name, error, words):
    with pytest.raises(error, match=words):
        candidate_from_kernel(path, name)


@pytest.mark.parametrize("problem", [Problem(1, 4, 4, 9, 9, 3, groups=2), Problem(1, 4, 4, 9, 9, (3, 2))], ids=str)
def test_kernel_candidate_refuses_other_filters(problem, tmp_path):
    """On a GPU the kernel would read beyond the weights."""
    (tmp_path / "any.cu").write_text("")
    (reason,) = validate(candidate_from_kernel(tmp_path / "any.cu", "k"), problem).reasons
    words = f"the kernel serves one group and a square filter, got weight {problem.weight_shape}"
    assert reason == f"every case: raised ValueError: {words}"


def test_default_problem_depends_on_the_device():
    on_gpu = cuda.device() == "gpu"
    shape = KERNELBENCH_73 if on_gpu else SMALL_73
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        report = validate(conv_bn_scale, device=None if on_gpu else "cpu")
    assert report.problem == shape, str(report)
    assert report.ok, str(report)
    for name in ("in_channels", "out_channels", "kernel_size", "bias"):
        assert getattr(SMALL_73, name) == getattr(KERNELBENCH_73, name)


@pytest.mark.gpu
def test_fault_on_a_gpu_is_a_reason():
    """In a process of its own, which the fault leaves without its context, but alive."""
    script = (
        "import pathlib, sys, fusedref, tempfile\n"
        "from fusedref.validation import candidate_from_kernel\n"
        "rest = 'const float* w, const float* b, const float* m, const float* v, const float* g, const float* e,'\n"
        "rest += 'float s, float p, float* y, int n, int c, int h, int d, int o, int k'\n"
        "text = 'extern \"C\" __global__ void f(const float* x, ' + rest + ') { y[1ll << 44] = 1.0f; }'\n"
        "path = pathlib.Path(tempfile.mkdtemp(), 'f.cu'); path.write_text(text)\n"
        "report = fusedref.validate(candidate_from_kernel(path, 'f'), fusedref.Problem(1, 1, 1, 5, 5, 3))\n"
        "print(report); sys.exit(7 if not report.ok and len(report.cases) == 1 else 1)\n"
    )
    done = processes.run([sys.executable, "-c", script])
    assert done.returncode == 7, done.stdout + done.stderr
    assert "the GPU is lost to this process: restart it" in done.stdout


def test_result_in_channels_last():
    def right(*inputs):
        return conv_bn_scale(*inputs).contiguous(memory_format=torch.channels_last)

    assert validate(right, SMALL, device="cpu").ok
    assert not validate(lambda *inputs: right(*inputs) * 1.001, SMALL, device="cpu").ok
