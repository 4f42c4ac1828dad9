"""Reads the parameters of a Flax module without tracing their initialisers again."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn


def parameter(
    module: nn.Module, name: str, initialiser: Callable, shape: tuple[int, ...]
) -> jax.Array:
    """`module.param(name, initialiser, shape, float32)`, and quick where the parameter exists.

    Flax traces the initialiser at every call, only to compare the shape: a tenth of the time it
    takes to trace a training step. Here Flax is asked where the shape is another one (it raises),
    and where the parameter must be made.
    """
    if module.has_variable('params', name):
        value = module.get_variable('params', name)
        if value.shape == shape:
            return value
    return module.param(name, initialiser, shape, jnp.float32)
