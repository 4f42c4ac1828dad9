"""Sizes of feature maps, and nearest-neighbour resizing between them."""

import jax
import jax.numpy as jnp


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
