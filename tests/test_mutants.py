"""The rules make the mutants that they should, a few are caught, and what survives is explained."""

import json
from collections import Counter

import pytest

from tests import processes
from tests.mutants import cuda_rules, python_rules, subjects
from tests.mutants.__main__ import SURVIVORS, main

CUDA = """
// a comment with 1 + 2 and a __syncthreads();
#define SIZE (3 + 4)
static_assert(SIZE < 8, "a text - with < signs");
extern "C" __global__ void k(float* y, const float* x, int height, int width)
{
    __shared__ float tile[32];
    const int row = blockIdx.x % height;
    for (int i = threadIdx.x; i < width; i += 32) {
        if (i >= 5 && row != 0) continue;
        tile[i] = 2.5f * fmaf(x[i], y[i], 0.0f);
        __syncthreads();
        y[row * width + i] += min(tile[i], tile[0]);
    }
}
"""
PYTHON = '''
"""A text with 1 + 2."""
def f(x, bias, gamma, *, stride=1):
    """Another, with 3 * 4."""
    if bias is not None:
        x = x + gamma * F.conv2d(x, bias, stride=stride)
    x -= 7
    return x
'''


def test_cuda_rules():
    made = cuda_rules.mutants("k.cu", CUDA)
    assert Counter(each.rule for each in made) == {
        "arithmetic": 4, "comparison": 3, "logic": 1, "assignment": 2, "guard always": 1, "guard never": 1,
        "barrier": 1, "constant": 7, "index": 6, "step": 1, "axis": 6, "bounds": 1, "arguments": 1,
    }  # fmt: skip
    assert all(each.text.count("\n") == CUDA.count("\n") and each.text != CUDA for each in made)
    changes = {(each.rule, each.line): (each.before, each.after) for each in made}
    assert changes["barrier", 12] == ("__syncthreads();", ";")
    assert changes["guard never", 10] == ("if (i >= 5 && row != 0) continue;", "if (false) continue;")
    assert changes["step", 9][1] == "for (int i = threadIdx.x; i < width; i += (32) + 1) {"
    assert changes["bounds", 13][1] == "y[row * width + i] += max(tile[i], tile[0]);"
    assert changes["arguments", 11][1] == "tile[i] = 2.5f * fmaf(y[i], x[i], 0.0f);"


def test_python_rules():
    made = python_rules.mutants("f.py", PYTHON)
    assert Counter(each.rule for each in made) == {
        "arithmetic": 2, "operand": 2, "constant": 1, "name": 4, "argument": 2, "statement": 2,
    }  # fmt: skip
    assert {each.after for each in made if each.rule == "statement"} == {"if False:", "pass"}


def test_there_are_enough_mutants(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert int(listed.split()[-2]) >= 150
    for file in subjects.files():
        assert f"{file}:" in listed


def test_mutants_keep_their_choice():
    """An edit elsewhere in a file leaves its other mutants as they are."""
    path = subjects.path_of("06_shared_tile.cu")
    before = {each.key for each in cuda_rules.mutants(path.name, path.read_text())}
    after = {each.key for each in cuda_rules.mutants(path.name, path.read_text().replace("GROUP = 16", "GROUP = 32"))}
    assert 0 < len(before - after) <= 4


def test_explained_survivors_are_mutants():
    made = {each.key for file in subjects.files() for each in subjects.mutants_of(file)}
    entries = json.loads(SURVIVORS.read_text())
    for each in entries:
        assert (each["rule"], each["file"], each["before"], each["after"]) in made, f"out of date: {each}"
        assert len(each["why"]) > 20
    assert len({json.dumps(each) for each in entries}) == len(entries)


def test_an_unknown_file(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "11_none.cu"])
    assert "no mutants are made of 11_none.cu; there are 01_conv2d.cu" in capsys.readouterr().err


RUN = """
from tests.mutants import Mutant, runner, subjects

scale, split = (subjects.path_of(name).read_text() for name in ("03_scale.cu", "09_split_fp32.cu"))
def changed(file, text, right, wrong):
    assert right in text
    return Mutant(file, "planted", 1, right, wrong, text.replace(right, wrong, 1))

assignment = "y[index] = x[index] * scaling_factor;"
candidates = subjects.mutants_of("candidates.py")
mutants = [
    subjects.original("03_scale.cu"),
    changed("03_scale.cu", scale, assignment, "y[index] = x[index] + scaling_factor;"),
    changed("03_scale.cu", scale, assignment, "while (true) y[index]++;"),
    changed("03_scale.cu", scale, assignment, "y[index] = z;"),
    changed("09_split_fp32.cu", split, "__syncthreads();", ""),
    candidates[0],
]
outcomes = {outcome.mutant: outcome for outcome in runner.run(mutants, jobs=1, limit=4)}
for mutant in mutants:
    print(outcomes[mutant].result, outcomes[mutant].by, sep=": ")
"""


def test_outcomes():
    assert processes.python(RUN, FUSEDREF_DEVICE="emulator").splitlines() == [
        "survived: ",
        "caught: the problem",
        "caught: the limit of time",
        "uncompiled: ",
        "caught: the watched emulator",
        "caught: the problem",
    ]
