"""The only door to the disk: atomic writes, bounded reads, locks, one-line input errors."""
import contextlib
import errno
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from pathlib import Path

STALE_SECONDS = 3_600           # a temporary file that was not written to for so long is left over
_PREFIX = ".nanoqat-"
_TEMPORARY = re.compile(r"\.nanoqat-\w+\.tmp")


class InputError(Exception):
    """Something the user gave is wrong; the message is one line that says what to do."""

    def __str__(self):
        # Paths come from the user: a newline or NUL in one is shown escaped.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                       for c in super().__str__())


def _reason(error):
    """An OSError or ValueError of a file operation in a few words, without its path."""
    return getattr(error, "strerror", None) or str(error)


def _delete_stale(folder, now):
    """Remove what killed writers left in folder; another process may be doing the same.

    Only the age tells: the writer may be in another container or on another host, where a process
    id means another process and a lock may not be seen.

    Args:
      now: the time by the clock that stamps this folder's files.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, ValueError):
                if (_TEMPORARY.fullmatch(entry.name)
                        and now - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS):
                    os.unlink(entry.path)


def _sync_folder(folder):
    """Make a rename in folder outlast a power cut, where the platform can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path, data):
    """Write bytes to path so that a reader, or a crash, sees the old file or the new one, whole.

    Args:
      path: file to replace, or a link to it, which stays; its folder is made when missing, and
        temporary files that killed processes left there are deleted.
      data: bytes.
    Raises:
      InputError: the folder or file can't be written; the old file is untouched.
    """
    temporary = None
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():    # a folder, or a link to /dev/null
            raise OSError(errno.EINVAL, "it is not a regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", _PREFIX, target.parent)
        with os.fdopen(handle, "wb") as file:
            _delete_stale(target.parent, os.fstat(handle).st_mtime)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)              # mkstemp makes 0600
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:      # ValueError: a NUL byte in the path
        raise InputError(f"can't write {path}: {_reason(error)}; choose another folder") from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):  # it is the file now; or the disk is read-only now
                os.unlink(temporary)


def check_writable(*folders):
    """Raise InputError now, not after an hour of training, when a folder can't be written."""
    for folder in folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()      # of its own name, deleted when closed
        except (OSError, ValueError) as error:
            raise InputError(f"can't write in {folder}: {_reason(error)}; "
                             "choose another folder") from None


@contextlib.contextmanager
def locked(folder):
    """Keep other processes out of a folder; a killed one lets go of it by itself.

    A folder that can't be locked, as on some network disks, is used all the same, with one line.

    Raises:
      InputError: another process is at work there, or it can't be written.
    """
    check_writable(folder)
    try:
        import fcntl
    except ImportError:                         # not on Windows
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            # A file of its own, open for writing: NFS locks nothing else.
            handle = os.open(Path(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is in use: another process runs the same switches; wait "
                             "for it") from None
        except OSError as error:
            print(f"note: {folder} can't be locked: {_reason(error)}; start nothing else with the "
                  "same switches", file=sys.stderr)
        yield


def link(path, target):
    """Make path a link to target, a name beside it; one line where that can't be.

    A link that is there is replaced. Anything else, such as a folder that a copy made of it, is
    kept under another name.
    """
    path = Path(path)
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}.tmp")
    try:
        os.symlink(target, temporary)
        if os.path.lexists(path) and not path.is_symlink():
            kept = path.with_name(time.strftime(f"{path.name}-%Y%m%d-%H%M%S"))
            os.rename(path, kept)
            print(f"{path} was no link: it is {kept} now")
        os.replace(temporary, path)
    except OSError as error:
        print(f"note: {path} is no link to {target}: {_reason(error)}", file=sys.stderr)


def read_bytes(path, limit):
    """The content of a regular file.

    Args:
      path: the file; a device or FIFO is refused before a byte of it is read.
      limit: the most bytes to accept, and to take memory for.
    Returns:
      bytes.
    Raises:
      InputError: missing, unreadable, not a regular file, too large, or changing meanwhile.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with contextlib.ExitStack() as stack:
            handle = os.open(path, flags)
            stack.callback(os.close, handle)
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise InputError(f"{path} is not a regular file")
            if info.st_size > limit:
                raise InputError(f"{path} is larger than {limit:,} bytes")
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = file.read(info.st_size + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path}: {_reason(error)}") from None
    if len(data) != info.st_size:
        raise InputError(f"{path} changed while it was read")
    return data
