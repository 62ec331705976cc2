"""The corpus on a card: the verdicts of compute-sanitizer, compared with the emulator's findings."""

import json
from pathlib import Path

import pytest

from fusedref.emulator import SourceModule, gpuarray, watch
from fusedref.emulator import driver as drv
from tests import corpus
from tests.corpus_on_card import FALSE_REPORTS, TOOLS, digest

MEASURED = json.loads((Path(__file__).parents[1] / "lessons" / "measured" / "sanitizer_h200.json").read_text())
CASES = {case.name: case for case in corpus.CASES}
# (case, tool) of every report; a case that did not end has none.
REPORTS = {(name, tool) for name, found in MEASURED["cases"].items() for tool in TOOLS if found[tool] == "found"}
KINDS_OF = {
    "memcheck": {"out-of-bounds", "misaligned"},
    "racecheck": {"race", "missing-wait"},
    "initcheck": {"uninitialised"},
    "synccheck": {"divergent-barrier", "race"},
}
FOUND_THERE = sorted({name for name, _ in REPORTS if CASES[name].expected})


def test_the_card_ran_this_corpus():
    assert MEASURED["card"].startswith("NVIDIA")
    assert MEASURED["versions"]["cuda"]
    assert {name: found["digest"] for name, found in MEASURED["cases"].items()} == {
        case.name: digest(case) for case in corpus.CASES
    }
    for name, found in MEASURED["cases"].items():
        assert found["planted"] == (CASES[name].expected[0] if CASES[name].expected else None)
        assert set(found) - {"digest", "planted"} == set(TOOLS)
        assert {found[tool] for tool in TOOLS} <= {"found", "nothing", "hangs"}


@pytest.mark.parametrize("name", FOUND_THERE)
def test_the_emulator_finds_what_a_tool_found(name):
    with watch() as seen:
        corpus.run(CASES[name], SourceModule, drv, gpuarray)
    kinds = {finding.kind for finding in seen.findings}
    assert CASES[name].expected[0] in kinds
    for tool in TOOLS:  # and it names an error of the kind that the tool looks for
        assert (name, tool) not in REPORTS or kinds & KINDS_OF[tool], tool


@pytest.mark.parametrize("tool", TOOLS)
def test_there_is_a_report_of_every_kind(tool):
    kinds = {CASES[name].expected[0] for name, reported in REPORTS if reported == tool and CASES[name].expected}
    assert kinds == KINDS_OF[tool]


@pytest.mark.parametrize("name", sorted({name for name, _ in FALSE_REPORTS}))
def test_the_emulator_makes_no_false_report(name):
    for seed in range(3):
        with watch(seed=seed) as seen:
            corpus.run(CASES[name], SourceModule, drv, gpuarray)
        assert seen.findings == []


def test_a_false_report_is_one_of_a_correct_case():
    assert {(name, tool) for name, tool in REPORTS if not CASES[name].expected} == set(FALSE_REPORTS)
