"""From what the heads say of regions to boxes, detections and masks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import nms
from spinenet_jax.ops.detections import detect_scored

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CASCADE_WEIGHTS = (BOX_WEIGHTS, (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


def detect_regions(
    logits: jax.Array,
    codes: jax.Array,
    regions: jax.Array,
    valid: jax.Array,
    size: tuple[int, int],
    rules: nms.Rules,
    weights: Sequence[float] = BOX_WEIGHTS,
    inclusive: bool = False,
) -> nms.Detections:
    """Detections of a batch: softmax, decode, clip, suppress within classes, keep the best.

    In a cascade, `logits` is the mean of the stages' logits, `codes` and `regions` are the last
    stage's.

    Args:
      logits: f32[B,R,K]; channel 0 is background (`rules.first_class` should be 1).
      codes: f32[B,R,4*K], class by class, or f32[B,R,4] for boxes that all classes share.
      regions: f32[B,R,4]; valid: bool[B,R].
      size: (height, width) to which boxes are clipped, pixels.
      rules: thresholds and limits.
      weights: of the codes.
      inclusive: decode and clip as TF1 does, see `boxes`.

    Returns:
      `Detections` with a leading B; classes are channels of the logits.
    """
    scores = jax.nn.softmax(logits.astype(jnp.float32))
    scores = jnp.where(valid[..., None], scores, -1.0)
    codes = codes.astype(jnp.float32).reshape(*codes.shape[:2], -1, 4)
    boxes = box_ops.decode(codes, regions[:, :, None], weights, inclusive)
    return detect_scored(scores, box_ops.clip(boxes, size, inclusive), rules)


def refine(
    codes: jax.Array,
    regions: jax.Array,
    size: tuple[int, int],
    weights: Sequence[float],
    inclusive: bool = False,
) -> jax.Array:
    """The regions of a cascade's next stage: decoded and clipped, without a gradient.

    Args:
      codes: f32[B,R,4]; regions: f32[B,R,4], of this stage.
      size: (height, width) to which boxes are clipped, pixels.
      weights, inclusive: see `boxes.decode`.
    """
    boxes = box_ops.decode(codes.astype(jnp.float32), regions, weights, inclusive)
    return lax.stop_gradient(box_ops.clip(boxes, size, inclusive))


def select_class(values: jax.Array, classes: jax.Array, axis: int = -1) -> jax.Array:
    """Of values by class, those of each row's class: f[B,R,...,K,...] and i32[B,R] to f[B,R,...].

    A sum over classes of which all but one are 0, exact: reading one class instead would have a
    scatter for a gradient, and masks of all classes need not leave the device.
    """
    axis %= values.ndim
    index = lax.broadcasted_iota(jnp.int32, values.shape, axis)
    classes = classes.reshape(*classes.shape, *(1,) * (values.ndim - classes.ndim))
    return jnp.sum(jnp.where(index == classes, values, 0), axis=axis)
