"""Define exercises: questions in a lesson with a check, hints and a solution."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fusedref.emulator.errors import DeadlockError, LaunchError
from lessons.exercises.timeout import TooLong, time_limit

BLANK = "____"


class Wrong(Exception):
    """An answer is wrong. The text tells the learner what the check saw, never what to write."""


@dataclass(frozen=True)
class Note:
    """A message to the learner: text in a terminal, Markdown in a notebook."""

    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Verdict(Note):
    """The result of a check. ok: whether the answer is right."""

    ok: bool


def parts(answer: Any, names: str) -> tuple[Any, ...]:
    """Return the parts of an answer: a tuple, list, array or tensor of as many numbers as `names` has, "(x, y)"."""
    count = names.count(",") + 1
    wanted = f"It should return {('', 'one', 'two', 'three')[count]} numbers, {names}; it returned {answer!r}."
    try:
        found = () if isinstance(answer, (str, bytes, dict, set)) else tuple(answer)
    except TypeError:
        raise Wrong(wanted) from None
    if len(found) != count:
        raise Wrong(wanted)
    return found


def whole(value: Any) -> int | None:
    """Return the whole number that a value stands for, of Python's, NumPy's or torch's; None if it stands for none."""
    try:
        return int(value) if not isinstance(value, (str, bytes)) and value == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def close(value: Any, right: float) -> bool:
    """Return whether a value, a number of any kind, is `right` to float32's accuracy."""
    try:
        return not isinstance(value, str) and math.isclose(float(value), right, rel_tol=1e-6)
    except (TypeError, ValueError):
        return False


def _failure(text: str) -> str:
    """Return the emulator's message about a kernel that failed, with what it means."""
    if "an illegal instruction" in text:
        text += ". That is what becomes of a division or a remainder by the constant 0."
    elif "division by zero" in text:
        text += ". A card does not stop there: it goes on with a number that means nothing."
    return f"The kernel stops: {text}"


class Exercise:
    """An exercise.

    judge: takes an answer; returns a sentence to show if it is right, raises Wrong if it is not.
    hints: shown one at a time. answer: a right answer, which is a kernel's source, a Python function or a number.
    """

    def __init__(self, judge: Callable[[Any], str], hints: Sequence[str], answer: Any) -> None:
        self._judge = judge
        self._hints = tuple(hints)
        self._shown = 0
        self.answer = answer

    def check(self, answer: Any) -> Verdict:
        """Judge an answer. Return a verdict even if the answer raises an exception."""
        if (
            (isinstance(answer, str) and BLANK in answer)
            or answer is ...
            or (isinstance(answer, (tuple, list)) and any(part is ... for part in answer))
        ):
            blank = BLANK if isinstance(answer, str) else "..."
            return Verdict(f"✏️ Not answered yet: fill in every `{blank}` and run this cell again.", False)
        try:
            with time_limit():
                return Verdict(f"✅ **Right.** {self._judge(answer)}", True)
        except Wrong as wrong:
            return Verdict(f"❌ **Not yet.** {wrong}", False)
        except TooLong:
            return Verdict(
                "❌ **Not yet.** It was stopped after some seconds: it does not end. Which loop never reaches its end?",
                False,
            )
        except DeadlockError as error:
            return Verdict(f"❌ **Not yet.** Threads wait for what never comes: {error}", False)
        except LaunchError as error:
            return Verdict(f"❌ **Not yet.** {_failure(str(error))}", False)
        except NotImplementedError:
            return Verdict("✏️ Not answered yet: the function still raises `NotImplementedError`.", False)
        except Exception as error:
            return Verdict(f"❌ **Not yet.** It stops with `{type(error).__name__}`: {error}", False)

    def hint(self) -> Note:
        """Return the next hint. After the last hint, return the last one again."""
        self._shown = min(self._shown + 1, len(self._hints))
        return Note(f"💡 Hint {self._shown} of {len(self._hints)}: {self._hints[self._shown - 1]}")

    def solution(self) -> Note:
        """Return a right answer. There are others."""
        if isinstance(self.answer, str):
            return Note(f"```c++\n{self.answer.strip()}\n```")
        if callable(self.answer):
            return Note(f"```python\n{inspect.getsource(self.answer).strip()}\n```")
        return Note(f"`{self.answer}`")
