"""The compile cache on disk: cubins, and the emulator's libraries.

An entry's file name holds the digest of everything that decides its contents, so an entry is never stale. The file ends
with a checksum of the rest, so a damaged one is built again. Only finished files are moved into place, so a reader
never sees half of one. A lock file next to it lets only one of several processes build the entry.

The folder is ``$XDG_CACHE_HOME/fusedref`` or ``~/.cache/fusedref``. If it is unusable (not writable, full, mounted
noexec, not a folder), a temporary folder of this process takes its place.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: every process builds for itself
    fcntl = None  # type: ignore[assignment]  # the name of a module

CHECKSUM = hashlib.sha256().digest_size
LOCK_SECONDS = 300.0  # how long to wait for another process's build before building as well
LOCK_POLL_SECONDS = 0.02
LEFTOVER_SECONDS = 24 * 3600.0  # age from which what a killed build left is removed
LEFTOVER = re.compile(r"(build-|tmp)\w{8}|[0-9a-f]{32}\.\w+\.lock")
ROOM = 32 << 20  # bytes that must be free: a build writes a few MB

Build = Callable[[Path], bytes]  # given an empty folder to work in, returns the entry's contents


def digest(*parts: str | bytes) -> str:
    """Return a name for the sequence ``parts``; different sequences get different names."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:32]


def cached_bytes(name: str, build: Build) -> bytes:
    """Return the contents of entry ``name``; if it is missing, call ``build`` and store what that returns.

    Raises:
        OSError: neither the cache folder nor a temporary one can hold the files of the build.
    """
    return _entry(_folder((), executable=False), name, build)[1]


def kept_bytes(name: str) -> bytes | None:
    """Return the contents of entry ``name``, None if it is missing or damaged."""
    return _read(_folder((), executable=False) / name)


def cached_library(name: str, build: Build, folder: str | None = None) -> Path:
    """Return the path of the shared library ``name``, which can be loaded from there; build it if it is missing.

    ``folder`` replaces the cache folder; it is ignored if it is unusable.

    Raises:
        OSError: as for ``cached_bytes``.
    """
    return _entry(_folder((folder,) if folder else (), "emulator", executable=True), name, build)[0]


def _folder(wanted: tuple[str, ...], subfolder: str = "", *, executable: bool) -> Path:
    """Return the first usable folder of ``wanted``, the user's cache and a temporary folder of this process."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: ignore a relative path
        base = os.path.join(os.path.expanduser("~"), ".cache")
    users = (os.path.join(base, "fusedref", subfolder),) if os.path.isabs(base) else ()
    for candidate in (*wanted, *users):
        if _is_usable(candidate, executable):
            if candidate in users:
                _remove_leftovers(candidate)
            return Path(candidate)
    return _temporary(os.getpid())


def _is_usable(folder: str, executable: bool) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if hasattr(os, "statvfs"):
            status = os.statvfs(folder)
            if status.f_bavail * status.f_frsize < ROOM:
                return False
            return not (executable and status.f_flag & getattr(os, "ST_NOEXEC", 0))
    except OSError:
        return False
    return True


@cache
def _temporary(process: int) -> Path:
    """Return a new folder of ``process``, removed at its end. No other user can put machine code there."""
    folder = Path(tempfile.mkdtemp(prefix="fusedref-"))

    def remove() -> None:
        """Remove the folder, but only in the process that created it."""
        if os.getpid() == process:  # not in a child that inherited this function
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _entry(folder: Path, name: str, build: Build) -> tuple[Path, bytes]:
    """Return the path and the contents of an entry; build it if it is missing or damaged."""
    path = folder / name
    contents = _read(path)
    if contents is not None:
        return path, contents
    with _locked(path):
        contents = _read(path)  # another process may have built it in the meantime
        if contents is not None:
            return path, contents
        scratch = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
        try:
            contents = build(scratch)
            return _publish(scratch, path, contents), contents
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _read(path: Path) -> bytes | None:
    """Return the contents of a file with a valid checksum, else None. Never wait, whatever ``path`` is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    contents, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
    return contents if hashlib.sha256(contents).digest() == checksum else None


def _publish(scratch: Path, path: Path, contents: bytes) -> Path:
    """Move ``contents`` and their checksum to ``path`` in one step; if that fails, write to the temporary folder."""
    data = contents + hashlib.sha256(contents).digest()
    try:
        whole = scratch / "whole"
        whole.write_bytes(data)
        os.replace(whole, path)
    except OSError:  # the disk is full, or a folder is in the way
        path = _temporary(os.getpid()) / path.name
        path.write_bytes(data)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the entry at ``path``; go on without it if it is not free in time."""
    lock = path.with_name(path.name + ".lock")
    descriptor = _acquire(lock)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(lock)  # while it is held: a process that waits sees that its file is gone
            os.close(descriptor)


def _acquire(lock: Path) -> int | None:
    """Return the open, locked file ``lock``; None if it cannot be created or stays locked for LOCK_SECONDS."""
    if fcntl is None:
        return None
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
        except OSError:
            return None
        held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            held = os.path.samestat(status, os.stat(lock))  # else its holder has removed it: try again
            if held:
                return descriptor
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None  # a file system without locks
        finally:
            if not held:
                os.close(descriptor)
        time.sleep(LOCK_POLL_SECONDS)
    return None


@cache
def _remove_leftovers(folder: str) -> None:
    """Remove what killed builds left in ``folder`` at least a day ago; do so once per process."""
    oldest = time.time() - LEFTOVER_SECONDS
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            ours = LEFTOVER.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if not ours or status.st_mtime > oldest or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
