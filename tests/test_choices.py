"""Which plan is chosen: what was tuned on the card, before what was measured for the package, before a rule."""

import dataclasses
import re

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem, plan
from fusedref.plans import KernelVariant, choices, own_plan_for, plan_for
from fusedref.plans.candidates import CANDIDATES, Choice, candidate_plans, plan_by
from fusedref.plans.implicit_gemm import gemm_tile, gemm_tiles
from fusedref.plans.rule import plan_by_rule
from fusedref.target import EMULATED

PROBLEM = Problem(32, 64, 64, 56, 56, 3, padding=1)
SIZES = "64 64 56 56 3 3 1 1 1 1 1 1 1 1 1"
NCHW = KernelVariant()
TILE = Choice("implicit_gemm", (8, 28, 16, 1, 16, 4, 4))
HERE = EMULATED._replace(card="Test Card")


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch, tmp_path):
    """Begin with an empty cache and no choices in the package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choices, "shipped_choices", lambda: None)
    plan_for.cache_clear()
    yield
    plan_for.cache_clear()


def ship(monkeypatch, by_batch, way="fp32 NCHW", sizes=SIZES):
    measured = choices.Measured("H100", "sm_90a", 132, {(sizes, way): by_batch})
    monkeypatch.setattr(choices, "shipped_choices", lambda: measured)
    plan_for.cache_clear()


def chosen(problem=PROBLEM, target=EMULATED, variant=NCHW):
    found = plan_for(problem, target, variant)
    return found.kernel, found.reason


def by_rule(problem=PROBLEM, target=EMULATED, variant=NCHW):
    found = plan_by_rule(problem, target, variant, own_plan_for(problem, target, variant))
    return found.kernel, found.reason


class TestAuthority:
    def test_rule(self):
        assert chosen() == by_rule()

    def test_shipped(self, monkeypatch):
        ship(monkeypatch, {32: Choice("library"), 1: TILE})
        assert chosen() == ("library", "it was the fastest when they were timed on an H100")
        one = plan_for(dataclasses.replace(PROBLEM, batch=1), EMULATED, NCHW)
        assert (one.kernel, one.tile) == ("implicit_gemm", (64, 8, 28))

    @pytest.mark.parametrize(("batch", "measured"), [(2, 1), (5, 1), (6, 32), (256, 32)])
    def test_nearest_batch(self, monkeypatch, batch, measured):
        ship(monkeypatch, {32: Choice("library"), 1: Choice("folded")})
        kernel = {1: "folded", 32: "library"}[measured]
        reason = f"it was the fastest when they were timed on an H100 at batch {measured}"
        assert chosen(dataclasses.replace(PROBLEM, batch=batch)) == (kernel, reason)

    @pytest.mark.parametrize("batch", [3, 257])
    def test_far_batch(self, monkeypatch, batch):
        ship(monkeypatch, {32: Choice("folded")})
        assert chosen(dataclasses.replace(PROBLEM, batch=batch))[0] != "folded"

    def test_bfloat16_takes_the_choice_of_float16(self, monkeypatch):
        ship(monkeypatch, {32: Choice("folded")}, "fp16 NCHW")
        assert chosen(dataclasses.replace(PROBLEM, dtype=torch.bfloat16))[0] == "folded"

    def test_shipped_for_other_sizes_ways_and_cards(self, monkeypatch):
        ship(monkeypatch, {32: Choice("library")})
        for problem, target, variant in (
            (dataclasses.replace(PROBLEM, padding=0), EMULATED, NCHW),
            (dataclasses.replace(PROBLEM, dtype=torch.float16), EMULATED, NCHW),
            (PROBLEM, EMULATED, KernelVariant("tf32")),
            (PROBLEM, EMULATED, KernelVariant(channels_last=True)),
            (PROBLEM, EMULATED._replace(multiprocessors=114), NCHW),
            (PROBLEM, EMULATED._replace(architecture="sm_80"), NCHW),
        ):
            assert chosen(problem, target, variant) == by_rule(problem, target, variant)

    def test_spellings_of_sizes(self, monkeypatch):
        ship(monkeypatch, {32: Choice("library")})
        spelt = dataclasses.replace(PROBLEM, kernel_size=(3, 3), stride=(1, 1), padding="same", bias=False)
        assert chosen(spelt)[0] == "library"

    def test_tuned_before_shipped(self, monkeypatch):
        ship(monkeypatch, {32: Choice("library")})
        choices.remember(Choice("folded"), PROBLEM, HERE, NCHW)
        reason = "it was the fastest when fusedref.tune timed them here"
        assert chosen(PROBLEM, HERE) == ("folded", reason)
        assert plan(PROBLEM, card="Test Card").reason == reason
        for target in (EMULATED, EMULATED._replace(card="Another Card")):
            assert chosen(PROBLEM, target)[0] == "library"
        assert chosen(dataclasses.replace(PROBLEM, batch=31), HERE)[0] == "library"

    def test_what_was_tuned_of_other_kernels_counts_no_more(self, monkeypatch):
        choices.remember(Choice("folded"), PROBLEM, HERE, NCHW)
        monkeypatch.setattr(choices, "_sources", lambda: "changed")
        assert chosen(PROBLEM, HERE) == by_rule()

    @pytest.mark.parametrize(
        "choice",
        [
            Choice("forgotten"),
            Choice("pipeline"),  # does not serve the problem
            Choice("implicit_gemm", (56, 56, 64, 1, 32, 4, 4)),  # does not fit
        ],
        ids=str,
    )
    def test_a_choice_that_cannot_be_planned(self, monkeypatch, choice):
        assert plan_by(choice, PROBLEM, EMULATED, NCHW, "") is None
        ship(monkeypatch, {32: choice})
        choices.remember(choice, PROBLEM, HERE, NCHW)
        assert chosen(PROBLEM, HERE) == by_rule()

    def test_an_empty_batch(self, monkeypatch):
        ship(monkeypatch, {32: Choice("library")})
        assert chosen(dataclasses.replace(PROBLEM, batch=0))[0] == "implicit_gemm"

    def test_card_must_be_a_name(self):
        with pytest.raises(TypeError, match="card must be the name of a GPU, got 0"):
            plan(PROBLEM, card=0)


WIDE = Problem(64, 200, 96, 40, 40, 3, padding=1)
HALVES = dataclasses.replace(WIDE, dtype=torch.float16)


class TestRule:
    @pytest.mark.parametrize(
        ("problem", "target", "variant", "kernel"),
        [
            (WIDE, EMULATED, NCHW, "wgmma_gemm"),
            (WIDE, EMULATED, KernelVariant("tf32"), "implicit_gemm"),
            (WIDE, EMULATED._replace(architecture="sm_80"), NCHW, "implicit_gemm"),
            (dataclasses.replace(WIDE, batch=0), EMULATED, NCHW, "implicit_gemm"),
            (dataclasses.replace(WIDE, batch=1, height=10, width=10), EMULATED, NCHW, "implicit_gemm"),
            (HALVES, EMULATED, NCHW, "implicit_gemm"),
            (dataclasses.replace(HALVES, kernel_size=1, padding=0), EMULATED, NCHW, "matmul"),
            (Problem(64, 1200, 32, 14, 14, 1), EMULATED, NCHW, "matmul"),
            (Problem(64, 3, 640, 224, 224, 16, stride=16), EMULATED, NCHW, "library"),
        ],
    )
    def test_kernels(self, problem, target, variant, kernel):
        assert by_rule(problem, target, variant)[0] == kernel

    def test_reason(self):
        assert re.fullmatch(r"it should take \d+ us on an H100, and implicit_gemm \d+ us", by_rule(WIDE)[1])


def test_candidates():
    """In the order of preference; only those that serve the problem, and some tiles that differ."""
    kernels = [choice.kernel for choice, _ in candidate_plans(KERNELBENCH_73, EMULATED, NCHW)]
    assert list(dict.fromkeys(kernels)) == [name for name in CANDIDATES if name in kernels]
    assert {"pipeline", "implicit_gemm", "library"} <= set(kernels)
    found = dict(candidate_plans(PROBLEM, EMULATED, NCHW))
    assert "pipeline" not in {choice.kernel for choice in found}
    tiles = [choice.sizes[4:7] for choice in found if choice.kernel == "implicit_gemm"]
    assert len(tiles) == len(set(tiles)) == 3
    kinds = {
        Problem(1, 8, 16, 9, 9, 3): {"folded", "library"},  # little work
        Problem(32, 64, 64, 56, 56, 1): {"matmul"},  # the same library's
        Problem(32, 64, 64, 56, 56, 1, stride=2): {"library", "matmul"},
        Problem(32, 64, 64, 56, 56, 3, groups=64): {"library"},
    }
    for problem, expected in kinds.items():
        kernels = {choice.kernel for choice, _ in candidate_plans(problem, EMULATED, NCHW)}
        assert kernels & {"folded", "library", "matmul"} == expected
    for choice, candidate in found.items():
        assert candidate == plan_by(choice, PROBLEM, EMULATED, NCHW, candidate.reason)


def test_a_tile_by_its_sizes():
    for problem in (PROBLEM, Problem(3, 40, 24, 5, 9, 1)):
        for tile in list(gemm_tiles(problem, EMULATED, NCHW))[::50]:
            assert gemm_tile(problem, EMULATED, NCHW, tile[:7]) == tile


def test_file_of_choices(tmp_path):
    found = {
        (SIZES, "fp32 NCHW"): {1: TILE, 32: Choice("library")},
        (SIZES, "fp16 channels_last"): {32: Choice("library")},
        ("3 64 9 9 1 1 1 1 0 0 0 0 1 1 1", "fp32 NCHW"): {1: Choice("folded")},
    }
    measured = choices.Measured("Test Card", "sm_90a", 132, found)
    path = tmp_path / "measured.json"
    path.write_text(choices.written_choices(measured, {"torch": "1"}))
    assert choices.read_choices(path) == measured
    assert path.read_text().splitlines()[4:] == [
        ' "versions": {"torch": "1"},',
        ' "columns": [[1, "fp32 NCHW"], [32, "fp16 channels_last"], [32, "fp32 NCHW"]],',
        ' "kernels": ["folded", "implicit_gemm 8 28 16 1 16 4 4", "library"],',
        ' "choices": {',
        '  "3 64 9 9 1 1 1 1 0 0 0 0 1 1 1": [0, null, null],',
        f'  "{SIZES}": [1, 2, 2]',
        " }",
        "}",
    ]
