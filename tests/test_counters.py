"""Compare the emulator's counts with those of Nsight Compute on a card: same kernels, same problems.

Requests, sectors, and the bank conflicts of every line agree exactly. Nsight Compute computes bank conflicts by
instruction, from the lanes' addresses. The hardware's own counter is a little larger, differs from run to run and
belongs to no line: it includes extra passes without a conflict between lanes. The emulator has none of these.

That holds for every rung. For implicit_gemm, which is not a rung, DIFFERS lists the counts that differ on the card.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fusedref import bench
from fusedref.csrc import COMMON
from fusedref.emulator import SourceModule, gpuarray, watch
from fusedref.emulator.compile import build
from kernels import ladder, profile
from tests import nvcc, processes

MEASURED = Path(profile.ROOT, "lessons", "measured", "ncu_h200.json")
KERNELS = sorted(profile.kernel_names())
OF_THE_SOURCE = [name for name in profile.METRICS if name.startswith("global")]
OF_THE_BANKS = [name for name in profile.METRICS if name.startswith("shared")]
DIFFERS = {  # (the emulator's, the card's)
    # On the card, copies of 8 bytes (cp.async) are one request per 16 lanes: 6912 for 3840 here. Why it counts one more
    # sector for each of them is not known.
    "global_load_requests": (7392, 7392 - 3840 + 6912),
    "global_load_sectors": (74688, 74688 + 6912),
    # By instruction, Nsight Compute counts a conflict of two lanes if a load of 16 bytes leaves lanes idle.
    "implicit_gemm_store.cuh: const SumUnit values = *reinterpret_cast<const SumUnit*>(sums);": (
        None, {"shared_load_bank_conflicts": 384}),
}  # fmt: skip
NOISE = 0.05  # the most extra passes per request to shared memory that the card counts without a conflict


@pytest.fixture(scope="module")
def counted(monkeymodule):
    """Return the emulator's counters of every kernel."""
    monkeymodule.setenv("FUSEDREF_DEVICE", "emulator")
    with watch() as seen:
        profile.run_kernels(torch.device("cpu"))
    assert not seen.findings, seen.findings
    return seen.counters


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def measured():
    return json.loads(MEASURED.read_text())


