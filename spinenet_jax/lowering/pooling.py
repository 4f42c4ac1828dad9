"""Max-pools as XLA has them, and as maxima of shifted maps."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def plain_max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """XLA's max-pool with 'same' padding; [B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),C]."""
    return nn.max_pool(x, (window, window), (stride, stride), padding='SAME')


@functools.partial(jax.jit, static_argnames=('window', 'stride'))
def shifted_max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """The same as the maximum of shifted maps, columns first, then rows.

    Faster on a CPU (docs/cpu_log.md). The gradient goes where XLA's goes: to the first, row by row,
    of a window's equal values.
    """
    pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), 'SAME')
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    # The first column of each row's maximum, and then the first row that has it.
    for axis in (2, 1):
        count = (x.shape[axis] - window) // stride
        x = first_largest(
            lax.slice_in_dim(x, start, start + count * stride + 1, stride, axis=axis)
            for start in range(window)
        )
    return x


def first_largest(maps: Iterable[jax.Array]) -> jax.Array:
    """Elementwise maximum, NaN where one is; its gradient goes to the first of equal values.

    `jnp.maximum` would share the gradient out among equal values, of which there are many after a
    ReLU.
    """
    return functools.reduce(
        lambda first, later: jnp.where((later > first) | (later != later), later, first), maps
    )
