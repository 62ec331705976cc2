"""Exercises of lesson 10 on what flows through the pipeline: a product by wgmma, and runs in whole sectors."""

from __future__ import annotations

from functools import partial

import numpy as np

from fusedref.emulator import driver
from lessons import steps
from lessons.exercises import Exercise, Wrong
from lessons.exercises.e10 import SEEDS
from lessons.exercises.kernels import compare
from lessons.exercises.warp import function, watched

# --- d: the multiplying trade ---

_PRODUCT = (steps.FOLDER / "product.cu").read_text(encoding="utf-8")
_BEFORE, _AFTER = (
    _PRODUCT[: _PRODUCT.index("__device__ void multiply")],
    _PRODUCT[_PRODUCT.index("__device__ void store") :],
)
MULTIPLY = "__device__ void multiply(Shared& shared, const float* w, const float* bias, int pixels, int warp, int lane)"
GIVEN = (
    f"{_BEFORE}{MULTIPLY};\n\n{_AFTER}".replace(
        "float* y,        //", "const float* bias,  // [CHANNELS]\n    float* y,  //"
    )
    .replace("multiply(shared, w, pixels", "multiply(shared, w, bias, pixels")
    .strip()
)

_MULTIPLY = f"""
{MULTIPLY}
{{
    const int group = lane / 4, member = lane % 4;
    uint32_t a[4];
    for (int i = 0; i < 4; i++) {{
        const int row = 16 * warp + group + i % 2 * 8, k = 2 * member + i / 2 * 8;
        a[i] = pair(w[row * IN_CHANNELS + k], w[row * IN_CHANNELS + k + 1]);
    }}
    for (int tile = blockIdx.x, step = 0; tile < pixels / PIXELS; tile += gridDim.x, step++) {{
        const int s = step % STAGES;
        ptx::mbarrier_wait(&shared.full[s], step / STAGES % 2);
        float sum[PIXELS / 2];
        ptx::wgmma_fence();
        ptx::wgmma_f16(sum, a[0], a[1], a[2], a[3], ptx::Columns(shared.stage[s]).at(0, PIXELS * 16), false);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);

        ptx::mbarrier_wait(&shared.stored, (step + 1) % 2);
        for (int j = 0; j < PIXELS / 8; j++)
            for (int h = 0; h < 2; h++) {{
                const int channel = 16 * warp + group + 8 * h;
                const float first = sum[4 * j + 2 * h] + bias[channel], second = sum[4 * j + 2 * h + 1] + bias[channel];
                float* to = &shared.buffer[channel][8 * j + 2 * member];
                *reinterpret_cast<float2*>(to) = make_float2(fmaxf(first, 0), fmaxf(second, 0));
            }}
        ptx::fence_async_shared();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.staged);
    }}
}}
"""
_PRODUCT_FINDINGS = {
    "missing-wait": "Between wgmma's commit and its wait, the sums and the stage belong to the tensor cores.",
    "race": "A stage goes back only after wgmma's wait. The buffer is yours only after its wait, and the storing "
    "warp's only after the fence, `__syncwarp()` and the arrival.",
}


def _judge_relu(source: str) -> str:
    kernel = function(source, "product")
    draw = np.random.default_rng(10)
    for pixels, blocks in ((32, 1), (160, 2)):
        x, w = draw.standard_normal((16, pixels), dtype=np.float32), draw.standard_normal((64, 16), dtype=np.float32)
        bias = draw.standard_normal(64, dtype=np.float32)
        right = np.maximum(_dot(w, x) + bias[:, None], 0)
        for seed in SEEDS[:2]:
            y = np.empty((64, pixels), dtype=np.float32)
            arguments = driver.In(x), driver.In(w), driver.In(bias), driver.Out(y), np.int32(pixels)
            launch = partial(kernel, *arguments, block=(192, 1, 1), grid=(blocks, 1))
            seen = watched(launch, seed, _PRODUCT_FINDINGS)
            _explain_product(y.astype(np.float64), w, x, bias.astype(np.float64)[:, None])
            compare(y, right, ("channel", "pixel"))
    conflicts = seen.counters["product"].bank_conflicts
    requests = seen.counters["product"].shared_store_requests
    return f"Your kernel: {conflicts} bank conflicts in {requests} stores to shared memory (ours: 0 in 170)."


