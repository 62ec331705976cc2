"""__activemask() gives the lanes that are converged: those of the branch or loop round that calls it."""

import numpy as np
import pytest

from fusedref.emulator import SourceModule, gpuarray, watch

AGGREGATED = """__device__ int aggregated(int* counter) {
    unsigned mask = __activemask();
    int lane = threadIdx.x % 32, leader = __ffs(mask) - 1, before = 0;
    if (lane == leader) before = atomicAdd(counter, __popc(mask));
    before = __shfl_sync(mask, before, leader);
    return before + __popc(mask & ((1u << lane) - 1));
}
"""
SEEDS = pytest.mark.parametrize("seed", [None, 0, 1, 2], ids=["unwatched", "watched", "seed 1", "seed 2"])


def launch(source, seed, *arrays, block=64, grid=3):
    """Launch k on the arrays, unwatched or watched with a seed; check that nothing is found."""
    kernel = SourceModule(source).get_function("k")
    if seed is None:
        kernel(*arrays, block=(block, 1, 1), grid=(grid, 1))
        return
    with watch(seed) as seen:
        kernel(*arrays, block=(block, 1, 1), grid=(grid, 1))
    assert not seen.findings


@SEEDS
def test_aggregated_increment_in_a_branch(seed):
    source = (
        AGGREGATED
        + """__global__ void k(int* counter, int* places) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        places[i] = -1;
        if (threadIdx.x % 3 == 1) places[i] = aggregated(counter);
    }"""
    )
    counter, places = gpuarray.zeros(1, np.int32), gpuarray.zeros(192, np.int32)
    launch(source, seed, counter, places)
    taken = places.get().reshape(3, 64)
    chosen = np.arange(64) % 3 == 1
    assert np.all(taken[:, ~chosen] == -1)
    assert sorted(taken[:, chosen].flat) == list(range(63))
    assert counter.get()[0] == 63


@SEEDS
def test_aggregated_increment_in_a_loop(seed):
    source = (
        AGGREGATED
        + """__global__ void k(int* counter, int* rounds) {
        int i = blockIdx.x * blockDim.x + threadIdx.x, sum = 0;
        for (int round = 0; round < threadIdx.x % 5; round++) {
            aggregated(counter);
            sum += __popc(__activemask());
        }
        rounds[i] = sum;
    }"""
    )
    counter, rounds = gpuarray.zeros(1, np.int32), gpuarray.zeros(192, np.int32)
    launch(source, seed, counter, rounds)
    assert counter.get()[0] == 3 * sum(i % 5 for i in range(64))
    lanes = np.arange(64).reshape(2, 32) % 5
    together = [[(warp > round).sum() for round in range(4)] for warp in lanes]
    wanted = [sum(together[i // 32][: i % 5]) for i in range(64)]
    assert list(rounds.get()) == wanted * 3


@SEEDS
def test_each_branch_has_its_own_lanes(seed):
    source = """__global__ void k(unsigned* masks) {
        unsigned mask;
        if (threadIdx.x & 1) mask = __activemask();
        else if (threadIdx.x & 2) mask = __activemask() + 0 * threadIdx.x;
        else mask = __ballot_sync(0x11111111u, 1);
        masks[threadIdx.x] = mask;
        __syncwarp();
        masks[32 + threadIdx.x] = __activemask();
    }"""
    masks = gpuarray.zeros(64, np.uint32)
    launch(source, seed, masks, block=32, grid=1)
    by_branch = [0x11111111, 0xAAAAAAAA, 0x44444444, 0xAAAAAAAA] * 8
    assert list(masks.get()[:32]) == by_branch
    assert list(masks.get()[32:]) == [0xFFFFFFFF] * 32


@SEEDS
def test_lanes_that_have_returned_are_not_active(seed):
    source = """__global__ void k(unsigned* masks) {
        if (threadIdx.x >= 20) return;
        masks[threadIdx.x] = __activemask();
    }"""
    masks = gpuarray.zeros(32, np.uint32)
    launch(source, seed, masks, block=32, grid=1)
    assert list(masks.get()) == [0xFFFFF] * 20 + [0] * 12


def test_a_lane_that_spins_does_not_stop_the_others():
    source = """__global__ void k(int* flag, unsigned* masks) {
        if (threadIdx.x == 0) {
            while (((volatile int*)flag)[0] == 0) __nanosleep(1);
        } else {
            masks[threadIdx.x] = __activemask();
            if (threadIdx.x == 1) ((volatile int*)flag)[0] = 1;
        }
    }"""
    flag, masks = gpuarray.zeros(1, np.int32), gpuarray.zeros(32, np.uint32)
    launch(source, None, flag, masks, block=32, grid=1)
    assert list(masks.get()) == [0] + [0xFFFFFFFE] * 31
