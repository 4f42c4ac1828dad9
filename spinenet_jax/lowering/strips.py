"""Maps cut into strips of columns, so that few images a core fill the registers of a TPU.

XLA lays a feature map out with its channels along the 128 lanes of a TPU's vector registers and its
batch along their 8 sublanes. A core that trains 2 images leaves three quarters of the sublanes
empty. So a map is cut into strips of columns that are stacked along the batch, [B,H,W,C] to
[B*S,H,W/S,C], strips of an image one after the other; what works on positions one by one does not
notice, and convolutions fetch the columns next to a strip from its neighbours. The arithmetic is
the same. What it brings: docs/tpu_log.md.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.lowering import plain
from spinenet_jax.lowering.plain import Pads

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


def _strip_number(x: jax.Array, strips: int) -> jax.Array:
    """i32[B*S,1,1,1], from 0 on the left."""
    return lax.broadcasted_iota(jnp.int32, (x.shape[0], 1, 1, 1), 0) % strips


@partial(jax.jit, static_argnames=('strips', 'stride', 'pads', 'dilation', 'groups'))
def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strips: int,
    stride: int = 1,
    pads: Pads,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """A convolution of maps in strips: the columns that a strip lacks come from its neighbours.

    Args:
      x: f[B*S,H,W/S,C].
      kernel: f[k,k,C/groups,D].
      strips: S, of an image.
      stride: a divisor of W/S.
      pads: zeros around the whole map; of columns, such that there are W/stride results.
      dilation, groups: as of `plain.conv`.

    Returns:
      f[B*S,h,W/S/stride,D].

    Raises:
      ValueError: results of one strip do not follow from it and its direct neighbours.
    """
    if strips == 1:
        return plain.conv(x, kernel, stride=stride, pads=pads, dilation=dilation, groups=groups)
    width, reach = x.shape[2], dilation * (kernel.shape[1] - 1) + 1
    rows, (left, after) = pads
    # Windows begin every `stride` columns from `left` columns before a strip. The last one ends
    # this many columns beyond it; if negative, inside it.
    right = reach - stride - left
    results = (strips * width + left + after - reach) // stride + 1
    if width % stride or results * stride != strips * width or max(left, right) > width:
        raise ValueError(
            f'strips of {width} columns have no convolution of kernel {kernel.shape[:2]}, stride '
            f'{stride}, dilation {dilation} and pads {pads}'
        )
    parts = [x]
    if left > 0:
        parts.insert(0, left_edge(x, strips, left))
    if right > 0:
        parts.append(right_edge(x, strips, right))
    return plain.conv(
        jnp.concatenate(parts, axis=2),
        kernel,
        stride=stride,
        pads=(rows, (0, 0)),
        dilation=dilation,
        groups=groups,
    )
