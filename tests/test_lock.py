"""One writer a run folder, whatever becomes of it."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from conftest import tree
from nearzero.errors import ArgumentError, DiskError
from nearzero.training import lock as module
from nearzero.training.lock import Holder, holder, lock

SCRIPT = """
import sys, time
from nearzero.errors import NearzeroError
from nearzero.training.lock import lock
try:
    with lock(sys.argv[1]) as held:
        print("held" if held else "no locks", flush=True)
        sys.stdin.readline()
except NearzeroError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def other(folder):
    """Another process that takes the lock and keeps it until it reads a line."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_told_of_the_first(tmp_path):
    """While one process holds the lock another exits 2 with host and pid of the first; after it ends, the next gets it."""
    first = other(tmp_path)
    assert first.stdout.readline() == "held\n"
    assert holder(tmp_path)[:2] == (socket.gethostname(), first.pid)
    second = other(tmp_path)
    out, _ = second.communicate(timeout=20)
    assert second.returncode == 2 and f"process {first.pid} on {socket.gethostname()} since 20" in out
    first.communicate("\n", timeout=20)
    assert first.returncode == 0 and holder(tmp_path) is None
    with lock(tmp_path) as held:
        assert held


def test_a_killed_process_leaves_nothing_stale(tmp_path):
    """SIGKILL leaves the file with the dead process's name, and the next process takes the lock at once and writes its own."""
    first = other(tmp_path)
    assert first.stdout.readline() == "held\n"
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=20)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == first.pid
    assert holder(tmp_path) is None
    with lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_the_same_process_is_no_exception(tmp_path):
    """A second lock in one process is refused by its own pid, also through a link to the folder, and costs the first nothing."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with lock(tmp_path / "run"):
        for name in ("run", "link"):
            with pytest.raises(ArgumentError, match=f"process {os.getpid()} on ") as caught:
                with lock(tmp_path / name):
                    pass
            assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
        assert holder(tmp_path / "run").pid == os.getpid()
    with lock(tmp_path / "link"):
        pass


def test_the_lock_ends_with_its_block(tmp_path):
    """However the block ends, the folder is free again and its file is empty: two runs one after the other leave the same bytes."""
    for error in (None, ZeroDivisionError, KeyboardInterrupt):
        try:
            with lock(tmp_path):
                if error is not None:
                    raise error
        except BaseException as caught:
            assert type(caught) is error
        assert tree(tmp_path) == {"lock": b""} and holder(tmp_path) is None


def test_readers_are_not_hindered(tmp_path):
    """Asking who writes changes no byte and does not stand in the way of a writer that comes in that moment."""
    assert holder(tmp_path) is None and tree(tmp_path) == {}
    with lock(tmp_path):
        before = tree(tmp_path)
        assert holder(tmp_path) == Holder(**json.loads(before["lock"]))
        assert tree(tmp_path) == before
    import fcntl

    handle, take = os.open(tmp_path / "lock", os.O_RDONLY), fcntl.flock
    fcntl.flock(handle, fcntl.LOCK_SH)
    tried = []

    def flock(fd, how):
        tried.append(how)
        if len(tried) == 2:
            os.close(handle)  # the reader is done
        take(fd, how)

    fcntl.flock = flock
    try:
        with lock(tmp_path) as held:
            assert held and len(tried) == 2
    finally:
        fcntl.flock = take


def victim(path):
    path.write_text("years of work")
    return path


@pytest.mark.parametrize("way", ["link", "dangling", "hard link", "folder", "pipe"])
def test_the_lock_is_a_file_of_its_own(tmp_path, way):
    """A link, a dangling one, a file with a second name, a folder or a pipe in the lock's place is refused, exit 7, and nothing behind it is made or changed."""
    run, precious = tmp_path / "run", victim(tmp_path / "precious")
    run.mkdir()
    make = {
        "link": lambda path: path.symlink_to(precious),
        "dangling": lambda path: path.symlink_to(tmp_path / "nothing"),
        "hard link": lambda path: os.link(precious, path),
        "folder": lambda path: path.mkdir(),
        "pipe": lambda path: os.mkfifo(path),
    }
    make[way](run / "lock")
    with pytest.raises(DiskError, match="cannot write .*lock") as caught:
        with lock(run):
            raise AssertionError("taken")
    assert "\n" not in str(caught.value)
    assert precious.read_text() == "years of work" and not (tmp_path / "nothing").exists()
    assert holder(run) is None


def test_a_link_that_comes_between_is_not_followed(tmp_path, monkeypatch):
    """O_NOFOLLOW refuses a link that the look before did not see."""
    (tmp_path / "lock").symlink_to(victim(tmp_path / "precious"))
    monkeypatch.setattr(module.Path, "is_symlink", lambda self: False)
    with pytest.raises(DiskError, match="cannot write"):
        with lock(tmp_path):
            pass
    assert (tmp_path / "precious").read_text() == "years of work"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number):
    """No permission, a read-only file system or a full disk is a DiskError, exit 7, with the path."""

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(DiskError, match=f"cannot write {tmp_path}/lock: {os.strerror(number)}") as caught:
        with lock(tmp_path):
            pass
    assert caught.value.exit_code == 7
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        with lock(tmp_path / "file" / "run"):
            pass


def test_a_disk_that_fills_up_leaves_no_lock(tmp_path, monkeypatch):
    """Where the holder's name cannot be written, DiskError comes out and the folder is free again."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(DiskError, match="free some space"):
        with lock(tmp_path):
            pass
    monkeypatch.undo()
    with lock(tmp_path) as held:
        assert held


def test_where_there_are_no_locks_it_says_so(tmp_path, monkeypatch):
    """Without fcntl, or on a file system without locks, the block runs and is told False; another error is a DiskError."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "fcntl", None)
        with lock(tmp_path) as held, lock(tmp_path) as again:
            assert not held and not again and holder(tmp_path) is None
    for number, told in ((errno.ENOLCK, False), (errno.EOPNOTSUPP, False), (errno.EIO, DiskError)):

        def flock(*args, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(module.fcntl, "flock", flock)
            if told is DiskError:
                with pytest.raises(DiskError):
                    with lock(tmp_path):
                        pass
            else:
                with lock(tmp_path) as held:
                    assert held is told


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"[]", b"{", b'{"pid": 1}', b'{"host":1,"started":2,"pid":"x"}', b"[" * 4000]
)
def test_a_file_that_tells_nothing(tmp_path, text):
    """Whatever stands in the file of a writer, the refusal is one line about another process."""
    with lock(tmp_path):
        (tmp_path / "lock").write_bytes(text)
        with pytest.raises(ArgumentError, match="is being written by another process; wait for it"):
            with lock(tmp_path):
                pass


def test_a_file_cannot_write_to_the_terminal(tmp_path):
    """Control characters and endless names in the file do not reach the message."""
    record = {"host": "\x1b[2Jevil\n" + "a" * 2000, "pid": 7, "started": "\x07now"}
    with lock(tmp_path):
        (tmp_path / "lock").write_text(json.dumps(record))
        with pytest.raises(ArgumentError) as caught:
            with lock(tmp_path):
                pass
    assert str(caught.value).isprintable() and "process 7 on [2Jevila" in str(caught.value)
    assert len(str(caught.value)) < 400
