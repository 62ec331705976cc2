"""From preprocessed CUDA C to C++ that a host compiler takes.

Works on the text after the preprocessor, where macros are expanded, comments are gone and line markers say which file
a line is from. What the emulator's own headers and the system's hold is passed through; in the user's text

* ``__shared__`` and ``extern __shared__`` variables become references into the block's shared memory,
* ``__constant__`` and ``__device__`` variables get a guarded home and are registered by name,
* every ``__global__`` function with a body is registered behind it, with the names of its parameters,

and no line changes its number.
"""

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
GLOBAL = '__attribute__((visibility("default"), noinline))'


class TranslationError(Exception):
    """CUDA C that the emulator cannot run; the message names file and line."""


@dataclass
class Token:
    """A piece of the text: ``kind`` is TOKEN's group, or "marker"; ``user`` says whether it is to be translated."""

    kind: str
    text: str
    file: str
    line: int
    user: bool

    @property
    def blank(self) -> bool:
        """Whether it is nothing but space or a marker of the preprocessor."""
        return self.kind in ("space", "marker")


def tokenize(text: str, is_user: Callable[[str], bool]) -> list[Token]:
    """Tokens of preprocessed text; ``is_user(file)`` says whether a file's text is to be translated."""
    tokens = []
    file, line, user = "", 1, False
    pieces = re.split(r"(?m)^(#[^\n]*\n)", text)
    for piece in pieces:
        marker = MARKER.match(piece)
        if marker:
            tokens.append(Token("marker", piece, file, line, False))
            line, file = int(marker.group(1)), marker.group(2)
            user = is_user(file)
        elif not user:
            tokens.append(Token("marker", piece, file, line, False))  # passed through whole
            line += piece.count("\n")
        else:
            for match in TOKEN.finditer(piece):
                kind = "string" if match.lastgroup == "raw" else match.lastgroup
                tokens.append(Token(kind, match.group(), file, line, True))
                line += match.group().count("\n")
    return tokens


