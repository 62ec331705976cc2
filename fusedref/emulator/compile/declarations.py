"""Variable declarations of C: the type, and for each variable its name, its shape and its initialiser."""

from __future__ import annotations

from dataclasses import dataclass

from .tokens import CLOSING, OPENING

Word = tuple[str, str]  # (kind of the token, text)


@dataclass(frozen=True)
class Declarator:
    """One variable of a declaration. ``shape`` is C's declarator with ``@`` for the name: ``@ [ 4 ]``, ``* @``."""

    name: str
    shape: str
    initialiser: str


def parse(words: list[Word]) -> tuple[str, list[Declarator]]:
    """Return (type, variables) of a declaration without storage classes and without its ``;``.

    Raises:
        ValueError: it declares no name.
    """
    specifier = ""
    declarators = []
    for position, part in enumerate(_split_at_commas(words)):
        part, initialiser = _split_initialiser(part)
        at = _name(part)
        shape = [text for _, text in part]
        name, shape[at] = shape[at], "@"
        if position == 0:
            start = next(k for k, text in enumerate(shape) if text in ("*", "&", "@", "("))
            specifier, shape = " ".join(shape[:start]), shape[start:]
        declarators.append(Declarator(name, " ".join(shape), initialiser))
    return specifier, declarators


def _split_at_commas(words: list[Word]) -> list[list[Word]]:
    """Split at commas outside brackets and template arguments."""
    parts: list[list[Word]] = [[]]
    depth = angle = 0
    for k, (kind, text) in enumerate(words):
        if kind == "other":
            depth += (text in OPENING) - (text in CLOSING)
            if text == "<" and not depth and k and words[k - 1][0] == "name":
                angle += 1
            elif text == ">" and angle:
                angle -= 1
        if text == "," and not depth and not angle:
            parts.append([])
        else:
            parts[-1].append((kind, text))
    return parts


def _split_initialiser(part: list[Word]) -> tuple[list[Word], str]:
    """Return the declarator and the initialiser behind ``=``, or in braces right behind the name."""
    depth = 0
    for k, (kind, text) in enumerate(part):
        if kind != "other":
            continue
        if depth == 0 and k:
            braces = text == "{" and k > 1 and part[k - 1][0] == "name"
            if text == "=" or (braces and part[k - 2][1] not in ("struct", "union", "class", "enum")):
                return part[:k], " ".join(word for _, word in part[k + (text == "=") :])
        depth += (text in OPENING) - (text in CLOSING)
    return part, ""


def _name(part: list[Word]) -> int:
    """Return the index of the name: the last identifier before the first array bound, outside any braces."""
    end, depth = len(part), 0
    for k, (kind, text) in enumerate(part):
        if kind != "other":
            continue
        if text == "[" and depth == 0:
            end = k
            break
        depth += (text in "{(<") - (text in "})>")
    at = max((k for k in range(end) if part[k][0] == "name"), default=-1)
    if at < 0:
        raise ValueError("no name is declared")
    return at
