"""gradients.cu: the gradients of weight, gamma, beta and bias from the partial sums of the pass over dy."""

import dataclasses
import math

import pytest
import torch

from fusedref import Problem
from fusedref.csrc import TRAINING
from fusedref.emulator import watch
from fusedref.plans.gradients import gradients_launch
from tests import nvcc
from tests.float64_backward import PARTS, VECTORS, error, finish, given
from tests.sources import inlined
from tests.tensor_cores import shown
from tests.tiles import needs_emulator

SOURCE = TRAINING / "gradients.cu"
SMALL = Problem(2, 6, 10, 7, 9, (2, 3), padding=1)


def assert_right(what, found):
    """Check the gradients against float64; that of bias is 0 with batch statistics."""
    for name in ("weight", *VECTORS):
        if name == "bias" and what.training:
            assert (found[name] == 0).all()
        else:
            assert found[name].dtype == (what.inputs.weight if name == "weight" else what.inputs.running_mean).dtype
            assert error(found[name], what.gradients[name]) <= {4: 2e-7, 2: 5e-3}[found[name].itemsize], name


@pytest.mark.parametrize(
    "problem",
    [
        Problem(2, 8, 64, 9, 12, 3),
        SMALL,
        Problem(2, 3, 5, 9, 7, (3, 1), padding=(2, 0)),
        Problem(3, 2, 1, 5, 6, 1),
    ],
    ids=str,
)
def test_batch_statistics(device, problem):
    what = given(problem, device)
    assert_right(what, finish(what))


def test_running_statistics(device):
    what = given(SMALL, device, training=False)
    assert_right(what, finish(what))


@pytest.mark.parametrize(("dtype", "vectors"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_halves(device, dtype, vectors):
    what = given(dataclasses.replace(SMALL, dtype=dtype), device, vectors=vectors)
    assert_right(what, finish(what))


def test_only_what_is_wanted_is_written(device):
    what = given(SMALL, device)
    everything = finish(what)
    for name in ("weight", *VECTORS, "slopes"):
        assert finish(what, (name,))[name].equal(everything[name])


def test_vectors_left_out(device):
    """A missing bias is zeros and a missing gamma is ones."""
    what = given(SMALL, device, training=False)
    neutral = what.inputs._replace(bias=torch.zeros_like(what.inputs.bias), gamma=torch.ones_like(what.inputs.gamma))
    what = given(SMALL, device, training=False, inputs=neutral)
    bare = what._replace(inputs=neutral._replace(bias=None, gamma=None))
    found = finish(bare)
    for name, expected in finish(what).items():
        assert found[name].equal(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_channel_that_is_not_finite_keeps_it_to_itself(device, value):
    """Where dy has a NaN or an infinity, torch's gradients are NaN, and dbeta has the value."""
    what = given(SMALL, device)
    what.parts[1, 3] = value
    found = finish(what)
    for name in ("weight", "gamma", "bias"):
        assert found[name][3].isnan().all()
    assert found["beta"][3].isnan() if math.isnan(value) else found["beta"][3].abs() == math.inf
    for name in ("weight", *VECTORS):
        found[name][3] = 0.0
        assert found[name].isfinite().all()


PLANTED = {
    "c1 is forgotten": ("sums[thread] - q * pbar[thread]", "sums[thread]"),
    "c2 is forgotten": ("gradient -= dyzhat", "gradient -= 0 * dyzhat"),
    "the mean of the patches is forgotten": ("covariance[thread] - projected", "covariance[thread] - 0 * projected"),
    "the pivot is forgotten": ("first[thread] - pbar[thread]", "first[thread]"),
    "a part is left out": ("const int part = group + k", "const int part = group + (k + 1)"),
    "parts are summed before they are there":
        ("products[slice][column] = sum;\n    }\n    __syncthreads();", "products[slice][column] = sum;\n    }"),
}  # fmt: skip


@needs_emulator
class TestPlantedBugs:
    def what_shows(self, text, device):
        """Return what a watched launch of this text shows: kinds of findings, or "result" for wrong gradients."""
        what = given(Problem(2, 8, 8, 6, 7, 3, padding=1), device)
        planned = dataclasses.replace(gradients_launch(what.problem, PARTS), source=text)

        def run():
            found = finish(what, planned=planned)
            return {"result"} if error(found["weight"], what.gradients["weight"]) > 2e-7 else set()

        return shown(run)

    def test_nothing_is_planted(self, device):
        assert self.what_shows(inlined(SOURCE), device) == set()

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_shows(self, device, name):
        right, wrong = PLANTED[name]
        text = inlined(SOURCE)
        assert text.count(right) == 1
        assert self.what_shows(text.replace(right, wrong), device) & {"result", "race"}


@needs_emulator
def test_every_part_is_read_once():
    what = given(SMALL, torch.device("cpu"))
    with watch() as seen:
        finish(what)
    assert seen.findings == []
    counters = seen.counters["finish_backward"]
    number = next(k for k, line in enumerate(SOURCE.read_text().splitlines(), 1) if "float4 four" in line)
    columns = 8 * math.prod(SMALL.kernel) + 8
    assert counters.by_line["gradients.cu", number].global_load_bytes_used == PARTS * SMALL.out_channels * columns * 4
    assert counters.global_store_bytes_used == 4 * (SMALL.out_channels * (SMALL.taps + 3)) + 8 * 2 * SMALL.out_channels


@nvcc.needs_nvcc
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_spills(tmp_path, training):
    planned = gradients_launch(Problem(128, 8, 64, 128, 128, 3), 132, training)
    nvcc.assert_no_spills(nvcc.report(SOURCE, tmp_path, "90a", planned.options))
