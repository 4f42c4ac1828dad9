"""Changing the size of feature maps without parameters: nearest neighbour and max-pools."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def level_size(image_size: tuple[int, int], level: int) -> tuple[int, int]:
    """Size of the map at `level`: ceil(image size / 2**level), what stride-2 layers give."""
    height, width = image_size
    return -(-height // 2**level), -(-width // 2**level)


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest-neighbour resize of [B,H,W,C] to [B,*size,C].

    Source index is floor(target index * old size / new size) on each axis: repetition of pixels
    where the factor is whole (TF1's `resize_nearest_neighbor`, without half-pixel centres).
    """
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if new == old:
            continue
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
    return x


def max_pool(x: jax.Array, window: int, stride: int, slices: bool = False) -> jax.Array:
    """Max-pool with 'same' padding; [B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),C].

    Args:
      x: f[B,H,W,C].
      window, stride: pixels.
      slices: take the maximum of shifted maps, columns first, then rows. The same result, the
        gradient to the first of equal values too, faster on a CPU (docs/cpu_log.md).
    """
    if not slices:
        return nn.max_pool(x, (window, window), (stride, stride), padding='SAME')
    pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), 'SAME')
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    for axis in (2, 1):
        count = (x.shape[axis] - window) // stride
        x = first_largest(
            lax.slice_in_dim(x, start, start + count * stride + 1, stride, axis=axis)
            for start in range(window)
        )
    return x


def first_largest(maps: Iterable[jax.Array]) -> jax.Array:
    """Elementwise maximum, NaN where one is; its gradient goes to the first of equal values."""
    return functools.reduce(
        lambda first, later: jnp.where((later > first) | (later != later), later, first), maps
    )


def chain_pools(x: jax.Array, halvings: int, slices: bool = False) -> jax.Array:
    """`halvings` max-pools, 3x3 of stride 2, one after the other (the Model Garden's flavour)."""
    for _ in range(halvings):
        x = max_pool(x, 3, 2, slices)
    return x


def single_pool(x: jax.Array, old_width: int, new_width: int, slices: bool = False) -> jax.Array:
    """The TF1 original's one max-pool after a stride-2 convolution took `old_width` to half.

    Its stride is half the ratio of the widths (2 where that ratio is not whole), its window 3, or
    5 for ratios above 4; ratios up to 2 need none. What is still missing is left to `nearest`.
    """
    if old_width // new_width <= 2:
        return x
    stride = old_width // new_width // 2 if old_width % new_width == 0 else 2
    return max_pool(x, 3 if old_width <= 4 * new_width else 5, stride, slices)
