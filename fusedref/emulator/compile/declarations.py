"""Variable declarations of C: the type, and for each variable its name, its shape and its initialiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .tokens import CLOSING, OPENING

KEYS = ("struct", "union", "class", "enum")
BEFORE_BRACKETS = (
    "decltype",
    "typeof",
    "__typeof__",
    "alignas",
    "__attribute__",
)  # no initialiser follows


class Word(NamedTuple):
    """A token of a declaration. ``spaced``: whitespace precedes it."""

    kind: str
    text: str
    spaced: bool


@dataclass(frozen=True)
class Declarator:
    """One variable of a declaration.

    Attributes:
        name: the variable's name.
        shape: C's declarator with ``@`` for the name: ``@[4]``, ``* @``.
        form: how the initialiser begins: ``=``, ``{`` or ``(``; empty if there is none.
        initialiser: a value, a list in braces, or the arguments in brackets; empty if there is none.
    """

    name: str
    shape: str
    form: str
    initialiser: tuple[Word, ...]


def text(words: tuple[Word, ...] | list[Word]) -> str:
    """Return the words as one line, with their spacing: ``<<`` stays one operator."""
    return "".join(" " * word.spaced + word.text for word in words).strip()


def parse(words: list[Word]) -> tuple[str, list[Declarator]]:
    """Return (type, variables) of a declaration without storage classes and without its ``;``.

    Raises:
        ValueError: it declares no name.
    """
    specifier = ""
    declarators = []
    for position, part in enumerate(_split_at_commas(words)):
        begin = _initialiser(part)
        declared, initialiser = part[:begin], part[begin:]
        form = initialiser[0].text if initialiser else ""
        at = _name(declared)
        name = declared[at].text
        declared[at] = declared[at]._replace(text="@")
        if position == 0:
            start = _shape(declared)
            specifier, declared = text(declared[:start]), declared[start:]
        declarators.append(Declarator(name, text(declared), form, tuple(initialiser[form == "=" :])))
    return specifier, declarators


def _depths(words: list[Word]) -> list[int]:
    """Return for each word how many brackets and template arguments enclose it."""
    depths = []
    angles: list[int] = []  # depths at which template arguments are open
    depth = 0
    for k, word in enumerate(words):
        closes = word.kind == "other" and word.text in CLOSING
        if word.text == ">" and angles and angles[-1] == depth:
            angles.pop()
            closes = True
        depth -= closes
        depths.append(depth)
        if word.kind == "other" and word.text in OPENING:
            depth += 1
        elif word.text == "<" and _opens_template(words, k):
            depth += 1
            angles.append(depth)
    return depths


def _opens_template(words: list[Word], at: int) -> bool:
    """Return whether the ``<`` at ``at`` opens template arguments: a ``>`` closes it, with no ``=`` between them."""
    if not at or words[at - 1].kind != "name" or text(words[at : at + 2]) == "<<":
        return False
    depth = 0
    for word in words[at + 1 :]:
        if word.kind != "other":
            continue
        if depth == 0 and word.text in (">", "="):
            return word.text == ">"
        depth += (word.text in OPENING) - (word.text in CLOSING)
        if depth < 0:
            return False
    return False


def _split_at_commas(words: list[Word]) -> list[list[Word]]:
    """Split at commas outside brackets and template arguments."""
    parts: list[list[Word]] = [[]]
    for word, depth in zip(words, _depths(words), strict=True):
        if word.text == "," and not depth:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _initialiser(part: list[Word]) -> int:
    """Return the index of the ``=``, ``{`` or ``(`` that begins the initialiser, or the length of ``part``."""
    for k, (word, depth) in enumerate(zip(part, _depths(part), strict=True)):
        if depth or not k or word.kind != "other":
            continue
        before = part[k - 1]
        if word.text == "=":
            return k
        if word.text == "{" and (before.kind == "name" or before.text == "]") and not _opens_type(part[:k]):
            return k
        if (
            word.text == "("
            and before.kind == "name"
            and not (before.text in BEFORE_BRACKETS or part[k + 1].text in "*&")
        ):
            return k
    return len(part)


def _opens_type(words: list[Word]) -> bool:
    """Return whether a ``{`` after the words opens the body of a type: ``struct``, ``struct Pair``."""
    key = max((k for k, word in enumerate(words) if word.text in KEYS), default=len(words))
    rest = [word for word, depth in zip(words[key:], _depths(words[key:]), strict=True) if not depth]
    names = [word for word in rest if word.kind == "name" and word.text not in BEFORE_BRACKETS]
    return len(names) in (1, 2) or any(word.text == ":" for word in rest)


def _pointer_group(part: list[Word]) -> int:
    """Return the index of the ``(`` of a declarator such as ``(*p)[4]``, or the length of ``part``."""
    depths = _depths(part)
    groups = (k for k, word in enumerate(part[:-1]) if word.text == "(" and not depths[k] and part[k + 1].text in "*&")
    return next(groups, len(part))


def _name(part: list[Word]) -> int:
    """Return the index of the variable's name."""
    group = _pointer_group(part)
    if group < len(part):  # the name is in it, before the first bound or bracket that closes
        end = next(k for k in range(group, len(part)) if part[k].text in ("[", ")"))
        names = [k for k in range(group, end) if part[k].kind == "name"]
    else:  # the last name before the first bound
        depths = _depths(part)
        end = next((k for k, word in enumerate(part) if word.text == "[" and not depths[k]), len(part))
        names = [k for k in range(end) if part[k].kind == "name" and not depths[k]]
    if not names:
        raise ValueError("no name is declared")
    return names[-1]


def _shape(part: list[Word]) -> int:
    """Return the index at which the type ends and the first variable's shape begins."""
    depths = _depths(part)
    stars = (k for k, word in enumerate(part) if word.text in ("*", "&", "@") and not depths[k])
    return min(_pointer_group(part), next(stars, len(part)))
