"""Replicates state and splits batches over the devices that `jax.pmap` runs on.

Everything that deals with the leading [devices, ...] axis is here: placing arrays, taking them
back to the host, and the shapes that a compiler is given when there are no arrays. What the
devices compute is decided by the steps (training/step.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

from spinenet_jax.data.batch import Batch, Fields

AXIS = 'batch'  # the one pmap axis: every device of every process
Tree = TypeVar('Tree')  # any pytree of arrays; what comes out has the structure of what goes in


def sharding(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Sharding:
    """Placement that pmap takes without a copy: leading axis split over this process's devices."""
    devices = jax.local_devices() if devices is None else devices
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Put one copy of every leaf on each local device: x[...] becomes x[devices,...]."""
    devices = jax.local_devices() if devices is None else devices
    placement = sharding(devices)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *leaf.shape)), placement)

    return jax.tree.map(put, tree)


def first_replica(tree: Tree) -> Tree:
    """The first local device's values, where they are: x[devices,...] becomes x[1,...]."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def unreplicate(tree: Tree) -> Tree:
    """Copy the first local device's values to the host: x[devices,...] becomes numpy x[...].

    The copy is real. On CPU a view would share memory with a buffer that the next step is given
    to overwrite, while a checkpoint is still being written from it.
    """
    first = jax.device_get(first_replica(tree))
    return jax.tree.map(lambda x: np.array(x[0], copy=True), first)


def split(batch: Batch, count: int | None = None) -> Batch:
    """Cut a local batch for `count` devices: x[rows,...] becomes x[count, rows / count, ...].

    Args:
      batch: host arrays whose leading axis is a multiple of `count`.
      count: the local devices by default.
    """
    count = jax.local_device_count() if count is None else count
    return {name: x.reshape(count, len(x) // count, *x.shape[1:]) for name, x in batch.items()}


def shard(batch: Batch, devices: Sequence[jax.Device] | None = None) -> dict[str, jax.Array]:
    """Send a local batch to this process's devices, each its part; returns before it is there.

    Args:
      batch: host arrays [rows, ...], rows a multiple of the number of devices.
      devices: all local ones by default.
    """
    count = None if devices is None else len(devices)
    return jax.device_put(split(batch, count), sharding(devices))


def gathered_rows(results: Mapping[str, jax.Array]) -> Batch:
    """What every device holds alike after an all-gather, as host arrays [rows, ...].

    Waits for the results, and copies those of one device only.
    """
    return {name: np.asarray(x)[0] for name, x in first_replica(dict(results)).items()}


def abstract_replicas(tree: Tree, count: int) -> Tree:
    """Shapes and types of `replicate`'s result on `count` devices; `tree` may be abstract too."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def abstract_batch(fields: Fields, batch_size: int, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of `shard`'s result for `batch_size` images over `count` devices."""
    lead = (count, batch_size // count)
    return {
        name: jax.ShapeDtypeStruct((*lead, *field.shape), field.dtype)
        for name, field in fields.items()
    }
