"""JAX at run time: strict flags, compiled programs on disk, lanes over devices and processes.

Importing this changes nothing; scripts call set_up.
"""
import os
import re
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from files import InputError
from results import environment

JOIN_SECONDS = 60               # to wait for the other processes at the start
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


def deal(active, lanes, mesh):
    """Which lanes run in which slot of which device.

    Args:
      active: ints, the lanes that go on; lanes: how many there were at first.
    Returns:
      (rows int [devices * slots], real bool [devices * slots], counts int32 [devices]): device d
      has the slots from d * slots on, its lanes first; a slot that is not real repeats a lane.

    On a CPU a device goes through its lanes one after another and stops at its count, so that one
    program serves any number of them; elsewhere the slots are vmapped, and shrink by halves.
    """
    devices = mesh.shape.get("lane", 1)
    needed = -(-len(active) // devices)
    slots = -(-lanes // devices) if _one_by_one() else 1 << (needed - 1).bit_length()
    rows = np.full((devices, slots), active[0])
    real = np.zeros((devices, slots), bool)
    for device, part in enumerate(np.array_split(np.asarray(active), devices)):
        rows[device, :len(part)], real[device, :len(part)] = part, True
    return rows.reshape(-1), real.reshape(-1), real.sum(1).astype(np.int32)


def _one_by_one():
    """Whether a device runs its lanes one after another: on a CPU, where that costs nothing and
    keeps a lane's bits the same in any company. One lane can't fill an accelerator."""
    return jax.default_backend() == "cpu"


def over_lanes(function, mesh, one_by_one=None):
    """jit of function(lane, *shared) over a leading lane axis, spread over the mesh's lanes.

    Args:
      function: of one lane's pytree; mesh: as from make_mesh; one_by_one: None decides by backend.
    Returns:
      f(counts, lanes, *shared): counts as from deal; what comes back for slots beyond a device's
      count is of no use.
    """
    one_by_one = _one_by_one() if one_by_one is None else one_by_one

    def on_device(count, lanes, *shared):
        if not one_by_one:
            return jax.vmap(lambda lane: function(lane, *shared))(lanes)

        def lane_at(i):
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), lanes)

        def run(i, outs):
            return jax.tree.map(lambda all_, one: lax.dynamic_update_index_in_dim(all_, one, i, 0),
                                outs, function(lane_at(i), *shared))

        slots = len(jax.tree.leaves(lanes)[0])
        outs = jax.tree.map(lambda out: jax.numpy.zeros((slots, *out.shape), out.dtype),
                            jax.eval_shape(lambda: function(lane_at(0), *shared)))
        return lax.fori_loop(0, count[0], run, outs)

    if "lane" not in mesh.axis_names:
        return jax.jit(on_device, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def on_mesh(counts, lanes, *shared):
        by_lane = PartitionSpec("lane")
        specs = (by_lane, by_lane, *(PartitionSpec() for _ in shared))
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=by_lane,
                             check_vma=False)(counts, lanes, *shared)

    return jax.jit(on_mesh)


def share_batch(array, mesh):
    """Under jit: spread a batch's examples over the devices of a "batch" mesh; else leave it."""
    if "batch" not in mesh.axis_names:
        return array
    return lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec("batch")))
