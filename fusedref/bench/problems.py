"""The problems that the bench times, and their names."""

from __future__ import annotations

from fusedref.problem import Problem

# Layers of other sizes: the first edition of problem 73, and layers that networks have.
OTHER_PROBLEMS = [
    Problem(128, 3, 16, 32, 32, 3),
    Problem(32, 3, 64, 224, 224, 7, stride=2, padding=3),
    Problem(32, 64, 256, 56, 56, 1),
    Problem(32, 64, 64, 56, 56, 3, padding=1),
    Problem(32, 256, 256, 14, 14, 3, padding=1),
    Problem(32, 128, 128, 56, 56, 3, stride=2, padding=1),
    Problem(8, 64, 64, 64, 64, 3, padding=2, dilation=2),
    Problem(32, 64, 64, 56, 56, 3, padding=1, groups=4),
    Problem(32, 128, 128, 56, 56, 3, padding=1, groups=128),
    Problem(32, 16, 32, 64, 64, 5, padding=2),
    Problem(7, 5, 33, 61, 47, 3, padding=1),
    Problem(1, 32, 64, 112, 112, 3, stride=2, padding=1),
]
TINY = Problem(1, 8, 8, 10, 10, 3)  # on which the device spends less time than the host


def describe(problem: Problem) -> str:
    """Return the sizes in one line: batch, in_channels->out_channels, heightxwidth, kernel, non-default options."""
    text = f"{problem.batch}, {problem.in_channels}->{problem.out_channels}, {problem.height}x{problem.width}"
    text += f", {'x'.join(map(str, problem.kernel))}"
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        if getattr(problem, name) != default:
            text += f", {name} {getattr(problem, name)}"
    return text


def in_family(problem: Problem) -> bool:
    """Return whether the fast kernels are designed for such a problem: one group, few input channels, small kernel."""
    small = problem.in_channels <= 64 and max(problem.kernel) <= 7
    return small and max(problem.strides) <= 2 and problem.groups == 1
