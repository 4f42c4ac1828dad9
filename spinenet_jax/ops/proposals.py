"""Turns the outputs of a region proposal network into the boxes that the second stage looks at."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import nms


class ProposalRules(NamedTuple):
    """Which candidates become proposals.

    Attributes:
      candidates: of each level, at most this many, the best, are looked at.
      proposals: at most this many of each level survive suppression, and of all levels together.
      iou: a candidate that overlaps a better one of its level by this or more is dropped.
      inclusive: decode and clip as TF1 does, see `boxes`.
    """

    candidates: int = 2000
    proposals: int = 1000
    iou: float = 0.7
    inclusive: bool = False


TRAIN = ProposalRules()
EVAL = ProposalRules(candidates=1000)


class Proposals(NamedTuple):
    """Proposals of one image, best first; rows beyond the last one are zero.

    Attributes:
      boxes: f32[R,4]. scores: f32[R], in (0, 1). valid: bool[R].
    """

    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


@partial(jax.jit, static_argnames=('size', 'rules'))
def propose(
    logits: Sequence[jax.Array],
    codes: Sequence[jax.Array],
    anchors: jax.Array,
    size: tuple[int, int],
    rules: ProposalRules,
) -> Proposals:
    """Proposals of a batch: a level at a time the best, decoded, clipped and suppressed; then the
    best of all levels.

    No gradient flows through. Of equal scores the lower level comes first, then the lower anchor. A
    box that is empty at the origin after clipping is no proposal (both public codes); other empty
    boxes are.

    Args:
      logits: f[B,h,w,n] a level, lowest level first; n anchors a cell.
      codes: f[B,h,w,n*4] a level, box codes.
      anchors: f32[A,4] of all levels, in the same order.
      size: (height, width) to which boxes are clipped, pixels.
      rules: limits and thresholds.

    Returns:
      `Proposals` with a leading B, of `rules.proposals` rows, or as many as all levels have
      candidates, where these are fewer.
    """
    batch, found, start = logits[0].shape[0], [], 0
    for level_logits, level_codes in zip(logits, codes, strict=True):
        level_logits = lax.stop_gradient(level_logits.reshape(batch, -1).astype(jnp.float32))
        level_codes = lax.stop_gradient(level_codes.reshape(batch, -1, 4).astype(jnp.float32))
        stop = start + level_logits.shape[1]
        best = partial(_best_of_level, anchors=anchors[start:stop], size=size, rules=rules)
        found.append(jax.vmap(best)(level_logits, level_codes))
        start = stop
    if start != anchors.shape[0]:
        raise ValueError(f'{anchors.shape[0]} anchors for {start} logits')
    # Levels of one length, so that suppression is compiled once; it ends before the padding.
    lengths = [scores.shape[1] for _, scores in found]
    boxes, scores = (
        jnp.stack([_pad(x, max(lengths)) for x in part]) for part in zip(*found, strict=True)
    )
    suppress = partial(_suppress, rules=rules)
    scores = lax.map(lambda level: jax.vmap(suppress)(*level), (boxes, scores))

    scores = jnp.moveaxis(scores, 0, 1).reshape(batch, -1)
    boxes = jnp.moveaxis(boxes, 0, 1).reshape(batch, -1, 4)
    scores, rows = lax.top_k(scores, min(rules.proposals, sum(lengths)))
    valid = scores > 0.0
    boxes = jnp.take_along_axis(boxes, rows[..., None], axis=1)
    return Proposals(
        boxes=jnp.where(valid[..., None], boxes, 0.0),
        scores=jnp.where(valid, scores, 0.0),
        valid=valid,
    )


def _best_of_level(logits, codes, anchors, size, rules: ProposalRules):
    """The candidates of one level of one image, best first: boxes f32[n,4], scores f32[n]."""
    # The order of sigmoids, not logits: float32 has equal sigmoids for different large logits.
    scores, rows = lax.top_k(jax.nn.sigmoid(logits), min(rules.candidates, logits.shape[0]))
    boxes = box_ops.decode(codes[rows], anchors[rows], inclusive=rules.inclusive)
    return box_ops.clip(boxes, size, rules.inclusive), scores


def _pad(x: jax.Array, length: int) -> jax.Array:
    """[B,n,...] to [B,length,...] with rows of zeros."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


def _suppress(boxes, scores, rules: ProposalRules):
    """The scores of the candidates that are left of one level of one image, -1 for the others."""
    candidate = jnp.any(boxes != 0.0, axis=1)
    keep = nms.suppress(boxes, candidate, rules.iou, rules.proposals, at_threshold=True)
    return jnp.where(keep, scores, -1.0)
