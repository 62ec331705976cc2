"""PyCUDA's names for the emulator: ``driver``, ``compiler`` and ``gpuarray``."""
