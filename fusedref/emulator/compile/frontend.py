"""Translate preprocessed CUDA C to C++ for a host compiler.

The input is the preprocessor's output: macros are expanded, comments are removed, and line markers name the file of
each line. The text of system headers and of the emulator's own headers passes through. In the user's text

* ``__shared__`` and ``extern __shared__`` variables become references into the block's shared memory,
* ``__constant__`` and ``__device__`` variables get guarded storage and are registered by name,
* every ``__global__`` function with a body is registered after it, with the names of its parameters,
* calls of ``printf``, ``clock``, ``memcpy`` and ``memset`` become calls of the emulator's own,

and every line keeps its number.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from .declarations import KEYS, Declarator, Word, parse
from .declarations import text as joined
from .tokens import CLOSING, OPENING, Tokens, TranslationError

GLOBAL = ' __attribute__((visibility("default"), noinline))'  # the space: extern "C"__global__ is one word in C++
REPLACED = {
    "__forceinline__": " __attribute__((always_inline))",
    "__inline__": " __attribute__((always_inline))",
    "__noinline__": " __attribute__((noinline))",
}
CALLS = {"printf": "emu_printf", "clock": "emu_clock32", "memcpy": "emu_memcpy", "memset": "emu_memset"}
CUDA_SPECIFIERS = ("__global__", "__device__", "__constant__", "__host__", "__managed__", "__shared__")
STORAGE = ("extern", "static", "__shared__", "__constant__", "__device__", "__managed__", "inline")
ATTRIBUTES = ("__attribute__", "alignas", "__align__")
UNSIZED = re.compile(r"@\s*\[\s*\]")
WRITABLE = "__DATA,emu_" if sys.platform == "darwin" else ".data.emu_"
CONSTEXPR = re.compile(r"\bconstexpr\b")
INTEGERS = {"const", "bool", "char", "short", "int", "long", "signed", "unsigned", "size_t", "int32_t", "uint32_t"}


class Frontend(Tokens):
    """One translation. ``translate()`` returns the C++ text."""

    def __init__(self, text: str, is_user: Callable[[str], bool]):
        super().__init__(text, is_user)
        self.count = 0  # of names made so far
        self.file_shared: list[str] = []  # declarations of shared variables at file scope, to repeat in every body
        self.templates: dict[str, list[str]] = {}  # kernel template -> names of its parameters
        self.replaced: dict[int, tuple[int, str]] = {}  # first token -> (last token, text)
        self.appended: dict[int, list[str]] = {}  # token -> texts to insert after it
        self.declared: set[str] = set()  # variables that an extern declaration names
        self.bodies: list[int] = []  # opening braces of functions
        self.owners: list[tuple[int, str]] = []  # (index of the closing brace, name) of the enclosing functions

    def translate(self) -> str:
        """Return the C++ text.

        Raises:
            TranslationError: the emulator cannot run the text.
        """
        self.check_braces()
        for i, token in enumerate(self.tokens):
            while self.owners and i > self.owners[-1][0]:
                self.owners.pop()
            if not token.user:
                continue
            if token.kind == "name":
                self.name(i)
            elif (
                token.text == "<" and self.texts(i, 3) == "<<<" and self.text(self.previous(i)) not in ("operator", "<")
            ):
                raise TranslationError(
                    token, "a launch with <<<...>>> is host code: call the kernel from Python, with grid= and block="
                )
        if self.file_shared:
            for body in self.bodies:
                self.appended.setdefault(body, []).append(" " + " ".join(self.file_shared))
        return self.assembled()

    def assembled(self) -> str:
        """Return the text with its replacements."""
        out = []
        i = 0
        while i < len(self.tokens):
            if i in self.replaced:
                i, text = self.replaced[i][0], self.replaced[i][1]
                out.append(text)
            else:
                out.append(self.tokens[i].text)
            out.extend(self.appended.get(i, ()))
            i += 1
        return "".join(out)

    def name(self, i: int) -> None:
        """Translate the construct that begins with the name at ``i``."""
        token = self.tokens[i]
        if token.text in ("asm", "__asm__", "__asm"):
            raise TranslationError(token, "inline PTX cannot run on the emulator; the wrappers of ptx.cuh can")
        if token.text in CUDA_SPECIFIERS:
            self.cuda_declaration(i)
        elif token.text in REPLACED and self.text(self.previous(i)) != "(":
            token.text = REPLACED[token.text]
        elif token.text in CALLS and self.text(self.next(i)) == "(":
            self.call(i)

    def call(self, i: int) -> None:
        """Rename a call of a C library function that the emulator replaces."""
        before = self.previous(i)
        if self.text(before) in (".", "->"):
            return
        if self.text(before) == "::":
            qualifier = self.previous(before)
            if self.tokens[qualifier].kind == "name" and self.text(qualifier) not in ("std", "return"):
                return
            self.tokens[before].text = ""
            if self.text(qualifier) == "std":
                self.tokens[qualifier].text = ""
        elif before >= 0 and self.tokens[before].kind == "name" and self.text(before) not in ("return", "else", "do"):
            return  # a declaration: int printf(...)
        self.tokens[i].text = CALLS[self.text(i)]

    def cuda_declaration(self, i: int) -> None:
        """Translate a variable or function that has a CUDA specifier, such as ``__device__``, at ``i``."""
        token = self.tokens[i]
        if token.text == "__shared__":
            first, last, text = self.shared(i, self.owners[-1][1] if self.owners else "")
            self.replaced[first] = (last, text)
            return
        if self.text(self.previous(i)) == "]":  # a lambda
            token.text = ""
            return
        function = None if token.text == "__constant__" else self.function(self.next(i))
        if function is None and self.text(self.statement_start(i)) == "template":
            token.text = ""  # a variable template: each instance is a variable of its own, without a name to get it by
            return
        if function is None:
            following = self.text(self.next(i))
            others = ("__constant__", "__shared__", "__host__", "__global__", "__forceinline__")
            if token.text in ("__constant__", "__managed__") or (
                token.text == "__device__" and following not in others
            ):
                first, last, text = self.variable(i)
                self.replaced.setdefault(first, (last, text))
            return
        name, opening, end = function
        is_kernel = token.text == "__global__"
        token.text = GLOBAL if is_kernel else ""
        if self.text(end) == "{" and not (self.owners and self.owners[-1][1] == name):
            self.owners.append((self.closing(end), name))
            self.bodies.append(end)
        if is_kernel:
            self.kernel(i, name, opening, end)

    # -- variables -----------------------------------------------------------------------------------------------------

    def declaration(self, first: int, last: int) -> tuple[str, list[Declarator]]:
        """Return (type, variables) of the declaration in the tokens first..last-1."""
        words: list[Word] = []
        i, depth, spaced = first, 0, False
        while i < last:
            token = self.tokens[i]
            if not depth and self.is_attribute(i):
                i = self.closing(i if token.text == "[" else self.next(i))
                spaced = True
            elif token.blank or token.text in CUDA_SPECIFIERS or (not depth and self.is_storage(i)):
                spaced = True
            else:
                words.append(Word(token.kind, token.text, spaced))
                spaced = False
                if token.kind == "other":
                    depth += (token.text in OPENING) - (token.text in CLOSING)
            i += 1
        try:
            return parse(words)
        except ValueError:
            raise TranslationError(self.tokens[first], "cannot read this declaration") from None

    def is_attribute(self, i: int) -> bool:
        """Return whether an attribute of the variable begins at ``i``, rather than one of a type defined here."""
        if self.text(i) == "[":
            return self.text(self.next(i)) == "["
        # Dropped: shared variables are always aligned enough, and alignments() keeps those of the others.
        return self.text(i) in ATTRIBUTES and self.text(self.previous(i)) not in (*KEYS, "}")

    def is_storage(self, i: int) -> bool:
        """Return whether the token at ``i`` is a storage class: ``static``, ``extern "C"``."""
        token = self.tokens[i]
        language = token.kind == "quoted" and self.text(self.previous(i)) == "extern"
        return token.text in STORAGE or language

    def shared(self, index: int, owner: str) -> tuple[int, int, str]:
        """Return (first token, last token, new text) of the shared declaration that holds token ``index``."""
        first = self.statement_start(index)
        last = self.statement_end(first)
        dynamic = any(self.tokens[i].text == "extern" for i in range(first, last))
        specifier, declared = self.declaration(first, last)
        specifier, text = self.named(specifier)
        types, references = [text], []
        for variable in declared:
            name = variable.name
            if variable.form:
                raise TranslationError(
                    self.tokens[index],
                    f"shared variable '{name}' cannot have an initialiser: "
                    "every block must write it before it reads it",
                )
            self.count += 1
            kind, tag = f"emu_{name}_type_{self.count}", f"emu_{name}_tag_{self.count}"
            size = "0" if dynamic else f"sizeof({kind})"  # 0: the launch gives the size
            types.append(f"typedef {specifier} {variable.shape.replace('@', kind)};")
            types.append(
                f'struct {tag} {{ static const char* name() {{ return "{name}"; }} '
                f'static const char* owner() {{ return "{owner}"; }} enum : unsigned long {{ size = {size}, '
                f"align = alignof({kind}), element = sizeof(std::remove_all_extents_t<{kind}>) }}; }};"
            )
            references.append(f"{kind}& {name} = *({kind}*)emu::shared_address<{tag}>();")
        newlines = self.newlines(first, last)
        if not owner:
            self.file_shared.extend(references)
            return first, last, " ".join(types) + newlines
        return first, last, " ".join(types + references) + newlines

    def variable(self, index: int) -> tuple[int, int, str]:
        """Return (first token, last token, new text) of a ``__constant__`` or ``__device__`` declaration."""
        first = self.statement_start(index)
        last = self.statement_end(first)
        newlines = self.newlines(first, last)
        is_extern = any(
            self.text(i) == "extern" and self.tokens[self.next(i)].kind != "quoted" for i in range(first, last)
        )
        alignment = "".join(
            self.texts(i, self.closing(self.next(i)) + 1 - i) + " " for i in self.alignments(first, last)
        )
        specifier, declared = self.declaration(first, last)
        specifier, text = self.named(specifier)
        for variable in declared:
            if is_extern:
                text += self.extern(specifier, variable)
                continue
            name = variable.name
            text += self.home(specifier, variable, alignment)
            text += f'static emu::RegisterVariable emu_{name}_registered{{"{name}", {name}}}; '
        return first, last, text + newlines

    def named(self, specifier: str) -> tuple[str, str]:
        """Return (type, text before it): a type that is defined in the declaration is defined once and has a name."""
        if "{" not in specifier:
            return specifier, ""
        self.count += 1
        return f"emu_type_{self.count}", f"typedef {specifier} emu_type_{self.count}; "

    def alignments(self, first: int, last: int) -> list[int]:
        """Return the indices of the attributes that may align the variables declared in the tokens first..last-1."""
        found = []
        i = first
        while i < last:
            if self.text(i) in ATTRIBUTES and self.is_attribute(i):
                found.append(i)
            i = self.next(self.closing(i) if self.text(i) in OPENING else i)
        return found

    def extern(self, specifier: str, variable: Declarator) -> str:
        """Return the text that declares a variable whose definition follows."""
        name = variable.name
        if UNSIZED.search(variable.shape):
            return ""
        kind, home = f"emu_{name}_type", f"emu_{name}_home"
        reference = "" if name in self.declared else f"static constexpr {kind}& {name} = {home}.value;"
        self.declared.add(name)
        shape = variable.shape.replace("@", kind)
        return f"typedef {specifier} {shape}; extern emu::Guarded<{kind}> {home}; {reference} "

    def home(self, specifier: str, variable: Declarator, alignment: str) -> str:
        """Return the text that defines a variable."""
        name, shape, value = variable.name, variable.shape, joined(variable.initialiser)
        words = set(specifier.split())
        kind, home = f"emu_{name}_type", f"emu_{name}_home"
        declared_type = CONSTEXPR.sub("", specifier)
        if UNSIZED.search(shape) or "auto" in words:  # the initialiser determines the type
            probe = f"emu_{name}_probe"
            text = f"static {declared_type} {shape.replace('@', probe)} = {value}; typedef decltype({probe}) {kind}; "
        else:
            text = f"typedef {declared_type} {shape.replace('@', kind)}; "
        if variable.form == "(":
            value = f"{kind}{value}"
        elif variable.form == "=" and not re.match(r'\{|(u8|[uUL])?R?"', value):
            value = f"static_cast<{kind}>({value})"  # the value may narrow, which braces forbid
        # A constant that array bounds and template arguments may use; the host may still write it.
        known = value and ("constexpr" in words or (shape == "@" and "const" in words and words <= INTEGERS))
        text += alignment + (f'__attribute__((section("{WRITABLE}{name}"))) constexpr ' if known else "")
        text += "" if name in self.declared else "static "
        text += f"emu::Guarded<{kind}> {home}{{{value}}}; "
        if name not in self.declared:
            text += f"static constexpr {'const ' if known else ''}{kind}& {name} = {home}.value; "
        return text

    # -- functions -----------------------------------------------------------------------------------------------------

    def parameters(self, opening: int) -> list[str]:
        """Return the names of the parameters in the brackets that open at ``opening``."""
        closing = self.closing(opening)
        names: list[str] = []
        current: list[str] = []
        depth = angle = 0
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
        """Return (name, opening bracket of the parameters, ``{`` or ``;`` after them) of the function at ``index``.

        The last two are indices of tokens. Return None if a variable is declared there.
        """
        i = index
        name_at = -1
        while i < len(self.tokens):
            text = self.text(i)
            if text in (*ATTRIBUTES, "__declspec"):
                i = self.next(self.closing(self.next(i)))
                continue
            if text == "operator":
                name_at = i
                i = self.operator_parameters(i)
                break
            if text in (";", "=", "{", "[", ""):
                return None
            if text == "(":
                break
            if text == "<" and name_at >= 0:
                i = self.template_end(i)
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

    def operator_parameters(self, index: int) -> int:
        """Return the index of the bracket that opens the parameters of the operator named at ``index``."""
        i = self.next(index)
        if self.text(i) == "(":  # operator()
            i = self.next(self.closing(i))
        while i < len(self.tokens) and self.text(i) != "(":
            i = self.next(i)
        return i

    def template_end(self, index: int) -> int:
        """Return the index of the ``>`` that closes the template arguments at ``index``."""
        depth = 0
        while index < len(self.tokens):
            depth += (self.text(index) == "<") - (self.text(index) == ">")
            if depth == 0:
                break
            index = self.next(index)
        return index

    def kernel(self, index: int, name: str, opening: int, end: int) -> None:
        """Register the kernel, or remember the names of a template's parameters for its explicit instantiations."""
        start = self.statement_start(index)
        if not any(self.text(i) == "void" for i in range(start, opening)):
            raise TranslationError(self.tokens[index], "a __global__ function must have a void return type")
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
        self.appended.setdefault(at, []).append(
            f' static emu::Register emu_register_{self.count}{{"{",".join(names)}", &{target}}};'
        )
