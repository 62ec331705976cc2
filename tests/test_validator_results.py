"""What the validator says of unusual results and of candidates that end in unusual ways: never a crash."""

import contextlib
import threading
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fusedref import Problem, validate
from fusedref.reference import conv_bn_scale
from fusedref.validation import candidate_from_kernel
from tests.test_planted_bugs import RIGHT_KERNEL

SMALL = Problem(2, 3, 4, 8, 7, 3)


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Hostile(torch.Tensor):
    """A subclass on which every function fails."""

    @classmethod
    def __torch_function__(cls, *_, **__):
        raise RuntimeError("not today")


def returned(change):
    """Return a candidate with the right result, changed by ``change``."""
    return lambda *inputs: change(conv_bn_scale(*inputs))


def negative_view(y):
    return torch.view_as_complex(torch.stack([torch.zeros_like(y), -y], -1)).conj().imag


def strided(y):
    """Every second element of memory twice as large."""
    memory = torch.zeros(*y.shape[:3], 2 * y.shape[3])
    memory[..., ::2] = y
    return memory[..., ::2]


def with_gradient(*inputs):
    with torch.enable_grad():
        return conv_bn_scale(inputs[0].requires_grad_(), *inputs[1:])


@pytest.mark.parametrize(
    "candidate",
    [
        with_gradient,
        *map(returned, (negative_view, strided, lambda y: y.requires_grad_(), torch.nn.Parameter)),
        *map(returned, (lambda y: y.as_subclass(Plain), lambda y: y.as_subclass(Hostile), torch.conj)),
        returned(lambda y: y.transpose(2, 3).contiguous().transpose(2, 3)),
    ],
    ids=[
        "computed with gradients", "negative view", "every second element", "requires grad", "parameter", "subclass",
        "hostile subclass", "conjugate", "rows and columns swapped in memory",
    ],
)  # fmt: skip
def test_right_results_of_any_kind_pass(candidate):
    report = validate(candidate, SMALL, device="cpu")
    assert report.ok, str(report)


def test_wrong_results_of_any_kind_are_refused():
    for change in (negative_view, strided, lambda y: y.as_subclass(Hostile)):
        report = validate(returned(lambda y, change=change: change(y * 2)), SMALL, device="cpu")
        assert report.reasons[0] == "every case: every element is wrong", str(report)


def fake(y):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return mode.from_tensor(y)


def freed(y):
    y.untyped_storage().resize_(0)
    return y


async def coroutine(*inputs):
    return conv_bn_scale(*inputs)


def generator(*inputs):
    yield conv_bn_scale(*inputs)


class Operator:
    """A class in the place of a function."""

    def __init__(self, *inputs):
        self.inputs = inputs


def quietly(change):
    """Return such a candidate without the warnings of a prototype, beta or deprecated feature."""

    def changed(y):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return change(y)

    return returned(changed)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (coroutine, "returned coroutine, a torch.Tensor is needed"),
        (generator, "returned generator, a torch.Tensor is needed"),
        (Operator, "returned Operator, a torch.Tensor is needed"),
        (returned(lambda y: None), "returned NoneType, a torch.Tensor is needed"),
        (returned(lambda y: (y,)), "returned tuple, a torch.Tensor is needed"),
        (returned(fake), "returned a FakeTensor, a plain torch.Tensor is needed"),
        (
            quietly(lambda y: torch.nested.nested_tensor(list(y.flatten(1)), layout=torch.jagged)),
            "returned a NestedTensor, a plain torch.Tensor is needed",
        ),
        (quietly(lambda y: torch.nested.nested_tensor(list(y))), "returned a nested tensor, a dense one is needed"),
        (returned(lambda y: y.to_mkldnn()), "returned a torch._mkldnn tensor, a dense one is needed"),
        (
            quietly(lambda y: y.flatten(1).to_sparse_csr()),
            "returned a torch.sparse_csr tensor, a dense one is needed",
        ),
        (returned(lambda y: y.to("meta")), "returned a tensor on meta, one on cpu is needed"),
        (
            quietly(lambda y: torch.quantize_per_tensor(y, 0.1, 0, torch.qint8)),
            "returned torch.qint8, torch.float32 is needed",
        ),
        (returned(lambda y: y + 0j), "returned torch.complex64, torch.float32 is needed"),
        (returned(lambda y: y.int()), "returned torch.int32, torch.float32 is needed"),
        (returned(lambda y: y > 0), "returned torch.bool, torch.float32 is needed"),
        (returned(lambda y: y.to(torch.float8_e4m3fn)), "returned torch.float8_e4m3fn, torch.float32 is needed"),
        (returned(freed), "returned a tensor whose memory has been freed"),
        (returned(lambda y: y[:0]), "returned shape (0, 4, 6, 5), (2, 4, 6, 5) is needed"),
        (returned(lambda y: y.sum()), "returned shape (), (2, 4, 6, 5) is needed"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_results_that_cannot_be_compared(candidate, reason):
    report = validate(candidate, SMALL, device="cpu")
    words = [words.partition(": ")[2] for words in report.reasons]
    assert reason in words, str(report)
    assert not any("raised" in word for word in words), str(report)
    assert report.cases[0].worst is None
    assert len(report.cases) == 5


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no words")


def recursion(*inputs):
    return recursion(*inputs)


def raising(error):
    def candidate(*inputs):
        raise error

    return candidate


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (recursion, "every case: raised RecursionError: maximum recursion depth exceeded"),
        (raising(SystemExit(3)), "every case: raised SystemExit: 3"),
        (raising(GeneratorExit()), "every case: raised GeneratorExit: "),
        (raising(MemoryError()), "every case: raised MemoryError: "),
        (raising(Unprintable()), "every case: raised Unprintable: (its message cannot be printed)"),
        (lambda x: x, "every case: raised TypeError: <lambda>() takes 1 positional argument but 9 were given"),
        (lambda *inputs: next(iter(())), "every case: raised StopIteration: "),
    ],
    ids=["recursion", "exit", "generator exit", "memory", "unprintable", "one argument", "stop iteration"],
)
def test_exceptions_become_reasons(candidate, reason):
    (found,) = validate(candidate, SMALL, device="cpu").reasons
    assert found.partition(" in ")[0].startswith(reason)


