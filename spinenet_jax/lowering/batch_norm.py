"""Batch norm as two pure functions, each traced and lowered once for all layers of a shape.

A detector has 150 norms of a few dozen shapes. Written out in each layer they were a third of the
time it takes to trace a training step; as jitted functions, equal ones share a trace. The compiler
inlines the calls, so the compiled program is the same.

The arithmetic is that of `flax.linen.BatchNorm`: statistics in float32, the variance as the mean of
squares less the square of the mean, not below zero. The gradient is written by hand: it needs two
sums over the map and nothing of its size but the map, where automatic differentiation takes a third
sum and keeps the centred map and the scaled gradient (docs/cpu_log.md).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

MOMENTS = 'batch_norm_moments'  # what jax.checkpoint knows the statistics by
Moments = tuple[jax.Array, jax.Array]  # f32[C] each
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
    x, statistics = _by_batch(x, scale, bias, epsilon, dtype, axis_name, positions)
    updated = tuple(
        momentum * old + (1 - momentum) * new for old, new in zip(running, statistics, strict=True)
    )
    return x, updated


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


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _by_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
    positions: int,
) -> tuple[jax.Array, Moments]:
    """The normalised map, and mean and variance of the batch, which have no gradient."""
    return _forward(x, scale, bias, epsilon, dtype, axis_name, positions)[0]


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
    positions: int,
) -> tuple[tuple[jax.Array, Moments], tuple[jax.Array, ...]]:
    wide = x.astype(jnp.float32)
    count = x.size // scale.size
    moments = _channel_sums(wide, positions) / count, _channel_sums(wide * wide, positions) / count
    mean, square = checkpoint_name(_mean_of_replicas(moments, axis_name), MOMENTS)
    variance = jnp.maximum(0.0, square - mean * mean)
    out = _normalise(x, mean, variance, scale, bias, epsilon, dtype, positions)
    return (out, (mean, variance)), (x, scale, mean, variance)


def _backward(
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
    positions: int,
    saved: tuple[jax.Array, ...],
    gradients: tuple[jax.Array, Moments],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ioffe and Szegedy (2015), section 3, with the two sums that reach x over all replicas."""
    x, scale, mean, variance = saved
    gradient = gradients[0].astype(jnp.float32)
    centred = x - _tile(mean, positions)
    count = x.size // scale.size
    inverse = lax.rsqrt(variance + epsilon)
    by_bias = _channel_sums(gradient, positions)
    by_centred = _channel_sums(gradient * centred, positions)
    shift, slope = _mean_of_replicas((by_bias / count, by_centred / count), axis_name)
    slope = jnp.where(variance > 0, slope * inverse * inverse, 0.0)  # no slope where it was cut
    shift, slope, factor = (_tile(v, positions) for v in (shift, slope, inverse * scale))
    by_x = factor * (gradient - shift - centred * slope)
    return by_x.astype(x.dtype), by_centred * inverse, by_bias


_by_batch.defvjp(_forward, _backward)


def _channel_sums(x: jax.Array, positions: int) -> jax.Array:
    """f32[B,h,w,positions*C] summed to f32[C]."""
    sums = jnp.sum(x, (0, 1, 2))
    return sums.reshape(positions, -1).sum(axis=0) if positions > 1 else sums


def _mean_of_replicas(moments: Moments, axis_name: str | None) -> Moments:
    """Two f32[C], averaged over all replicas as one array of the collective."""
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return moments
    first, second = lax.pmean(jnp.stack(moments), axis_name)
    return first, second


def _tile(x: jax.Array, positions: int) -> jax.Array:
    """f32[C] for each of the positions: f32[positions*C]."""
    return jnp.tile(x, positions) if positions > 1 else x


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
    mean, factor, bias = (_tile(v, positions) for v in (mean, factor, bias))
    return ((x - mean) * factor + bias).astype(dtype)