def conflicts_by_line(counters) -> dict[str, dict[str, int]]:
    """Return the emulator's counters of one launch, as the measured file has them."""
    found = {}
    for place, counts in counters.by_line.items():
        conflicts = {name: getattr(counts, name) // counters.launches for name in OF_THE_BANKS if getattr(counts, name)}
        if conflicts:
            found[profile.line(*place)] = conflicts
    return found


def test_the_card_ran_the_same_kernels(measured):
    assert set(measured["kernels"]) == set(KERNELS)
    assert measured["card"].startswith("NVIDIA")
    assert measured["problems"] == [bench.describe(profile.PROBLEM), bench.describe(profile.WIDER)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_requests_and_sectors_equal_the_cards(kernel, counted, measured):
    ours = {name: getattr(counted[kernel], name) // counted[kernel].launches for name in OF_THE_SOURCE}
    if kernel == "implicit_gemm":
        ours |= {name: DIFFERS[name][1] for name in ours if name in DIFFERS and ours[name] == DIFFERS[name][0]}
    runs = measured["kernels"][kernel]["runs"]
    assert len(runs) >= profile.RUNS
    assert [{name: run[name] for name in OF_THE_SOURCE} for run in runs] == [ours] * len(runs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bank_conflicts_equal_the_cards(kernel, counted, measured):
    ours = conflicts_by_line(counted[kernel])
    if kernel == "implicit_gemm":
        ours |= {line: card for line, (here, card) in DIFFERS.items() if ".cuh: " in line and ours.get(line) == here}
    assert ours == measured["kernels"][kernel]["bank_conflicts"]


@pytest.mark.parametrize("name", OF_THE_BANKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_hardware_conflict_noise_is_small(kernel, name, counted, measured):
    card = measured["kernels"][kernel]
    of_lines = sum(counts.get(name, 0) for counts in card["bank_conflicts"].values())
    beyond = [run[name] - of_lines for run in card["runs"]]
    requests = getattr(counted[kernel], name.replace("bank_conflicts", "requests")) // counted[kernel].launches
    assert min(beyond) >= 0
    assert max(beyond) <= NOISE * requests
    assert max(beyond) == 0 or len(set(beyond)) > 1


DIVERGING = """
extern "C" __global__ void choice(float* y, const float* x) {  // the paths join before the store
    for (int i = threadIdx.x; i < 256; i += 32) y[i] = i % 7 < 3 && i / 32 % 4 != 1 ? x[i] : 0.0f;
}
extern "C" __global__ void loops(float* y, const float* x) {  // a lane whose loop has ended waits
    float sum = 0.0f;
    for (int j = 0; j < threadIdx.x % 4; j++)
        for (int k = 0; k <= j; k++) sum += x[32 * (j + k) + threadIdx.x];
    y[threadIdx.x] = sum;
}
extern "C" __global__ void leaving(float* y, const float* x) {  // lanes that go on wait for no others
    for (int i = threadIdx.x; i < 256; i += 32) {
        if (i % 5 == 4) continue;
        if (i > 200) return;
        y[i] = x[i];
    }
}
extern "C" __global__ void joint(float* y, const float* x) {  // the code between two branches runs once
    const bool odd = threadIdx.x % 2;
    float v = 1.0f;
    if (odd) v = x[threadIdx.x];
    y[threadIdx.x] = v;
    if (odd) y[threadIdx.x + 32] = v * v;
}
"""


@pytest.mark.parametrize(
    ("kernel", "loads", "stores"), [("choice", 6, 8), ("loops", 6, 1), ("leaving", 7, 7), ("joint", 1, 2)]
)
def test_diverged_lanes_reconverge(kernel, loads, stores):
    """One request counts for the whole warp once its lanes have reconverged."""
    if build.compiler().clang:
        pytest.skip("clang copies code into the branches that lead to it, and each copy is counted separately")
    function = SourceModule(DIVERGING, no_extern_c=True).get_function(kernel)
    x, y = gpuarray.zeros(256, "float32"), gpuarray.zeros(256, "float32")
    with watch() as seen:
        function(y, x, block=(32, 1, 1), grid=(1, 1))
    counters = seen.counters[kernel]
    assert (counters.global_load_requests, counters.global_store_requests) == (loads, stores)


RAW = """==PROF== Connected
"ID","Kernel Name","Block Size",{metrics}
"","","",{units}
"0","conv2d(const float *, int)","(256, 1, 1)",{first}
"1","conv2d(const float *, int)","(256, 1, 1)",{second}
"2","scale","(256, 1, 1)",{second}
"""


def test_read_counters():
    def columns(values):
        return ",".join(f'"{value}"' for value in values)

    text = RAW.format(
        metrics=columns(profile.METRICS.values()),
        units=columns(["sector"] * 6),
        first=columns(["1,425,408", "33536.000000", "0", "3", "4", "5"]),
        second=columns(range(6)),
    )
    read = profile.read_counters(text)
    assert list(read) == ["conv2d", "scale"]
    assert len(read["conv2d"]) == 2
    assert read["conv2d"][0] == dict(zip(profile.METRICS, [1425408, 33536, 0, 3, 4, 5], strict=True))
    assert read["scale"] == [dict(zip(profile.METRICS, range(6), strict=True))]


SOURCE = """"Kernel Name","conv2d(int)",
"Address","Source","Access Operation","L1 Wavefronts Shared","L1 Wavefronts Shared Ideal"
"0x7f00","      MOV R1, R2","-","0","0"
"0x7f10","      STS [R3], R4","Store","24","8"
"0x7f20","      LDS R3, [R4]","Load","8","8"
"0x7f30","      LDS R3, [R4+0x4]","Load","11","8"
"0x7f40","      LDGSTS.E [R2], [R9]","Load,Store","32","4"
"Kernel Name","conv2d(int)",
"Address","Source","Access Operation","L1 Wavefronts Shared","L1 Wavefronts Shared Ideal"
"0x7f00","      STS [R3], R4","Store","99","8"
"Kernel Name","scale",
"Address","Source","Access Operation"
"0x7e00","      MOV R1, R2","-"
"""


def test_read_conflicts_by_line():
    conflicts = profile.read_conflicts(SOURCE)
    assert conflicts == {"conv2d": {1: ("store", 16), 3: ("load", 3)}, "scale": {}}
    places = [("03_scale.cu", 1)] + [("03_scale.cu", 2)] * 3
    assert profile.by_line(conflicts["conv2d"], places) == {
        profile.line("03_scale.cu", 2): {"shared_store_bank_conflicts": 16, "shared_load_bank_conflicts": 3}
    }


ASSEMBLY = """.text.tensor_cores:
	//## File "/tmp/x/08_tensor_cores.cu", line 29
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   S2R R3, SR_TID.X ;
	//## File "/x/ptx.cuh", line 126 inlined at "/tmp/x/08_tensor_cores.cu", line 54
	//## File "/tmp/x/08_tensor_cores.cu", line 54
        /*0020*/              @!P0 IMAD.IADD.U32 R12, R12, 0x1, R21 ;
.L_x_4:
	//## File "/x/pipeline.cu", line 7 inlined at "/x/pipeline.cu", line 9
	//## File "/x/pipeline.cu", line 9
        /*0030*/               @P0 BRA `(.L_x_4) ;
.text.another:
	//## File "/tmp/x/03_scale.cu", line 5
        /*0000*/                   EXIT ;
"""


def test_replaced_headers():
    assert {path.name for path in build.INCLUDE.iterdir() if (COMMON / path.name).exists()} == profile.REPLACED


def test_read_lines_of_instructions():
    assert profile.read_places(ASSEMBLY) == {
        "tensor_cores": [("08_tensor_cores.cu", 29)] * 2 + [("08_tensor_cores.cu", 54), ("pipeline.cu", 7)],
        "another": [("03_scale.cu", 5)],
    }
    assert profile.line("05_folded.cu", 15) == '05_folded.cu: #include "folded.cu"'


@pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("nvdisasm")), reason="nvcc or nvdisasm is not on PATH")
def test_read_lines_of_a_compiled_kernel(tmp_path):
    options = ladder.tensor_cores.options(profile.PROBLEM)
    cubin = nvcc.cubin(ladder.KERNELS / "08_tensor_cores.cu", tmp_path, "90a", options)
    done = processes.run(["nvdisasm", "-gi", "-c", cubin], check=True)
    places = profile.read_places(done.stdout)["tensor_cores"]
    assert len(places) > 500
    assert {file for file, _ in places} == {"08_tensor_cores.cu"}
