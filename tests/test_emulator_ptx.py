"""The functions of ptx.cuh on the emulator: fragments, the tensor core's rounding, asynchronous copies."""

import numpy as np
import pytest

from fusedref import emulator
from fusedref.csrc import COMMON
from fusedref.emulator import driver

# One warp per block: d = a b + c, with each lane's fragments in memory.
MMA = r"""
#include "ptx.cuh"
extern "C" __global__ void mma(const uint32_t* a, const uint32_t* b, const float* c, float* d)
{
    const int lane = blockIdx.x * 32 + threadIdx.x;
    a += 4 * lane; b += 2 * lane; c += 4 * lane; d += 4 * lane;
    const float from[4] = {c[0], c[1], c[2], c[3]};
    float to[4];
    MULTIPLY
    for (int i = 0; i < 4; i++) d[i] = to[i];
}
"""
FULL = "(to, a[0], a[1], a[2], a[3], b[0], b[1], from);"
HALF = "(to, a[0], a[1], b[0], from);"
INSTRUCTIONS = {  # name: (call, k, exponent bits, fraction bits)
    "mma_m16n8k16_f16": (FULL, 16, 5, 10),
    "mma_m16n8k8_f16": (HALF, 8, 5, 10),
    "mma_m16n8k16_bf16": (FULL, 16, 8, 7),
    "mma_m16n8k8_bf16": (HALF, 8, 8, 7),
    "mma_m16n8k8_tf32": (FULL, 8, 8, 10),
}


def run_mma(backend, name, a, b, c, options=()):
    """Return d of the instruction for fragments a [warps, 32, 4], b [warps, 32, 2] and c [warps, 32, 4]."""
    SourceModule, drv = backend
    source = MMA.replace("MULTIPLY", f"ptx::{name}{INSTRUCTIONS[name][0]}")
    module = SourceModule(source, no_extern_c=True, options=list(options), include_dirs=[str(COMMON)])
    d = np.empty_like(c)
    module.get_function("mma")(drv.In(a), drv.In(b), drv.In(c), drv.Out(d), block=(32, 1, 1), grid=(len(a), 1))
    return d


EMULATOR = (emulator.SourceModule, driver)


def numbers(bits, exponent_bits, fraction_bits):
    """Return the values of stored numbers of a format, in float64."""
    all_ones, bias = (1 << exponent_bits) - 1, (1 << exponent_bits - 1) - 1
    bits = bits.astype(np.int64)
    exponent, fraction = bits >> fraction_bits & all_ones, bits & (1 << fraction_bits) - 1
    significand = np.where(exponent > 0, fraction + (1 << fraction_bits), fraction)
    value = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - fraction_bits)
    return np.where(bits >> exponent_bits + fraction_bits & 1, -value, value)


