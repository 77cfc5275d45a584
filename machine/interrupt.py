"""Ctrl-C and SIGTERM: a script ends at once, or after the epoch where training asks for that."""
import contextlib
import os
import signal
import socket
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_gentle = threading.Event()     # set while a signal should wait for the end of an epoch
_asked = threading.Event()      # such a signal has come


class Stopped(Exception):
    """A run ended early on request, with its state saved; the message says how to go on."""


def _say(line):
    with contextlib.suppress(OSError):          # a full disk must not keep a signal from its work
        os.write(2, line)


def _end_at_once(number):
    """No cleaning up, because JAX's threads may be anywhere; files are written atomically."""
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1)                               # a reader that is stuck must not hold us
    _say(b"interrupted\n")
    os._exit(128 + number)


def _listen(ours):
    """A thread's loop: the interpreter may be inside JAX for a whole epoch, this is not."""
    with ours:
        while number := ours.recv(1):
            if not _gentle.is_set() or _asked.is_set():
                _end_at_once(number[0])
            _asked.set()
            _say(b"ending after this epoch; once more ends at once\n")


@contextlib.contextmanager
def watched():
    """Take over SIGINT and SIGTERM; give them back at the end. Main thread only.

    A signal that whoever started us chose to ignore stays so: `sh` does it for jobs with `&`.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN}
    listener = threading.Thread(target=_listen, args=(ours,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        theirs.close()
        listener.join()
        _asked.clear()


@contextlib.contextmanager
def after_epoch():
    """While inside, a first signal only makes the yielded function return True."""
    _gentle.set()
    try:
        yield _asked.is_set
    finally:
        _gentle.clear()
