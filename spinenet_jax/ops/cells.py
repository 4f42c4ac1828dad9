"""The stem on cells of 4x4 pixels: how a TPU works on an image, which has only 3 channels.

A cell of the image has 48 channels. The stem's 7x7 convolution of stride 2 becomes a 3x3
convolution of cells whose output cell is 2x2 positions, 4 * D channels, ordered (column, row,
channel); the max-pool that follows turns an output cell into one position. The same products and
sums, with full vector registers; what it brings: docs/tpu_log.md. Maps are in strips (`strips.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import strips as strip_ops
from spinenet_jax.ops.convolution import space_to_depth
from spinenet_jax.ops.resample import first_largest

SIDE = 4  # pixels of an image cell
POSITIONS = 4  # of an output cell


def conv(strips: int) -> Any:
    """A formulation of the 7x7 convolution of stride 2, called like `conv_general_dilated`.

    Returns:
      A function of lhs f[B,H,W,C], H and W multiples of 4 and W/4 of `strips`; rhs f[7,7,C,D];
      strides (2, 2); padding 'SAME' or [(3, 3), (3, 3)]. Gives f[B*strips,H/4,W/4/strips,4*D].
    """

    def formulation(
        lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        del window_strides
        before = 2 if padding == 'SAME' else padding[0][0]
        # Without the barrier XLA normalises after the folding, in the worst of layouts.
        cells = strip_ops.split(space_to_depth(lax.optimization_barrier(lhs), SIDE), strips)
        kernel = _fold_kernel(rhs, before)
        return strip_ops.conv(strips)(cells, kernel, (1, 1), 'SAME', **options)

    return formulation


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
