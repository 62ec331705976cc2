// cuda_runtime_api.h for the emulator: empty. emulator.h has its device part; host functions are not supported.
#pragma once
