"""How a script starts and ends: one line for a wrong input, quiet Ctrl-C and closed pipes."""
import gc
import importlib.util
import os
import re
import signal
import sys

from machine import interrupt, streams
from machine.files import InputError

# What JAX may hear from the environment: where it computes. Anything else could change the bits.
HEARD = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_CUDA_VISIBLE_DEVICES",
         "JAX_ROCM_VISIBLE_DEVICES", "JAX_COORDINATOR_ADDRESS")
UNPREFIXED = ("CHECK_VMA", "EAGER_CONSTANT_FOLDING")    # options of JAX, too


def begin():
    """Let Ctrl-C just end the script, without a traceback, until `run` takes over.

    A script calls it before its other imports, which take most of a start, and before JAX reads
    its environment.
    """
    streams.make_safe()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _check_installed()
    forget_environment()


def _check_installed():
    """One line unless this is the Python of the project's own environment, or one like it."""
    if sys.version_info < (3, 11):              # noqa: UP036  others start it too
        _refuse(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old, 3.11 is needed")
    if not importlib.util.find_spec("numpy"):
        _refuse("numpy is not installed for this Python")


def _refuse(reason):
    script = os.path.basename(sys.argv[0])
    print(f"error: {reason}: `make` installs what training needs into .venv, for .venv/bin/python "
          f"{script}; requirements-dev.txt is the rest", file=sys.stderr)
    sys.exit(2)


def forget_environment():
    """Leave nothing of JAX's switches in the environment that decides more than where it computes.

    JAX reads them once, when it is imported; one line names those that are set.
    """
    ignored = [name for name in os.environ if name in UNPREFIXED
               or name.startswith("JAX_") and name not in HEARD]
    for name in ignored:
        del os.environ[name]
    if ignored:
        print(f"note: {', '.join(sorted(ignored))} of the environment has no effect here",
              file=sys.stderr)
    count = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not re.fullmatch("[1-9][0-9]{0,3}", count):      # JAX would end in a traceback
        print(f"error: JAX_NUM_CPU_DEVICES = {count!r:.80} is no number in 1..9999; unset it",
              file=sys.stderr)
        sys.exit(2)


def run(main):
    """Call main(argv) as a script: an InputError becomes one line on stderr and exit code 2."""
    streams.make_safe()
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
    except ModuleNotFoundError as error:
        _refuse(f"{error.name} is not installed for this Python")
    except interrupt.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                     # as of `| head`; the exit would flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if streams.is_lost():
        sys.exit(1)                             # all is done; but who reads it has not seen it
