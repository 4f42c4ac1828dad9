"""Which anchor answers for which ground-truth box, and what the heads should say there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spinenet_jax.ops import boxes as box_ops


class AnchorTargets(NamedTuple):
    """Training targets of one image.

    Attributes:
      labels: i32[A], the matched box's label, or -1 where the anchor is background.
      codes: f32[A,4], the box code to regress; 0 where the anchor is background.
      positive: bool[A], whether a box is matched.
    """

    labels: jax.Array
    codes: jax.Array
    positive: jax.Array


class Matches(NamedTuple):
    """The box that each anchor overlaps most, and the box that it is the best anchor of.

    Attributes:
      index: i32[A], the box that is overlapped most, the first on ties.
      overlap: f32[A], the IoU with it; -1 without any valid box.
      claimed: bool[A], whether the anchor is the best one of some valid box, whatever the IoU.
      owner: i32[A], the box that claims the anchor, or else `index`.
    """

    index: jax.Array
    overlap: jax.Array
    claimed: jax.Array
    owner: jax.Array


def match(anchors: jax.Array, boxes: jax.Array, valid: jax.Array) -> Matches:
    """Find each anchor's best box and each box's best anchor.

    Of several anchors that overlap a box most, the first is claimed; of several boxes that claim an
    anchor, the first has it. A padded row (`valid` false) may hold anything, NaN included.

    Args:
      anchors: f32[A,4].
      boxes: f32[N,4] in the same pixels.
      valid: bool[N].
    """
    count, anchor_count = boxes.shape[0], anchors.shape[0]
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    overlaps = jnp.where(valid[:, None], box_ops.iou(boxes, anchors), -1.0)  # [N,A]
    best, matched = _best(overlaps, axis=0)

    best_of_box, claimed = _best(overlaps, axis=1)
    claims = valid & (best_of_box >= 0.0)
    claimed = jnp.where(claims, claimed, anchor_count)  # out of range: dropped by the scatter
    claimant = jnp.full((anchor_count,), count, jnp.int32)
    claimant = claimant.at[claimed].min(jnp.arange(count, dtype=jnp.int32), mode='drop')
    return Matches(
        index=matched,
        overlap=best,
        claimed=claimant < count,
        owner=jnp.where(claimant < count, claimant, matched),
    )


def match_anchors(
    anchors: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    threshold: float = 0.5,
) -> AnchorTargets:
    """Match anchors to boxes by overlap (both public implementations' rule).

    An anchor takes the box it overlaps most when that IoU is at least `threshold`, the first box
    on ties. Then each box claims the anchor that overlaps it most, whatever the IoU (the first
    anchor on ties); if several boxes claim one anchor, the first box has it. There is no band of
    ignored anchors. A padded row (`valid` false) may hold anything, NaN included.

    Args:
      anchors: f32[A,4].
      boxes: f32[N,4] in the same pixels.
      labels: i32[N], at least 1.
      valid: bool[N]; without a valid box every anchor is background.
      threshold: least IoU of a match, in (0, 1].
    """
    found = match(anchors, boxes, valid)
    positive = (found.overlap >= threshold) | found.claimed
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    codes = box_ops.encode(boxes[found.owner], anchors)
    return AnchorTargets(
        labels=jnp.where(positive, labels[found.owner], -1),
        codes=jnp.where(positive[:, None], codes, 0.0),
        positive=positive,
    )


def _best(values: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Maximum along `axis` of f32 values above -inf, and its first index.

    As `jnp.max` and `jnp.argmax` in one pass. Of an argmax whose maximum nobody reads, the TPU
    compiler keeps the maximum in bfloat16; here both are read, and both are float32.
    """
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, axis)

    def better(a, b):
        a_wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
        return jnp.where(a_wins, a[0], b[0]), jnp.where(a_wins, a[1], b[1])

    worst = jnp.float32(-jnp.inf), jnp.int32(jnp.iinfo(jnp.int32).max)
    return jax.lax.reduce((values, index), worst, better, (axis,))
