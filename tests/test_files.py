"""files: whole files or none, no debris, no hanging, one-line errors."""
import errno
import fcntl
import os
import signal
import socket
import stat
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


def age(path, seconds):
    os.utime(path, (0, time.time() - seconds))


def test_file_of_a_killed_writer_goes_with_a_write_an_hour_later(tmp_path):
    """Not before: from another container a writer that is at work looks just as dead."""
    command = [sys.executable, "-B", "-c", KILLED, str(ROOT), str(tmp_path / "a.json")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    age(tmp_path / left, files.STALE_SECONDS - 60)
    files.write_atomically(tmp_path / "b", b"")
    assert names(tmp_path) == sorted([left, "b"])
    age(tmp_path / left, files.STALE_SECONDS + 60)
    files.write_atomically(tmp_path / "b", b"")
    assert names(tmp_path) == ["b"]


def test_only_old_files_of_ours_are_deleted(tmp_path):
    stale = [".nanoqat-x1_yz234.tmp", ".nanoqat-0123456789abcdef.tmp"]
    kept = [".nanoqat-new.tmp", "a.tmp", ".a.tmp", "nanoqat-x1.tmp", ".nanoqat-x1.tmp~",
            ".nanoqat-.tmp", "a.nanoqat-x1.tmp", ".nanoqat-\u00e9-1.tmp"]
    for name in stale + kept:
        (tmp_path / name).touch()
        if name != ".nanoqat-new.tmp":
            age(tmp_path / name, 2 * files.STALE_SECONDS)
    (tmp_path / ".nanoqat-folder.tmp").mkdir()
    age(tmp_path / ".nanoqat-folder.tmp", 2 * files.STALE_SECONDS)
    files.write_atomically(tmp_path / "new", b"")
    assert names(tmp_path) == sorted([*kept, ".nanoqat-folder.tmp", "new"])


def test_the_folders_clock_tells_the_age(tmp_path, monkeypatch):
    """A file server's clock may be hours off from ours."""
    files.write_atomically(tmp_path / "a", b"")
    (tmp_path / ".nanoqat-x1.tmp").touch()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    files.write_atomically(tmp_path / "a", b"")
    assert ".nanoqat-x1.tmp" in names(tmp_path)


def test_a_link_to_a_file_stays_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/file")
    for data in (b"first", b"second"):          # the first one makes the file
        files.write_atomically(tmp_path / "link", data)
        assert os.readlink(tmp_path / "link") == "far/file"
        assert (tmp_path / "far" / "file").read_bytes() == data
    assert names(tmp_path) == ["far", "link"] and names(tmp_path / "far") == ["file"]


@pytest.mark.parametrize("target", ["/dev/null", "/dev/full", "folder", "fifo"])
def test_what_is_no_file_is_not_replaced(tmp_path, target):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(target)
    before = os.stat(tmp_path / "link").st_mode
    assert "not a regular file" in one_line(files.write_atomically, tmp_path / "link", b"data")
    assert os.stat(tmp_path / "link").st_mode == before


HOLD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from machine import files
with files.locked(sys.argv[2]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_locked_folder_is_free_again_when_its_process_is_killed(tmp_path):
    folder = tmp_path / "new" / "folder"
    command = [sys.executable, "-B", "-c", HOLD, str(ROOT), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="in use"), files.locked(folder):
            pass
        other.kill()
        other.wait()
    with files.locked(folder):
        pass


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP,
                                    errno.EPERM, errno.EIO])
def test_a_folder_that_cannot_be_locked_is_used_with_one_line(tmp_path, monkeypatch, capsys,
                                                              number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.locked(tmp_path):
        files.write_atomically(tmp_path / "a", b"")
    out, error = capsys.readouterr()
    line, = error.splitlines()
    assert out == "" and str(tmp_path) in line and os.strerror(number) in line


def test_the_lock_is_a_file_open_for_writing(tmp_path, monkeypatch):
    """NFS refuses to lock what is open for reading alone, a folder for one."""
    found = []

    def look(handle, _):
        found.append((fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE,
                      stat.S_ISREG(os.fstat(handle).st_mode)))

    monkeypatch.setattr(fcntl, "flock", look)
    with files.locked(tmp_path):
        pass
    assert found == [(os.O_RDWR, True)]


@pytest.fixture
def nobody():
    """Without root's rights, which no permission stops."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_another_users_folder_is_one_line(tmp_path, request):
    folder = tmp_path / "theirs"
    folder.mkdir()
    files.write_atomically(folder / "a", b"")
    folder.chmod(0 if os.geteuid() else 0o700)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    request.getfixturevalue("nobody")
    try:
        for call in (lambda: files.locked(folder).__enter__(),
                     lambda: files.read_bytes(folder / "a", 10),
                     lambda: files.write_atomically(folder / "a", b"")):
            assert "Permission denied" in one_line(call)
    finally:
        if os.getuid():
            folder.chmod(0o700)


def test_a_link_is_made_and_moved(tmp_path, capsys):
    for target in ("a", "b"):
        files.link(tmp_path / "latest", target)
        assert os.readlink(tmp_path / "latest") == target
    assert names(tmp_path) == ["latest"] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_stands_where_a_link_belongs_is_kept_under_another_name(tmp_path, capsys, is_folder):
    """As after a copy of the whole folder that did not know links."""
    old = tmp_path / "latest"
    if is_folder:
        old.mkdir()
        old /= "file"
    old.write_bytes(b"old")
    files.link(tmp_path / "latest", "new")
    link, kept = names(tmp_path)
    assert link == "latest" and os.readlink(tmp_path / link) == "new"
    assert kept in capsys.readouterr().out
    assert (tmp_path / kept / "file" if is_folder else tmp_path / kept).read_bytes() == b"old"


def test_a_disk_without_links_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    files.link(tmp_path / "latest", "new")
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "not permitted" in line and names(tmp_path) == []


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
