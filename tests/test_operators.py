"""torch.ops.fusedref: what traces record, and what torch.library's own checks say of it."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from fusedref import ConvBnScale, FusedConvBnScale, Problem, fused_conv_bn_scale, fused_conv_bn_scale_training
from fusedref.ops import calls, operators
from fusedref.reference import conv_bn_scale
from fusedref.validation import random_inputs
from tests.cases import library_in_float32  # noqa: F401
from tests.runners import TorchRunner

EVALUATION = torch.ops.fusedref.conv_bn_scale.default
TRAINING = torch.ops.fusedref.conv_bn_scale_training.default
BACKWARD = torch.ops.fusedref.conv_bn_scale_backward.default
PROBLEM = Problem(2, 2, 4, 5, 4, 3, padding=1, groups=2)
CONVOLUTION = ([1, 1], [1, 1], [1, 1], 2, "fp32")
SAME = ([1, 1], [], [1, 1], 2, "fp32")
MODES = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


def inputs(dtype=torch.float32, gradients=True, last=False, device="cpu"):
    """Return x, weight and the five vectors."""
    given = random_inputs(PROBLEM, 0, device)[:7]
    if last:
        given = [given[0].contiguous(memory_format=torch.channels_last), *given[1:]]
    return [tensor.to(dtype).requires_grad_(gradients and place not in (3, 4)) for place, tensor in enumerate(given)]


def without_statistics(tensors):
    return [*tensors[:3], *tensors[5:]]


class Saving(TorchRunner):
    """Saves something of another shape than the convolution, as the fast runner does."""

    saved_elements = 3

    def forward(self, x, *arguments):
        return (*super().forward(x, *arguments)[:3], torch.arange(3.0, dtype=torch.float64, device=x.device))

    def backward(self, dy, x, weight, bias, gamma, mean, var, saved, scaling_factor, eps, needs):
        assert saved is None or saved.tolist() == [0.0, 1.0, 2.0]
        options, training = self.options, saved is not None
        return operators.by_torch.backward(
            dy, x, weight, bias, gamma, mean, var, None, scaling_factor, eps, options, needs, training
        )


@pytest.fixture(params=["torch", "runner"])
def how(request, monkeypatch):
    """Run by torch's operators, or by a runner."""
    monkeypatch.delenv("FUSEDREF_DEVICE", raising=False)
    if request.param == "runner":
        for module in (calls, operators):
            monkeypatch.setattr(module, "training_runner", Saving)
    calls.forget()
    yield request.param
    calls.forget()


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def checked(operator, *arguments, checks=CHECKS):
    """Run torch.library's checks of schema, fake kernel, autograd and AOT autograd with open sizes."""
    # autograd's gradient of the bias is rounding noise
    opcheck(operator, arguments, rtol=1e-4, atol=1e-4, test_utils=checks)


