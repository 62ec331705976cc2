"""nvcc's options for ``SourceModule``: five have an effect, nvcc's others are ignored, unknown ones are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


def _names(words: str) -> dict[str, str]:
    """Return long name -> short name of options written as ``long=short``, or as ``name`` where both are the same."""
    pairs = (word.partition("=") for word in words.split())
    return {long: short or long for long, _, short in pairs}


# A long name takes one dash or two, a short name one. A value follows after "=" or as the next word.
USED = _names("define-macro=D undefine-macro=U include-path=I gpu-architecture=arch fmad")
IGNORED_WITH_VALUE = _names("""
gpu-code=code generate-code=gencode pre-include=include system-include=isystem optimize=O Ofast-compile=Ofc dopt std
machine=m compiler-options=Xcompiler ptxas-options=Xptxas compiler-bindir=ccbin libdevice-directory=ldir threads=t
split-compile keep-dir relocatable-device-code=rdc maxrregcount ftz prec-div prec-sqrt default-stream Werror
diag-error diag-suppress diag-warn brief-diagnostics=brief-diag jump-table-density=jtd device-stack-protector
compress-mode frandom-seed sanitize optimization-info=opt-info ftemplate-backtrace-limit ftemplate-depth x
""")
IGNORED = _names("""
profile=pg debug=g device-debug=G generate-line-info=lineinfo no-exceptions=noeh
no-host-device-initializer-list=nohdinitlist no-host-device-move-forward=nohdmoveforward expt-relaxed-constexpr
extended-lambda expt-extended-lambda m64 verbose=v keep save-temps use_fast_math use-local-env
extra-device-vectorization disable-warnings=w restrict keep-device-functions source-in-ptx=src-in-ptx Wreorder
Wdefault-stream-launch Wmissing-launch-bounds Wext-lambda-captures-this Wno-deprecated-declarations
Wno-deprecated-gpu-targets resource-usage=res-usage no-compress allow-unsupported-compiler no-align-double
display-error-number=err-no no-display-error-number=no-err-no forward-unknown-to-host-compiler dlink-time-opt=dlto
lto forward-unknown-opts extensible-whole-program=ewp
""")
VALUED = USED | IGNORED_WITH_VALUE
JOINED = "DUIOmtx"  # short names that may be joined to their value: -DSIZE=4
ALLOWED_VALUES = {
    "std": (r"c\+\+(03|11|14|17|20)", "Value '{}' is not defined for option 'std'"),
    "arch": (
        r"(sm|compute|lto)_(5|6|7|8|9|10|11|12)\d[af]?|native|all|all-major",
        "Unsupported gpu architecture '{}'",
    ),
    **dict.fromkeys(
        ("fmad", "ftz", "prec-div", "prec-sqrt", "rdc", "brief-diag", "device-stack-protector"),
        ("true|false", "'{}': expected true or false"),
    ),
}


class Refused(ValueError):
    """nvcc would refuse these options. The message is nvcc's, if that is clear enough."""

    def __init__(self, message: str):
        super().__init__(f"nvcc fatal   : {message}")


@dataclass
class Options:
    """The options that have an effect."""

    definitions: list[str] = field(default_factory=list)  # -D and -U, in order
    include_dirs: list[str] = field(default_factory=list)
    architecture: str | None = None
    contract: bool = True  # a * b + c rounds once, as nvcc does without -fmad=false


def _split(word: str) -> tuple[str, str | None]:
    """Return (short name, joined value or None) of an option."""
    dashes = 2 if word.startswith("--") else 1
    name, equals, value = word[dashes:].partition("=")
    for names in (VALUED, IGNORED):
        if name in names:
            return names[name], value if equals else None
    if dashes == 1 and name in (*VALUED.values(), *IGNORED.values()):
        return name, value if equals else None
    if dashes == 1 and name[:1] in JOINED and len(word) > 2:
        return word[1], word[2:]
    raise Refused(f"Unknown option '{word}'")


def parse(words: list[str]) -> Options:
    """Read nvcc's options.

    Raises:
        Refused: nvcc has no such option, or the option lacks its value or cannot have this one.
    """
    found = Options()
    waiting = iter(words)
    for word in waiting:
        if not word.startswith("-"):
            raise Refused(
                "A single input file is required for a non-link phase when an outputfile is "
                f"specified (and '{word}' is another)"
            )
        short, value = _split(word)
        if short in IGNORED.values():
            if value is not None:
                raise Refused(f"no argument expected after '{word.partition('=')[0]}'")
            continue
        if value is None:
            value = next(waiting, None)
        if value is None:
            raise Refused(f"'{word}': expected an argument")
        pattern, message = ALLOWED_VALUES.get(short, (".*", ""))
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise Refused(message.format(value))
        if short in ("D", "U"):
            found.definitions.append(f"-{short}{value}")
        elif short == "I":
            found.include_dirs.append(value)
        elif short == "arch":
            found.architecture = value
        elif short == "fmad":
            found.contract = value == "true"
    return found
