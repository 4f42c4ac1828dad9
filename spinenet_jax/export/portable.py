"""Detection from raw outputs in operations that every export format can carry.

The result is that of `ops.detections.detect`. `detect` is for TensorFlow's formats,
`detect_one_by_one` for ONNX. Three things differ in how it is computed, because converters and
older runtimes lack them (docs/export.md):
  - the best candidates are found by a stable sort, not by `lax.top_k`, which TensorFlow's loader
    does not know in the version that JAX writes;
  - suppression is a scan of fixed length, not a loop that ends by itself, and it writes no element
    by index: ONNX converters know neither scatter in a loop nor a loop under `vmap`;
  - a candidate is read by a masked sum, not by a gather with a traced index.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.nms import Detections, Rules


def best(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest values and their indices, as `lax.top_k`: of equal ones the first.

    Args:
      values: f32[...,n].
      count: at most n.

    Returns:
      f32[...,count] in descending order, and i32[...,count].
    """
    index = lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    ordered, index = lax.sort((-values, index), num_keys=1, is_stable=True)
    return -ordered[..., :count], index[..., :count]


def greedy(boxes: jax.Array, scores: jax.Array, classes: jax.Array, rules: Rules) -> Detections:
    """Textbook suppression in `rules.detections` steps; see `ops.nms.greedy`.

    Args:
      boxes: f32[M,4]; scores: f32[M], those above `rules.score` count; classes: i32[M].
    """
    position = jnp.arange(boxes.shape[0])

    def take_best(remaining: jax.Array, _: None) -> tuple[jax.Array, Detections]:
        taken = position == jnp.argmax(remaining)
        score = jnp.max(remaining)
        box = jnp.sum(jnp.where(taken[:, None], boxes, 0.0), axis=0)
        kind = jnp.sum(jnp.where(taken, classes, 0))
        found = score > rules.score
        dropped = (box_ops.iou(box[None], boxes)[0] > rules.iou) & (classes == kind)
        dropped = (dropped | taken) & found  # an empty box does not overlap itself
        row = Detections(
            boxes=jnp.where(found, box, 0.0),
            scores=jnp.where(found, score, 0.0),
            classes=jnp.where(found, kind, 0),
            valid=found,
        )
        return jnp.where(dropped, -1.0, remaining), row

    return lax.scan(take_best, scores, None, length=rules.detections)[1]


def _decode(codes: jax.Array, anchors: jax.Array, size: tuple[int, int]) -> jax.Array:
    return box_ops.clip(box_ops.decode(codes, anchors), size)


def _from_best(
    logits: jax.Array,
    codes: jax.Array,
    anchors: jax.Array,
    size: tuple[int, int],
    rules: Rules,
    few: int,
) -> tuple[Detections, jax.Array]:
    """Detections among the `few` best candidates, and whether the others could not matter."""
    anchor_count = anchors.shape[0]
    few_anchors = min(few, anchor_count)
    best_logits, rows = best(jnp.max(logits[:, rules.first_class :], axis=1), few_anchors)
    # A pair of anchor and class that is left out scores at most as much as the last one let in.
    left_out = jax.nn.sigmoid(best_logits[-1]) if few_anchors < anchor_count else jnp.float32(-1)
    rows = jnp.sort(rows)
    # Class-major: of equal scores the lower class comes first, then the lower anchor.
    pairs = jax.nn.sigmoid(jnp.take(logits, rows, axis=0)[:, rules.first_class :]).T.reshape(-1)
    few_pairs = min(few, pairs.shape[0])
    scores, picked = best(pairs, few_pairs)
    if few_pairs < pairs.shape[0]:
        left_out = jnp.maximum(left_out, scores[-1])
    chosen = jnp.take(rows, picked % few_anchors, axis=0)
    boxes = _decode(jnp.take(codes, chosen, axis=0), jnp.take(anchors, chosen, axis=0), size)
    # Only scores strictly above what was left out are in an order that is known for certain.
    scores = jnp.where(scores > left_out, scores, -1.0)
    found = greedy(boxes, scores, picked // few_anchors + rules.first_class, rules)
    return found, found.valid[-1] | (left_out <= rules.score)


def _from_all(
    logits: jax.Array, codes: jax.Array, anchors: jax.Array, size: tuple[int, int], rules: Rules
) -> Detections:
    """Detections among all candidates that the rules allow; slow, needed in rare images."""
    limit = min(rules.candidates, anchors.shape[0])
    scores, rows = best(jax.nn.sigmoid(logits[:, rules.first_class :]).T, limit)
    rows = rows.reshape(-1)
    boxes = _decode(jnp.take(codes, rows, axis=0), jnp.take(anchors, rows, axis=0), size)
    classes = jnp.repeat(jnp.arange(logits.shape[1] - rules.first_class), limit)
    return greedy(boxes, scores.reshape(-1), classes + rules.first_class, rules)


def detect(
    logits: jax.Array,
    codes: jax.Array,
    anchors: jax.Array,
    size: tuple[int, int],
    rules: Rules,
    few: int = 1000,
) -> Detections:
    """Detections of a batch from raw outputs; the same as `ops.detections.detect`.

    Args:
      logits: f32[B,A,K]; B may be symbolic.
      codes: f32[B,A,4] box codes.
      anchors: f32[A,4].
      size: (height, width) to which boxes are clipped, pixels.
      rules: thresholds and limits.
      few: candidates tried first; any value gives the same result.

    Returns:
      `Detections` with a leading B.
    """
    few, anchors = min(few, rules.candidates), jnp.asarray(anchors)
    fast = partial(_from_best, anchors=anchors, size=size, rules=rules, few=few)
    found, certain = jax.vmap(fast)(logits, codes)

    def redo(_: None) -> Detections:
        return lax.map(lambda x: _from_all(*x, anchors, size, rules), (logits, codes))

    # Images that were certain come out alike from both, so the whole batch is done again.
    return lax.cond(jnp.all(certain), lambda _: found, redo, None)


def detect_one_by_one(
    logits: jax.Array,
    codes: jax.Array,
    anchors: jax.Array,
    size: tuple[int, int],
    rules: Rules,
    few: int = 1000,
) -> Detections:
    """`detect` for a number of images that is known, written out image by image.

    For ONNX, whose converter has no right scan under `vmap`, and loses a value that a branch hands
    on as it is: the branches here give zeros or the slow result, and the choice is outside.
    """
    few, anchors = min(few, rules.candidates), jnp.asarray(anchors)

    def one(logits: jax.Array, codes: jax.Array) -> Detections:
        found, certain = _from_best(logits, codes, anchors, size, rules, few)
        again = lax.cond(
            certain,
            lambda: jax.tree.map(jnp.zeros_like, found),
            lambda: _from_all(logits, codes, anchors, size, rules),
        )
        chosen = jax.tree.map(partial(jnp.where, certain), found, again)
        return chosen._replace(valid=chosen.scores > rules.score)  # a choice of bools is not known

    images = [one(logits[n], codes[n]) for n in range(logits.shape[0])]
    return jax.tree.map(lambda *rows: jnp.stack(rows), *images)
