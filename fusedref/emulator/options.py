"""nvcc's options, as ``SourceModule`` is given them: those that say something here, and which there are at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Long name -> short one. Long names take one dash or two, short ones one. A value follows after "=" or as the next
# word; to the short names of JOINED it may be attached.
VALUED = {
    "define-macro": "D",
    "undefine-macro": "U",
    "include-path": "I",
    "gpu-architecture": "arch",
    "gpu-code": "code",
    "generate-code": "gencode",
    "pre-include": "include",
    "system-include": "isystem",
    "optimize": "O",
    "Ofast-compile": "Ofc",
    "dopt": "dopt",
    "std": "std",
    "machine": "m",
    "compiler-options": "Xcompiler",
    "ptxas-options": "Xptxas",
    "compiler-bindir": "ccbin",
    "libdevice-directory": "ldir",
    "threads": "t",
    "split-compile": "split-compile",
    "keep-dir": "keep-dir",
    "relocatable-device-code": "rdc",
    "maxrregcount": "maxrregcount",
    "ftz": "ftz",
    "prec-div": "prec-div",
    "prec-sqrt": "prec-sqrt",
    "fmad": "fmad",
    "default-stream": "default-stream",
    "Werror": "Werror",
    "diag-error": "diag-error",
    "diag-suppress": "diag-suppress",
    "diag-warn": "diag-warn",
    "brief-diagnostics": "brief-diag",
    "jump-table-density": "jtd",
    "device-stack-protector": "device-stack-protector",
    "compress-mode": "compress-mode",
    "frandom-seed": "frandom-seed",
    "sanitize": "sanitize",
    "optimization-info": "opt-info",
    "ftemplate-backtrace-limit": "ftemplate-backtrace-limit",
    "ftemplate-depth": "ftemplate-depth",
    "x": "x",
}
JOINED = "DUIOmtx"
STANDARDS = ("c++03", "c++11", "c++14", "c++17", "c++20")
ARCHITECTURE = r"(sm|compute|lto)_(5|6|7|8|9|10|11|12)\d[af]?|native|all|all-major"
YES_OR_NO = ("fmad", "ftz", "prec-div", "prec-sqrt", "rdc", "brief-diag", "device-stack-protector")
PLAIN = {
    "profile": "pg",
    "debug": "g",
    "device-debug": "G",
    "generate-line-info": "lineinfo",
    "no-exceptions": "noeh",
    "no-host-device-initializer-list": "nohdinitlist",
    "no-host-device-move-forward": "nohdmoveforward",
    "expt-relaxed-constexpr": "expt-relaxed-constexpr",
    "extended-lambda": "extended-lambda",
    "expt-extended-lambda": "expt-extended-lambda",
    "m64": "m64",
    "verbose": "v",
    "keep": "keep",
    "save-temps": "save-temps",
    "use_fast_math": "use_fast_math",
    "use-local-env": "use-local-env",
    "extra-device-vectorization": "extra-device-vectorization",
    "disable-warnings": "w",
    "restrict": "restrict",
    "keep-device-functions": "keep-device-functions",
    "source-in-ptx": "src-in-ptx",
    "Wreorder": "Wreorder",
    "Wdefault-stream-launch": "Wdefault-stream-launch",
    "Wmissing-launch-bounds": "Wmissing-launch-bounds",
    "Wext-lambda-captures-this": "Wext-lambda-captures-this",
    "Wno-deprecated-declarations": "Wno-deprecated-declarations",
    "Wno-deprecated-gpu-targets": "Wno-deprecated-gpu-targets",
    "resource-usage": "res-usage",
    "no-compress": "no-compress",
    "allow-unsupported-compiler": "allow-unsupported-compiler",
    "no-align-double": "no-align-double",
    "display-error-number": "err-no",
    "no-display-error-number": "no-err-no",
    "forward-unknown-to-host-compiler": "forward-unknown-to-host-compiler",
    "dlink-time-opt": "dlto",
    "lto": "lto",
    "forward-unknown-opts": "forward-unknown-opts",
    "extensible-whole-program": "ewp",
}


class Refused(ValueError):
    """nvcc would not take these options. The message is in its words, where those are clear."""


@dataclass
class Options:
    """What of nvcc's options counts here."""

    definitions: list[str] = field(default_factory=list)  # -D and -U, in order
    include_dirs: list[str] = field(default_factory=list)
    architecture: str | None = None
    contract: bool = True  # a * b + c rounds once, as nvcc does without -fmad=false


def _short_name(word: str) -> tuple[str, str | None]:
    """(short name, value or None) of an option that may be none."""
    dashes = 2 if word.startswith("--") else 1
    name, equals, value = word[dashes:].partition("=")
    for names in (VALUED, PLAIN):
        if name in names:
            return names[name], value if equals else None
    if dashes == 1 and name in (*VALUED.values(), *PLAIN.values()):
        return name, value if equals else None
    if dashes == 1 and name[:1] in JOINED and len(word) > 2:
        return word[1], word[2:]
    raise Refused(f"nvcc fatal   : Unknown option '{word}'")


def parse(words: list[str]) -> Options:
    """Read nvcc's options.

    Raises:
        Refused: nvcc has no such option, or the option lacks its value or has one that it cannot have.
    """
    found = Options()
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            raise Refused(
                "nvcc fatal   : A single input file is required for a non-link phase when an outputfile is "
                f"specified (and '{word}' is another)"
            )
        short, value = _short_name(word)
        if short in PLAIN.values():
            if value is not None:
                raise Refused(f"nvcc fatal   : no argument expected after '{word.partition('=')[0]}'")
            continue
        if value is None and not waiting:
            raise Refused(f"nvcc fatal   : '{word}': expected an argument")
        value = waiting.pop(0) if value is None else value
        if short in YES_OR_NO and value not in ("true", "false"):
            raise Refused(f"nvcc fatal   : '{value}': expected true or false")
        if short == "std" and value not in STANDARDS:
            raise Refused(f"nvcc fatal   : Value '{value}' is not defined for option 'std'")
        if short == "arch" and not re.fullmatch(ARCHITECTURE, value):
            raise Refused(f"nvcc fatal   : Unsupported gpu architecture '{value}'")
        if short in ("D", "U"):
            found.definitions.append(f"-{short}{value}")
        elif short == "I":
            found.include_dirs.append(value)
        elif short == "arch":
            found.architecture = value
        elif short == "fmad":
            found.contract = value == "true"
    return found
