"""The training state: weights, statistics and optimizer, and how they start.

How the state changes is in step.py, how it is placed on devices in parallel.py, how it reaches the
disk in checkpoint.py, how its variables are drawn in initialisation.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spinenet_jax.training.initialisation import compile_quickly, draw_variables


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes, so everything a checkpoint holds.

    Attributes:
      step: int32[], optimizer steps taken so far.
      params, batch_stats: the model's variables, float32.
      opt_state: optax state of the same shapes.
    """

    step: jax.Array | np.ndarray
    params: optax.Params
    batch_stats: optax.Params
    opt_state: optax.OptState


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


def _first_state(variables: Mapping[str, optax.Params], opt_state: optax.OptState) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=opt_state,
    )
