"""Standard output and error that end no run: they escape what they can't say, or lose it."""
import contextlib
import io
import os
import select
import sys

_lost = set()                   # numbers of the streams that could not take something


class _Outlet(io.FileIO):
    """A standard stream below Python's buffers. A full disk loses text; a closed pipe, as of
    `| head`, still ends the script."""

    def write(self, data):
        try:
            while (count := super().write(data)) is None:       # its reader is slow: a socket
                select.select([], [self], [])
            return count
        except BrokenPipeError as error:
            if self.fileno() == 1:
                raise
            _lose(self.fileno(), error)
        except OSError as error:
            _lose(self.fileno(), error)
        return len(data)


def _lose(number, error):
    if number == 1 and not _lost:
        with contextlib.suppress(OSError):
            os.write(2, f"note: standard output is lost: {error.strerror}\n".encode())
    _lost.add(number)


def is_lost():
    """Whether standard output could not take all that was printed."""
    return 1 in _lost


def make_safe():
    """Let sys.stdout and sys.stderr take any text; scripts call it first, and may again."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:                         # as of `>&-`: else a file would get its number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):       # a test's, or safe already
            continue
        buffered = io.BufferedWriter(_Outlet(number, "w", closefd=False))
        encoding = stream.encoding if stream else "utf-8"
        by_line = bool(stream) and (stream.line_buffering or stream.write_through)
        setattr(sys, name, io.TextIOWrapper(buffered, encoding, "backslashreplace",
                                            line_buffering=by_line))
