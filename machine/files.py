"""The only door to the disk: atomic writes, bounded reads, one-line input errors."""
import contextlib
import os
import platform
import re
import stat
import tempfile
import time
import zlib
from pathlib import Path

STALE_SECONDS = 86_400          # a temporary file of this age is left over, whoever wrote it

# A process id says who is alive on its own host only, and folders may be shared: name both.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\..*\.(\d+)-([0-9a-f]{8})\.\w+\.tmp", re.DOTALL)


class InputError(Exception):
    """Something the user gave is wrong; the message is one line that says what to do."""

    def __str__(self):
        # Paths come from the user: a newline or NUL in one is shown escaped.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                       for c in super().__str__())


def _reason(error):
    """An OSError or ValueError of a file operation in a few words, without its path."""
    return getattr(error, "strerror", None) or str(error)


def _is_alive(pid):
    """Whether a process of this host runs; True where that can't be asked without harm."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:                     # another user's
        pass
    return True


def _is_stale(entry):
    """Whether a folder entry is a temporary file of ours that nobody will finish."""
    match = _TEMPORARY.fullmatch(entry.name)
    if match is None:
        return False
    if match[2] == _HOST and not _is_alive(int(match[1])):
        return True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS


def _delete_stale(folder):
    """Remove what killed writers left in folder; another process may be doing the same."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, ValueError):
                if _is_stale(entry):
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
      path: file to replace; its folder is made when missing, and temporary files that killed
        processes left there are deleted.
      data: bytes.
    Raises:
      InputError: the folder or file can't be written; the old file is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_stale(path.parent)
        handle, temporary = tempfile.mkstemp(".tmp", f".{path.name}.{os.getpid()}-{_HOST}.",
                                             path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)              # mkstemp makes 0600
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, ValueError) as error:      # ValueError: a NUL byte in the path
        raise InputError(f"can't write {path}: {_reason(error)}; choose another folder") from None
    finally:
        if temporary and os.path.lexists(temporary):
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
