"""Small kernels, each with one planted bug and the finding that must name it, and for each a correct look-alike.

Every case is complete: source, launch and arguments. ``run`` takes the objects that run it, so that the same corpus
runs on the emulator (test_emulator_watch.py) and on a card (corpus_on_card.py). Each module adds its cases to CASES.
"""

from tests.corpus import accesses, barriers, contents, copies, races
from tests.corpus.case import CASES, Case, run

BUGS = [case for case in CASES if case.expected]
CORRECT = [case for case in CASES if not case.expected]

__all__ = ["BUGS", "CASES", "CORRECT", "Case", "accesses", "barriers", "contents", "copies", "races", "run"]
