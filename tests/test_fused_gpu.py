"""fused_conv_bn_scale: what only a card can show. Each test compares with float64 on the card."""

import math
import sys
import threading

import pytest
import torch

from fusedref import Problem, fused_conv_bn_scale, validate
from fusedref.reference import conv_bn_scale
from fusedref.validation import compare, random_inputs
from tests import processes
from tests.cases import PROBLEM, case_of, library_in_float32  # noqa: F401
from tests.strategies import options

pytestmark = pytest.mark.gpu


def test_side_stream():
    inputs = random_inputs(PROBLEM, 0, "cuda")
    expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(inputs.x)
        torch.cuda._sleep(50_000_000)  # the kernel must wait for what the stream was given before it
        late += inputs.x
        y = fused_conv_bn_scale(*inputs._replace(x=late), **options(PROBLEM))
        twice = y * 2  # and what the stream is given after it must wait for the kernel
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(twice, expected * 2)


def test_graph_replay():
    inputs = random_inputs(PROBLEM, 0, "cuda")
    fused_conv_bn_scale(*inputs, **options(PROBLEM))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    for seed in (1, 2):
        fresh = random_inputs(PROBLEM, seed, "cuda")
        for tensor, value in zip(inputs[:7], fresh[:7], strict=True):
            tensor.copy_(value)
        y.fill_(torch.nan)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            graph.replay()
        torch.cuda.current_stream().wait_stream(side)
        kept = fresh._replace(scaling_factor=inputs.scaling_factor, eps=inputs.eps)
        case = compare("", PROBLEM, kept, y)
        assert case.ok, case.reasons


def test_other_streams_during_capture():
    inputs = random_inputs(PROBLEM, 0, "cuda")
    expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    others = [torch.cuda.Stream() for _ in range(2)]
    for stream in others:
        with torch.cuda.stream(stream):
            fused_conv_bn_scale(*inputs, **options(PROBLEM))
    torch.cuda.synchronize()
    graph, found = torch.cuda.CUDAGraph(), []

    def run(stream):
        with torch.cuda.stream(stream):
            found.append(fused_conv_bn_scale(*inputs, **options(PROBLEM)))

    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
        threads = [threading.Thread(target=run, args=(stream,)) for stream in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    graph.replay()
    torch.cuda.synchronize()
    assert len(found) == 2
    assert all(torch.equal(result, expected) for result in [y, *found])


def test_fresh_threads():
    """Many at once, in streams of their own; none may leave a context pushed, which would abort the process."""
    inputs = random_inputs(PROBLEM, 0, "cuda")
    expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    torch.cuda.synchronize()
    results = []

    def run(stream):
        with torch.cuda.stream(stream):
            for _ in range(20):
                results.append(fused_conv_bn_scale(*inputs, **options(PROBLEM)))
            stream.synchronize()

    streams = [torch.cuda.default_stream(), *[torch.cuda.Stream() for _ in range(3)]]
    threads = [threading.Thread(target=run, args=(stream,)) for stream in streams * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 160
    assert all(torch.equal(result, expected) for result in results)


def test_while_another_context_is_current():
    import pycuda.driver as drv

    inputs = random_inputs(PROBLEM, 0, "cuda")
    expected = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    other = drv.Device(0).make_context()
    try:
        y = fused_conv_bn_scale(*inputs, **options(PROBLEM))
    finally:
        other.pop()
        other.detach()
    assert y.equal(expected)


def test_autograd_thread():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            found.append(fused_conv_bn_scale(*inputs, **options(PROBLEM)))
            return gradient

    found, inputs = [], random_inputs(PROBLEM, 0, "cuda")
    Doubled.apply(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()
    assert torch.equal(found[0], fused_conv_bn_scale(*inputs, **options(PROBLEM)))


def test_process_that_launched_in_a_thread():
    script = (
        "import threading, torch, fusedref\n"
        "from fusedref.validation import random_inputs\n"
        "inputs = random_inputs(fusedref.Problem(1, 2, 2, 5, 5, 3), 0, 'cuda')\n"
        "thread = threading.Thread(target=lambda: fusedref.fused_conv_bn_scale(*inputs))\n"
        "thread.start(); thread.join(); torch.cuda.synchronize(); print('end')\n"
    )
    done = processes.run([sys.executable, "-c", script])
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_second_card():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = case_of(PROBLEM, "cuda:1")
    assert case.ok, case.reasons
    assert torch.cuda.current_device() == 0


def test_more_than_2_31_elements():
    """X of 2**31 + 2**25 elements: the last images lie beyond 32-bit indices, in x and in y."""
    problem = Problem(65, 1, 1, 2**12, 2**13, 1)
    if torch.cuda.get_device_properties(0).total_memory < 30 * 2**30:
        pytest.skip("needs 30 GiB of GPU memory")
    inputs = random_inputs(problem, 0, "cuda")
    y = fused_conv_bn_scale(*inputs)
    assert y.numel() > 2**31
    case = compare("", problem, inputs, y)
    assert case.ok, case.reasons


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var", "gamma", "beta"])
def test_nan_infinity_and_negative_variance(name, value):
    problem = Problem(1, 2, 3, 6, 7, 3)
    inputs = random_inputs(problem, 0, "cuda")
    getattr(inputs, name).view(-1)[1] = value
    expected = conv_bn_scale(*inputs)
    y = fused_conv_bn_scale(*inputs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_library_tf32_is_refused():
    """Torch's own convolution takes tf32 unless told not to: the validator sees the difference."""
    problem = Problem(8, 64, 64, 32, 32, 3)
    x, weight = random_inputs(problem, 0, "cuda")[:2]
    results = []
    for allow_tf32 in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32):
            results.append(torch.nn.functional.conv2d(x, weight))
    if torch.equal(*results):
        pytest.skip("this cuDNN takes no tf32 here")
    assert validate(conv_bn_scale, problem).ok
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert not validate(conv_bn_scale, problem).ok