class TestLibrary:
    @pytest.mark.parametrize(("dtype", "last"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
    def test_opcheck_of_evaluation(self, how, dtype, last):
        checked(EVALUATION, *inputs(dtype, last=last), 1.7, 1e-5, *CONVOLUTION)

    @pytest.mark.parametrize(("dtype", "last"), [(torch.float32, True), (torch.float64, False)], ids=str)
    def test_opcheck_of_training(self, how, dtype, last):
        checked(TRAINING, *without_statistics(inputs(dtype, last=last)), 1.7, 1e-5, *CONVOLUTION)

    @MODES
    def test_opcheck_of_backward(self, how, training):
        x, weight, bias, mean, var, gamma, _ = inputs(torch.float64)
        y, batch_mean, batch_var, saved = TRAINING(x, weight, bias, gamma, gamma, 1.7, 1e-5, *CONVOLUTION)
        statistics = (batch_mean, batch_var, saved) if training else (mean, var, None)
        # torch 2.11 cannot trace its own second derivative of a convolution with open sizes; 2.13 can.
        checks = CHECKS if torch.torch_version.TorchVersion(torch.__version__) >= (2, 13) else CHECKS[:3]
        for needs in ([True] * 5, [True, False, False, False, True]):
            tensors = torch.ones_like(y), x, weight, bias, gamma, *statistics
            checked(BACKWARD, *tensors, 1.7, 1e-5, *CONVOLUTION, training, needs, checks=checks)

    def test_the_vectors_may_be_left_out(self, how):
        x, weight, _, mean, var, _, _ = inputs()
        checked(EVALUATION, x, weight, None, mean, var, None, None, 1.7, 1e-5, *CONVOLUTION)
        checked(TRAINING, x, weight, None, None, None, 1.7, 1e-5, *CONVOLUTION)

    @MODES
    def test_gradients(self, training):
        tensors = inputs(torch.float64)
        if training:
            tensors, operator = without_statistics(tensors), lambda *given: TRAINING(*given, 1.7, 0.1, *SAME)[0]
        else:
            operator = lambda *given: EVALUATION(*given, 1.7, 0.1, *SAME)  # noqa: E731
        tensors[0] = tensors[0].detach()[:, :, :3, :2].requires_grad_()
        assert torch.autograd.gradcheck(operator, tensors)
        assert torch.autograd.gradgradcheck(operator, tensors)

    def test_statistics_have_no_gradient(self):
        y, *others = TRAINING(*without_statistics(inputs()), 1.7, 1e-5, *CONVOLUTION)
        assert y.requires_grad
        assert not any(tensor.requires_grad for tensor in others)

    def test_fake_kernels_refuse_what_does_not_fit(self):
        x, weight, bias, mean, var, gamma, beta = inputs()
        with FakeTensorMode(allow_non_fake_inputs=True):
            with pytest.raises(ValueError, match=r"running_mean must be \[out_channels\], got shape \(3,\)"):
                EVALUATION(x, weight, bias, mean[:3], var, gamma, beta, 1.7, 1e-5, *CONVOLUTION)
            with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
                TRAINING(x[:1, :, :3, :3], weight, bias, gamma, beta, 1.7, 1e-5, [1, 1], [0, 0], [1, 1], 2, "fp32")


@pytest.mark.parametrize("batched", [[0], [1], [0, 1], [0, 5, 6]], ids=str)
def test_vmap(how, batched):
    tensors = inputs(gradients=False)
    stacked = [torch.stack([t, 2 * t, t + 1], 1) if i in batched else t for i, t in enumerate(tensors)]
    dims = tuple(1 if i in batched else None for i in range(7))

    def each(operator, given, in_dims):
        slices = [[t if dim is None else t.select(dim, i) for t, dim in zip(given, in_dims)] for i in range(3)]  # noqa: B905
        return [torch.stack(parts) for parts in zip(*[operator(*part) for part in slices], strict=True)]

    def evaluation(*given):
        return (EVALUATION(*given, 1.7, 1e-5, *CONVOLUTION),)

    def training(*given):
        return TRAINING(*given, 1.7, 1e-5, *CONVOLUTION)

    for operator, given, in_dims in (
        (evaluation, stacked, dims),
        (training, without_statistics(stacked), without_statistics(dims)),
    ):
        results = torch.vmap(operator, in_dims=tuple(in_dims))(*given)
        for ours, theirs in zip(results, each(operator, given, in_dims), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_vmap_of_stacked_modules(device):
    models = [FusedConvBnScale(2, 3, 3, 1.7).to(device).eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 2, 6, 5, device=device)
    with torch.no_grad():
        call = torch.func.functional_call
        y = torch.vmap(lambda *state: call(models[0], state, (x,)))(parameters, buffers)
        torch.testing.assert_close(y, torch.stack([ConvBnScale.forward(model, x) for model in models]))


def test_autocast():
    tensors = inputs(gradients=False)
    with torch.autocast("cpu", torch.bfloat16):
        y = EVALUATION(*tensors, 1.7, 1e-5, *CONVOLUTION)
        z, mean, *_ = TRAINING(*without_statistics(tensors), 1.7, 1e-5, *CONVOLUTION[:-1], "tf32")
    assert [y.dtype, z.dtype, mean.dtype] == [torch.bfloat16, torch.bfloat16, torch.float32]
    halves = [t.bfloat16() if i < 3 else t for i, t in enumerate(tensors)]
    assert torch.equal(y, EVALUATION(*halves, 1.7, 1e-5, *CONVOLUTION))


def test_flops():
    tensors = inputs()
    with FlopCounterMode(display=False) as counter:
        y, *_ = TRAINING(*without_statistics(tensors), 1.7, 1e-5, *CONVOLUTION)
        assert counter.get_total_flops() == PROBLEM.flops
        y.sum().backward()
    assert counter.get_total_flops() == 3 * PROBLEM.flops


@pytest.fixture
def models():
    """Return the reference and the fused module, in training mode."""
    made = []
    for model in (ConvBnScale, FusedConvBnScale):
        torch.manual_seed(0)
        made.append(model(2, 4, 3, 1.7, padding=1))
    return made


def x_of(batch=2):
    return torch.randn(batch, 2, 6, 5, generator=torch.Generator().manual_seed(batch))


def operators_in(graph):
    return [node.target for node in graph.nodes if str(node.target).startswith("fusedref")]


@MODES
@pytest.mark.parametrize("factor", ["number", "parameter"])
def test_compile(how, models, training, factor):
    """One graph, without a break; it computes the gradients and updates the running statistics."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for model in models:
        model.train(training)
        if factor == "parameter":
            model.scaling_factor = nn.Parameter(torch.tensor(1.7))
    reference, fused = models
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    compiled(x_of())
    assert operators_in(graphs[0].graph) == [TRAINING.overloadpacket if training else EVALUATION.overloadpacket]
    torch._dynamo.reset()
    fused.bn.reset_running_stats()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for model in (reference, compiled):
        model(x_of()).square().mean().backward()
    for ours, theirs in zip(fused.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(fused.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@MODES
def test_compile_with_an_open_batch(models, training):
    reference, fused = (model.train(training) for model in models)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, fullgraph=True, backend=counter, dynamic=True)
    frames = []
    for batch in (3, 5, 2):
        torch.testing.assert_close(compiled(x_of(batch)), reference(x_of(batch)))
        frames.append(counter.frame_count)
    assert frames == [frames[0]] * 3


@MODES
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_export(models, training, strict, gradients):
    reference, fused = (model.train(training) for model in models)
    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}}
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(fused, (x_of(),), dynamic_shapes=dynamic, strict=strict)
    assert operators_in(program.graph) == [TRAINING if training else EVALUATION]
    module = program.module()
    torch.testing.assert_close(module(x_of(5)), reference(x_of(5)))
    torch.testing.assert_close(module.get_buffer("bn.running_mean"), reference.bn.running_mean)


@MODES
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(how, mode, training):
    tensors = inputs(gradients=False)
    function = fused_conv_bn_scale_training if training else fused_conv_bn_scale

    def call(x, *others):
        return function(x, *others, 1.7, padding=1, groups=2)

    traced = make_fx(lambda x: call(x, *tensors[1:]), tracing_mode=mode, _allow_non_fake_inputs=True)(tensors[0])
    assert operators_in(traced.graph) == [TRAINING if training else EVALUATION]
    kept = copy.deepcopy(tensors)
    torch.testing.assert_close(traced(kept[0] + 1), call(kept[0] + 1, *kept[1:]))
    torch.testing.assert_close(tensors, kept)


@MODES
@pytest.mark.parametrize("where", ["fake", "meta"])
def test_without_data(training, where):
    with FakeTensorMode() if where == "fake" else torch.device("meta"):
        model = FusedConvBnScale(2, 4, 3, 1.7).train(training)
        y = model(torch.randn(2, 2, 6, 5))
        assert y.shape == (2, 4, 4, 3)
        y.sum().backward()
        assert model.conv.weight.grad.shape == (4, 2, 3, 3)
        last = model(torch.randn(2, 2, 6, 5).contiguous(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)


@MODES
def test_symbolic_trace(models, training):
    reference, fused = (model.train(training) for model in models)
    traced = torch.fx.symbolic_trace(fused)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called == [fused_conv_bn_scale_training if training else fused_conv_bn_scale]
    torch.testing.assert_close(traced(x_of()), reference(x_of()))


def test_a_trace_of_the_function_keeps_its_tensors(device):
    given = random_inputs(PROBLEM, 0, device)
    traced = make_fx(lambda *tensors: fused_conv_bn_scale(*tensors, 2.0, padding=1, groups=2))(*given[:7])
    other = random_inputs(PROBLEM, 1, device)._replace(scaling_factor=2.0, eps=1e-5)
    torch.testing.assert_close(traced(*other[:7]), conv_bn_scale(*other, padding=1, groups=2))


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_compile_of_a_transformed_call(models, transform):
    """The operator has a rule for vmap; functorch's gradients know torch's own operators alone."""
    transforms = {
        "vmap": lambda model: torch.vmap(lambda x: model(x)),
        "grad": lambda model: torch.func.grad(lambda x: model(x).square().sum()),
    }
    reference, fused = (transforms[transform](model.eval()) for model in models)
    x = torch.stack([x_of(), 2 * x_of()]) if transform == "vmap" else x_of()
    with torch.no_grad():
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), reference(x), rtol=1e-4, atol=1e-5)


X = x_of(1)
TRANSFORMS = {
    "grad": lambda model: torch.func.grad(lambda x: model(x).pow(3).mean())(X),
    "jvp": lambda model: torch.func.jvp(model, (X,), (X + 1,)),
    "linearize": lambda model: torch.func.linearize(model, X)[1](X + 1),
    "jacrev of jacfwd": lambda model: torch.func.hessian(lambda x: model(x).pow(3).mean())(X[:, :, :3, :3]),
    "vmap of grad": lambda model: torch.vmap(torch.func.grad(lambda x: model(x[None]).pow(3).mean()))(x_of(3)),
    "grad of vmap": lambda model: torch.func.grad(lambda x: torch.vmap(model)(x[:, None]).pow(3).mean())(x_of(3)),
    "functionalize": lambda model: torch.func.functionalize(model)(X),
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's own linearize
@pytest.mark.parametrize("transform", TRANSFORMS)
@MODES
def test_transforms(training, transform):
    """Functorch and forward mode differentiate torch's own operators."""
    results = []
    for model in (ConvBnScale, FusedConvBnScale):
        torch.manual_seed(0)
        made = model(2, 4, 3, 1.7, padding=1, track_running_stats=not training).train(training)
        results.append(TRANSFORMS[transform](made))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
