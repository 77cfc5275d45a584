"""files: whole files or none, no debris, no hanging, one-line errors."""
import os
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT
from machine import files
from machine.files import InputError


def one_line(call, *arguments):
    """The message of the InputError that a call must raise."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_file_is_whole_readable_and_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    for data in (b"first", b"", bytes(range(256))):
        files.write_atomically(path, data)
        assert path.read_bytes() == data and names(path.parent) == ["a.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_atomically(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert "No space left" in one_line(files.write_atomically, path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def test_readers_see_the_old_or_the_new_file_whole(tmp_path):
    path, choices = tmp_path / "a", [bytes([byte]) * 50_000 for byte in range(4)]
    files.write_atomically(path, choices[0])
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(files.write_atomically, path, data) for data in choices * 10]
        while not all(write.done() for write in writes):
            assert path.read_bytes() in choices
        assert [write.result() for write in writes] == [None] * 40
    assert names(tmp_path) == ["a"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from machine import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(sys.argv[2], b"half")
"""


def test_file_of_a_killed_writer_goes_with_the_next_write(tmp_path):
    command = [sys.executable, "-B", "-c", KILLED, str(ROOT), str(tmp_path / "a.json")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".a.json.") and left.endswith(".tmp")
    files.write_atomically(tmp_path / "b", b"")
    assert names(tmp_path) == ["b"]


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_only_stale_files_of_ours_are_deleted(tmp_path, dead_pid):
    host, elsewhere = files._HOST, f"{int(files._HOST, 16) ^ 1:08x}"
    stale = [f".a.{dead_pid}-{host}.x1_y.tmp", f".b.c.{dead_pid}-{host}.xyz.tmp",
             f".old.{os.getpid()}-{host}.xyz.tmp", f".far_old.{dead_pid}-{elsewhere}.xyz.tmp"]
    kept = [f".a.{os.getpid()}-{host}.xyz.tmp", f".far.{dead_pid}-{elsewhere}.xyz.tmp", "a.tmp",
            ".a.tmp", ".a.xyz.tmp", f"a.{dead_pid}-{host}.xyz.tmp", f".a.{dead_pid}-{host}.x.tmp~"]
    for name in stale + kept:
        (tmp_path / name).touch()
    for name in stale[2:] + [".a.tmp"]:
        os.utime(tmp_path / name, (0, time.time() - 2 * files.STALE_SECONDS))
    folder = f".folder.{dead_pid}-{host}.xyz.tmp"
    (tmp_path / folder).mkdir()
    files.write_atomically(tmp_path / "new", b"")
    assert names(tmp_path) == sorted([*kept, folder, "new"])


PROBE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from machine import files
end = time.monotonic() + 0.5                    # both run for most of it
while time.monotonic() < end:
    files.check_writable(sys.argv[2])
"""


def test_runs_started_together_do_not_trip_over_each_other(tmp_path):
    command = [sys.executable, "-B", "-c", PROBE, str(ROOT), str(tmp_path / "out")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert names(tmp_path / "out") == []


def make_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


def make_loop(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path / "loop"


BAD_FOLDERS = {
    "NUL": lambda tmp_path: f"{tmp_path}/a\0b",
    "300 characters": lambda tmp_path: tmp_path / ("x" * 300),
    "5,000 characters": lambda tmp_path: tmp_path / "/".join(["x" * 99] * 50),
    "symlink loop": make_loop,
    "file": make_file,
    "in a file": lambda tmp_path: make_file(tmp_path) / "below",
    "lone surrogate and newline": lambda tmp_path: f"{tmp_path}/\ud800\n\0",
}


@pytest.mark.parametrize("make", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_folder_that_cannot_be_gives_one_line(tmp_path, make):
    folder = make(tmp_path)
    before = names(tmp_path)
    assert "can't write" in one_line(files.check_writable, tmp_path, folder)
    assert "can't write" in one_line(files.write_atomically, f"{folder}/a", b"")
    assert "can't read" in one_line(files.read_bytes, f"{folder}/a", 10)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "folder"])
def test_file_name_that_cannot_be_gives_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    assert "can't write" in one_line(files.write_atomically, f"{tmp_path}/{name}", b"")
    assert names(tmp_path) == ["folder"]


def test_read_gives_the_bytes_up_to_the_limit(tmp_path):
    path = tmp_path / "a"
    for data in (b"", bytes(range(256)) * 10):
        path.write_bytes(data)
        assert files.read_bytes(path, len(data)) == files.read_bytes(path, 10**12) == data
    assert "larger than 2,559 bytes" in one_line(files.read_bytes, path, 2_559)
    (tmp_path / "link").symlink_to(path)
    assert files.read_bytes(tmp_path / "link", 10**4) == data
    assert "No such file" in one_line(files.read_bytes, tmp_path / "none", 10)


def test_refused_file_takes_no_memory(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**33)
    tracemalloc.start()
    try:
        one_line(files.read_bytes, tmp_path / "sparse", 2**32)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


ODD_FILES = {
    "FIFO": os.mkfifo, "folder": os.mkdir, "socket": make_socket,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_only_regular_files_are_read(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)                 # a socket's path is short
    path = type(tmp_path)("odd")
    make(path)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    assert "odd" in one_line(files.read_bytes, path, 10**12)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_message_shows_unprintable_characters_escaped():
    assert str(InputError("a\nb\0c\ud800é–")) == "a\\nb\\x00c\\ud800é–"
