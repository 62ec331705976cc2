"""What the emulator counts beside what Nsight Compute counted on a card: same kernels, same problem.

Rungs 01 to 06 agree to the last request, sector and conflict. From 07 on the card's counts are others: nvcc splits and
merges accesses. Which ones is not explained line by line yet, so those kernels are not compared.
"""

import json
from pathlib import Path

import pytest
import torch

from fusedref import bench
from fusedref.emulator import watch
from kernels import profile

COMPARED = ["conv2d", "batch_norm", "scale", "bn_scale", "fused", "fused_block", "folded", "shared_tile"]
MEASURED = Path(profile.ROOT, "lessons", "measured", "ncu_h200.json")


@pytest.fixture(scope="module")
def counted(monkeymodule):
    """The emulator's counters of every rung's kernel."""
    monkeymodule.setenv("FUSEDREF_DEVICE", "emulator")
    with watch() as seen:
        profile.run_rungs(torch.device("cpu"))
    assert not seen.findings, seen.findings
    return seen.counters


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def measured():
    return json.loads(MEASURED.read_text())


def test_the_card_counted_this_problem_and_every_kernel(measured):
    assert set(measured["kernels"]) == profile.kernel_names()
    assert measured["card"].startswith("NVIDIA")
    assert measured["problem"] == bench.describe(profile.PROBLEM)


@pytest.mark.parametrize("kernel", COMPARED)
def test_every_counter_is_the_cards(kernel, counted, measured):
    ours = {name: getattr(counted[kernel], name) // counted[kernel].launches for name in profile.METRICS}
    assert ours == measured["kernels"][kernel]


def test_what_ncu_prints_is_read():
    metric = profile.METRICS["global_load_sectors"]
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        f'"0","conv2d(const float *, int)","{metric}","sector","1,425,408"\n'
        f'"1","conv2d(const float *, int)","{metric}","sector","7"\n'
    )
    assert profile.read(text) == {"conv2d": {"global_load_sectors": 1425408}}
