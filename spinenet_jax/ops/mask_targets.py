"""What the mask head should say of a region: its object's mask, cropped to the region."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spinenet_jax.ops.boxes import EPSILON


def crop_masks(
    masks: jax.Array,
    boxes: jax.Array,
    matched: jax.Array,
    regions: jax.Array,
    size: int = 28,
) -> jax.Array:
    """Masks that fill their objects' boxes, resampled to the regions; soft values, as in both
    public codes.

    Each of size x size bins of a region takes the mask's bilinear value at the bin's middle,
    counted from the mask's first pixel (without half a pixel, like ROIAlign). Outside its box an
    object's mask is 0. A box of no area gives values without meaning, but finite ones.

    Args:
      masks: f32[N,m,m] in [0, 1], or u8[N,m,m] in [0, 255].
      boxes: f32[N,4] (ymin, xmin, ymax, xmax), what the masks fill.
      matched: i32[R], the object of each region.
      regions: f32[R,4] in the same pixels.
      size: side of the result (Mask R-CNN: 28).

    Returns:
      f32[R,size,size] in [0, 1].
    """
    chosen = masks[matched]
    if chosen.dtype == jnp.uint8:
        chosen = chosen.astype(jnp.float32) * (1.0 / 255.0)
    chosen = lax.stop_gradient(chosen)
    boxes = boxes[matched]
    rows, columns = (_weights(boxes, regions, axis, size, masks.shape[1 + axis]) for axis in (0, 1))
    return jnp.einsum('rim,rmn,rjn->rij', rows, chosen, columns, precision='highest')


def _weights(boxes, regions, axis, size, length):
    """f32[R,size,length]: row i holds the weights of the mask's pixels in bin i, along an axis."""
    side = boxes[:, axis + 2] - boxes[:, axis] + EPSILON
    start = (regions[:, axis] - boxes[:, axis]) * length / side
    extent = (regions[:, axis + 2] - regions[:, axis]) * length / side
    places = start[:, None] + (np.arange(size, dtype=np.float32) + 0.5) * extent[:, None] / size
    # 1 at the place, falling to 0 one pixel away; nothing beyond the first and last pixel.
    return jnp.maximum(1.0 - jnp.abs(places[..., None] - jnp.arange(length)), 0.0)