def _dot(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return w @ x in float64, of numbers rounded to fp16."""
    return w.astype(np.float16).astype(np.float64) @ x.astype(np.float16).astype(np.float64)


def _explain_product(y: np.ndarray, w: np.ndarray, x: np.ndarray, bias: np.ndarray) -> None:
    """Raise Wrong if y is a result that a known mistake would give."""
    dot = _dot(w, x)
    quarters = w.reshape(4, 2, 8, 2, 8)  # warp, half of the rows, group, half of k, k
    for text, mistaken in (
        ("The bias is missing.", np.maximum(dot, 0)),
        ("Negative outputs should be 0.", dot + bias),
        ("The bias is added after the maximum; it belongs inside.", np.maximum(dot, 0) + bias),
        (
            "Registers 1 and 2 of the weights are exchanged: register 1 has row group + 8, register 2 has k + 8.",
            np.maximum(_dot(quarters.transpose(0, 3, 2, 1, 4).reshape(w.shape), x) + bias, 0),
        ),
        (
            "The halves of the rows are exchanged: which of a lane's sums belong to row group + 8?",
            np.maximum(_dot(quarters[:, ::-1].reshape(w.shape), x) + bias, 0),
        ),
    ):
        if np.allclose(y, mistaken, atol=1e-4):
            raise Wrong(text)


relu = Exercise(
    _judge_relu,
    [
        "A lane's weights: register i has row group + 8 (i % 2), and two neighbours from k = 2 member + 8 (i / 2) on.",
        "A lane's sums: numbers 4 j to 4 j + 3 are of columns 8 j + 2 member and the next, two for row group, then "
        "two for row group + 8.",
        "Warp w has rows 16 w to 16 w + 15, of the weights and of the sums. The bias goes by row.",
        "`full` has one arrival, `empty` and `staged` have four: one of each multiplying warp.",
    ],
    GIVEN + "\n" + _MULTIPLY,
)

# --- e: whole sectors ---

PARTS = """
__device__ void part(int first, int count, int size, int& begin, int& end);

extern "C" __global__ void parts(int* parts, int runs, int count)  // parts: [runs, 2], begin and end of each run
{
    const int run = blockIdx.x * blockDim.x + threadIdx.x;
    if (run < runs) part(run * count, count, runs * count, parts[2 * run], parts[2 * run + 1]);
}
"""
_PART = """
__device__ void part(int first, int count, int size, int& begin, int& end)
{
    begin = (first + 7) / 8 * 8;
    end = min((first + count + 7) / 8 * 8, size);
}
"""


def _judge_part(source: str) -> str:
    kernel = function(source, "parts")
    for runs, count in ((1, 12), (5, 252), (7, 20), (4, 64), (9, 12)):
        ends = np.full((runs, 2), -1, dtype=np.int32)
        watched(partial(kernel, driver.Out(ends), np.int32(runs), np.int32(count), block=(32, 1, 1), grid=(1, 1)))
        _explain_parts(ends.tolist(), count, f"With {runs} run{'s' * (runs > 1)} of {count} numbers:")
    return "Sectors written in part: 0 (par 0), but for the end of y. No number is stored twice, and none is left out."


def _explain_parts(ends: list[list[int]], count: int, where: str) -> None:
    size = len(ends) * count
    for run, (begin, end) in enumerate(ends):
        for what, place in (("begins", begin), ("ends", end)):
            if place % 8 and place != size:
                raise Wrong(
                    f"{where} the part of run {run} {what} before number {place}, {place % 8 * 4} bytes into a sector."
                )
        if begin > run * count + 7 or end > (run + 1) * count + 7:
            raise Wrong(f"{where} run {run} computes numbers {begin} to {end - 1}; 7 beyond its own are enough.")
        after = ends[run + 1][0] if run + 1 < len(ends) else size
        if end > size:
            raise Wrong(f"{where} the last part ends at {end}, but y has {size} numbers.")
        if end > after:
            raise Wrong(f"{where} numbers {after} to {end - 1} are stored by run {run} and by run {run + 1}.")
        if end < after:
            raise Wrong(f"{where} nobody stores numbers {end} to {after - 1}.")
    if ends[0][0] != 0:
        raise Wrong(f"{where} nobody stores numbers 0 to {ends[0][0] - 1}.")


part = Exercise(
    _judge_part,
    [
        "A sector has 8 numbers and begins at a multiple of 8. Round up: (n + 7) / 8 * 8.",
        "If a run begins inside a sector, the run before it stores that sector. So where does the part begin?",
        "The run after begins at first + count; its part begins where yours ends. And y itself ends at size.",
    ],
    PARTS + _PART,
)
