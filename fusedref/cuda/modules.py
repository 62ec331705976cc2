"""Keep modules loaded on GPUs: those in use, and the most recent of the others."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fusedref.cuda.context import keep, pushed, release

MOST_UNUSED = 256


class LoadedModules:
    """Modules by key, least recently used first.

    A module is in use while anything else refers to it; PyCUDA's functions refer to their module. What needs a kernel
    later without holding its function, as a captured CUDA graph does, must ``keep`` the function.
    """

    def __init__(self, most_unused: int = MOST_UNUSED) -> None:
        """Keep up to ``most_unused`` modules that are not in use."""
        self._most_unused = most_unused
        self._modules: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, index: int, image: Callable[[], bytes]) -> Any:
        """Return module ``name`` on CUDA device ``index``, loaded from the machine code of ``image()`` if it is new."""
        key = name, index
        with self._lock:
            if key in self._modules:
                self._modules.move_to_end(key)
                return self._modules[key]
        code = image()  # outside the lock: several threads may run nvcc at once
        with self._lock:
            if key not in self._modules:
                with pushed(index):
                    self._modules[key] = self._load(code)
            self._modules.move_to_end(key)
            module = self._modules[key]
            self._unload_some()
            return module

    def _load(self, code: bytes) -> Any:
        import pycuda.driver as drv

        return keep(drv.module_from_buffer(code))

    def _unload_some(self) -> None:
        unused = [key for key in self._modules if self._is_unused(key)]
        for key in unused[: max(0, len(unused) - self._most_unused)]:
            with pushed(key[1]):
                self._synchronize()  # the kernel may still run
                module = self._modules.pop(key)
                release(module)
                del module  # the last reference, gone while the context is current: PyCUDA unloads the module

    def _synchronize(self) -> None:
        import pycuda.driver as drv

        drv.Context.synchronize()

    def _is_unused(self, key: tuple[str, int]) -> bool:
        # References of an unused module: the dictionary's, keep()'s, and getrefcount's own argument.
        return sys.getrefcount(self._modules[key]) <= 3
