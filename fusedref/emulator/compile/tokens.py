"""Split preprocessed CUDA C into tokens, and navigate among them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

TOKEN = re.compile(
    r"""(?P<marker>^\#[^\n]*$)|(?P<space>\s+)|(?P<string>(?:u8|[uUL])?R"(?P<raw>[^\s()\\]{0,16})\([\s\S]*?\)(?P=raw)")"""
    r"""|(?P<quoted>(?:u8|[uUL])?"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<name>[A-Za-z_]\w*)"""
    r"""|(?P<number>\.?\d(?:[eEpP][+-]|['\w.])*)|(?P<other>::|->|.)""",
    re.MULTILINE | re.DOTALL,
)
MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"((?:[^"\\]|\\.)*)"((?:\s+\d)*)')
OPENING, CLOSING = "([{", ")]}"


class TranslationError(Exception):
    """CUDA C that the emulator cannot run: a message about a place in the source."""

    def __init__(self, token: Token, message: str):
        super().__init__(message)
        self.file, self.line, self.message = token.file, token.line, message


@dataclass
class Token:
    """A piece of the text: ``kind`` is a group of TOKEN; ``user``: it is part of the text to translate."""

    kind: str
    text: str
    file: str
    line: int
    user: bool

    @property
    def blank(self) -> bool:
        """Whether the token is whitespace or a line marker."""
        return self.kind in ("space", "marker")


def tokenize(text: str, is_user: Callable[[str], bool]) -> list[Token]:
    """Return the tokens of preprocessed text; ``is_user(file)`` says whether a file's text is translated."""
    tokens = []
    file, line, user = "", 1, False
    pieces = re.split(r"(?m)^(#[^\n]*\n)", text)
    for piece in pieces:
        marker = MARKER.match(piece)
        if marker:
            tokens.append(Token("marker", piece, file, line, False))
            line, file = int(marker.group(1)), re.sub(r"\\(.)", r"\1", marker.group(2))
            user = is_user(file)
        elif not user:
            tokens.append(Token("marker", piece, file, line, False))  # passes through unchanged
            line += piece.count("\n")
        else:
            for match in TOKEN.finditer(piece):
                kind = "string" if match.lastgroup == "raw" else match.lastgroup or "other"
                tokens.append(Token(kind, match.group(), file, line, True))
                line += match.group().count("\n")
    return tokens


class Tokens:
    """The tokens of a text, each known by its index."""

    def __init__(self, text: str, is_user: Callable[[str], bool]):
        self.tokens = tokenize(text, is_user)

    def next(self, index: int) -> int:
        """Return the index of the next token that is neither space nor marker, or the length."""
        index += 1
        while index < len(self.tokens) and self.tokens[index].blank:
            index += 1
        return index

    def previous(self, index: int) -> int:
        """Return the index of the token before that is neither space nor marker, or -1."""
        index -= 1
        while index >= 0 and self.tokens[index].blank:
            index -= 1
        return index

    def text(self, index: int) -> str:
        """Return the token's text, empty if there is no such token."""
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def texts(self, index: int, count: int) -> str:
        """Return the text of ``count`` tokens from ``index`` on."""
        return "".join(token.text for token in self.tokens[index : index + count])

    def closing(self, index: int) -> int:
        """Return the index of the bracket that closes the one at ``index``."""
        opened: list[int] = []
        for i in range(index, len(self.tokens)):
            if self.tokens[i].kind != "other":
                continue
            if self.tokens[i].text in OPENING:
                opened.append(i)
            elif self.tokens[i].text in CLOSING:
                start = opened.pop()
                if OPENING.index(self.text(start)) != CLOSING.index(self.text(i)):
                    raise self.never_closed(start)
                if not opened:
                    return i
        raise self.never_closed(opened[-1])

    def never_closed(self, index: int) -> TranslationError:
        """Return the error about the bracket at ``index``."""
        return TranslationError(self.tokens[index], f"'{self.text(index)}' is never closed")

    def check_braces(self) -> None:
        """Raise TranslationError at the innermost ``{`` of the user's text that is never closed.

        The compiler would match it with a brace of the text around the source.
        """
        opened = []
        for i, token in enumerate(self.tokens):
            if token.user and token.text == "{":
                opened.append(i)
            elif token.user and token.text == "}" and opened:
                opened.pop()
        if opened:
            raise self.never_closed(opened[-1])

    def statement_start(self, index: int) -> int:
        """Return the index of the first token of the declaration that holds ``index``."""
        start = index
        while True:
            before = self.previous(start)
            if before < 0 or not self.tokens[before].user or self.text(before) in (";", "{", "}"):
                return start
            if self.tokens[before].kind == "quoted" and self.text(self.previous(before)) == "extern":
                start = before
                continue
            if self.text(before) == ":":  # after a label
                return start
            start = before

    def statement_end(self, index: int) -> int:
        """Return the index of the ``;`` that ends the declaration at ``index``."""
        i = index
        while i < len(self.tokens):
            text = self.text(i)
            if self.tokens[i].kind == "other":
                if text in OPENING:
                    i = self.closing(i)
                elif text == ";":
                    return i
            i = self.next(i)
        raise TranslationError(self.tokens[index], "a ';' is missing after this declaration")

    def newlines(self, first: int, last: int) -> str:
        """Return the line breaks among the tokens: text after a rewritten declaration must keep its line number."""
        return "\n" * sum(t.text.count("\n") for t in self.tokens[first : last + 1] if t.kind != "marker")
