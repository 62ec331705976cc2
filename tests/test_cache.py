"""The compile cache: what it keeps, what it builds again, and where it goes if its folder is unusable."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusedref import cache
from tests import processes


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return the cache folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache._remove_leftovers.cache_clear()
    return tmp_path / "fusedref"


def unexpected(scratch):
    raise AssertionError("built a second time")


def in_temporary_folder(path):
    return path.parent == cache._temporary(os.getpid())


def test_digest_tells_parts_apart():
    assert len(cache.digest("a")) == 32
    assert cache.digest("ab", "c") != cache.digest("a", "bc") != cache.digest("abc")
    assert cache.digest("a", "b") == cache.digest(b"a", b"b")


def test_entry_is_built_once(home):
    assert cache.cached_bytes("a.cubin", lambda scratch: b"code") == b"code"
    assert cache.cached_bytes("a.cubin", unexpected) == b"code"
    assert [path.name for path in home.iterdir()] == ["a.cubin"]


def test_build_works_in_an_empty_folder_that_is_removed(home):
    folders = []

    def build(scratch):
        folders.append(scratch)
        assert list(scratch.iterdir()) == []
        (scratch / "object.o").write_bytes(b"x")
        return b"code"

    cache.cached_bytes("a.cubin", build)
    assert folders[0].parent == home
    assert not folders[0].exists()


def test_library_stays_where_it_is_built(home):
    path = cache.cached_library("a.so", lambda scratch: b"code")
    assert path == home / "emulator" / "a.so"
    assert path.read_bytes()[:4] == b"code"
    assert cache.cached_library("a.so", unexpected) == path


def test_library_in_a_given_folder(home, tmp_path):
    path = cache.cached_library("a.so", lambda scratch: b"code", str(tmp_path / "mine"))
    assert path == tmp_path / "mine" / "a.so"
    assert cache.cached_library("a.so", unexpected, str(tmp_path / "mine")) == path


@pytest.mark.parametrize("damaged", [b"", b"code", b"x" * 100])
def test_damaged_entry_is_built_again(home, damaged):
    cache.cached_bytes("a.cubin", lambda scratch: b"first")
    (home / "a.cubin").write_bytes(damaged)
    assert cache.cached_bytes("a.cubin", lambda scratch: b"second") == b"second"
    assert cache.cached_bytes("a.cubin", unexpected) == b"second"


def test_failed_build_leaves_nothing(home):
    def build(scratch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached_bytes("a.cubin", build)
    assert list(home.iterdir()) == []
    assert cache.cached_bytes("a.cubin", lambda scratch: b"code") == b"code"


# ------------------------------------------------------------------------------------------- folders that are unusable


@pytest.mark.parametrize("value", ["relative/path", "", "."])
def test_relative_xdg_cache_home_is_ignored(value, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = cache.cached_library("a.so", lambda scratch: b"code")
    assert path == tmp_path / ".cache" / "fusedref" / "emulator" / "a.so"


def test_file_where_the_folder_should_be(home):
    home.write_text("")
    assert in_temporary_folder(cache.cached_library("file.so", lambda scratch: b"code"))
    assert cache.cached_bytes("file.cubin", lambda scratch: b"code") == b"code"


def test_no_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does for a user without an entry
    assert in_temporary_folder(cache.cached_library("no_home.so", lambda scratch: b"code"))


def test_fifo_where_the_folder_should_be(home):
    os.mkfifo(home)
    assert in_temporary_folder(cache.cached_library("fifo.so", lambda scratch: b"code"))


def test_full_disk(home, monkeypatch):
    class Full:
        f_bavail, f_frsize, f_flag = cache.ROOM // 4096 - 1, 4096, 0

    monkeypatch.setattr(os, "statvfs", lambda folder: Full)
    assert in_temporary_folder(cache.cached_library("full.so", lambda scratch: b"code"))


def test_disk_that_fills_up_during_the_build(home, monkeypatch):
    def fails(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    path = cache.cached_library("filled.so", lambda scratch: b"code")
    assert in_temporary_folder(path)
    assert path.read_bytes()[:4] == b"code"


def test_noexec_folder_keeps_cubins_but_no_libraries(home, monkeypatch):
    class Noexec:
        f_bavail, f_frsize, f_flag = 1 << 30, 4096, os.ST_NOEXEC

    monkeypatch.setattr(os, "statvfs", lambda folder: Noexec)
    assert in_temporary_folder(cache.cached_library("noexec.so", lambda scratch: b"code"))
    cache.cached_bytes("a.cubin", lambda scratch: b"code")
    assert (home / "a.cubin").is_file()


def test_folder_where_the_entry_should_be(home):
    (home / "emulator" / "folder.so").mkdir(parents=True)
    assert in_temporary_folder(cache.cached_library("folder.so", lambda scratch: b"code"))


@pytest.mark.timeout(20)
def test_fifo_where_the_entry_or_its_lock_should_be(home):
    home.mkdir()
    os.mkfifo(home / "a.cubin")
    os.mkfifo(home / "a.cubin.lock")
    assert cache.cached_bytes("a.cubin", lambda scratch: b"code") == b"code"
    assert cache.cached_bytes("a.cubin", unexpected) == b"code"


def test_temporary_folder_is_removed_at_exit_but_not_by_a_child(tmp_path):
    code = """
    import os
    from pathlib import Path
    from fusedref import cache
    path = cache.cached_library("a.so", lambda scratch: b"code")
    child = os.fork()
    if not child:
        raise SystemExit  # runs the exit functions that it inherited
    os.waitpid(child, 0)
    print(path.parent, path.exists())
    """
    (tmp_path / "fusedref").write_text("")
    folder, existed = processes.python(code, XDG_CACHE_HOME=tmp_path).split()
    assert existed == "True"
    assert not Path(folder).exists()


# ------------------------------------------------------------------------------------------------ several processes


def test_processes_that_want_one_entry_build_it_once(home):
    code = """
    import os, time
    from fusedref import cache
    def build(scratch):
        os.write(1, b"built ")
        time.sleep(0.5)
        return b"code"
    assert cache.cached_bytes("a.cubin", build) == b"code"
    """
    with ThreadPoolExecutor(4) as pool:
        assert "".join(pool.map(processes.python, [code] * 4)) == "built "
    assert [path.name for path in home.iterdir()] == ["a.cubin"]


def test_waiting_for_a_lock_ends(home, monkeypatch):
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.1)

    def outer(scratch):  # holds the lock while a second build of the same entry starts
        return cache.cached_bytes("a.cubin", lambda scratch: b"inner") + b" and outer"

    assert cache.cached_bytes("a.cubin", outer) == b"inner and outer"


def test_leftovers_of_killed_builds_are_removed(home):
    digest = cache.digest("a")
    old = time.time() - cache.LEFTOVER_SECONDS - 60
    leftovers = ["build-abcd1234", "tmpabcd1234", f"{digest}.so.lock"]
    kept = ["build", "temporary", "build-notes-of-the-user", f"{digest}.so"]
    for name in (*leftovers, *kept):
        path = home / "emulator" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("build-abcd"):
            path.mkdir()
            (path / "kernel.o").write_bytes(b"x")
        else:
            path.write_bytes(b"x")
        os.utime(path, (old, old))
    young = home / "emulator" / "build-efgh5678"
    young.mkdir()
    cache.cached_library("a.so", lambda scratch: b"code")
    assert sorted(path.name for path in (home / "emulator").iterdir()) == sorted([*kept, young.name, "a.so"])
