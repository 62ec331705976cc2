"""``SourceModule``: CUDA C, compiled and loaded."""

from __future__ import annotations

from ..compile.library import kernel_library, read_source
from ..errors import CompileError, LogicError
from ..image import LoadedImage, LoadedKernel
from ..limits import SHARED_DEFAULT
from ..names import function_name
from .function import Function


class SourceModule:
    """CUDA C, compiled and loaded. Takes the arguments of ``pycuda.compiler.SourceModule`` and raises its errors.

    The library is unloaded when nothing refers to the module or its functions any more.

    Args:
        source: the text. A first line ``#line 1 "name.cu"`` gives it the name that errors and findings use.
        nvcc: ignored.
        options: nvcc's options; only ``-D``, ``-U``, ``-I``, ``-arch`` and ``-fmad`` have an effect.
        keep: keep the compiler's files and print where they are; errors then show the compiler's command line.
        no_extern_c: do not wrap the text in ``extern "C"``.
        arch: the architecture for ``__CUDA_ARCH__``, such as ``"sm_80"``.
        code: ignored.
        cache_dir: where to keep the compiled library, instead of the user's cache folder.
        include_dirs: where ``#include`` looks, after the emulator's own headers.
        watch: watch every launch; findings are raised (``fusedref.emulator.watch``).

    Raises:
        CompileError: the text does not compile, or needs more shared memory than a block has; nvcc has no such option.
        TypeError: the source is not a str, or the options are not a list of str.
    """

    def __init__(
        self,
        source: str,
        nvcc: str | None = None,
        options: list[str] | None = None,
        keep: bool = False,
        no_extern_c: bool = False,
        arch: str | None = None,
        code: str | None = None,
        cache_dir: str | None = None,
        include_dirs: list[str] | None = None,
        watch: bool = False,
    ):
        if not isinstance(source, str):
            raise TypeError(f"source must be CUDA C as a str, got {source!r}")
        if isinstance(options, str) or not all(isinstance(option, str) for option in options or []):
            raise TypeError(f"options must be a list of str, such as ['-DSIZE=4'], got {options!r}")
        words = [*(options or []), *(["-arch", arch] if arch else [])]
        text = read_source(source, words, map(str, include_dirs or []), extern_c=not no_extern_c)
        self._watch = watch

        def refuse(reason: str) -> CompileError:
            """Return the error with ``reason`` in the words of ptxas."""
            return CompileError(
                f"nvcc compilation of {text.name} failed", [], stdout="", stderr=f"ptxas error   : {reason}"
            )

        try:
            self._image = LoadedImage(kernel_library(text, cache_dir, keep), text.texts)
        except ValueError as error:
            raise refuse(str(error)) from None
        for name in {variable.owner.decode() for variable in self._image.shared}:
            used = self._image.static_shared(name)
            if used > SHARED_DEFAULT:
                kind = "Entry function" if name in self._image.kernels else "Function"
                raise refuse(
                    f"{kind} '{function_name(name)}' uses too much shared data "
                    f"(0x{used:x} bytes, 0x{SHARED_DEFAULT:x} max)"
                )

    def get_function(self, name: str) -> Function:
        """Return the kernel whose symbol in the library is ``name``.

        Raises:
            LogicError: there is none; a kernel that is not ``extern "C"`` has a mangled name.
        """
        if name not in self._image.kernels:
            kernels = [symbol + _in_words(symbol) for symbol in self._image.kernels]
            there = f"the module has {', '.join(kernels)}" if kernels else "the module has no kernels"
            raise LogicError(f"cuModuleGetFunction failed: named symbol not found: {name}; {there}")
        return Function(LoadedKernel(self._image, name), self._watch)

    def get_global(self, name: str) -> tuple[int, int]:
        """Return (address, bytes) of a ``__constant__`` or ``__device__`` variable.

        Raises:
            LogicError: there is none.
        """
        try:
            variable = self._image.variables[name]
        except KeyError:
            raise LogicError(f"cuModuleGetGlobal failed: named symbol not found: {name}") from None
        return variable.address, variable.size


def _in_words(symbol: str) -> str:
    return f" ({function_name(symbol)})" if symbol.startswith("_Z") else ""
