"""The stem on cells of 4x4 pixels: how a TPU works on an image, which has only 3 channels.

A cell of the image has 48 channels. The stem's 7x7 convolution of stride 2 becomes a 3x3
convolution of cells whose output cell is 2x2 positions, 4 * D channels, ordered (column, row,
channel); the max-pool that follows turns an output cell into one position. The same products and
sums, with full vector registers; what it brings: docs/tpu_log.md. Maps are in strips (`strips.py`).
"""

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.lowering import strips as strip_ops
from spinenet_jax.lowering.plain import Pads
from spinenet_jax.lowering.pooling import first_largest

SIDE = 4  # pixels of an image cell
POSITIONS = 4  # of an output cell


def space_to_depth(x: jax.Array, side: int) -> jax.Array:
    """[B,H,W,C] to [B,H/side,W/side,side*side*C], a cell's positions row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def unfold(x: jax.Array) -> jax.Array:
    """Output cells [B,h,w,4*D], not in strips, to the positions they hold, [B,2*h,2*w,D]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // POSITIONS)  # column, row
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, 2 * height, 2 * width, -1)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strips: int,
    stride: int = 2,
    pads: Pads,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """The 7x7 convolution of stride 2 of an image, by cells.

    Args:
      x: f[B,H,W,C], H and W multiples of 4 and W/4 of `strips`; not in strips.
      kernel: f[7,7,C,D].
      strips: into how many the result is cut.
      stride, pads, dilation, groups: as of `plain.conv`; 2 or 3 zeros before rows and columns.

    Returns:
      f[B*strips,H/4,W/4/strips,4*D], output cells.

    Raises:
      ValueError: another size, kernel, stride or padding, dilation or groups.
    """
    before = pads[0][0]
    fits = kernel.shape[:2] == (7, 7) and stride == 2 and dilation == groups == 1
    if not fits or pads[0] != pads[1] or before not in (2, 3) or sum(pads[0]) not in (5, 6):
        raise ValueError(
            f'cells.conv computes a 7x7 convolution of stride 2, not kernel {kernel.shape}, stride '
            f'{stride}, pads {pads}, dilation {dilation}, groups {groups}'
        )
    if x.shape[1] % SIDE or x.shape[2] % (SIDE * strips):
        raise ValueError(f'an image of {x.shape[1:3]} has no {strips} strips of 4x4 cells')
    # Without the barrier XLA normalises after the folding, in the worst of layouts.
    cells = strip_ops.split(space_to_depth(lax.optimization_barrier(x), SIDE), strips)
    return strip_ops.conv(cells, _fold_kernel(kernel, before), strips=strips, pads=((1, 1), (1, 1)))


def _fold_kernel(x: jax.Array, before: int) -> jax.Array:
    """[7,7,C,D] to [3,3,16*C,4*D]: the window of each of the 2x2 positions, within 3x3 cells."""
    size, _, channels, features = x.shape

    def place(x: jax.Array, axis: int) -> jax.Array:
        """Windows of both positions along `axis`, 12 pixels long; a new last axis."""
        pads = []
        for position in (0, 1):
            low = SIDE + 2 * position - before
            pad = [(0, 0)] * x.ndim
            pad[axis] = (low, 3 * SIDE - size - low)
            pads.append(jnp.pad(x, pad))
        return jnp.stack(pads, axis=-1)

    x = place(place(x, 0), 1)  # [12,12,C,D,row,column]
    x = x.reshape(3, SIDE, 3, SIDE, channels, features, 2, 2).transpose(0, 2, 1, 3, 4, 7, 6, 5)
    return x.reshape(3, 3, SIDE * SIDE * channels, POSITIONS * features)


def max_pool(x: jax.Array, strips: int) -> jax.Array:
    """The 3x3 max-pool of stride 2, 'same' padding, of the positions in output cells.

    Of equal values the first in the window gets the gradient, as in XLA's own max-pool.

    Args:
      x: f[B*strips,h,w/strips,4*D], output cells.
      strips: see `strips.py`.

    Returns:
      f[B*strips,h,w/strips,D].
    """
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    after = jnp.concatenate(
        [left[:, :, 1:], strip_ops.right_edge(left, strips, 1, -jnp.inf)], axis=2
    )
    x = first_largest((left, right, after))
    top, bottom = x[..., : half // 2], x[..., half // 2 :]
    below = lax.pad(
        top[:, 1:], jnp.asarray(-jnp.inf, x.dtype), [(0, 0, 0), (0, 1, 0), *[(0, 0, 0)] * 2]
    )
    return first_largest((top, bottom, below))
