"""Detections of a batch from raw outputs: exact suppression a class at a time, in few operations.

The result is that of the textbook procedure: suppression (`nms.py`) in each class, then the classes
merged by score. Instead of 90 sorts and suppressions, candidates of all classes are taken in one
common order of score, and only the few that can be among the detections are looked at. Where that
is not certain, in rare images, all of them are.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.nms import Detections, Rules, best_of_sorted, greedy


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
