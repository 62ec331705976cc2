// cuda_runtime.h for the emulator: empty. What it gives to kernels is in emulator.h; its functions for the host are not supported.
#pragma once
