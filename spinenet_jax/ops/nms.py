"""Exact greedy non-maximum suppression, a class at a time, with static shapes and few operations.

The result is that of the textbook procedure: in each class, of the candidates above the score
threshold, take the best, drop those that overlap it by more than the IoU threshold, repeat; then
merge the classes by score. Instead of 90 sorts and suppressions, candidates of all classes are
taken in one common order of score, and only the few that can be among the detections are looked at.
"""

from functools import partial
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


def _decode_rows(codes, anchors, rows, size):
    return box_ops.clip(box_ops.decode(codes[rows], anchors[rows]), size)


def _detect_few(logits, codes, anchors, size, rules: Rules, few: int):
    """Detections from the `few` best candidates, and whether more could not have changed them."""
    few_anchors = min(few, logits.shape[0])
    best_logits = jnp.max(logits[:, rules.first_class :], axis=1)
    _, rows = lax.top_k(best_logits, few_anchors)
    # Any pair of anchor and class left out scores at most as much as the last anchor let in.
    left_out = jnp.where(few_anchors < logits.shape[0], jax.nn.sigmoid(best_logits[rows[-1]]), -1.0)
    rows = jnp.sort(rows)
    boxes = _decode_rows(codes, anchors, rows, size)
    scores = jax.nn.sigmoid(logits[rows, rules.first_class :])
    return _best_pairs(scores, lambda rows, classes: boxes[rows], left_out, rules, few)


def _best_pairs(scores, boxes_of, left_out, rules: Rules, few: int):
    """Detections from the `few` best pairs of row and class, and whether more change nothing.

    scores f32[n,K] without the classes below `rules.first_class`; boxes_of(rows, classes), the
    classes counted alike; left_out f32, the best score that is not among them, -1 for none.
    """
    count = scores.shape[0]
    pairs = scores.T.reshape(-1)  # class-major, as the order of equal scores asks
    few_pairs = min(few, pairs.shape[0])
    scores, picked = lax.top_k(pairs, few_pairs)
    if few_pairs < pairs.shape[0]:
        left_out = jnp.maximum(left_out, scores[-1])
    rows, classes = picked % count, picked // count
    # Only candidates strictly above what was left out are in an order that is known for certain.
    scores = jnp.where(scores > left_out, scores, -1.0)
    found = best_of_sorted(boxes_of(rows, classes), scores, classes + rules.first_class, rules)
    full = found.valid[-1]
    if rules.soft_sigma > 0:  # scores have fallen, maybe below what was left out
        full &= found.scores[-1] > left_out
    return found, full | (left_out <= rules.score)


def _detect_all(logits, codes, anchors, size, rules: Rules) -> Detections:
    """The same from all candidates that the rules allow: slow, and needed only in rare images."""
    limit = min(rules.candidates, logits.shape[0])
    logits = logits[:, rules.first_class :]
    scores, rows = lax.top_k(jax.nn.sigmoid(logits).T, limit)  # [K,limit], in order of score
    boxes = _decode_rows(codes, anchors, rows.reshape(-1), size)
    classes = jnp.repeat(jnp.arange(logits.shape[1]) + rules.first_class, limit)
    return greedy(boxes, scores.reshape(-1), classes, rules)


@partial(jax.jit, static_argnames=('size', 'rules', 'few'))
def detect(
    logits: jax.Array,
    codes: jax.Array,
    anchors: jax.Array,
    size: tuple[int, int],
    rules: Rules,
    few: int = 1000,
) -> Detections:
    """Detections of a batch from raw outputs: sigmoid, decode, clip, suppress, keep the best.

    Of equal scores the lower class comes first, then the lower anchor.

    Args:
      logits: f32[B,A,K].
      codes: f32[B,A,4] box codes.
      anchors: f32[A,4].
      size: (height, width) to which boxes are clipped, pixels.
      rules: thresholds and limits.
      few: candidates tried first; any value gives the same result, 1,000 nearly always suffices.

    Returns:
      `Detections` with a leading B.
    """
    few, anchors = min(few, rules.candidates), jnp.asarray(anchors)
    fast = partial(_detect_few, anchors=anchors, size=size, rules=rules, few=few)
    slow = partial(_detect_all, anchors=anchors, size=size, rules=rules)
    return _fast_or_slow(fast, slow, (logits, codes))


@partial(jax.jit, static_argnames=('rules', 'few'))
def detect_scored(scores: jax.Array, boxes: jax.Array, rules: Rules, few: int = 1000) -> Detections:
    """Detections of a batch whose rows have a box for each class, or one for all classes.

    Of equal scores the lower class comes first, then the lower row.

    Args:
      scores: f32[B,R,K] in [0, 1]; below 0 where a row does not count.
      boxes: f32[B,R,K,4], or f32[B,R,1,4] where all classes share a box.
      rules: thresholds and limits.
      few: candidates tried first; any value gives the same result.

    Returns:
      `Detections` with a leading B.
    """
    few = min(few, rules.candidates)
    scores = scores[..., rules.first_class :]
    if boxes.shape[2] > 1:
        boxes = boxes[:, :, rules.first_class :]

    def boxes_of(boxes, rows, classes):
        return boxes[rows, classes] if boxes.shape[1] > 1 else boxes[rows, 0]

    def fast(scores, boxes):
        return _best_pairs(scores, partial(boxes_of, boxes), jnp.float32(-1.0), rules, few)

    def slow(scores, boxes):
        limit = min(rules.candidates, scores.shape[0])
        best, rows = lax.top_k(scores.T, limit)
        classes = jnp.repeat(jnp.arange(scores.shape[1]), limit)
        candidates = boxes_of(boxes, rows.reshape(-1), classes)
        return greedy(candidates, best.reshape(-1), classes + rules.first_class, rules)

    return _fast_or_slow(fast, slow, (scores, boxes))


def _fast_or_slow(fast, slow, inputs) -> Detections:
    """`fast` on every image of a batch, and `slow` where its result is not certain."""
    found, certain = jax.vmap(fast)(*inputs)

    def redo(operands):
        # One image after the other: all candidates of a whole batch need not fit in memory.
        return lax.map(
            lambda image: lax.cond(image[1], lambda: image[2], lambda: slow(*image[0])), operands
        )

    return lax.cond(jnp.all(certain), lambda o: o[2], redo, (inputs, certain, found))
