"""A plugin of pytest: ``-p fusedref.emulator.pytest_plugin`` provides the fixture ``watched``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .watching import WatchResult, watch


@pytest.fixture
def watched() -> Iterator[WatchResult]:
    """Watch every launch of the test, and fail the test if anything is found. The value has the counters."""
    with watch() as seen:
        yield seen
    assert not seen.findings, "\n".join(finding.message for finding in seen.findings)