def draw_fragments(name, warps, seed, kind):
    """Return random matrices of the instruction's format: their fragments a, b, c, and A, B, C themselves."""
    _, k, exponent_bits, fraction_bits = INSTRUCTIONS[name]
    rng = np.random.default_rng(seed)
    width = 1 + exponent_bits + fraction_bits
    if kind == "any bits":
        stored = rng.integers(0, 1 << width, (warps, 24, k), dtype=np.uint64)
        c = rng.integers(0, 1 << 32, (warps, 16, 8), dtype=np.uint64).astype(np.uint32).view(np.float32)
    else:
        spread = np.exp2(rng.integers(-9, 9, (warps, 24, k))) if kind == "spread" else 1
        single = (rng.standard_normal((warps, 24, k)) * spread).astype(np.float32)
        if exponent_bits == 5:
            stored = single.astype(np.float16).view(np.uint16)
        else:
            stored = single.view(np.uint32) >> 32 - width
        c = (rng.standard_normal((warps, 16, 8)) * 8).astype(np.float32)
    stored = stored.astype(np.uint32)
    A, B = stored[:, :16], stored[:, 16:]  # [16, k] and, as columns, [8, k]
    lane = np.arange(32)
    group, member = lane // 4, lane % 4
    packed = 1 if width > 16 else 2
    a, b = np.zeros((warps, 32, 4), np.uint32), np.zeros((warps, 32, 2), np.uint32)
    for half in range(k // (4 * packed)):
        for e in range(packed):
            at, shift = half * 4 * packed + member * packed + e, 13 if packed == 1 else 16 * e
            a[:, :, 2 * half] |= A[:, group, at] << np.uint32(shift)
            a[:, :, 2 * half + 1] |= A[:, group + 8, at] << np.uint32(shift)
            b[:, :, half] |= B[:, group, at] << np.uint32(shift)
    return a, b, to_lanes(c), numbers(A, exponent_bits, fraction_bits), numbers(B, exponent_bits, fraction_bits), c


def to_lanes(matrix):
    """Return the accumulator fragments [warps, 32, 4] of matrices [warps, 16, 8]."""
    group, member = np.arange(32) // 4, np.arange(32) % 4
    registers = [matrix[:, group + 8 * (i // 2), 2 * member + i % 2] for i in range(4)]
    return np.ascontiguousarray(np.stack(registers, axis=-1))


class TestMma:
    @pytest.mark.parametrize("name", INSTRUCTIONS)
    def test_exact_mode_is_the_matrix_product(self, name):
        a, b, c, A, B, C = draw_fragments(name, 20, 1, "normal")
        d = run_mma(EMULATOR, name, a, b, c, ["-DTENSOR_CORE=exact"])
        true = C.astype(np.float64) + A @ B.transpose(0, 2, 1)
        assert np.array_equal(d, to_lanes(true.astype(np.float32)))

    @pytest.mark.parametrize(("rounding", "bits"), [("hopper", 25), ("ampere", 24)])
    def test_bits_below_the_largest_exponent_are_cut(self, rounding, bits):
        """Bits that are cut off before the sum cannot carry into a bit that is kept."""
        a, b, c = np.zeros((1, 32, 4), np.uint32), np.zeros((1, 32, 2), np.uint32), np.zeros((1, 32, 4), np.float32)
        one = 0x3C00
        a[0, 0, 0] = one | one << 16  # row 0, k = 0 and 1
        a[0, 1, 0] = one | one << 16  # row 0, k = 2 and 3

        def small(exponent):
            return int(np.float16(2.0**exponent).view(np.uint16))

        b[0, 0, 0] = one | small(-24) << 16  # column 0, k = 0: 1, and k = 1: 2^-24
        b[0, 1, 0] = small(-24)
        c[0, 0, 0] = 0.0
        d = run_mma(EMULATOR, "mma_m16n8k16_f16", a, b, c, [f"-DTENSOR_CORE={rounding}"])
        assert d[0, 0, 0] == np.float32(1 + 2.0**-23)  # both kept: 24 and 25 bits reach 2^-24
        # With 1 doubled, 2^-24 is 25 bits below the largest exponent: Hopper keeps it, Ampere does not.
        b[0, 0, 0] = int(np.float16(2).view(np.uint16)) | small(-24) << 16
        c[0, 0, 0] = 2.0**-23
        d = run_mma(EMULATOR, "mma_m16n8k16_f16", a, b, c, [f"-DTENSOR_CORE={rounding}"])
        assert d[0, 0, 0] == np.float32(2 + (2.0**-22 if bits == 25 else 0))

    @pytest.mark.parametrize(
        ("a0", "b0", "c0", "expected"),
        [
            (np.inf, 1, 0, np.inf),
            (np.inf, 0, 0, np.nan),
            (np.inf, -1, np.inf, np.nan),
            (1, 1, -np.inf, -np.inf),
            (np.nan, 0, 0, np.nan),
        ],
    )
    def test_nan_and_infinity(self, a0, b0, c0, expected):
        a, b, c = np.zeros((1, 32, 4), np.uint32), np.zeros((1, 32, 2), np.uint32), np.zeros((1, 32, 4), np.float32)
        a[0, 0, 0], b[0, 0, 0] = int(np.float16(a0).view(np.uint16)), int(np.float16(b0).view(np.uint16))
        c[0, 0, 0] = c0
        d = run_mma(EMULATOR, "mma_m16n8k16_f16", a, b, c)
        assert np.array_equal(d[0, 0, 0], np.float32(expected), equal_nan=True)

    @pytest.mark.gpu
    @pytest.mark.parametrize("kind", ["normal", "spread", "any bits"])
    @pytest.mark.parametrize("name", INSTRUCTIONS)
    def test_bit_for_bit_as_the_card(self, name, kind):
        from fusedref.cuda import SourceModule, drv

        capability = drv.Context.get_device().compute_capability()
        rounding = {(8, 0): "ampere", (9, 0): "hopper"}.get(capability)
        if rounding is None:
            pytest.skip(f"the rounding of sm_{capability[0]}{capability[1]} is not modelled")
        a, b, c, *_ = draw_fragments(name, 500, 2, kind)
        card = run_mma((SourceModule, drv), name, a, b, c)
        emulated = run_mma(EMULATOR, name, a, b, c, [f"-DTENSOR_CORE={rounding}"])
        assert np.array_equal(card.view(np.uint32), emulated.view(np.uint32))


MMA_F64 = r"""
#include "ptx.cuh"
extern "C" __global__ void mma(const double* a, const double* b, const double* c, double* d)
{
    const int lane = blockIdx.x * 32 + threadIdx.x;
    a += 2 * lane; b += lane; c += 4 * lane; d += 4 * lane;
    const double from[4] = {c[0], c[1], c[2], c[3]};
    double to[4];
    ptx::mma_m16n8k4_f64(to, a[0], a[1], b[0], from);
    for (int i = 0; i < 4; i++) d[i] = to[i];
}
"""


def run_mma_f64(door, A, B, C):
    """Return the fragments [warps, 32, 4] of A B + C, for A [warps, 16, 4], B [warps, 8, 4] by columns, and C."""
    SourceModule, drv = door
    group, member = np.arange(32) // 4, np.arange(32) % 4
    a, b = np.stack([A[:, group, member], A[:, group + 8, member]], axis=-1), B[:, group, member]
    module = SourceModule(MMA_F64, no_extern_c=True, include_dirs=[str(COMMON)])
    c = to_lanes(C)
    d = np.empty_like(c)
    arrays = map(np.ascontiguousarray, (a, b, c))
    module.get_function("mma")(*map(drv.In, arrays), drv.Out(d), block=(32, 1, 1), grid=(len(A), 1))
    return d


class TestMmaF64:
    def test_it_is_the_matrix_product(self):
        rng = np.random.default_rng(5)
        A, B, C = (
            rng.integers(-(2**20), 2**20, shape).astype(np.float64) for shape in ((20, 16, 4), (20, 8, 4), (20, 16, 8))
        )
        assert np.array_equal(run_mma_f64(EMULATOR, A, B, C), to_lanes(C + A @ B.transpose(0, 2, 1)))

    @pytest.mark.parametrize(("a", "b", "c", "expected"), [
        (np.inf, 1, 0, np.inf), (np.inf, 0, 0, np.nan), (np.inf, -1, np.inf, np.nan), (1, 1, -np.inf, -np.inf),
        (np.nan, 0, 0, np.nan), (1e200, 1e200, 0, np.inf), (-0.0, 0, -0.0, -0.0), (5e-324, 1, 0, 5e-324),
    ])  # fmt: skip
    def test_what_is_special(self, a, b, c, expected):
        A, B, C = np.zeros((1, 16, 4)), np.zeros((1, 8, 4)), np.full((1, 16, 8), -0.0)
        B[...] = -0.0 if expected == 0 else 0.0
        A[0, 9, 2], B[0, 3, 2], C[0, 9, 3] = a, b, c
        d = run_mma_f64(EMULATOR, A, B, C)[0, 1 * 4 + 1, 3]  # row 9, column 3
        assert np.array_equal(d, np.float64(expected), equal_nan=True)
        assert np.signbit(d) == np.signbit(expected) or np.isnan(d)

    def test_products_are_not_rounded(self):
        A, B, C = np.zeros((1, 16, 4)), np.zeros((1, 8, 4)), np.zeros((1, 16, 8))
        A[0, 0, 0] = B[0, 0, 0] = 1 + 2.0**-52
        C[0, 0, 0] = -1
        assert run_mma_f64(EMULATOR, A, B, C)[0, 0, 0] == 2.0**-51 + 2.0**-104

    @pytest.mark.gpu
    def test_bit_for_bit_as_the_card(self):
        from fusedref.cuda import SourceModule, drv

        if drv.Context.get_device().compute_capability() < (9, 0):
            pytest.skip("the instruction is sm_90's")
        rng = np.random.default_rng(6)
        A, B = (
            rng.standard_normal((500, rows, 4)) * np.exp2(rng.integers(-40, 40, (500, rows, 4))) for rows in (16, 8)
        )
        C = rng.standard_normal((500, 16, 8))
        card, emulated = (run_mma_f64(door, A, B, C) for door in ((SourceModule, drv), EMULATOR))
        assert np.array_equal(card.view(np.uint64), emulated.view(np.uint64))


LDMATRIX = r"""
#include "ptx.cuh"
extern "C" __global__ void load(const uint4* rows, uint32_t* out)
{
    __shared__ uint4 tile[32];
    tile[threadIdx.x] = rows[threadIdx.x];
    __syncwarp();
    uint32_t d[4];
    ptx::LOAD(d, &tile[threadIdx.x]);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
}
"""


@pytest.mark.parametrize("name", ["ldmatrix_x4", "ldmatrix_x4_trans"])
def test_ldmatrix_gives_every_lane_its_fragments(name):
    elements = np.arange(32 * 8, dtype=np.uint16).reshape(4, 8, 8)  # matrix, row, column
    module = emulator.SourceModule(LDMATRIX.replace("LOAD", name), no_extern_c=True, include_dirs=[str(COMMON)])
    out = np.empty((32, 4), np.uint32)
    module.get_function("load")(driver.In(elements), driver.Out(out), block=(32, 1, 1))
    matrices = elements.transpose(0, 2, 1) if name.endswith("trans") else elements
    for lane in range(32):
        for matrix in range(4):
            low, high = matrices[matrix, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert out[lane, matrix] == int(high) << 16 | int(low)


COPIES = r"""
#include "ptx.cuh"
extern "C" __global__ void async(const float* x, float* y)
{
    __shared__ __align__(16) float tile[128];
    ptx::cp_async_16(&tile[4 * threadIdx.x], &x[4 * threadIdx.x], threadIdx.x != 31);
    ptx::cp_async_commit();
    WAIT
    __syncthreads();
    for (int i = 0; i < 4; i++) y[32 * i + threadIdx.x] = tile[32 * i + threadIdx.x];
}
extern "C" __global__ void bulk(const float* x, float* y, int tiles)
{
    __shared__ __align__(16) float tile[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) { ptx::mbarrier_init(&full, 1); ptx::mbarrier_init_fence(); }
    __syncthreads();
    for (int i = 0; i < tiles; i++) {
        if (threadIdx.x == 0) {
            ptx::mbarrier_arrive_expect_tx(&full, 256);
            ptx::bulk_load(tile, x + 64 * i, 256, &full);
        }
        MBARRIER_WAIT
        tile[threadIdx.x] *= 2;
        ptx::fence_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) { ptx::bulk_store(y + 64 * i, tile, 256); ptx::bulk_commit(); STORE_WAIT }
        __syncthreads();
    }
}
"""


def run_copies(name, arguments, block, **removed):
    pieces = {
        "MBARRIER_WAIT": "ptx::mbarrier_wait(&full, i % 2);",
        "STORE_WAIT": "ptx::bulk_wait_read<0>();",
        "WAIT": "ptx::cp_async_wait<0>();",
        **removed,
    }
    source = COPIES
    for piece, text in pieces.items():
        source = source.replace(f" {piece}", f" {text}")
    module = emulator.SourceModule(source, no_extern_c=True, include_dirs=[str(COMMON)])
    module.get_function(name)(*arguments, block=(block, 1, 1))


def test_cp_async_and_its_zeros():
    x, y = np.arange(1, 129, dtype=np.float32), np.zeros(128, np.float32)
    run_copies("async", (driver.In(x), driver.Out(y)), 32)
    assert np.array_equal(y, np.where(np.arange(128) < 124, x, 0))  # the last copy was not valid: zeros


def test_a_copy_nobody_waits_for_has_not_happened():
    x, y = np.arange(1, 129, dtype=np.float32), np.zeros(128, np.float32)
    run_copies("async", (driver.In(x), driver.Out(y)), 32, WAIT="")
    assert np.isnan(y).all()


def test_bulk_copies_both_ways():
    x, y = np.arange(320, dtype=np.float32), np.zeros(320, np.float32)
    run_copies("bulk", (driver.In(x), driver.Out(y), np.int32(5)), 64)
    assert np.array_equal(y, 2 * x)


def test_a_buffer_filled_again_before_its_store_has_read_it():
    x, y = np.arange(320, dtype=np.float32), np.zeros(320, np.float32)
    run_copies("bulk", (driver.In(x), driver.Out(y), np.int32(5)), 64, STORE_WAIT="")
    assert not np.array_equal(y, 2 * x)


def test_a_bulk_load_nobody_waits_for_has_not_happened():
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run_copies("bulk", (driver.In(x), driver.Out(y), np.int32(1)), 64, MBARRIER_WAIT="")
    assert np.isnan(y).all()


def test_an_mbarrier_without_its_init():
    source = COPIES.replace("if (threadIdx.x == 0) { ptx::mbarrier_init(&full, 1); ptx::mbarrier_init_fence(); }", "")
    source = source.replace(" MBARRIER_WAIT", "").replace(" STORE_WAIT", "").replace(" WAIT", "")
    module = emulator.SourceModule(source, no_extern_c=True, include_dirs=[str(COMMON)])
    x = np.zeros(64, np.float32)
    with pytest.raises(driver.LaunchError, match="an mbarrier is used before its mbarrier_init"):
        module.get_function("bulk")(driver.In(x), driver.Out(x), np.int32(1), block=(64, 1, 1))


def test_a_bulk_copy_of_an_odd_length():
    source = COPIES.replace("x + 64 * i, 256,", "x + 64 * i, 250,")
    source = source.replace(" MBARRIER_WAIT", "").replace(" STORE_WAIT", "").replace(" WAIT", "")
    module = emulator.SourceModule(source, no_extern_c=True, include_dirs=[str(COMMON)])
    x = np.zeros(64, np.float32)
    with pytest.raises(driver.LaunchError, match="multiple of 16 bytes"):
        module.get_function("bulk")(driver.In(x), driver.Out(x), np.int32(1), block=(64, 1, 1))


SMALL = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void convert(const float* x, __half* h, __nv_bfloat16* b, float* back, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half_rn(x[i]);
    b[i] = __float2bfloat16_rn(x[i]);
    back[i] = __half2float(__hfma(h[i], __float2half(2.0f), h[i])) + __bfloat162float(b[i]);
}
"""


def test_sixteen_bit_numbers():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    bits = np.concatenate([rng.integers(0, 1 << 32, 200000, dtype=np.uint64), np.arange(0, 1 << 23, 977)])
    x = bits.astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    h, b, back = np.empty(x.size, np.uint16), np.empty(x.size, np.uint16), np.empty(x.size, np.float32)
    module = emulator.SourceModule(SMALL, no_extern_c=True)
    module.get_function("convert")(
        driver.In(x),
        driver.Out(h),
        driver.Out(b),
        driver.Out(back),
        np.int32(x.size),
        block=(256, 1, 1),
        grid=((x.size + 255) // 256, 1),
    )
    half, bfloat = torch.from_numpy(x).half(), torch.from_numpy(x).bfloat16()
    assert np.array_equal(h, half.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(b, bfloat.view(torch.int16).numpy().view(np.uint16))
    expected = (half.double() * 3).half().float() + bfloat.float()
    assert np.array_equal(back, expected.numpy(), equal_nan=True)


DIRECTED = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void directed(const float* x, __half* h, __nv_bfloat16* b, int* whole, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[3 * i] = __float2half_rz(x[i]), h[3 * i + 1] = __float2half_rd(x[i]), h[3 * i + 2] = __float2half_ru(x[i]);
    b[3 * i] = __float2bfloat16_rz(x[i]);
    b[3 * i + 1] = __float2bfloat16_rd(x[i]), b[3 * i + 2] = __float2bfloat16_ru(x[i]);
    const __half near = __float2half(x[i]);
    whole[4 * i] = __half2int_rn(near), whole[4 * i + 1] = __half2int_rz(near);
    whole[4 * i + 2] = __half2int_rd(near), whole[4 * i + 3] = __half2int_ru(near);
}
"""


def test_sixteen_bit_conversions_in_a_direction():
    bits = np.random.default_rng(4).integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    chosen = np.float32([0, 1, 2.5, -3.5, 65504, 65520, -7e4, 1e-8, -1e-8, np.inf, -np.inf])
    x = np.concatenate([x[np.isfinite(x)], chosen])
    h, b, whole = np.empty((x.size, 3), np.float16), np.empty((x.size, 3), np.uint16), np.empty((x.size, 4), np.int32)
    module = emulator.SourceModule(DIRECTED, no_extern_c=True)
    module.get_function("directed")(
        driver.In(x),
        driver.Out(h),
        driver.Out(b),
        driver.Out(whole),
        np.int32(x.size),
        block=(256, 1, 1),
        grid=((x.size + 255) // 256, 1),
    )
    with np.errstate(over="ignore"):
        near = x.astype(np.float16)
        down = np.where(near > x, np.nextafter(near, np.float16(-np.inf)), near)
        up = np.where(near < x, np.nextafter(near, np.float16(np.inf)), near)
    assert np.array_equal(h, np.stack([np.where(x > 0, down, up), down, up], 1))
    truncated = x.view(np.uint32) & 0xFFFF0000  # a bfloat16 is a float32's first half
    away = np.where((x == truncated.view(np.float32)), truncated, truncated + 0x10000)
    expected = np.stack([truncated, np.where(x > 0, truncated, away), np.where(x > 0, away, truncated)], 1)
    assert np.array_equal(b, (expected >> 16).astype(np.uint16))
    clipped = np.clip(near.astype(np.float64), -(2**31), 2**31 - 1)
    assert np.array_equal(whole, np.stack([f(clipped) for f in (np.rint, np.trunc, np.floor, np.ceil)], 1))
