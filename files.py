"""The only door to the disk for output: atomic writes, results as JSON, one-line input errors."""
import contextlib
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path


class InputError(Exception):
    """Something the user gave is wrong; the message is one line that says what to do."""


def run_script(main):
    """Call main(argv) as a script: an InputError becomes one line on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: nothing was saved", file=sys.stderr)
        sys.exit(130)


def write_atomically(path, data):
    """Write bytes to path so that a reader, or a crash, sees the old file or the new one, whole.

    Args:
      path: file to replace; its folder is made when missing.
      data: bytes.
    Raises:
      InputError: the folder or file can't be written; the old file is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)              # mkstemp makes 0600
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}; choose another folder") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def check_writable(*folders):
    """Raise InputError now, not after an hour of training, when a folder can't be written."""
    for folder in folders:
        probe = Path(folder) / ".write_test"
        write_atomically(probe, b"")
        probe.unlink()


def environment():
    """What a result depends on besides the code: dict of str, for results/*.json."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((l.split(":", 1)[1].strip() for l in lines if l.startswith("model name")), cpu)
    versions = {}
    for name in ("jax", "jaxlib", "numpy", "optax"):
        with contextlib.suppress(metadata.PackageNotFoundError):    # inference needs NumPy alone
            versions[name] = metadata.version(name)
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else os.cpu_count(), "python": platform.python_version(), **versions}


def peak_memory():
    """The most memory that this process had resident, in bytes; None where Linux does not say."""
    status = Path("/proc/self/status")          # not getrusage: that inherits its parent's peak
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def write_result(path, config, **content):
    """Write a study as JSON: content plus the configuration and the environment it came from."""
    result = {**content, "config": config._asdict(), "environment": environment()}
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    print(f"wrote {path}")


def read_result(path):
    """Read a results/*.json file; InputError when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}; run its study first") from None
    except ValueError:
        raise InputError(f"{path} is not JSON; run its study again") from None
