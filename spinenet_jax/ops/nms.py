"""Exact greedy non-maximum suppression with static shapes.

Of candidates above a score threshold, the best is taken, those of its class that overlap it by more
than an IoU threshold are dropped, and so on. Which candidates of an image there are is a matter of
`detections.py` and `proposals.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import boxes as box_ops


class Rules(NamedTuple):
    """What counts as a detection.

    Attributes:
      score: candidates need a score above this, in [0, 1).
      iou: a candidate is dropped if it overlaps a better one of its class by more, in [0, 1].
      candidates: at most this many of a class, the best, are looked at; at least 1.
      detections: at most this many are returned, over all classes; at least 1.
      first_class: classes (columns of the logits) below this one are not detected.
      soft_sigma: 0, or the sigma of Soft-NMS (Bodla et al., 2017): instead of dropping a candidate
        that overlaps a better one of its class, its score is multiplied by exp(-IoU**2 / sigma),
        and `iou` does not count. The paper has 0.5; TensorFlow's `soft_nms_sigma` is half of this.
    """

    score: float = 0.05
    iou: float = 0.5
    candidates: int = 5000
    detections: int = 100
    first_class: int = 0
    soft_sigma: float = 0.0


class Detections(NamedTuple):
    """Detections of one image, best first; rows beyond the last detection are zero.

    Attributes:
      boxes: f32[D,4]. scores: f32[D]. classes: i32[D], column of the logits.
      valid: bool[D].
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array


def suppress(
    boxes: jax.Array,
    valid: jax.Array,
    iou: float,
    limit: int,
    at_threshold: bool = False,
    block: int = 256,
    classes: jax.Array | None = None,
) -> jax.Array:
    """Which boxes greedy suppression keeps, of very many: the same result, by blocks.

    A block of boxes is tested at once against those kept of earlier blocks. Inside the block,
    "kept if no kept box before it overlaps it" is repeated until nothing changes: after n rounds
    the first n boxes are settled, so that it ends, and the settled answer is the only one there
    is. A few rounds are enough, as chains of suppression are short. Blocks end with the last valid
    row, or when `limit` boxes are kept. 2,000 boxes take 5 ms on a CPU core; `greedy` would need
    a pass over all of them for each box kept.

    Args:
      boxes: f32[M,4], best first.
      valid: bool[M]; a row that is not is neither kept nor suppresses.
      iou: a box is dropped if it overlaps a kept one before it by more, in [0, 1].
      limit: at most this many are kept, the first; at least 1.
      at_threshold: an overlap of exactly `iou` drops as well (both public codes, for proposals).
      block: boxes a block, at least 1; any gives the same result.
      classes: i32[M], within which boxes suppress each other; None if all are of one class.

    Returns:
      bool[M].
    """
    count = boxes.shape[0]
    block = min(block, count)
    blocks = -(-count // block)
    boxes = jnp.pad(boxes, ((0, blocks * block - count), (0, 0)))
    valid = jnp.pad(valid, (0, blocks * block - count))
    classes = jnp.zeros(count, jnp.int32) if classes is None else classes
    classes = jnp.pad(classes, (0, blocks * block - count))
    last = jnp.max(jnp.where(valid, jnp.arange(blocks * block), -1))
    earlier = jnp.arange(block)[None, :] < jnp.arange(block)[:, None]

    def too_near(boxes, classes, others, classes_of_others):
        overlaps = box_ops.iou(boxes, others)
        near = overlaps >= iou if at_threshold else overlaps > iou
        return near & (classes[:, None] == classes_of_others)

    # The condition holds no number but that of the blocks: it is what a compiler's estimate of the
    # loop is taken from (`analysis/hlo.py`).
    def unfinished(carry):
        index, _, more = carry
        return (index < blocks) & more

    def next_block(carry):
        index, keep, _ = carry
        own, kinds, alive = (
            lax.dynamic_slice_in_dim(x, index * block, block) for x in (boxes, classes, valid)
        )
        alive &= ~jnp.any(too_near(own, kinds, boxes, classes) & keep, axis=1)
        near = too_near(own, kinds, own, kinds) & earlier

        def settle(state):
            kept, _ = state
            settled = alive & ~jnp.any(near & kept, axis=1)
            return settled, jnp.any(settled != kept)

        kept, _ = lax.while_loop(lambda state: state[1], settle, (alive, jnp.any(alive)))
        keep = lax.dynamic_update_slice_in_dim(keep, kept, index * block, 0)
        index += 1
        return index, keep, (index * block <= last) & (jnp.sum(keep) < limit)

    nothing = jnp.zeros_like(valid)
    keep = lax.while_loop(unfinished, next_block, (0, nothing, last >= 0))[1][:count]
    return keep & (jnp.cumsum(keep) <= limit)


def best_of_sorted(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, rules: Rules
) -> Detections:
    """The detections of `greedy` from candidates that are already sorted, in fewer iterations.

    On a GPU each iteration of such a loop waits for its condition to reach the host.

    Args:
      boxes: f32[M,4]; scores: f32[M], descending, only those above `rules.score` count;
      classes: i32[M].
    """
    if rules.soft_sigma > 0:  # scores change, and with them the order
        return greedy(boxes, scores, classes, rules)
    above, limit = scores > rules.score, rules.detections
    keep = suppress(boxes, above, rules.iou, limit, classes=classes)
    places = jnp.nonzero(keep, size=limit, fill_value=0)[0]
    valid = jnp.arange(limit) < jnp.sum(keep)
    return Detections(
        jnp.where(valid[:, None], boxes[places], 0.0),
        jnp.where(valid, scores[places], 0.0),
        jnp.where(valid, classes[places], 0),
        valid,
    )


def greedy(boxes: jax.Array, scores: jax.Array, classes: jax.Array, rules: Rules) -> Detections:
    """Greedy suppression, or Soft-NMS, within classes over candidates of all classes.

    Of equal scores the earlier row comes first.

    Args:
      boxes: f32[M,4]; scores: f32[M], only those above `rules.score` count; classes: i32[M].
    """
    boxes, scores, classes = jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(classes)
    shape = (rules.detections,)
    empty = Detections(
        jnp.zeros((*shape, 4)),
        jnp.zeros(shape),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, bool),
    )

    def unfinished(carry):
        found, _, remaining = carry
        return (found < rules.detections) & (jnp.max(remaining) > rules.score)

    def take_best(carry):
        found, detections, remaining = carry
        best = jnp.argmax(remaining)
        box, kind = boxes[best], classes[best]
        overlaps = box_ops.iou(box[None], boxes)[0]
        if rules.soft_sigma > 0:
            score, dropped = remaining[best], jnp.zeros(boxes.shape[0], bool)
            decay = jnp.exp(-jnp.square(overlaps) / rules.soft_sigma)
            remaining = jnp.where(classes == kind, remaining * decay, remaining)
        else:
            score, dropped = scores[best], (overlaps > rules.iou) & (classes == kind)
        dropped |= jnp.arange(boxes.shape[0]) == best  # an empty box does not overlap itself
        row = Detections(box, score, kind, jnp.asarray(True))
        detections = jax.tree.map(lambda all_, one: all_.at[found].set(one), detections, row)
        return found + 1, detections, jnp.where(dropped, -1.0, remaining)

    return lax.while_loop(unfinished, take_best, (0, empty, scores))[1]
