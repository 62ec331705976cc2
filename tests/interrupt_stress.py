"""Interrupt endless kernels at random moments: ``python tests/interrupt_stress.py TRIALS [SEED]``.

Each trial launches a kernel that never ends and sends its own process one to three SIGINTs, from before the launch
until after its end. A trial passes if the call has ended, no worker is left, device memory is as before and the next
launch is right. Prints ``N of N``.
"""

import faulthandler
import os
import random
import signal
import sys
import threading
import time

import numpy as np

from fusedref.emulator import SourceModule, driver, gpuarray

LIMIT = 100  # seconds of one trial, on any machine under any load
ENDLESS = [
    "while (true) a[0]++;",
    "while (true);",
    "volatile int i = 0; while (true) i++;",
    "for (;;) __syncthreads();",
    "for (;;) atomicAdd(a, 1);",
    "for (;;) __shfl_sync(0xffffffffu, threadIdx.x, 1);",
    "for (;;) if (__activemask() == 7) a[0] = 1;",
    "float x = a[0]; while (x != 7.5f) x = sinf(x) + cosf(expf(x)); a[0] = x;",
    "double x = a[0]; while (x != 7.5) x = pow(x, tgamma(x)) + erf(x); a[0] = x;",
    'for (;;) printf("%d %s\\n", a[0], "text");',
    "for (;;) { int* p = (int*)malloc(64); p[threadIdx.x % 16] = 1; free(p); }",
    "__shared__ int s[64]; for (;;) { s[threadIdx.x] = a[0]; __syncthreads(); a[threadIdx.x] = s[63 - threadIdx.x]; }",
]


class Interrupter:
    """Raises KeyboardInterrupt for SIGINT, but only while a trial is armed."""

    armed = False

    def __call__(self, number, frame):
        if self.armed:
            raise KeyboardInterrupt


def trial(kernel, array, interrupter, random):
    """Launch and interrupt. Return whether device memory is as before."""
    before = driver.mem_get_info()[0]
    delays = [random.choice([0, 0.0005, 0.003, 0.02]) * random.random() for _ in range(random.randint(1, 3))]
    ready = threading.Event()

    def send():
        ready.wait()
        for delay in delays:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)
        while interrupter.armed:  # signals that came before the trial was armed, or together, count as one
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    interrupted = False
    while not interrupted:
        try:
            interrupter.armed = True
            ready.set()
            kernel(array, block=(64, 1, 1), grid=(3, 1))
        except KeyboardInterrupt:
            interrupted = True
            interrupter.armed = False
    interrupter.armed = False
    sender.join()
    return driver.mem_get_info()[0] == before


def main(trials, seed):
    choose = random.Random(seed)
    interrupter = Interrupter()
    signal.signal(signal.SIGINT, interrupter)
    source = "".join(f"__global__ void k{i}(int* a) {{ {body} }}\n" for i, body in enumerate(ENDLESS))
    module = SourceModule(source + "__global__ void right(int* a) { a[threadIdx.x] = 3 * threadIdx.x; }")
    kernels = [module.get_function(f"k{i}") for i in range(len(ENDLESS))]
    right = module.get_function("right")
    array, check = gpuarray.zeros(64, np.int32), gpuarray.zeros(64, np.int32)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what the kernels print
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    threads = len(os.listdir("/proc/self/task"))
    passed = 0
    for number in range(trials):
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        passes = trial(kernels[(number + seed) % len(kernels)], array, interrupter, choose)
        while len(os.listdir("/proc/self/task")) > threads:  # a thread that has ended stays listed for a moment
            time.sleep(0.001)
        check.fill(np.int32(0))
        right(check, block=(64, 1, 1))
        passed += passes and bool((check.get() == 3 * np.arange(64)).all())
    faulthandler.cancel_dump_traceback_later()
    print(f"{passed} of {trials}", file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
