"""The errors that the emulator raises: PyCUDA's classes, and more for faults that only an emulator detects."""

from __future__ import annotations

import os

from .findings import Finding


class Error(Exception):
    """Base class of the driver's errors."""


class MemoryError(Error):
    """Device memory is exhausted."""


class LogicError(Error):
    """The driver refuses a call."""


class LaunchError(Error):
    """A kernel failed while it ran."""


class RuntimeError(Error):
    """The driver failed for a reason of its own."""


class CompileError(Error):
    """The source does not compile.

    ``msg``, ``command_line``, ``stdout`` and ``stderr`` are PyCUDA's attributes. The text of the error leaves out the
    command line, unless ``FUSEDREF_VERBOSE=1`` is set or the module was made with ``keep=True``.
    """

    def __init__(
        self,
        msg: str,
        command_line: list[str],
        stdout: str | None = None,
        stderr: str | None = None,
        *,
        verbose: bool = False,
    ):
        self.msg, self.command_line, self.stdout, self.stderr = msg, command_line, stdout, stderr
        self._verbose = verbose or os.environ.get("FUSEDREF_VERBOSE", "") not in ("", "0")

    def __str__(self) -> str:
        result = self.msg
        if self.command_line and self._verbose:
            result += f"\n[command: {' '.join(self.command_line)}]"
        if self.stdout:
            result += f"\n[stdout:\n{self.stdout}]"
        if self.stderr:
            result += f"\n[stderr:\n{self.stderr}]"
        return result


class FindingError(LogicError):
    """A watched launch found a fault of the kernel.

    ``findings`` holds all findings of the launch, ``finding`` the first one.
    """

    def __init__(self, findings: list[Finding]):
        super().__init__("\n".join(finding.message for finding in findings))
        self.findings = findings
        self.finding = findings[0]


class MemoryAccessError(FindingError):
    """A kernel accessed memory that it may not access. ``finding`` holds the details."""

    def __init__(self, finding: Finding):
        super().__init__([finding])


class DeadlockError(LaunchError):
    """The threads of a block wait for each other without end. A card would hang."""
