"""The five small kernels of lesson 10, the model of their trades, and the figures of what limits a kernel."""

import dataclasses
import json

import pytest
import torch

from fusedref.emulator import watch
from fusedref.ops.runner import run_plan
from fusedref.plans import pipeline_plan
from fusedref.problem import KERNELBENCH_73
from fusedref.validation import random_inputs
from kernels.ladder import LADDER
from lessons import limits, steps, timelines


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (5, 2), (3, 4)])
def test_rows_are_scaled_and_nothing_is_found(rows, blocks):
    x = torch.randn(rows, steps.ROW, generator=torch.Generator().manual_seed(rows))
    for step in (
        lambda: steps.bulk_store(x, -1.5, blocks),
        lambda: steps.handover(x, -1.5, blocks),
        lambda: steps.stages(x, -1.5, blocks, 1),
        lambda: steps.stages(x, -1.5, blocks, 3),
    ):
        with watch(seed=rows) as seen:
            y = step()
        assert torch.equal(y, -1.5 * x)
        assert not seen.findings
        (counters,) = seen.counters.values()
        assert counters.global_store_requests == 0
        assert counters.bulk_bytes == 4 * x.numel()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("runs", "count", "blocks"), [(1, 252, 1), (7, 252, 3), (9, 12, 2), (3, 64, 1)])
def test_runs_are_scaled_whole_or_as_they_come(runs, count, blocks, whole):
    x = torch.randn(runs, count, generator=torch.Generator().manual_seed(count))
    with watch(seed=1) as seen:
        y = steps.sectors(x, 2, blocks, whole)
    assert torch.equal(y, 2 * x)
    assert not seen.findings
    assert seen.counters["sectors"].bulk_bytes == 4 * x.numel()  # each number is stored once


@pytest.mark.parametrize(("pixels", "blocks"), [(32, 1), (160, 2), (96, 5)])
def test_the_product_is_that_of_the_rounded_numbers(pixels, blocks):
    draw = torch.Generator().manual_seed(pixels)
    x, w = torch.randn(16, pixels, generator=draw), torch.randn(64, 16, generator=draw)
    with watch(seed=2) as seen:
        y = steps.product(x, w, blocks)
    torch.testing.assert_close(y.double(), w.half().double() @ x.half().double(), rtol=1e-5, atol=1e-5)
    assert not seen.findings
    assert seen.counters["product"].bank_conflicts == 0


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (("ptx::fence_async_shared();", ""), "race"),
        (("ptx::bulk_wait_read<0>();", ""), "missing-wait"),
    ],
)
def test_a_change_is_run_and_found(change, kind):
    x = torch.ones(3, steps.ROW)
    with watch() as seen:
        steps.bulk_store(x, 2, 1, changes=[change])
    assert seen.findings[0].kind == kind
    with pytest.raises(ValueError, match=r"bulk_store.cu has no 'nothing'"):
        steps.bulk_store(x, 2, 1, changes=[("nothing", "")])


@pytest.mark.parametrize("numbers", [1, 2, 4])
def test_chains_of_multiply_adds(numbers):
    x = torch.rand(1000, generator=torch.Generator().manual_seed(numbers))
    expected = x.double()
    for _ in range(5):
        expected = expected * 0.5 + 1
    torch.testing.assert_close(steps.chain(x, numbers, 5).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", limits.PIPELINES)
def test_a_pipeline_with_an_idea_left_out_is_right(name):
    problem = dataclasses.replace(KERNELBENCH_73, batch=1, height=10)  # its tiles are as large
    inputs = random_inputs(problem, 0, torch.device("cpu"))
    plan = limits.with_macros(pipeline_plan(problem), limits.PIPELINES[name])
    y = run_plan(plan, problem, inputs)
    assert torch.equal(y, run_plan(pipeline_plan(problem), problem, inputs))


def test_trades_wait_for_tiles_and_for_places():
    durations = {"load": [2, 2, 2], "store": [3, 3, 3]}
    assert timelines.schedule(durations, [1]) == {
        "load": [(0, 2, 0), (5, 7, 1), (10, 12, 2)],
        "store": [(2, 5, 0), (7, 10, 1), (12, 15, 2)],
    }
    assert timelines.schedule(durations, [2]) == {
        "load": [(0, 2, 0), (2, 4, 1), (5, 7, 2)],
        "store": [(2, 5, 0), (5, 8, 1), (8, 11, 2)],
    }
    assert timelines.length(timelines.in_turns(durations)) == 15
    three = {"load": [1, 1], "multiply": [1, 1], "store": [5, 5]}
    assert timelines.schedule(three, [1, 1])["multiply"] == [(1, 2, 0), (7, 8, 1)]  # its only place is full until 7


def test_a_timeline_is_a_picture():
    picture = timelines.timeline({"one": timelines.schedule({"load": [1, 2], "store": [1, 1]}, [1])}, "two trades")
    assert picture._repr_mimebundle_()[1]["image/png"]["alt"] == "two trades"


def test_figures_are_read_from_nsight_compute():
    header = ["ID", "Kernel Name", limits.PERCENT["memory"], limits.COUNTS["registers"], limits.STALL.format("barrier")]
    rows = [header, ["", "", "%", "", ""], ["0", "fused", "1,234.567", "40", "n/a"], ["1", "fused", "5", "", "0.25"]]
    raw = "a line of the program\n" + "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)
    first, second = limits.read(raw)
    assert (first["percent"]["memory"], first["registers"], first["waits"]["a barrier"]) == (1234.57, 40, None)
    assert (second["percent"]["memory"], second["registers"], second["waits"]["a barrier"]) == (5, None, 0.25)
    assert first["percent"]["tensor cores"] is None


def test_the_committed_figures_are_complete():
    measured = json.loads(limits.MEASURED.read_text())
    rungs = {rung.title for rung in LADDER if rung.number >= 4} - {"04 fused_block", "05 folded_weights"}
    assert rungs <= set(measured["kernels"])
    for name, kernel in measured["kernels"].items():
        assert kernel["us"] > 0, name
        assert 0 < kernel["percent"]["memory"] <= 100, name
    told = limits.comparison("09 split_fp32", "10 pipeline")
    assert told.startswith(f"measured on {measured['card']}, committed; not your code")
    assert f"{measured['kernels']['10 pipeline']['us']:.0f}" in told
