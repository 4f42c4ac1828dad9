"""The state that training carries from one step to the next, and its placement on the devices.

Left to others: how the state changes (step.py), how it reaches the disk (checkpoint.py), how its
variables are drawn (initialisation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spinenet_jax.training.initialisation import compile_quickly, draw_variables

AXIS = 'batch'  # the one pmap axis: every device of every process


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes, so everything a checkpoint holds.

    Attributes:
      step: int32[], optimizer steps taken so far.
      params, batch_stats: the model's variables, float32.
      opt_state: optax state of the same shapes.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    seed: int,
) -> TrainState:
    """Draw the initial weights; the same seed gives the same weights on any number of devices.

    Args:
      model: called as `model.init(keys, f32[1,H,W,3], train=False)`.
      optimizer: whose state is to go with the weights.
      image_size: (H, W) in pixels.
      seed: any integer.

    Returns:
      An unreplicated state at step 0.
    """
    variables = draw_variables(model, image_size, seed)
    return _first_state(variables, compile_quickly(optimizer.init)(variables['params']))


def empty_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_size: tuple[int, int]
) -> TrainState:
    """Host arrays of zeros as `create_state` would fill them: what a checkpoint is read into.

    Only traced: nothing is compiled or drawn.
    """
    shapes = abstract_state(model, optimizer, image_size)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_size: tuple[int, int]
) -> TrainState:
    """Shapes and types of what `create_state` would give; only traced."""

    def draw(key):
        images = jnp.zeros((1, *image_size, 3), jnp.float32)
        variables = model.init({'params': key}, images, train=False)
        return _first_state(variables, optimizer.init(variables['params']))

    return jax.eval_shape(draw, jax.random.key(0))


def _first_state(variables: dict[str, Any], opt_state: Any) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=opt_state,
    )


def shard_sharding(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Sharding:
    """Placement that pmap takes without a copy: leading axis split over this process's devices."""
    devices = jax.local_devices() if devices is None else devices
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Put one copy of every leaf on each local device: x[...] becomes x[devices,...]."""
    devices = jax.local_devices() if devices is None else devices
    sharding = shard_sharding(devices)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *leaf.shape)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree: Any) -> Any:
    """Copy the first local device's values to the host: x[devices,...] becomes numpy x[...].

    The copy is real. On CPU a view would share memory with a buffer that the next step is given
    to overwrite, while a checkpoint is still being written from it.
    """
    first = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: np.array(x[0], copy=True), jax.device_get(first))
