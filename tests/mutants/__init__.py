"""Mutants: kernels and candidates with one small change each, made by rule. The checks must notice the change.

``python -m tests.mutants`` makes them, runs each through the validator and the watched emulator, and prints the share
that was caught. ``cuda_rules`` and ``python_rules`` make mutants, ``subjects`` lists what is mutated and how it is
checked, ``runner`` runs mutants in processes of their own, ``survivors.json`` explains those that nothing can catch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change to one file: ``text`` is the whole changed file, ``before`` and ``after`` are the changed line."""

    file: str
    rule: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return the mutant's identity, whatever its line number is: rule, file, and both texts of the line."""
        return self.rule, self.file, self.before, self.after


def mutant(file: str, text: str, rule: str, start: int, end: int, new: str) -> Mutant:
    """Return the mutant that has ``new`` in the place of text[start:end]."""
    changed = text[:start] + new + text[end:]
    first = text.rfind("\n", 0, start) + 1
    lines = text[first : text.find("\n", end)], changed[first : changed.find("\n", start + len(new))]
    before, after = (
        " ".join(line.partition("//")[0].split()) if file[-3:] != ".py" else line.strip() for line in lines
    )
    return Mutant(file, rule, text.count("\n", 0, start) + 1, before, after, changed)


def chosen(mutants: list[Mutant], most: int) -> list[Mutant]:
    """Return at most ``most`` mutants of each rule, in the order of the file.

    The choice depends on a digest of each mutant's key alone, so that an edit elsewhere in the file does not change it.
    """
    kept: set[int] = set()
    by_rule: dict[str, list[int]] = {}
    seen = set()
    for number, each in enumerate(mutants):
        if each.key not in seen:  # the same line twice in a file: one mutant stands for both
            seen.add(each.key)
            by_rule.setdefault(each.rule, []).append(number)
    for numbers in by_rule.values():
        numbers.sort(key=lambda number: hashlib.sha256("\0".join(mutants[number].key).encode()).hexdigest())
        kept.update(numbers[:most])
    return [each for number, each in enumerate(mutants) if number in kept]
