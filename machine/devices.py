"""Lanes over the devices of all processes: where arrays lie, and a function of one lane for all."""
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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


class Deal(NamedTuple):
    """Which lanes run in which slot of which device; device d has the slots from d * slots on."""
    rows: np.ndarray            # int [devices * slots], lanes; what is not real repeats one
    real: np.ndarray            # bool [devices * slots]
    counts: np.ndarray          # int32 [devices], the real slots, which come first


def deal(active, lanes, mesh):
    """The Deal of the lanes that go on.

    On a CPU a device goes through its lanes one after another and stops at its count, so that one
    program serves any number of them; elsewhere the slots are vmapped, and shrink by halves.

    Args:
      active: ints, the lanes that go on.
      lanes: how many there were at first.
      mesh: as from make_mesh.
    """
    devices = mesh.shape.get("lane", 1)
    needed = -(-len(active) // devices)
    slots = -(-lanes // devices) if _one_by_one() else 1 << (needed - 1).bit_length()
    rows = np.full((devices, slots), active[0])
    real = np.zeros((devices, slots), bool)
    for device, part in enumerate(np.array_split(np.asarray(active), devices)):
        rows[device, :len(part)], real[device, :len(part)] = part, True
    return Deal(rows.reshape(-1), real.reshape(-1), real.sum(1).astype(np.int32))


def _one_by_one():
    """Whether a device runs its lanes one after another: on a CPU, where that costs nothing and
    keeps a lane's bits the same in any company. One lane can't fill an accelerator."""
    return jax.default_backend() == "cpu"


def _together(function, count, lanes, *shared):
    """All slots of a device at once."""
    return jax.vmap(lambda lane: function(lane, *shared))(lanes)


def _alone(function, count, lanes, *shared):
    """The only slot of the only device: no loop, less to compile."""
    out = function(jax.tree.map(lambda a: a[0], lanes), *shared)
    return jax.tree.map(lambda a: a[None], out)


def _in_turn(function, count, lanes, *shared):
    """The first `count` slots of a device, one after another."""
    def out_of(i):
        lane = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), lanes)
        return function(lane, *shared)

    def run(i, outs):
        return jax.tree.map(lambda all_, one: lax.dynamic_update_index_in_dim(all_, one, i, 0),
                            outs, out_of(i))

    slots = len(jax.tree.leaves(lanes)[0])
    empty = jax.tree.map(lambda out: jax.numpy.zeros((slots, *out.shape), out.dtype),
                         jax.eval_shape(lambda: out_of(0)))
    return lax.fori_loop(0, count[0], run, empty)


def over_lanes(function, mesh, one_by_one=None):
    """jit of function(lane, *shared) over a leading lane axis, spread over the mesh's lanes.

    Args:
      function: of one lane's pytree.
      mesh: as from make_mesh.
      one_by_one: None decides by backend.
    Returns:
      f(counts, lanes, *shared): counts as from deal; what comes back for slots beyond a device's
      count is of no use.
    """
    one_by_one = _one_by_one() if one_by_one is None else one_by_one

    def on_device(count, lanes, *shared):
        slots = len(jax.tree.leaves(lanes)[0])
        if not one_by_one:
            strategy = _together
        elif slots == mesh.size == 1:
            strategy = _alone
        else:
            strategy = _in_turn
        return strategy(function, count, lanes, *shared)

    if "lane" not in mesh.axis_names:
        return jax.jit(on_device, out_shardings=NamedSharding(mesh, PartitionSpec()))
    by_lane, whole = PartitionSpec("lane"), PartitionSpec()

    def on_mesh(counts, lanes, *shared):
        specs = (by_lane, by_lane, *(whole for _ in shared))
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=by_lane,
                             check_vma=False)(counts, lanes, *shared)

    return jax.jit(on_mesh)


def share_batch(array, mesh):
    """Under jit: spread a batch's examples over the devices of a "batch" mesh; else leave it."""
    if "batch" not in mesh.axis_names:
        return array
    return lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec("batch")))
