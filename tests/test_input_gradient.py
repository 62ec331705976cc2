"""input_gradient.cu and its composites: the gradient of x, at every kind of border."""

import dataclasses
import math
import re

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem
from fusedref.csrc import TRAINING
from fusedref.emulator import watch
from fusedref.plans import KernelVariant
from fusedref.plans.input_gradient import composites_launch, composites_shape, input_gradient_launch
from fusedref.validation import random_inputs
from tests import nvcc
from tests.float64_backward import FEW, composites, error, finish, given, input_gradient
from tests.sources import inlined
from tests.tensor_cores import shown
from tests.tiles import needs_emulator

SOURCE, COMPOSITES = TRAINING / "input_gradient.cu", TRAINING / "input_gradient_composites.cu"
SMALL = Problem(1, 8, 4, 37, 36, 2)  # five chunks down, three units across, 9 kinds of border


def error_of(what, dx):
    """Return the error relative to T: dx may be a small difference."""
    return error(dx, what.gradients["x"], what.t)


def dx_of(what, precision="fp32"):
    """Return the gradient of x by all kernels from the sums on."""
    return input_gradient(what, *composites(what, finish(what, ("slopes",))["slopes"]), precision)


SHAPES = {
    "no padding": Problem(1, 8, 64, 19, 12, 3),
    "padding 1": Problem(1, 8, 4, 21, 68, 3, padding=1),
    "padding 2": Problem(1, 5, 8, 8, 10, 3, padding=2),
    "two tiles across": Problem(1, 8, 8, 5, 133, (2, 3)),
    "an odd width": Problem(2, 3, 5, 17, 7, (3, 1), padding=(1, 0)),
    "one tap": Problem(2, 1, 1, 6, 10, 1),
    "one row": Problem(2, 2, 3, 1, 2, 3, padding=1),
    "same": Problem(1, 2, 2, 4, 5, 2, padding="same"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_kinds_of_shape(device, name):
    what = given(SHAPES[name], device)
    assert error_of(what, dx_of(what)) <= 2e-7


@pytest.mark.parametrize(
    ("dtype", "precision", "bound"),
    [(torch.float32, "tf32", 1e-3), (torch.float16, "fp32", 2e-3), (torch.bfloat16, "fp32", 2e-2)],
)
def test_kinds_of_precision(device, dtype, precision, bound):
    problem = Problem(2, 6, 8, 9, 12, 3, padding=1, dtype=dtype)
    what = given(problem, device, vectors=torch.float32 if dtype == torch.float16 else None)
    assert error_of(what, dx_of(what, precision)) <= bound


PLAIN = Problem(2, 8, 16, 9, 12, 3, padding=1)


@pytest.mark.parametrize("kind", ["mean 100", "channels over 8 decades", "an outlier"])
def test_kinds_of_x(device, kind):
    """Each channel's error is that of float32, whatever the others' magnitudes are."""
    inputs = random_inputs(PLAIN, 3, device)
    decades = 10.0 ** torch.linspace(-4, 4, 8, device=device)[:, None, None]
    if kind == "mean 100":
        inputs.x.add_(100.0)
    if kind == "channels over 8 decades":
        inputs = inputs._replace(x=inputs.x * decades, weight=inputs.weight / decades)
    if kind == "an outlier":
        inputs.x[1, 2, 3, 4] = 1e4
    what = given(PLAIN, device, inputs=inputs)
    dx, truth = dx_of(what), what.gradients["x"]
    for c in range(8):
        assert (dx[:, c] - truth[:, c]).norm() <= 4e-7 * what.t[:, c].norm()


def test_dy_of_zeros(device):
    what = given(PLAIN, device)
    what = what._replace(parts=torch.zeros_like(what.parts), t=torch.zeros_like(what.t))
    assert (dx_of(what) == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_dy_that_is_not_finite(device, value):
    """All of x has a NaN gradient then, as in torch."""
    what = given(PLAIN, device)
    what.parts[1, 3, -8] = value
    assert dx_of(what).isnan().all()


PLANTED = {
    "rows near the border are forgotten":
        ("const int kinds[2] = {PairKinds::of(pair)", "const int kinds[2] = {PairKinds::INNER", SOURCE),
    "columns near the border are forgotten": ("if (!near_border)", "if (true)", SOURCE),
    "a border has a tap too many": ("if (rows.has(tap / KERNEL_WIDTH))\n", "", COMPOSITES),
    "the constants are those of the interior": ("const int border = pair_kind * ColumnKinds::COUNT",
                                                "const int border = PairKinds::INNER * ColumnKinds::COUNT", SOURCE),
    "c1 is forgotten": ("shared.offset[o] = slopes[o]", "shared.offset[o] = 0.0", COMPOSITES),
    "c2 is forgotten": ("shared.slope[o] = slopes[OUT_CHANNELS + o]", "shared.slope[o] = 0.0", COMPOSITES),
    "the pivot is forgotten": ("-float(moments[SCALES - 8 + thread]) * scale", "0.0f", SOURCE),
    "the other window's row is left out": ("? -(KERNEL_HEIGHT - 1) : KERNEL_HEIGHT - 1)", "? -100 : 100)", COMPOSITES),
    "pixels are read before they are there":
        ("ptx::mbarrier_wait(&shared.staged[last % RING_CHUNKS], last / RING_CHUNKS % 2);", "", SOURCE),
    "a chunk is read before it is there": ("const int last = number + AHEAD - 1;", "const int last = number;", SOURCE),
    "a chunk is staged where another one is read": ("if (before >= 0)", "if (false)", SOURCE),
    "a row is split before it has arrived": ("cp_async_wait<SLOTS - 1>", "cp_async_wait<SLOTS>", SOURCE),
    "a row is copied to where one is split": ("__syncwarp();  // before the next copy into this slot", "", SOURCE),
    "edges are computed before all rows are there":
        ("ptx::mbarrier_wait(&shared.edges_staged, group % 2);", "", SOURCE),
    "edges take other rows' pixels": ("strip.rows - row, edge_row, warp", "strip.rows - row, 4, warp", SOURCE),
}  # fmt: skip


@needs_emulator
class TestPlantedBugs:
    def what_shows(self, device, path=None, text=None):
        """Return what watched launches show, one of a changed text: kinds of findings, or "result" for a wrong dx."""
        what = given(SMALL, device)
        slopes = finish(what, ("slopes",))["slopes"]
        launches = composites_launch(SMALL), input_gradient_launch(SMALL, FEW)
        first, second = (dataclasses.replace(one, source=text) if one.source == path else one for one in launches)

        def run():
            dx = input_gradient(what, *composites(what, slopes, first), planned=second)
            return set() if error_of(what, dx) <= 1e-7 else {"result"}

        return shown(run)

    def test_nothing_is_planted(self, device):
        assert self.what_shows(device) == set()

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_shows(self, device, name):
        right, wrong, path = PLANTED[name]
        text = inlined(path)
        assert text.count(right) == 1
        assert self.what_shows(device, path, text.replace(right, wrong)) & {"result", "race"}


@needs_emulator
def test_memory_is_moved_once_and_products_read_without_conflicts():
    problem = Problem(1, 8, 8, 16, 64, 3)
    what = given(problem, torch.device("cpu"))
    fragments, constants = composites(what, finish(what, ("slopes",))["slopes"])
    with watch() as seen:
        input_gradient(what, fragments, constants)
    assert seen.findings == []
    counters = seen.counters["input_gradient"]
    where = {text: (path.name, number) for path in SOURCE.parent.glob("input_gradient*")
             for number, line in enumerate(path.read_text().splitlines(), 1)
             for text in ("cp_async_16(&shared.t", "ldmatrix_x4(hi[rows]") if text in line}  # fmt: skip
    copies, products = (counters.by_line[where[text]] for text in sorted(where))
    assert counters.global_store_bytes_used == copies.global_load_bytes_used == what.t.numel() * 4
    assert products.shared_load_requests > 0
    assert products.shared_load_bank_conflicts == 0


class TestPlan:
    @pytest.mark.parametrize(("padding", "borders"), [(0, 15), (1, 9), (2, 1)])
    def test_borders(self, padding, borders):
        problem = dataclasses.replace(KERNELBENCH_73, padding=padding)
        assert composites_shape(problem) == (borders, 15 * 2 * 32 * 4)
        assert composites_launch(problem).grid == (borders // {0: 3, 1: 3, 2: 1}[padding], 26, 1)

    def test_problem_73(self):
        planned = input_gradient_launch(KERNELBENCH_73)
        assert (planned.grid, planned.block, planned.shared) == ((128, 1, 1), (512, 1, 1), 214928)


@nvcc.needs_nvcc
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_registers_suffice(tmp_path, precision):
    """Addresses that are used once for each chunk of rows may be spilled."""
    variant = KernelVariant(precision)
    report = nvcc.report(COMPOSITES, tmp_path, "90a", composites_launch(KERNELBENCH_73, variant).options)
    nvcc.assert_no_spills(report)
    report = nvcc.report(SOURCE, tmp_path, "90a", input_gradient_launch(KERNELBENCH_73, variant=variant).options)
    assert int(re.search(r"(\d+) bytes spill stores", report)[1]) <= 64
