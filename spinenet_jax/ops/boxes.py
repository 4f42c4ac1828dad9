"""Box arithmetic: area, overlap, clipping, and the code that a detector regresses.

Boxes are float32 (ymin, xmin, ymax, xmax) in pixels, the far edge exclusive: no +1 anywhere. Where
a function takes `inclusive`, it can also compute as the TF1 original does, in which the far edge of
a box is its last pixel: sides are one longer, and clipping ends at the last row and column.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

MAX_LOG_SIZE = math.log(1000.0 / 16.0)  # a decoded side is at most 62.5 times its anchor's
EPSILON = 1e-8
UNIT_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def area(boxes: jax.Array) -> jax.Array:
    """f32[...,4] to f32[...]; a box whose edges are swapped has area 0."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every pair: f32[N,4], f32[M,4] to f32[N,M] in [0, 1].

    Two empty boxes overlap by 0.
    """
    # An axis at a time: a trailing axis of 2 would fill a 64th of a TPU's vector registers.
    height, width = (
        jnp.maximum(
            jnp.minimum(a[:, None, i + 2], b[None, :, i + 2])
            - jnp.maximum(a[:, None, i], b[None, :, i]),
            0.0,
        )
        for i in (0, 1)
    )
    intersection = height * width
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def clip(boxes: jax.Array, size: jax.Array | tuple[int, int], inclusive: bool = False) -> jax.Array:
    """Move edges into an image of `size` (height, width); f32[...,4] to f32[...,4]."""
    height, width = size[0] - inclusive, size[1] - inclusive
    limit = jnp.stack([jnp.asarray(s, boxes.dtype) for s in (height, width, height, width)])
    return jnp.clip(boxes, 0.0, limit)


def encode(
    boxes: jax.Array,
    anchors: jax.Array,
    weights: Sequence[float] = UNIT_WEIGHTS,
    inclusive: bool = False,
) -> jax.Array:
    """Code of `boxes` relative to `anchors`, both f32[...,4], as (dy, dx, dh, dw).

    Centre offset in anchor sizes and log ratio of sides, times `weights`; sides grow by 1e-8 so
    that an empty box has a finite code (Model Garden, `box_ops.encode_boxes`).

    Args:
      boxes, anchors: f32[...,4].
      weights: of the four numbers, above 0 (box head of Mask R-CNN: 10, 10, 5, 5).
      inclusive: as TF1 encodes, see the top of this file.
    """
    centre, side = _centre_and_side(boxes, inclusive)
    anchor_centre, anchor_side = _centre_and_side(anchors, inclusive)
    side, anchor_side = side + EPSILON, anchor_side + EPSILON
    code = jnp.concatenate(
        [(centre - anchor_centre) / anchor_side, jnp.log(side / anchor_side)], axis=-1
    )
    return code if tuple(weights) == UNIT_WEIGHTS else code * jnp.asarray(weights, code.dtype)


def decode(
    codes: jax.Array,
    anchors: jax.Array,
    weights: Sequence[float] = UNIT_WEIGHTS,
    inclusive: bool = False,
) -> jax.Array:
    """Inverse of `encode`; log ratios are clamped above at log(1000/16). f32[...,4] each."""
    if tuple(weights) != UNIT_WEIGHTS:
        codes = codes / jnp.asarray(weights, codes.dtype)
    anchor_centre, anchor_side = _centre_and_side(anchors, inclusive)
    centre = codes[..., :2] * anchor_side + anchor_centre
    side = jnp.exp(jnp.minimum(codes[..., 2:], MAX_LOG_SIZE)) * anchor_side
    high = centre + 0.5 * side
    return jnp.concatenate([centre - 0.5 * side, high - 1.0 if inclusive else high], axis=-1)


def _centre_and_side(boxes: jax.Array, inclusive: bool) -> tuple[jax.Array, jax.Array]:
    side = boxes[..., 2:] - boxes[..., :2]
    side = side + 1.0 if inclusive else side
    return boxes[..., :2] + 0.5 * side, side
