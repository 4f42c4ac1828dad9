"""Wide maps cut into strips: how a TPU works on shallow layers with few images a core.

XLA lays a feature map out with its channels along the 128 lanes of a TPU's vector registers and its
batch along their 8 sublanes. A core that trains 2 images leaves three quarters of the sublanes
empty. So a map is cut into strips of columns that are stacked along the batch, [B,H,W,C] to
[B*S,H,W/S,C], strips of an image one after the other; what works on positions one by one does not
notice, and convolutions fetch the columns next to a strip from its neighbours. The arithmetic is
the same. What it brings: docs/tpu_log.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

SUBLANES = 8


def count(batch: int, width: int) -> int:
    """Number of strips, a power of two: `batch` times as many fill the sublanes if `width` can.

    A strip has an even number of columns, so that a stride of 2 leaves whole ones.
    """
    strips = 1
    while 2 * strips * batch <= SUBLANES and width % (4 * strips) == 0:
        strips *= 2
    return strips


def split(x: jax.Array, strips: int) -> jax.Array:
    """[B,H,W,C] to [B*S,H,W/S,C]; W must be a multiple of `strips`."""
    if strips == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, strips, width // strips, channels)
    return x.transpose(0, 2, 1, 3, 4).reshape(batch * strips, height, width // strips, channels)


def join(x: jax.Array, strips: int) -> jax.Array:
    """[B*S,H,W/S,C] to [B,H,W,C]: undoes `split`."""
    if strips == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch // strips, strips, height, width, channels)
    return x.transpose(0, 2, 1, 3, 4).reshape(batch // strips, height, strips * width, channels)


def left_edge(x: jax.Array, strips: int, columns: int) -> jax.Array:
    """The last columns of each strip's left neighbour, zero at the image's border.

    [B*S,H,W/S,C] to [B*S,H,columns,C].
    """
    edge = jnp.roll(x[:, :, x.shape[2] - columns :], 1, axis=0)
    return jnp.where(_strip_number(edge, strips) > 0, edge, jnp.zeros((), x.dtype))


def right_edge(x: jax.Array, strips: int, columns: int, border: float = 0.0) -> jax.Array:
    """The first columns of each strip's right neighbour, `border` at the image's border."""
    edge = jnp.roll(x[:, :, :columns], -1, axis=0)
    return jnp.where(_strip_number(edge, strips) < strips - 1, edge, jnp.asarray(border, x.dtype))


def conv_of(images: int) -> Any:
    """Like `conv`, for maps of `images` images whose strips follow from their batch."""

    def formulation(lhs: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
        return conv(lhs.shape[0] // images)(lhs, *arguments, **options)

    return formulation


def _strip_number(x: jax.Array, strips: int) -> jax.Array:
    """i32[B*S,1,1,1], from 0 on the left."""
    return lax.broadcasted_iota(jnp.int32, (x.shape[0], 1, 1, 1), 0) % strips


def conv(strips: int) -> Any:
    """A formulation of `conv_general_dilated` for maps in strips; not dilated, not grouped.

    Returns:
      A function of lhs f[B*S,H,W/S,C], rhs f[k,k,C,D], strides, 'SAME' or [(low, high)] * 2.
    """

    def formulation(
        lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        height, width = lhs.shape[1], strips * lhs.shape[2]
        if padding == 'SAME':
            padding = lax.padtype_to_pads((height, width), rhs.shape[:2], window_strides, 'SAME')
        rows, (left, _) = padding
        if strips == 1:
            return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
        right = rhs.shape[1] - window_strides[1] - left  # beyond it no window ends
        parts = [lhs]
        if left > 0:
            parts.insert(0, left_edge(lhs, strips, left))
        if right > 0:
            parts.append(right_edge(lhs, strips, right))
        return lax.conv_general_dilated(
            jnp.concatenate(parts, axis=2),
            rhs,
            window_strides,
            [rows, (0, 0)],
            dimension_numbers=options['dimension_numbers'],
            precision=options.get('precision'),
        )

    return formulation
