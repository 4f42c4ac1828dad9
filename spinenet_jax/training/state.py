"""The training state: weights, statistics and optimizer, and how they start.

How the state changes is in step.py, how it is placed on devices in parallel.py, how it reaches the
disk in checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Callable

import flax
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes, so everything a checkpoint holds.

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

    The forward pass that Flax traces is dead code under `jit`. What is left is a long program that
    runs once, so on CPU it is compiled without optimisation: 2-3 times sooner.

    model: called as `model.init(keys, f32[1,H,W,3], train=False)`.
    image_size: (H, W) in pixels.
    Returns an unreplicated state at step 0.
    """

    draw = _drawing(model, optimizer, image_size)
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return jax.jit(draw, compiler_options=options)(jax.random.key(seed))


def empty_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_size: tuple[int, int]
) -> TrainState:
    """Host arrays of zeros as `create_state` would fill them: what a checkpoint is read into.

    Only traced; drawing weights that are thrown away would cost a compilation.
    """
    shapes = abstract_state(model, optimizer, image_size)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_size: tuple[int, int]
) -> TrainState:
    """Shapes and types of what `create_state` would give; only traced."""
    return jax.eval_shape(_drawing(model, optimizer, image_size), jax.random.key(0))


def _drawing(model, optimizer, image_size) -> Callable[[jax.Array], TrainState]:
    """The function that draws a state from a random key."""

    def draw(key):
        images = jnp.zeros((1, *image_size, 3), jnp.float32)
        variables = model.init({'params': key}, images, train=False)
        params = variables['params']
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get('batch_stats', {}),
            opt_state=optimizer.init(params),
        )

    return draw
