"""Parts of every command line: its exit status, the files it writes, and a progress bar."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.progress import Progress

PICTURES = (".png", ".svg", ".pdf")
DONE, REFUSED, NOT_RUN, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def help_texts(description: str, example: str, statuses: str) -> dict[str, Any]:
    """Return what argparse shows before and after the arguments, for a parser's constructor.

    ``statuses`` describes the exit statuses 0 and 1; the others are the same for every command.
    """
    width = min(shutil.get_terminal_size().columns, 100) - 2
    return {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "description": textwrap.fill(description, width),
        "epilog": f"example:\n  {example}\n\n"
        + textwrap.fill(f"exit status: {statuses}, 2 not run (such as a wrong command), 130 interrupted", width),
    }


def expect_interrupts(program: str) -> None:
    """Let Ctrl-C end the process with one line and status 130, also while ``program`` imports its modules.

    Call it before the imports; ``run`` does the same for what follows.
    """
    excepthook = sys.excepthook

    def end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        """End quietly after a KeyboardInterrupt, and as before after any other exception."""
        if issubclass(kind, KeyboardInterrupt):
            print(f"{program}: interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        excepthook(kind, error, traceback)

    sys.excepthook = end


def run(program: str, main: Callable[[], int]) -> NoReturn:
    """End the process with the status that ``main`` returns; Ctrl-C and a closed pipe end it without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name, say, need not fit the terminal's encoding
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:  # the program that read our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        status = BROKEN_PIPE
    sys.exit(status)


def not_run(program: str, reason: str) -> int:
    """Print why ``program`` does not run to stderr; return the exit status."""
    print(f"{program}: {reason}", file=sys.stderr)
    return NOT_RUN


def output_file(text: str) -> Path:
    """Return the path of a file that can be written, for argparse; create its folder.

    Raises argparse.ArgumentTypeError if the file cannot be written, so that a command fails before it does its work.
    """
    path = Path(text)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # raises OSError for a loop of symbolic links
        if path.exists() and not path.is_file():
            raise argparse.ArgumentTypeError(f"{text!r} is not a file: name a file to write")
        if path.exists() and not os.access(path, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text!r} is write-protected: name another file")
        folder = path.resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    return path


def picture_file(text: str) -> Path:
    """Return the path of a picture that can be written, for argparse.

    Raises argparse.ArgumentTypeError as ``output_file`` does, and for a suffix that is not in PICTURES.
    """
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
    return output_file(text)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; move that file to ``path`` if the block ends without an error.

    An existing file is replaced as a whole or left as it was.
    """
    path = path.resolve()  # a symbolic link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fusedref-") as folder:
        aside = Path(folder, path.name)
        yield aside
        os.replace(aside, path)


def progress_bar() -> Progress:
    """Return a progress bar on stderr that shows only on a terminal and disappears at its end."""
    from rich.console import Console  # imported here: a command that is interrupted early should have little to import
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
