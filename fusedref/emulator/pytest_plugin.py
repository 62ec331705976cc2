"""For pytest: ``-p fusedref.emulator.pytest_plugin`` gives tests the fixture ``watched``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .watching import WatchResult, watch


@pytest.fixture
def watched() -> Iterator[WatchResult]:
    """Every launch of the test is watched, and the test fails if anything is found; its value has the counters."""
    with watch() as seen:
        yield seen
    assert not seen.findings, "\n".join(finding.message for finding in seen.findings)
