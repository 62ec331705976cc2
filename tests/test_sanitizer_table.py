"""The corpus on a card: what compute-sanitizer found there, held against what the emulator finds here."""

import json
from pathlib import Path

import pytest

from fusedref.emulator import SourceModule, gpuarray, watch
from fusedref.emulator import driver as drv
from tests import corpus
from tests.corpus_on_card import FALSE_REPORTS, TOOLS, digest

MEASURED = json.loads((Path(__file__).parents[1] / "lessons" / "measured" / "sanitizer_h200.json").read_text())
CASES = {case.name: case for case in corpus.CASES}
# (case, tool) of every report; where a case did not end, the tool said nothing of it.
REPORTS = {(name, tool) for name, found in MEASURED["cases"].items() for tool in TOOLS if found[tool] == "found"}
FOUND_THERE = sorted({name for name, _ in REPORTS if CASES[name].expected})


def test_the_card_ran_the_corpus_as_it_is():
    assert MEASURED["card"].startswith("NVIDIA") and MEASURED["versions"]["cuda"]
    assert {name: found["digest"] for name, found in MEASURED["cases"].items()} == {
        case.name: digest(case) for case in corpus.CASES
    }
    for name, found in MEASURED["cases"].items():
        assert found["planted"] == (CASES[name].expected[0] if CASES[name].expected else None)
        assert set(found) - {"digest", "planted"} == set(TOOLS)
        assert {found[tool] for tool in TOOLS} <= {"found", "nothing", "hangs"}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_found_a_planted_bug(tool):
    assert any(found[tool] == "found" for found in MEASURED["cases"].values() if found["planted"])


@pytest.mark.parametrize("name", FOUND_THERE)
def test_the_emulator_misses_nothing_that_a_tool_found(name):
    with watch() as seen:
        corpus.run(CASES[name], SourceModule, drv, gpuarray)
    assert CASES[name].expected[0] in {finding.kind for finding in seen.findings}


def test_the_tools_false_reports_are_known():
    assert {(name, tool) for name, tool in REPORTS if not CASES[name].expected} == set(FALSE_REPORTS)
    assert all(FALSE_REPORTS.values())
