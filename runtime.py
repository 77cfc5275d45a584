"""JAX at the start and across processes: strict flags, compiled programs on disk, who writes.

Importing this changes nothing; scripts call set_up.
"""
import contextlib
import json
import os
import re
import socket
import sys
import time
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

import integer
import quant
from files import InputError, read_bytes, write_atomically
from results import environment

JOIN_SECONDS = 60               # to wait for the other processes at the start
ZSTD = b"\x28\xb5\x2f\xfd"
PROBE = (128, 784, 256)         # batch, inputs, outputs of the product that choose_compute times
PROBE_CALLS = 60                # of each type, in turns: of the least of 15, noise made some choices
HEARTBEAT_SECONDS = 10          # a process silent this long is taken for dead: all others stop


def set_strict():
    """A wrong mix of types or ranks is an error; one host device per core, for a sweep's lanes."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", environment()["cores"])


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
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(f"COORDINATOR = {address!r} can't be reached: {error.strerror}; "
                                 "start the process with PROCESS_ID = 0 there") from None
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
        cpu = re.sub(r"\W+", "_", environment()["cpu"])     # machine code is of one kind of CPU
        try:
            folder = Path(cache_dir).resolve() / cpu
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"CACHE_DIR = {cache_dir!r} can't be used: {error}") from None
        _delete_damaged(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if not coordinator:
        return
    named = {} if coordinator == "auto" else {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process_id}
    if named:
        _check_free(coordinator) if process_id == 0 else _wait_for(coordinator)
    try:
        jax.distributed.initialize(**named, initialization_timeout=JOIN_SECONDS,
                                   heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except Exception as error:      # JAX raises many kinds here
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"COORDINATOR = {coordinator!r}: can't join the other processes: "
                         f"{reason}") from None


def _probe(compute):
    """The product of one layer and its gradient, compiled; None where there is no kernel for it."""
    hyper = namedtuple("Hyper", "WEIGHT_BITS COMPUTE")(8, compute)

    def both(w, x, x_scale, w_scale, grad):
        product, back = jax.vjp(lambda w: quant.dot(x, w, x_scale, w_scale, hyper), w)
        return product, back(grad)

    batch, inputs, outputs = PROBE
    arrays = jax.device_put((np.ones((inputs, outputs), np.float32),
                             np.ones((batch, inputs), np.uint8), np.ones((1, 1), np.float32),
                             np.ones((1, outputs), np.float32),
                             np.ones((batch, outputs), np.float32)))
    run = jax.jit(both, compiler_options=integer.COMPILE_QUICKLY)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.block_until_ready(run(*arrays))
        return lambda: jax.block_until_ready(run(*arrays))


def _measure_computes():
    """{COMPUTE: median seconds of PROBE's products}, of the types that have a kernel here."""
    with ThreadPoolExecutor() as pool:          # they compile side by side
        probes = dict(zip(quant.COMPUTES, pool.map(_probe, quant.COMPUTES)))
    seconds = {compute: [] for compute, probe in probes.items() if probe}
    for _ in range(PROBE_CALLS):
        for compute, times in seconds.items():
            begin = time.perf_counter()
            probes[compute]()
            times.append(time.perf_counter() - begin)
    return {compute: np.median(times) for compute, times in seconds.items()}


def choose_compute(cache_dir=""):
    """The COMPUTE that is the fastest on this machine, measured once: the choice is kept.

    A type that changes the gradient's bits has to be a tenth faster than float32, so that noise
    decides nothing. The first process measures for all.

    Args:
      cache_dir: as given to set_up; "" keeps nothing.
    Returns:
      one of quant.COMPUTES.
    """
    where = f"{jax.devices()[0].device_kind}, {environment()['cores']} cores, JAX {jax.__version__}"
    path = Path(jax.config.jax_compilation_cache_dir or ".") / "compute.json"
    choice = ""
    if is_first() and cache_dir:
        with contextlib.suppress(InputError, ValueError, AttributeError):
            choice = json.loads(read_bytes(path, 10_000)).get(where)
    if is_first() and choice not in quant.COMPUTES:
        seconds = _measure_computes()
        fastest = min(seconds, key=seconds.get)
        choice = fastest if seconds[fastest] < 0.9 * seconds["float32"] else "float32"
        if cache_dir:
            with contextlib.suppress(InputError):       # a cache that can't be written is none
                write_atomically(path, (json.dumps({where: choice}) + "\n").encode())
    return from_first((choice or "").encode()).decode()


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