def free(x):
    x.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    "change",
    [
        free,
        lambda x: x.squeeze_(0).unsqueeze_(-1),
        lambda x: x.resize_(1),
        lambda x: setattr(x, "data", x.double()),
        lambda x: setattr(x, "data", torch.zeros(1).expand(x.shape)),
        lambda x: setattr(x, "data", x.new_zeros(x.shape)),
        lambda x: x.neg_(),
    ],
    ids=["freed", "shape", "size", "dtype", "expanded", "other memory", "sign"],
)
@pytest.mark.parametrize("name", ["x", "weight", "beta"])
def test_any_change_of_an_input_is_told(name, change):
    def candidate(x, weight, bias, mean, var, gamma, beta, s, eps):
        y = conv_bn_scale(x, weight, bias, mean, var, gamma, beta, s, eps)
        change({"x": x, "weight": weight, "beta": beta}[name])
        return y

    assert validate(candidate, SMALL, device="cpu").reasons == (f"every case: changes its input {name}",)


INPUTS = "x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"


@pytest.mark.parametrize("name", INPUTS)
def test_a_kernel_that_changes_an_input_is_refused(name, tmp_path, device):
    """The kernel of planted bugs, whose last block sets the first element of one input to 0 at its end."""
    path = tmp_path / "kernel.cu"
    end = RIGHT_KERNEL.rindex("}")
    path.write_text(RIGHT_KERNEL[:end] + f"    if (output == outputs - 1) ((float*){name})[0] = 0;\n}}\n")
    problem = Problem(1, 1, 2, 4, 4, 3)  # one block: no thread reads the input after the last one has written it
    report = validate(candidate_from_kernel(path, "kernel"), problem, device=device)
    assert f"changes its input {name}" in [reason.partition(": ")[2] for reason in report.reasons], str(report)


def test_a_result_freed_by_the_next_call_is_told():
    earlier = []

    def candidate(*inputs):
        while earlier:
            free(earlier.pop())
        earlier.append(conv_bn_scale(*inputs))
        return earlier[0]

    (reason,) = validate(candidate, SMALL, device="cpu").reasons
    assert reason.endswith("the result of an earlier call changes with the next call: y must be new memory each time")


@pytest.mark.parametrize("leave", [contextlib.nullcontext, lambda: pytest.raises(KeyboardInterrupt)])
def test_validations_in_threads_restore_torchs_mode(leave):
    """Eight threads are inside their candidates at a time and leave in any order, or by an interrupt."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    filters = list(warnings.filters)
    inside = threading.Barrier(8)
    interrupted = leave is not contextlib.nullcontext
    reports = []

    def candidate(*inputs):
        inside.wait()
        assert torch.empty(3).isnan().all()
        if interrupted:
            raise KeyboardInterrupt
        return conv_bn_scale(*inputs)

    def one():
        with leave():
            reports.append(validate(candidate, SMALL, device="cpu"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == (0 if interrupted else 8), str(reports[:1])
    assert all(reports), str(reports[:1])
    assert before == (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    assert warnings.filters == filters


def test_torchs_defaults_do_not_matter():
    expected = validate(conv_bn_scale, SMALL, device="cpu")
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            report = validate(conv_bn_scale, SMALL, device="cpu")
    finally:
        torch.set_default_dtype(dtype)
    assert str(report) == str(expected)
    assert report.ok
    with torch.inference_mode():
        assert validate(conv_bn_scale, SMALL, device="cpu").ok
