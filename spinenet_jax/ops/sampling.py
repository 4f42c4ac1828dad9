"""Random samples of a fixed size with a fixed share of positives: anchors and regions to train on.

Randomness comes in as `noise`, one uniform number for each candidate: of those that may be drawn,
the ones with the largest noise are. A test puts another implementation's draws in by giving them
more noise than the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.matching import match


class AnchorSample(NamedTuple):
    """Training targets of the region proposal network, of one image.

    Attributes:
      sampled: bool[A], anchors whose score is trained.
      positive: bool[A], those of them that belong to a box.
      matched: bool[A], all anchors that belong to a box: their codes are trained, drawn or not.
      codes: f32[A,4], the box code to regress; 0 where the anchor is not matched.
    """

    sampled: jax.Array
    positive: jax.Array
    matched: jax.Array
    codes: jax.Array


class Regions(NamedTuple):
    """Regions of one image to train the second stage on.

    Attributes:
      boxes: f32[R,4].
      matched: i32[R], row of the object that the region overlaps most; 0 for background.
      labels: i32[R], its label; 0 for background.
      positive: bool[R], whether the region belongs to an object.
      valid: bool[R]; fewer candidates than rows leave rows at the end that are not.
    """

    boxes: jax.Array
    matched: jax.Array
    labels: jax.Array
    positive: jax.Array
    valid: jax.Array


def draw(
    noise: jax.Array, positive: jax.Array, negative: jax.Array, count: int, fraction: float
) -> tuple[jax.Array, jax.Array]:
    """Draw `count` candidates, as many positives as there are but at most a share of them.

    The rest is filled with negatives, as far as these go (both public codes' sampler).

    Args:
      noise: f32[M] in [0, 1), uniform.
      positive, negative: bool[M], disjoint; a candidate that is neither is never drawn.
      count: how many, at least 1.
      fraction: largest share of positives, in [0, 1]; rounded down to whole candidates.

    Returns:
      Which, i32[n] in the order of the candidates, n = min(count, M), and bool[n] which of them
      are meant.
      Those that do not come last, and hold candidates that were not drawn.
    """
    most = min(int(count * fraction), noise.shape[0])
    count = min(count, noise.shape[0])
    noise = jnp.clip(noise, 0.0, 1.0)
    drawn = jnp.zeros(noise.shape, bool)
    if most:
        values, rows = lax.top_k(jnp.where(positive, noise, -1.0), most)
        drawn = drawn.at[rows].set(values >= 0.0)
    values, rows = lax.top_k(jnp.where(negative, noise, -1.0), count)
    room = count - jnp.sum(drawn)
    drawn = drawn.at[rows].max((values >= 0.0) & (jnp.arange(count) < room))
    flags, rows = lax.top_k(drawn.astype(jnp.int32), count)  # of equal ones the first come first
    return rows, flags > 0


def sample_anchors(
    anchors: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    noise: jax.Array,
    count: int = 256,
    fraction: float = 0.5,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
) -> AnchorSample:
    """Match anchors to objects and draw those whose score is trained (Ren et al., 2015, 3.1.2).

    An anchor belongs to the box it overlaps most if that IoU is at least `positive_iou`; the best
    anchor of each box belongs to it whatever the IoU. Below `negative_iou` it is background; in
    between it is ignored.

    Args:
      anchors: f32[A,4].
      boxes: f32[N,4] in the same pixels.
      valid: bool[N]; a padded row may hold anything. Without a valid box all is background.
      noise: f32[A], see the top of this file.
      count: anchors drawn an image.
      fraction: largest share of positives among them.
      positive_iou, negative_iou: thresholds in [0, 1].
    """
    found = match(anchors, boxes, valid)
    matched = (found.overlap >= positive_iou) | found.claimed
    rows, drawn = draw(noise, matched, (found.overlap < negative_iou) & ~matched, count, fraction)
    sampled = jnp.zeros(matched.shape, bool).at[rows].set(drawn)
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    codes = box_ops.encode(boxes[found.owner], anchors)
    return AnchorSample(
        sampled=sampled,
        positive=sampled & matched,
        matched=matched,
        codes=jnp.where(matched[:, None], codes, 0.0),
    )


def assign(
    regions: jax.Array,
    region_valid: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    iou: float = 0.5,
    strict: bool = True,
) -> tuple[Regions, jax.Array]:
    """Give each region the object it overlaps most, or background.

    Args:
      regions: f32[M,4], region_valid: bool[M].
      boxes: f32[N,4], labels: i32[N] from 1, valid: bool[N]: the objects.
      iou: overlaps above it make a region an object's, those below it background.
      strict: an overlap of exactly `iou` is neither (TF1); False makes it the object's (TF2).

    Returns:
      `Regions` over all M, and bool[M] which of them are background.
    """
    regions = lax.stop_gradient(jnp.where(region_valid[:, None], regions, 0.0))
    labels = jnp.asarray(labels)
    found = match(regions, boxes, valid)
    positive = found.overlap > iou if strict else found.overlap >= iou
    positive &= region_valid
    assigned = Regions(
        boxes=regions,
        matched=jnp.where(positive, found.index, 0),
        labels=jnp.where(positive, labels[found.index], 0),
        positive=positive,
        valid=region_valid,
    )
    return assigned, region_valid & (found.overlap < iou)


def sample_regions(
    proposals: jax.Array,
    proposal_valid: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    noise: jax.Array,
    count: int = 512,
    fraction: float = 0.25,
    iou: float = 0.5,
    strict: bool = True,
) -> Regions:
    """Draw the regions of one image that the box head is trained on.

    Candidates are the proposals, and after them the objects' own boxes. No gradient flows to them.
    The regions keep their order.

    Args:
      proposals: f32[M,4], proposal_valid: bool[M].
      boxes: f32[N,4], labels: i32[N] from 1, valid: bool[N]: the objects.
      noise: f32[M+N], see the top of this file.
      count: regions drawn.
      fraction: largest share of positives among them.
      iou, strict: see `assign`.
    """
    candidates = jnp.concatenate([proposals, boxes])
    candidate_valid = jnp.concatenate([proposal_valid, valid])
    assigned, background = assign(candidates, candidate_valid, boxes, labels, valid, iou, strict)
    rows, drawn = draw(noise, assigned.positive, background, count, fraction)
    sample = jax.tree.map(lambda column: column[rows], assigned)
    return Regions(
        boxes=jnp.where(drawn[:, None], sample.boxes, 0.0),
        matched=jnp.where(drawn, sample.matched, 0),
        labels=jnp.where(drawn, sample.labels, 0),
        positive=sample.positive & drawn,
        valid=drawn,
    )


def region_codes(
    regions: Regions,
    boxes: jax.Array,
    weights: Sequence[float],
    inclusive: bool = False,
) -> jax.Array:
    """Box codes that the box head should give: f32[R,4], 0 for background.

    Args:
      regions: R regions.
      boxes: f32[N,4], the objects that `regions.matched` counts.
      weights, inclusive: see `boxes.encode`.
    """
    goal = jnp.where(regions.positive[:, None], jnp.asarray(boxes)[regions.matched], 0.0)
    codes = box_ops.encode(goal, regions.boxes, weights, inclusive)
    return jnp.where(regions.positive[:, None], codes, 0.0)


def first_positives(regions: Regions, has_mask: jax.Array, count: int) -> Regions:
    """The regions that the mask head is trained on: the first `count` positives.

    Rows that are left are filled with other regions, in order, which are not valid.

    Args:
      regions: R regions.
      has_mask: bool[N], which objects have a mask.
      count: how many, at most R are given.
    """
    wanted = regions.positive & has_mask[regions.matched]
    flags, rows = lax.top_k(wanted.astype(jnp.int32), min(count, wanted.shape[0]))
    return jax.tree.map(lambda column: column[rows], regions)._replace(valid=flags > 0)
