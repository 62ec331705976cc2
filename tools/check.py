"""Run every check of the code except the tests: `python tools/check.py [CHECK ...]`, or `make check`.

Each check is a tool of requirements.txt, configured in pyproject.toml or .clang-format. The exit status is 1 if one of
them finds a fault, and every check runs in any case. `--fix` (`make format`) formats the sources and applies ruff's
safe fixes instead.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CXX_FOLDERS = ("fusedref", "kernels", "tests")
CXX_SUFFIXES = {".cu", ".cuh", ".cpp", ".h", ".hpp"}


def cxx_sources() -> list[str]:
    """Return the paths of all CUDA and C++ files, relative to the repository's root."""
    paths = (path for folder in CXX_FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.suffix in CXX_SUFFIXES)


def checks() -> dict[str, list[str]]:
    """Return the command of every check, by name."""
    return {
        "ruff": ["ruff", "check", "."],
        "ruff-format": ["ruff", "format", "--check", "."],
        "clang-format": ["clang-format", "--dry-run", "--Werror", *cxx_sources()],
        "mypy": ["mypy"],
        "import-linter": ["lint-imports", "--no-logo", "--no-cache"],
    }


def fixes() -> dict[str, list[str]]:
    """Return the commands that change the sources, by name."""
    return {
        "ruff": ["ruff", "check", "--fix-only", "."],
        "ruff-format": ["ruff", "format", "."],
        "clang-format": ["clang-format", "-i", *cxx_sources()],
    }


def run(name: str, command: list[str]) -> bool:
    """Run a tool of this Python's environment in the repository's root; return whether it succeeded."""
    tool = Path(sysconfig.get_path("scripts"), command[0])
    print(f"== {name}: {shlex.join(command[:3])}{' ...' if len(command) > 3 else ''}", flush=True)
    if not tool.exists():
        print(f"{tool} is missing. Run `make check`, which installs requirements.txt, or `pip install` it.\n")
        return False
    start = time.perf_counter()
    passed = subprocess.run([tool, *command[1:]], cwd=ROOT).returncode == 0
    print(f"== {name}: {'passed' if passed else 'FAILED'} in {time.perf_counter() - start:.1f} s\n", flush=True)
    return passed


def main() -> None:
    """Run the checks named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CHECK", help=f"one or more of {', '.join(checks())}; default: all")
    parser.add_argument("--fix", action="store_true", help="change the sources instead: ruff --fix and the formatters")
    arguments = parser.parse_args()
    commands = fixes() if arguments.fix else checks()
    names = arguments.names or list(commands)
    for name in names:
        if name not in commands:
            parser.error(f"there is no check {name}; there are {', '.join(commands)}")
    failed = [name for name in names if not run(name, commands[name])]
    if failed:
        sys.exit(f"{len(failed)} of {len(names)} failed: {', '.join(failed)}")
    print("All sources formatted" if arguments.fix else f"All {len(names)} checks passed")


if __name__ == "__main__":
    main()
