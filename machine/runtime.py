"""JAX at the start and across processes: strict flags, compiled programs on disk, who writes.

Importing this changes nothing; scripts call set_up.
"""
import contextlib
import functools
import os
import re
import socket
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from machine.facts import environment
from machine.files import InputError, check_writable

JOIN_SECONDS = 60               # to wait for the other processes at the start
QUICK = {"xla_cpu_use_fusion_emitters": False}      # JAX 0.10 knows it, 0.11 does not
ZSTD = b"\x28\xb5\x2f\xfd"
HEARTBEAT_SECONDS = 10          # a process silent this long is taken for dead: all others stop


# A wrong mix of types or ranks is an error; and what the bits depend on, whatever was set before.
STRICT = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise",
          "jax_enable_x64": False, "jax_disable_jit": False, "jax_random_seed_offset": 0,
          "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True,
          "jax_default_matmul_precision": None}


def set_strict():
    """JAX's flags as in STRICT; one host device per core, for a sweep's lanes."""
    for name, value in STRICT.items():
        if hasattr(jax.config, name):           # versions have others
            jax.config.update(name, value)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", environment()["cores"])


def _reason(error):
    """The first line of what JAX says; "" where it says nothing."""
    return str(error).strip().partition("\n")[0]


def _check_devices():
    """InputError unless JAX finds the devices that the environment asks for."""
    try:
        jax.devices()
    except Exception as error:                  # JAX raises many kinds here, one without a word
        raise InputError(f"JAX can't start on JAX_PLATFORMS = "
                         f"{os.environ.get('JAX_PLATFORMS', '')!r}: "
                         f"{_reason(error) or 'there is no such device here'}") from None


@functools.cache
def compiler_options():
    """Options for programs that seldom run: compiled in half the time, their loops are slower.

    Returns:
      dict; empty where XLA has no such option any more, or compiles for another device.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0).lower().compile(QUICK)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return {}
    return QUICK


def _wait_for(address):
    """Raise InputError unless something listens at "host:port" within JOIN_SECONDS.

    JAX would end the whole process with a stack trace.
    """
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except (OSError, UnicodeError) as error:        # Unicode: of a name that no host can have
            if time.monotonic() > deadline or isinstance(error, UnicodeError):
                why = getattr(error, "strerror", None) or str(error)
                raise InputError(f"COORDINATOR = {address!r} can't be reached: {why}; start the "
                                 "process with PROCESS_ID = 0 there") from None
            time.sleep(0.5)


def _check_free(address):
    """Raise InputError when "host:port" is in use here; JAX would end in a segmentation fault."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise InputError(f"COORDINATOR = {address!r} can't be opened here: {error.strerror}; "
                             "choose another port") from None


def _delete_damaged(folder):
    """Remove compiled programs whose checksum is wrong: JAX would warn of each for ever.

    It writes them in place, so that a killed run leaves half of one.
    """
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):      # another process may do the same
            content = path.read_bytes()
            if content.startswith(ZSTD):        # as JAX packs them on Python 3.14: no checksum
                continue
            try:
                zlib.decompress(content)
            except zlib.error:
                path.unlink()


def _keep_programs(cache_dir):
    """Compiled programs are kept in this folder; where it can't be had, one line says so."""
    cpu = re.sub(r"\W+", "_", environment()["cpu"])     # machine code is of one kind of CPU
    folder = Path(cache_dir).absolute() / cpu
    try:
        check_writable(folder)
    except InputError as error:
        print(f"note: CACHE_DIR keeps no compiled programs: {error}", file=sys.stderr)
        return
    _delete_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def set_up(cache_dir="", coordinator="", processes=1, process_id=0):
    """Strict flags, a cache of compiled programs, the other processes; before any computation.

    Args:
      cache_dir: folder of compiled programs; "" keeps none.
      coordinator: "" for a single process, "host:port" of process 0, or "auto" where JAX finds the
        others by itself; processes: how many there are; process_id: which one this is.
    Raises:
      InputError: the others can't be reached.
    """
    set_strict()
    if cache_dir:
        _keep_programs(cache_dir)
    if not coordinator:
        _check_devices()
        return
    named = {} if coordinator == "auto" else {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process_id}
    if named:
        _check_free(coordinator) if process_id == 0 else _wait_for(coordinator)
    try:
        jax.distributed.initialize(**named, initialization_timeout=JOIN_SECONDS,
                                   heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except Exception as error:      # JAX raises many kinds here
        raise InputError(f"COORDINATOR = {coordinator!r}: can't join the other processes: "
                         f"{_reason(error)}") from None
    _check_devices()                            # not before: it would start JAX alone


def is_first():
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def any_process(flag):
    """Whether flag is true in any process: all of them must ask together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array([flag])).any())


def from_first(content):
    """The bytes that the first process gives, in every process."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    mine = np.frombuffer(content, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()


def end_all_but_first():
    """Leave the script, except in the process that writes the results."""
    if not is_first():
        sys.exit(0)
