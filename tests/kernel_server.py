"""Start notebooks' kernels from a server that has imported their libraries, which takes most of a short lesson's time.

A kernel is a fork of the server: its namespace is empty and the repository's own modules are not yet imported.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

LIBRARIES = ["torch", "matplotlib.pyplot", "IPython", "ipykernel.kernelapp"]


@cache
def _server() -> ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LIBRARIES)
    return server


class Kernel:
    """A kernel's process, with the part of subprocess.Popen's interface that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], *, env: dict[str, str], cwd: str, **_: Any):
        self._connection, other = multiprocessing.Pipe()
        arguments = command[command.index("ipykernel_launcher") + 1 :]
        self._process = _server().Process(target=_run, args=(other, arguments, env, cwd))
        self._process.start()
        other.close()
        self.pid: int = self._connection.recv()

    def poll(self) -> int | None:
        """Return the exit status, None while the kernel runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for the end and return the exit status."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the kernel."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(parent: Connection, arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Become the kernel, in a process group of its own, as jupyter_client signals the whole group."""
    os.setsid()
    parent.send(os.getpid())
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    from ipykernel import kernelapp

    kernelapp.launch_new_instance(argv=arguments, parent_handle=os.getppid())  # else it prints how to end it


def _end_with(parent: Connection) -> None:
    """End this process when the one at the other end of the connection ends."""
    with contextlib.suppress(EOFError):
        parent.recv()
    os._exit(1)
