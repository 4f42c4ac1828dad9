"""The losses of Mask R-CNN by hand, and against TF1's from its own outputs and targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.ops import region_losses as losses
from spinenet_jax.ops.sampling import AnchorSample
from tests import tf1


def anchor_sample(stored):
    """TF1's targets of all anchors as ours."""
    scores, codes = (
        np.concatenate([x.reshape(2, -1, n) for x in tf1.levels(stored, key)], axis=1)
        for key, n in (('rpn_score_targets', 1), ('rpn_box_targets', 4))
    )
    scores = scores[..., 0]
    return AnchorSample(scores >= 0, scores == 1, codes.any(-1), codes)


def all_pairs(stored, sample, normalisation):
    labels = stored['class_targets']
    everywhere = np.ones(labels.shape, bool)
    return {
        'rpn_score': losses.score_loss(tf1.levels(stored, 'rpn_scores'), sample, normalisation),
        'rpn_box': losses.anchor_box_loss(tf1.levels(stored, 'rpn_boxes'), sample),
        'class': losses.class_loss(stored['class_outputs'], labels, everywhere),
        'box': losses.box_loss(stored['box_outputs'], stored['box_targets'], labels, labels > 0),
        'mask': losses.mask_loss(
            stored['mask_logits'], stored['mask_targets'], stored['mask_classes'] > 0
        ),
    }


@pytest.mark.parametrize('name', ['mask_rcnn_train', 'mask_rcnn_train_frozen_bn'])
def test_equals_tf1(name):
    stored = tf1.arrays(name)
    normalisation = losses.TF1._replace(anchors=tf1.settings(name)['rpn_batch_size_per_im'])

    @jax.jit
    def total(stored, sample):
        return losses.combine(all_pairs(stored, sample, normalisation), normalisation)

    numbers = {key: x for key, x in stored.items() if x.dtype.kind in 'fi'}
    ours = total(numbers, anchor_sample(stored))
    names = {
        'rpn_score_loss': 'rpn_score_loss',
        'rpn_box_loss': 'rpn_box_loss',
        'class_loss': 'fast_rcnn_class_loss',
        'box_loss': 'fast_rcnn_box_loss',
        'mask_loss': 'mask_loss',
        'loss': 'model_loss',
    }
    assert ours.keys() == names.keys()
    for mine, theirs in names.items():
        np.testing.assert_allclose(ours[mine], stored[f'loss/{theirs}'], rtol=1e-6, err_msg=mine)


def test_halves_add_up():
    # What two devices with an image each would add.
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 7)).astype(np.float32)
    labels = rng.integers(0, 7, (2, 3))
    valid = np.array([[True, True, True], [True, False, False]])
    whole = losses.class_loss(logits, labels, valid)
    halves = [losses.class_loss(logits[[i]], labels[[i]], valid[[i]]) for i in (0, 1)]
    np.testing.assert_allclose(np.add(*halves), whole, rtol=1e-6)


def test_nothing_to_learn_costs_nothing():
    zero = jnp.zeros(())
    pairs = {
        'rpn_score': (zero + 3.0, zero + 2.0),
        'rpn_box': (jnp.zeros(5), jnp.zeros(5)),
        'class': (zero + 1.0, zero + 4.0),
        'box': (zero, zero),
        'mask': (zero, zero),
    }
    for normalisation in (losses.TF1, losses.TF2):
        got = losses.combine(pairs, normalisation)
        assert got['loss'] == 1.75 and got['mask_loss'] == 0.0
    grad = jax.grad(lambda s: losses.combine({**pairs, 'box': (s, zero)})['loss'])(zero)
    assert grad == 0.0


def test_conventions_of_tf2():
    # Twice as many anchors to divide by, and 0.01 more coordinates and pixels.
    sample = AnchorSample(*(np.ones((1, 4), bool),) * 3, np.zeros((1, 4, 4), np.float32))
    logits = [np.zeros((1, 2, 2, 1), np.float32)]
    one, two = (losses.score_loss(logits, sample, n) for n in (losses.TF1, losses.TF2))
    np.testing.assert_allclose(one, (4 * np.log(2), 256), rtol=1e-6)
    np.testing.assert_allclose(two, (4 * np.log(2), 512), rtol=1e-6)
    pairs = {
        'rpn_score': two,
        'rpn_box': (jnp.array([2.0, 0.0]), jnp.array([4.0, 0.0])),
        'class': (jnp.array(1.0), jnp.array(2.0)),
        'box': (jnp.array(6.0), jnp.array(8.0)),
        'mask': (jnp.array(10.0), jnp.array(20.0)),
    }
    got = losses.combine(pairs, losses.TF2, devices=2)
    want = {
        'rpn_box_loss': 2 / 4.02,
        'class_loss': 0.5,
        'box_loss': 6 / 8.02,
        'mask_loss': 10 / 20.02,
    }
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6)


def test_cascade_averages_stages_and_boxes_may_be_one_for_all_classes():
    # Codes off by 2 and by a half in one region: 2 - 0.5 and 0.125 a coordinate.
    targets = np.zeros((1, 2, 4), np.float32)
    labels, positive = np.array([[3, 0]]), np.array([[True, False]])
    stages = [losses.box_loss(targets + off, targets, labels, positive) for off in (2.0, 0.5)]
    pair = losses.stack(stages)
    np.testing.assert_allclose(pair, ([6.0, 0.5], [4.0, 4.0]), rtol=1e-6)
    zero = (jnp.zeros(()), jnp.ones(()))
    pairs = {'rpn_score': zero, 'rpn_box': zero, 'class': losses.stack([zero] * 2), 'box': pair}
    np.testing.assert_allclose(losses.combine(pairs)['loss'], (1.5 + 0.125) / 2, rtol=1e-6)
    by_class = np.zeros((1, 2, 5, 4), np.float32)
    by_class[0, 0, 3] = 2.0
    by_class[0, 0, 1] = 99.0
    got = losses.box_loss(by_class.reshape(1, 2, 20), targets, labels, positive)
    np.testing.assert_allclose(got, stages[0], rtol=1e-6)