class Frontend:
    """One translation. ``translate()`` gives the C++ text."""

    def __init__(self, text: str, is_user: Callable[[str], bool]):
        self.tokens = tokenize(text, is_user)
        self.count = 0
        self.file_shared: list[str] = []  # declarations of shared variables at file scope, to repeat in every body
        self.templates: dict[str, list[str]] = {}

    # -- walking --------------------------------------------------------------------------------------------------

    def next(self, index: int) -> int:
        """Index of the next token that is neither space nor marker, or the length."""
        index += 1
        while index < len(self.tokens) and self.tokens[index].blank:
            index += 1
        return index

    def previous(self, index: int) -> int:
        """Index of the token before that is neither space nor marker, or -1."""
        index -= 1
        while index >= 0 and self.tokens[index].blank:
            index -= 1
        return index

    def text(self, index: int) -> str:
        """The token's text, empty where there is no such token."""
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def closing(self, index: int) -> int:
        """Index of the bracket that closes the one at ``index``."""
        depth = 0
        for i in range(index, len(self.tokens)):
            if self.tokens[i].kind == "other":
                if self.tokens[i].text in OPENING:
                    depth += 1
                elif self.tokens[i].text in CLOSING:
                    depth -= 1
                    if depth == 0:
                        return i
        token = self.tokens[index]
        raise TranslationError(f"{token.file}:{token.line}: error: '{token.text}' is never closed")

    def check_braces(self) -> None:
        """Raise TranslationError at the innermost ``{`` of the user's that is never closed.

        The compiler would close it with a brace of the text around the source.
        """
        opened = []
        for token in self.tokens:
            if token.user and token.text == "{":
                opened.append(token)
            elif token.user and token.text == "}" and opened:
                opened.pop()
        if opened:
            raise TranslationError(f"{opened[-1].file}:{opened[-1].line}: error: '{{' is never closed")

    def statement_start(self, index: int) -> int:
        """Index of the first token of the declaration that holds ``index``."""
        start = index
        while True:
            before = self.previous(start)
            if before < 0 or not self.tokens[before].user or self.text(before) in (";", "{", "}"):
                return start
            if self.tokens[before].kind == "quoted" and self.text(self.previous(before)) == "extern":
                start = before
                continue
            if self.text(before) == ":" and self.text(self.previous(before)) in ("public", "private", "default"):
                return start
            start = before

    def statement_end(self, index: int) -> int:
        """Index of the ``;`` that ends the declaration at ``index``."""
        i = index
        while i < len(self.tokens):
            text = self.text(i)
            if self.tokens[i].kind == "other":
                if text in OPENING:
                    i = self.closing(i)
                elif text == ";":
                    return i
            i = self.next(i)
        token = self.tokens[index]
        raise TranslationError(f"{token.file}:{token.line}: error: expected ';' after this declaration")

    def newlines(self, first: int, last: int) -> str:
        """The line breaks among the tokens, so that what follows a rewritten declaration keeps its line."""
        return "\n" * sum(t.text.count("\n") for t in self.tokens[first : last + 1] if t.kind != "marker")

    # -- declarations ----------------------------------------------------------------------------------------------

    def declaration(self, first: int, last: int) -> tuple[str, list[tuple[str, str, str]]]:
        """(type words, [(name, declarator text with the name as ``@``, initialiser)]) of the tokens first..last-1."""
        words = []
        i = first
        while i < last:
            token = self.tokens[i]
            if token.blank:
                i += 1
                continue
            if token.text in (
                "extern",
                "static",
                "__shared__",
                "__constant__",
                "__device__",
                "__managed__",
                "inline",
                "constexpr",
            ):
                if token.text == "constexpr":
                    words.append("const")
                i += 1
            elif token.kind == "quoted":  # extern "C"
                i += 1
            elif token.text in ("__attribute__", "alignas", "__align__"):
                i = self.closing(self.next(i)) + 1  # every variable is aligned far beyond what is asked
            else:
                words.append(token)
                i += 1
        # Split at commas outside brackets and template arguments.
        parts: list[list] = [[]]
        depth = angle = 0
        for k, word in enumerate(words):
            text = word if isinstance(word, str) else word.text
            kind = "name" if isinstance(word, str) else word.kind
            if kind == "other":
                depth += text in OPENING
                depth -= text in CLOSING
                previous = words[k - 1] if k else ""
                if text == "<" and not depth and not isinstance(previous, str) and previous.kind == "name":
                    angle += 1
                elif text == ">" and angle:
                    angle -= 1
            if text == "," and not depth and not angle:
                parts.append([])
            else:
                parts[-1].append((kind, text))
        declared = []
        specifier = ""
        for position, part in enumerate(parts):
            initialiser = ""
            depth = 0
            for k, (kind, text) in enumerate(part):
                if (
                    kind == "other"
                    and depth == 0
                    and k
                    and (
                        text == "="
                        or (
                            text == "{"
                            and part[k - 1][0] == "name"
                            and k > 1
                            and part[k - 2][1] not in ("struct", "union", "class", "enum")
                        )
                    )
                ):
                    initialiser = " ".join(t for _, t in part[k + (text == "=") :])
                    part = part[:k]
                    break
                if kind == "other":
                    depth += text in OPENING
                    depth -= text in CLOSING
            # The name: the last identifier before the first array bound that follows the type, outside any braces.
            end = len(part)
            depth = 0
            for k, (kind, text) in enumerate(part):
                if kind == "other" and text == "[" and depth == 0:
                    end = k
                    break
                if kind == "other" and text in "{(<":
                    depth += 1
                elif kind == "other" and text in "})>":
                    depth -= 1
            name_at = max((k for k in range(end) if part[k][0] == "name"), default=-1)
            if name_at < 0:
                token = self.tokens[first]
                raise TranslationError(f"{token.file}:{token.line}: error: cannot read this declaration")
            name = part[name_at][1]
            shaped = [t for _, t in part[:name_at]] + ["@"] + [t for _, t in part[name_at + 1 :]]
            if position == 0:
                star = next((k for k, t in enumerate(shaped) if t in ("*", "&", "@") or t == "("), len(shaped))
                specifier = " ".join(shaped[:star])
                shaped = shaped[star:]
            declared.append((name, " ".join(shaped), initialiser))
        return specifier, declared

    def shared(self, index: int, owner: str) -> tuple[int, int, str, bool]:
        """Rewrite the shared declaration that holds token ``index``: (first, last, text, at file scope)."""
        first = self.statement_start(index)
        last = self.statement_end(first)
        token = self.tokens[index]
        dynamic = any(self.tokens[i].text == "extern" for i in range(first, last))
        specifier, declared = self.declaration(first, last)
        types, references = [], []
        for name, shape, initialiser in declared:
            if initialiser:
                raise TranslationError(
                    f"{token.file}:{token.line}: error: shared variable '{name}' cannot have an "
                    f"initialiser: every block must write it before it reads it"
                )
            self.count += 1
            kind = f"emu_{name}_type_{self.count}"
            types.append(f"typedef {specifier} {shape.replace('@', kind)};")
            tag = f"emu_{name}_tag_{self.count}"
            size = "0" if dynamic else f"sizeof({kind})"  # 0: as long as the launch says
            types.append(
                f'struct {tag} {{ static const char* name() {{ return "{name}"; }} '
                f'static const char* owner() {{ return "{owner}"; }} enum : unsigned long {{ size = {size}, '
                f"align = alignof({kind}), element = sizeof(std::remove_all_extents_t<{kind}>) }}; }};"
            )
            references.append(f"{kind}& {name} = *({kind}*)emu::shared_address<{tag}>();")
        newlines = self.newlines(first, last)
        if not owner:
            self.file_shared.extend(references)
            return first, last, " ".join(types) + newlines, True
        return first, last, " ".join(types + references) + newlines, False

    def variable(self, index: int) -> tuple[int, int, str]:
        """Rewrite the ``__constant__`` or ``__device__`` variable declared at ``index``."""
        first = self.statement_start(index)
        last = self.statement_end(first)
        newlines = self.newlines(first, last)
        if any(self.text(i) == "extern" and self.tokens[self.next(i)].kind != "quoted" for i in range(first, last)):
            return first, last, newlines
        specifier, declared = self.declaration(first, last)
        text = []
        for name, shape, initialiser in declared:
            self.count += 1
            kind, home = f"emu_{name}_type", f"emu_{name}_home"
            if re.match(r"@ \[ \]", shape):  # as long as its initialiser: no guard behind it
                text.append(f"static {specifier} {shape.replace('@', name)} = {initialiser};")
            else:
                value = f" = {{ {initialiser} }}" if initialiser else "{}"
                text.append(
                    f"typedef {specifier} {shape.replace('@', kind)}; "
                    f"static emu::Guarded<{kind}> {home}{value}; "
                    f"static constexpr {kind}& {name} = {home}.value;"
                )
            text.append(f'static emu::RegisterVariable emu_{name}_registered{{"{name}", {name}}};')
        return first, last, " ".join(text) + newlines

    def parameters(self, opening: int) -> list[str]:
        """Names of the parameters in the brackets that open at ``opening``."""
        closing = self.closing(opening)
        names, current, depth, angle = [], [], 0, 0
        for i in range(opening + 1, closing + 1):
            token = self.tokens[i]
            if token.blank:
                continue
            text = token.text
            if token.kind == "other":
                if text == "<":
                    angle += 1
                elif text == ">":
                    angle -= 1
                if i == closing or (text == "," and depth == 0 and angle == 0):
                    if "=" in current:
                        current = current[: current.index("=")]
                    words = [w for w in current if re.match(r"[A-Za-z_]\w*$", w)]
                    if words and words != ["void"]:
                        names.append(words[-1])
                    current = []
                    continue
                depth += text in OPENING
                depth -= text in CLOSING
            if depth == 0 or token.text in OPENING:
                current.append(text)
        return names

    def function(self, index: int) -> tuple[str, int, int] | None:
        """(name, opening bracket, index of the ``{`` or ``;`` behind the header) of the function at ``index``."""
        i = index
        name_at = -1
        while i < len(self.tokens):
            text = self.text(i)
            if text in ("__attribute__", "alignas", "__align__", "__declspec"):
                i = self.next(self.closing(self.next(i)))
                continue
            if text in (";", "=", "{", "[", ""):
                return None
            if text == "(":
                break
            if text == "<" and name_at >= 0:  # template arguments
                depth = 0
                while i < len(self.tokens):
                    depth += (self.text(i) == "<") - (self.text(i) == ">")
                    if depth == 0:
                        break
                    i = self.next(i)
            if self.tokens[i].kind == "name":
                name_at = i
            i = self.next(i)
        if name_at < 0 or i >= len(self.tokens):
            return None
        opening = i
        i = self.next(self.closing(opening))
        while i < len(self.tokens) and self.text(i) not in ("{", ";"):
            i = self.next(self.closing(i)) if self.text(i) in OPENING else self.next(i)
        return self.text(name_at), opening, i

    # -- the whole -----------------------------------------------------------------------------------------------------

    def translate(self) -> str:
        """The C++ text. Raises TranslationError for what the emulator cannot run."""
        tokens = self.tokens
        replaced: dict[int, tuple[int, str]] = {}  # first token -> (last token, text)
        behind: dict[int, list[str]] = {}  # token -> text to put behind it
        self.check_braces()
        bodies: list[int] = []  # opening braces of device functions
        owners: list[tuple[int, str]] = []  # (index of the closing brace, name) of the functions around
        for i, token in enumerate(tokens):
            while owners and i > owners[-1][0]:
                owners.pop()
            if not token.user or token.kind != "name":
                continue
            if token.text in ("asm", "__asm__", "__asm"):
                raise TranslationError(
                    f"{token.file}:{token.line}: error: inline PTX cannot run on the emulator; "
                    f"the wrappers of ptx.cuh can"
                )
            if token.text in ("__global__", "__device__", "__constant__", "__host__", "__managed__", "__shared__"):
                owner = owners[-1][1] if owners else ""
                if token.text == "__shared__":
                    first, last, text, _ = self.shared(i, owner)
                    replaced[first] = (last, text)
                    continue
                if self.text(self.previous(i)) == "]":  # a lambda
                    tokens[i] = Token("name", "", token.file, token.line, True)
                    continue
                function = None if token.text == "__constant__" else self.function(self.next(i))
                if function is None:
                    following = self.text(self.next(i))
                    if token.text in ("__constant__", "__managed__") or (
                        token.text == "__device__"
                        and following not in ("__constant__", "__shared__", "__host__", "__global__", "__forceinline__")
                    ):
                        first, last, text = self.variable(i)
                        replaced.setdefault(first, (last, text))
                    continue
                name, opening, end = function
                tokens[i] = Token("name", GLOBAL if token.text == "__global__" else "", token.file, token.line, True)
                if self.text(end) == "{":
                    closing = self.closing(end)
                    if not owners or owners[-1][1] != name:
                        owners.append((closing, name))
                        bodies.append(end)
                if token.text == "__global__":
                    self.kernel(i, name, opening, end, behind)
            elif token.text in ("__forceinline__", "__inline__"):
                attribute = "__attribute__((always_inline))"
                tokens[i] = Token("name", attribute, token.file, token.line, True)
            elif token.text == "__noinline__" and self.text(self.previous(i)) != "(":
                tokens[i] = Token("name", "__attribute__((noinline))", token.file, token.line, True)
        if self.file_shared:
            for body in bodies:
                behind.setdefault(body, []).append(" " + " ".join(self.file_shared))
        out = []
        i = 0
        while i < len(tokens):
            if i in replaced:
                last, text = replaced[i]
                out.append(text)
                i = last
            else:
                out.append(tokens[i].text)
            out.extend(behind.get(i, ()))
            i += 1
        return "".join(out)

    def kernel(self, index: int, name: str, opening: int, end: int, behind: dict[int, list[str]]) -> None:
        """Register the kernel, or remember the names of a template's parameters for its explicit instantiations."""
        start = self.statement_start(index)
        names = self.parameters(opening)
        self.count += 1
        template = self.text(start) == "template"
        if self.text(end) == "{":
            if template:
                self.templates[name] = names
                return
            target = name
            at = self.closing(end)
        elif template and self.text(self.next(start)) != "<":  # template __global__ void k<float>(...);
            first = self.previous(opening)
            while self.text(first) != name:
                first -= 1
            target = "".join(t.text for t in self.tokens[first:opening]).strip()
            names = self.templates.get(name, names)
            at = end
        else:
            return
        behind.setdefault(at, []).append(
            f' static emu::Register emu_register_{self.count}{{"{",".join(names)}", &{target}}};'
        )
