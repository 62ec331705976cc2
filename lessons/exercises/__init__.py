"""Exercises: a question asked in a lesson, whose answer can be checked, hinted at and shown."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

BLANK = "____"


class Wrong(Exception):
    """Raised by a check. Its text tells the learner what was seen, never what to write."""


@dataclass(frozen=True)
class Note:
    """Something said to the learner: text in a terminal, Markdown in a notebook."""

    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Verdict(Note):
    """What a check found. ok: whether the answer was accepted."""

    ok: bool


class Exercise:
    """One exercise.

    judge: takes the answer; returns a sentence to say when it is right, raises Wrong when it is not.
    hints: told one at a time. answer: a right answer: the source of a kernel, or a Python function or number.
    """

    def __init__(self, judge: Callable[[Any], str], hints: Sequence[str], answer: Any) -> None:
        self._judge = judge
        self._hints = tuple(hints)
        self._told = 0
        self.answer = answer

    def check(self, answer: Any) -> Verdict:
        """Judge an answer. Whatever the answer does, it is a verdict that comes back, not an error."""
        if (
            (isinstance(answer, str) and BLANK in answer)
            or answer is ...
            or (isinstance(answer, tuple) and ... in answer)
        ):
            blank = BLANK if isinstance(answer, str) else "..."
            return Verdict(f"✏️ Not answered yet: fill in every `{blank}` and run this cell again.", False)
        try:
            return Verdict(f"✅ **Right.** {self._judge(answer)}", True)
        except Wrong as wrong:
            return Verdict(f"❌ **Not yet.** {wrong}", False)
        except NotImplementedError:
            return Verdict("✏️ Not answered yet: the function still raises `NotImplementedError`.", False)
        except Exception as error:
            return Verdict(f"❌ **Not yet.** It stops with `{type(error).__name__}`: {error}", False)

    def hint(self) -> Note:
        """The next hint; after the last, the last again."""
        self._told = min(self._told + 1, len(self._hints))
        return Note(f"💡 Hint {self._told} of {len(self._hints)}: {self._hints[self._told - 1]}")

    def solution(self) -> Note:
        """One right answer. There are others."""
        if isinstance(self.answer, str):
            return Note(f"```c++\n{self.answer.strip()}\n```")
        if callable(self.answer):
            return Note(f"```python\n{inspect.getsource(self.answer).strip()}\n```")
        return Note(f"`{self.answer}`")
