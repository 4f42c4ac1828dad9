"""Batch norm as two pure functions, each traced and lowered once for all layers of a shape.

A detector has 150 norms of a few dozen shapes. Written out in each layer they were a third of the
time it takes to trace a training step; as jitted functions, equal ones share a trace. The compiler
inlines the calls, so the compiled program is the same.

The arithmetic is that of `flax.linen.BatchNorm`: statistics in float32, the variance as the mean of
squares less the square of the mean, not below zero.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

MOMENTS = 'batch_norm_moments'  # name of the sums over devices, for jax.checkpoint
STATIC = ('momentum', 'epsilon', 'dtype', 'axis_name', 'positions')


@partial(jax.jit, static_argnames=STATIC)
def by_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    running: tuple[jax.Array, jax.Array],
    *,
    momentum: float,
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
    positions: int = 1,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Normalises by the statistics of the batch, over all replicas of `axis_name`.

    Args:
      x: f[B,h,w,positions*C].
      scale, bias: f32[C].
      running: mean and variance so far, f32[C] each.
      momentum: weight of the running statistics, in [0, 1].
      epsilon: added to the variance.
      dtype: of the result.
      axis_name: replica axis, or None.
      positions: how many positions of the map are folded into the channels.

    Returns:
      The normalised map, and the new running statistics.
    """
    mean, variance = statistics = _statistics(x.astype(jnp.float32), axis_name, positions)
    updated = tuple(
        momentum * old + (1 - momentum) * new for old, new in zip(running, statistics, strict=True)
    )
    return _normalise(x, mean, variance, scale, bias, epsilon, dtype, positions), updated


@partial(jax.jit, static_argnames=('epsilon', 'dtype', 'positions'))
def by_running(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    running: tuple[jax.Array, jax.Array],
    *,
    epsilon: float,
    dtype: jnp.dtype,
    positions: int = 1,
) -> jax.Array:
    """Normalises by the running statistics; arguments as of `by_batch`."""
    return _normalise(x, *running, scale, bias, epsilon, dtype, positions)


def _statistics(x: jax.Array, axis_name: str | None, positions: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel, over all replicas."""
    moments = jnp.mean(x, (0, 1, 2)), jnp.mean(x * x, (0, 1, 2))
    if positions > 1:
        moments = tuple(moment.reshape(positions, -1).mean(axis=0) for moment in moments)
    if axis_name is not None and lax.axis_size(axis_name) > 1:
        # Stacked: one array of the collective.
        moments = tuple(lax.pmean(jnp.stack(moments), axis_name))
    mean, square = checkpoint_name(moments, MOMENTS)
    return mean, jnp.maximum(0.0, square - mean * mean)


def _normalise(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: jnp.dtype,
    positions: int,
) -> jax.Array:
    """(x - mean) / deviation * scale + bias, in float32 until the end."""
    factor = lax.rsqrt(variance + epsilon) * scale
    if positions > 1:
        mean, factor, bias = (jnp.tile(v, positions) for v in (mean, factor, bias))
    return ((x - mean) * factor + bias).astype(dtype)
