"""Lanes over devices, devices over processes; JAX's own multi-process runtime, nothing else."""
import math
import re
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from files import InputError, environment

JOIN_SECONDS = 60               # to wait for the other processes at the start
HEARTBEAT_SECONDS = 10          # a process silent this long is taken for dead: all others stop


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


def set_up(settings):
    """Keep compiled programs on disk, and join the other processes; before any computation.

    Args:
      settings: Config: CACHE_DIR; COORDINATOR ("" for a single process, "host:port" of process 0,
        or "auto" where JAX finds the others by itself), NUM_PROCESSES, PROCESS_ID.
    Raises:
      InputError: the others can't be reached.
    """
    if settings.CACHE_DIR:
        cpu = re.sub(r"\W+", "_", environment()["cpu"])     # machine code is of one kind of CPU
        folder = Path(settings.CACHE_DIR).resolve() / cpu
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if not settings.COORDINATOR:
        return
    named = {} if settings.COORDINATOR == "auto" else {
        "coordinator_address": settings.COORDINATOR, "num_processes": settings.NUM_PROCESSES,
        "process_id": settings.PROCESS_ID}
    if named and settings.PROCESS_ID > 0:
        _wait_for(settings.COORDINATOR)
    try:
        jax.distributed.initialize(**named, initialization_timeout=JOIN_SECONDS,
                                   heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except Exception as error:      # JAX raises many kinds here
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"COORDINATOR = {settings.COORDINATOR!r}: can't join the other processes: "
                         f"{reason}") from None


def end_all_but_first():
    """Leave the script, except in the process that writes the results."""
    if jax.process_index() > 0:
        sys.exit(0)


def make_mesh(lanes, data_parallel):
    """The devices of a run, on axis "lane", or on "batch" when one lane's batch is shared out.

    A single process leaves devices out that would have no lane; several use all they have.
    """
    if data_parallel or jax.process_count() > 1:
        return Mesh(np.array(jax.devices()), ("batch" if data_parallel else "lane",))
    return Mesh(np.array(jax.devices()[:lanes]), ("lane",))


def place(tree, mesh, by_lane=False):
    """NumPy arrays, the same in every process, to the mesh: by lane, or whole on each device."""
    spec = PartitionSpec("lane") if by_lane and "lane" in mesh.axis_names else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh, spec))


def gather(tree):
    """Arrays on any devices of any process to NumPy, whole, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def lane_count(active, mesh):
    """Program size for `active` lanes: the next power of two on each device, so few compile."""
    devices = mesh.shape.get("lane", 1)
    return devices * 2 ** math.ceil(math.log2(math.ceil(active / devices)))


def over_lanes(function, mesh, loop=None):
    """jit of function(lane, *shared) over a leading lane axis, spread over the mesh's lanes.

    Args:
      loop: how a device goes through its lanes; None: one after another on a CPU, which costs
        nothing there and keeps a lane's bits the same in any company; vmapped elsewhere, because
        one lane can't fill an accelerator.
    """
    loop = loop or (jax.lax.map if jax.default_backend() == "cpu"
                    else lambda function, lanes: jax.vmap(function)(lanes))
    by_lane = "lane" in mesh.axis_names

    def all_lanes(lanes, *shared):
        return loop(lambda lane: function(lane, *shared), lanes)

    def on_mesh(lanes, *shared):
        specs = (PartitionSpec("lane"), *(PartitionSpec() for _ in shared))
        return jax.shard_map(all_lanes, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("lane"),
                             check_vma=False)(lanes, *shared)

    if by_lane:
        return jax.jit(on_mesh)
    return jax.jit(all_lanes, out_shardings=NamedSharding(mesh, PartitionSpec()))


def share_batch(array, mesh):
    """Under jit: spread a batch's examples over the devices of a "batch" mesh; else leave it."""
    if "batch" not in mesh.axis_names:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec("batch")))
