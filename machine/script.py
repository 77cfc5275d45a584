"""How a script starts and ends: one line for a wrong input, quiet Ctrl-C and closed pipes."""
import gc
import os
import signal
import sys

from machine import interrupt
from machine.files import InputError


def begin():
    """Let Ctrl-C just end the script, without a traceback, until `run` takes over.

    A script calls it before its other imports, which take most of a start.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(main):
    """Call main(argv) as a script: an InputError becomes one line on stderr and exit code 2."""
    gc.set_threshold(100_000)       # JAX's import makes many objects: looking at them is slow
    try:
        with interrupt.watched():
            try:
                main(sys.argv[1:])
            finally:
                sys.stdout.flush()              # a closed pipe shows here, not at the exit
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except interrupt.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                     # as of `| head`; the exit would flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
