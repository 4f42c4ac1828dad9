"""The five losses of Mask R-CNN, as sums and what they are divided by.

Every loss is a pair (sum, count) of f32 scalars, or of f32[n] where a loss is a sum or mean of n
parts that are divided each by its own count: levels of the region proposal network, stages of a
cascade. Pairs are added over all devices before `combine` divides them, so that the result does
not depend on how images fall on devices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spinenet_jax.ops.region_outputs import select_class
from spinenet_jax.ops.sampling import AnchorSample

RPN_DELTA, BOX_DELTA = 1.0 / 9.0, 1.0  # of the Huber losses, as in both public codes

Pair = tuple[jax.Array, jax.Array]


class Normalisation(NamedTuple):
    """Where the public codes divide by different numbers.

    Attributes:
      anchors: the score loss of an image is divided by this, however many were drawn.
      slack: added to the counts of the box losses and the mask loss.
    """

    anchors: int = 256
    slack: float = 0.0


TF1 = Normalisation()
# TF2 passes the number of regions where the number of anchors is meant: half of TF1's score loss.
TF2 = Normalisation(anchors=512, slack=0.01)


def score_loss(
    logits: Sequence[jax.Array], sample: AnchorSample, normalisation: Normalisation = TF1
) -> Pair:
    """Loss of the anchors that were drawn: does one belong to an object?

    Args:
      logits: f32[B,h,w,n] a level, lowest level first.
      sample: of the same anchors, with a leading B.
      normalisation: `anchors` is read.
    """
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in logits], axis=1)
    flat = flat.astype(jnp.float32)
    entropy = optax.losses.sigmoid_binary_cross_entropy(flat, sample.positive.astype(jnp.float32))
    count = jnp.asarray(flat.shape[0] * normalisation.anchors, jnp.float32)
    return jnp.sum(jnp.where(sample.sampled, entropy, 0.0)), count


def anchor_box_loss(codes: Sequence[jax.Array], sample: AnchorSample) -> Pair:
    """Loss of the codes of all anchors that belong to an object, drawn or not: f32[L] each.

    Levels are divided by their own number of coordinates and then added (both public codes).

    Args:
      codes: f32[B,h,w,n*4] a level, lowest level first.
      sample: of the same anchors, with a leading B.
    """
    sums, counts, start = [], [], 0
    for level in codes:
        level = level.astype(jnp.float32).reshape(level.shape[0], -1, 4)
        stop = start + level.shape[1]
        matched = sample.matched[:, start:stop]
        huber = optax.losses.huber_loss(level, sample.codes[:, start:stop], delta=RPN_DELTA)
        sums.append(jnp.sum(jnp.where(matched[..., None], huber, 0.0)))
        counts.append(4.0 * jnp.sum(matched, dtype=jnp.float32))
        start = stop
    return jnp.stack(sums), jnp.stack(counts)


def class_loss(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> Pair:
    """Softmax cross-entropy of all regions.

    Args:
      logits: f32[B,R,K]; labels: i32[B,R], 0 for background; valid: bool[B,R].
    """
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
    return jnp.sum(jnp.where(valid, entropy, 0.0)), jnp.sum(valid, dtype=jnp.float32)


def box_loss(codes: jax.Array, targets: jax.Array, labels: jax.Array, positive: jax.Array) -> Pair:
    """Loss of the box codes of the regions that belong to an object.

    Args:
      codes: f32[B,R,4*K], class by class, of which the target's class counts; or f32[B,R,4], the
        same for all classes.
      targets: f32[B,R,4]; labels: i32[B,R]; positive: bool[B,R].
    """
    codes = codes.astype(jnp.float32)
    if codes.shape[-1] != 4:
        codes = select_class(codes.reshape(*codes.shape[:-1], -1, 4), labels, axis=-2)
    huber = optax.losses.huber_loss(codes, targets, delta=BOX_DELTA)
    count = 4.0 * jnp.sum(positive, dtype=jnp.float32)
    return jnp.sum(jnp.where(positive[..., None], huber, 0.0)), count


def mask_loss(logits: jax.Array, targets: jax.Array, valid: jax.Array) -> Pair:
    """Loss of the masks of regions that belong to an object, a pixel at a time.

    Args:
      logits: f32[B,M,m,m] of the target's class; targets: f32[B,M,m,m] in [0, 1], soft values;
      valid: bool[B,M].
    """
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    pixels = logits.shape[-1] * logits.shape[-2]
    count = pixels * jnp.sum(valid, dtype=jnp.float32)
    return jnp.sum(jnp.where(valid[..., None, None], entropy, 0.0)), count


def stack(pairs: Sequence[Pair]) -> Pair:
    """The pairs of the stages of a cascade as one pair of f32[n]."""
    return tuple(jnp.stack(part) for part in zip(*pairs, strict=True))


def combine(
    pairs: dict[str, Pair], normalisation: Normalisation = TF1, devices: int = 1
) -> dict[str, jax.Array]:
    """The losses and their sum, 'loss'; all weigh the same.

    A loss without anything to count is 0.

    Args:
      pairs: 'rpn_score', 'rpn_box', 'class' and 'box', and 'mask' where masks are learnt, added
        over all devices.
      normalisation: `slack` is read.
      devices: how many `slack` is added for, at least 1.
    """
    slack = normalisation.slack * devices
    parts = {
        'rpn_score_loss': _divide(pairs['rpn_score'], 0.0),
        'rpn_box_loss': jnp.sum(_divide(pairs['rpn_box'], slack)),
        'class_loss': jnp.mean(_divide(pairs['class'], 0.0)),
        'box_loss': jnp.mean(_divide(pairs['box'], slack)),
    }
    if 'mask' in pairs:
        parts['mask_loss'] = _divide(pairs['mask'], slack)
    return {'loss': sum(parts.values()), **parts}


def _divide(pair: Pair, slack: float) -> jax.Array:
    """sum / (count + slack), 0 where nothing is counted."""
    total, count = pair
    return jnp.where(count > 0.0, total / jnp.where(count > 0.0, count + slack, 1.0), 0.0)
