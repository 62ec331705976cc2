"""``python -m tests.mutants``: count the mutants of the kernels and candidates that the checks catch."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # before anything compiles: compiled mutants are of no use later
    CACHE = tempfile.TemporaryDirectory(prefix="mutants-cache-")
    os.environ |= {"XDG_CACHE_HOME": CACHE.name, "FUSEDREF_DEVICE": "emulator", "OMP_NUM_THREADS": "1"}

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.mutants import Mutant, runner, subjects

SURVIVORS = Path(__file__).with_name("survivors.json")


def explained() -> dict[tuple, str]:
    """Return why each known survivor survives, by the mutant's key."""
    entries = json.loads(SURVIVORS.read_text())
    return {(each["rule"], each["file"], each["before"], each["after"]): each["why"] for each in entries}


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants. Return 1 if one survives without an explanation, or is caught in spite of one."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition(": ")[2])
    parser.add_argument("--only", metavar="FILE", action="append", help="only mutants of this file; may be repeated")
    parser.add_argument("--rule", help="only mutants of this rule")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--limit", type=float, default=runner.LIMIT, help="seconds of one mutant")
    parser.add_argument("--list", action="store_true", help="print the mutants, run none")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the outcomes there; - is standard output")
    parser.add_argument("--originals", action="store_true", help="run the unchanged files, which must survive")
    given = parser.parse_args(arguments)
    unknown = set(given.only or ()) - set(subjects.files())
    if unknown:
        parser.error(f"no mutants are made of {', '.join(sorted(unknown))}; there are {', '.join(subjects.files())}")
    files = given.only or subjects.files()
    make = (lambda file: [subjects.original(file)]) if given.originals else subjects.mutants_of
    mutants = [each for file in files for each in make(file) if given.rule in (None, each.rule)]
    if given.list:
        for each in mutants:
            print(f"{each.file}:{each.line}: {each.rule}\n    - {each.before}\n    + {each.after}")
        print(f"{len(mutants)} mutants")
        return 0
    console = Console(stderr=True)
    outcomes = _run(mutants, given.jobs, given.limit, console)
    return _report(outcomes, given, console)


def _run(mutants: list[Mutant], jobs: int, limit: float, console: Console) -> list[runner.Outcome]:
    """Run the mutants with a progress bar, and return their outcomes in the order of the mutants."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    outcomes = []
    # Without a thread that redraws the bar: this process forks.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("mutants", total=len(mutants))
        for outcome in runner.run(mutants, jobs, limit):
            outcomes.append(outcome)
            progress.update(task, advance=1, description=outcome.mutant.file, refresh=console.is_terminal)
    return sorted(outcomes, key=lambda outcome: mutants.index(outcome.mutant))


def _report(outcomes: list[runner.Outcome], given: argparse.Namespace, console: Console) -> int:
    """Print the table and the mutants that need attention, write the JSON, and return the exit status."""
    known = {each.mutant.key: "unchanged" for each in outcomes} if given.originals else explained()
    table = Table("file", "made", "compile", "caught", "explained", "unexplained")
    survivors = [each for each in outcomes if each.result == "survived"]
    unexplained = [each for each in survivors if each.mutant.key not in known]
    for file in dict.fromkeys(each.mutant.file for each in outcomes):
        here = [each for each in outcomes if each.mutant.file == file]
        counts = Counter(each.result for each in here)
        open_ = sum(each in unexplained for each in here)
        counted = len(here) - counts["uncompiled"]
        row = len(here), counted, counts["caught"], counts["survived"] - open_, open_
        table.add_row(file, *map(str, row))
    counts = Counter(each.result for each in outcomes)
    counted = len(outcomes) - counts["uncompiled"]
    row = len(outcomes), counted, counts["caught"], len(survivors) - len(unexplained), len(unexplained)
    table.add_section()
    table.add_row("all", *map(str, row))
    console.print(table)
    by = Counter(each.by for each in outcomes if each.result == "caught")
    if counted:
        console.print(f"caught: {counts['caught']} of {counted} that compile, {counts['caught'] / counted:.1%}")
    for name, count in by.most_common():
        console.print(f"  {count:4} by {name}", highlight=False)
    # A mutant that is only slower may reach the limit of time on a slow machine: its explanation still holds.
    stale = [
        each
        for each in outcomes
        if each.result == "caught" and each.by != "the limit of time" and each.mutant.key in known
    ]
    errors = [each for each in outcomes if each.result == "error"]
    for title, found in (("survived", unexplained), ("explained as a survivor, but caught", stale), ("error", errors)):
        for each in found:
            mutant = each.mutant
            place = f"{title}: {mutant.file}:{mutant.line}: {mutant.rule} {each.by if title == 'error' else ''}"
            console.print(f"{place}\n    - {mutant.before}\n    + {mutant.after}", markup=False, highlight=False)
    if given.json:
        text = json.dumps(
            {
                "made": len(outcomes),
                "compiled": counted,
                "caught": counts["caught"],
                "by": dict(by),
                "mutants": [
                    {
                        "file": each.mutant.file,
                        "rule": each.mutant.rule,
                        "line": each.mutant.line,
                        "before": each.mutant.before,
                        "after": each.mutant.after,
                        "result": each.result,
                        "by": each.by,
                        "why": known.get(each.mutant.key) if each.result == "survived" else None,
                        "seconds": round(each.seconds, 1),
                    }
                    for each in outcomes
                ],
            },
            indent=1,
        )
        sys.stdout.write(text + "\n") if str(given.json) == "-" else given.json.write_text(text + "\n")
    return int(bool(unexplained or stale or errors))


if __name__ == "__main__":
    sys.exit(main())
