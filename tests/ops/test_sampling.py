"""Samples by hand and by count, and targets against TF1's with its own draws put in."""

import jax
import numpy as np
import pytest

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import sampling
from spinenet_jax.ops.anchors import pyramid_anchors
from tests import tf1

draw = jax.jit(sampling.draw, static_argnums=(3, 4))
sample_regions = jax.jit(sampling.sample_regions, static_argnames=('count', 'fraction', 'strict'))
sample_anchors = jax.jit(sampling.sample_anchors, static_argnames=('count', 'fraction'))
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ('positives', 'negatives', 'want'),
    [
        (40, 40, (5, 15)),  # a quarter of 20
        (3, 40, (3, 17)),  # negatives fill up
        (40, 6, (5, 6)),  # and where they do not reach, the sample is smaller
        (0, 0, (0, 0)),
        (0, 30, (0, 20)),
    ],
)
def test_counts(positives, negatives, want):
    kind = np.zeros(100, int)
    kind[np.random.default_rng(0).permutation(100)[: positives + negatives]] = -1
    kind[np.flatnonzero(kind)[:positives]] = 1
    noise = np.random.default_rng(1).random(100).astype(np.float32)
    rows, drawn = draw(noise, kind > 0, kind < 0, 20, 0.25)
    assert len(set(np.asarray(rows).tolist())) == len(rows) == 20
    chosen = kind[rows[drawn]]
    assert ((chosen > 0).sum(), (chosen < 0).sum()) == want and (chosen != 0).all()
    assert (np.diff(rows[drawn]) > 0).all()
    # Those with the most noise.
    for sign, number in zip((1, -1), want, strict=True):
        pool = np.sort(noise[kind == sign])
        np.testing.assert_array_equal(
            np.sort(noise[rows[drawn]][chosen == sign]), pool[len(pool) - number :]
        )


def test_fewer_candidates_than_asked_for():
    rows, drawn = draw(np.zeros(3, np.float32), np.ones(3, bool), np.zeros(3, bool), 20, 0.25)
    assert rows.shape == (3,) and int(drawn.sum()) == 3


def test_every_candidate_is_as_likely():
    kind = np.array([1] * 8 + [-1] * 24 + [0] * 8)
    noise = jax.random.uniform(jax.random.key(0), (4000, 40))
    one = jax.jit(jax.vmap(lambda n: sampling.draw(n, kind > 0, kind < 0, 16, 0.25)))
    rows, drawn = one(noise)
    assert drawn.all()
    share = np.bincount(np.asarray(rows).reshape(-1), minlength=40) / 4000
    np.testing.assert_allclose(share[:32], 0.5, atol=0.04)  # 4 of 8 and 12 of 24; sigma 0.008
    assert not share[32:].any()


def test_regions_by_hand():
    # Objects A 0..10 and B 20..30 (both 10 wide); the third row is padding.
    boxes = np.array([[0, 0, 10, 10], [0, 20, 10, 30], [np.nan] * 4], np.float32)
    labels, valid = np.array([4, 7, 99]), np.array([True, True, False])
    proposals = np.array(
        [
            [0, 21, 10, 30],  # B: 90 / 100
            [0, 0, 10, 5],  # A: exactly a half
            [0, 0, 10, 4],  # background, 0.4
            [50, 50, 60, 60],  # background
            [0, 0, 10, 10],  # A, but padding
        ],
        np.float32,
    )
    proposal_valid = np.array([True] * 4 + [False])
    noise = np.linspace(0.9, 0.1, 8, dtype=np.float32)
    got = sample_regions(proposals, proposal_valid, boxes, labels, valid, noise, 8, 0.5)
    # In order: B, two backgrounds, then the objects themselves; the half is neither.
    np.testing.assert_array_equal(got.valid, [True] * 5 + [False] * 3)
    np.testing.assert_array_equal(got.labels, [7, 0, 0, 4, 7, 0, 0, 0])
    np.testing.assert_array_equal(got.matched, [1, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(got.positive, np.asarray(got.labels) > 0)
    np.testing.assert_array_equal(got.boxes[:3], proposals[[0, 2, 3]])
    assert not got.boxes[5:].any()

    tied = sample_regions(
        proposals, proposal_valid, boxes, labels, valid, noise, 8, 0.5, strict=False
    )
    np.testing.assert_array_equal(tied.labels[:6], [7, 4, 0, 0, 4, 7])

    codes = sampling.region_codes(got, boxes, WEIGHTS)
    np.testing.assert_allclose(codes[0], box_ops.encode(boxes[1], proposals[0], WEIGHTS), rtol=1e-5)
    assert not codes[1:3].any() and np.isfinite(codes).all()

    masks = sampling.first_positives(got, np.array([True, False, False]), 3)
    np.testing.assert_array_equal(masks.valid, [True, False, False])
    assert masks.labels[0] == 4


def test_no_object():
    nothing = np.zeros((2, 4), np.float32), np.zeros(2, int), np.zeros(2, bool)
    proposals = np.array([[0, 0, 5, 5], [1, 1, 9, 9]], np.float32)
    noise = np.full(4, 0.5, np.float32)
    got = sample_regions(proposals, np.ones(2, bool), *nothing, noise, 4, 0.25)
    np.testing.assert_array_equal(got.valid, [True, True, False, False])
    assert not got.positive.any() and not got.labels.any()
    anchors = sample_anchors(proposals, nothing[0], nothing[2], noise[:2], 4, 0.5)
    assert anchors.sampled.all() and not anchors.matched.any() and not anchors.codes.any()


def test_no_gradient_to_proposals():
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    valid = np.ones(1, bool)

    def total(proposals):
        noise = np.full(3, 0.5, np.float32)
        got = sampling.sample_regions(
            proposals, np.ones(2, bool), boxes, np.array([3]), valid, noise, 3
        )
        return got.boxes.sum() + sampling.region_codes(got, boxes, WEIGHTS).sum()

    proposals = np.array([[0, 0, 9, 9], [40, 40, 50, 50]], np.float32)
    assert not jax.jit(jax.grad(total))(proposals).any()


def test_anchors_by_hand():
    anchors = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [50, 50, 60, 60], [0, 100, 10, 104]],
        np.float32,
    )
    boxes = np.array([[0, 0, 10, 10], [0, 100, 10, 130]], np.float32)
    # IoU 1 and 0.8: matched; 0.4: ignored; 0: background; 0.13, but the best of the second box.
    got = sample_anchors(anchors, boxes, np.ones(2, bool), np.full(5, 0.5, np.float32), 5, 1.0)
    np.testing.assert_array_equal(got.matched, [True, True, False, False, True])
    np.testing.assert_array_equal(got.sampled, [True, True, False, True, True])
    np.testing.assert_array_equal(got.positive, got.matched)
    np.testing.assert_allclose(got.codes[4], box_ops.encode(boxes[1], anchors[4]), rtol=1e-6)
    # Half of 4 at most are positives: the two with the most noise.
    noise = np.array([0.1, 0.9, 0.99, 0.0, 0.5], np.float32)
    got = sample_anchors(anchors, boxes, np.ones(2, bool), noise, 4, 0.5)
    np.testing.assert_array_equal(got.positive, [False, True, False, False, True])
    np.testing.assert_array_equal(got.sampled, [False, True, False, True, True])


def ground_truth(image):
    stored = tf1.arrays('mask_rcnn_train')
    boxes, labels = stored['gt_boxes'][image], stored['gt_classes'][image]
    return boxes, labels, labels > 0


@pytest.mark.parametrize('image', [0, 1])
def test_anchor_targets_equal_tf1(image):
    stored = tf1.arrays('mask_rcnn_train')
    scores, codes = (
        np.concatenate([x[image].reshape(-1, width) for x in tf1.levels(stored, key)])
        for key, width in (('rpn_score_targets', 1), ('rpn_box_targets', 4))
    )
    boxes, _, valid = ground_truth(image)
    anchors = pyramid_anchors((256, 256), 3.0, scales=(1.0,), ratios=tf1.RATIOS)
    theirs = scores[:, 0] >= 0
    got = sample_anchors(anchors, boxes, valid, np.where(theirs, 0.9, 0.1), 64, 0.5)
    np.testing.assert_array_equal(got.sampled, theirs)
    np.testing.assert_array_equal(got.positive, scores[:, 0] == 1)
    np.testing.assert_allclose(got.codes, codes, atol=2e-6)
    np.testing.assert_array_equal(got.matched, codes.any(1))


@pytest.mark.parametrize('name', ['mask_rcnn_train', 'mask_rcnn_train_frozen_bn'])
@pytest.mark.parametrize('image', [0, 1])
def test_regions_equal_tf1(name, image):
    stored, settings = tf1.arrays(name), tf1.settings(name)
    boxes, labels, valid = ground_truth(image)
    proposals, scores = stored['rpn_rois'][image], stored['rpn_roi_scores'][image]
    # TF1 draws padding of the objects as background; so here it is among the proposals.
    padding = boxes[~valid][:1] if (~valid).any() else boxes[:0]
    proposals = np.concatenate([proposals, padding])
    proposal_valid = np.concatenate([scores > -1, np.ones(len(padding), bool)])
    candidates = np.concatenate([proposals, boxes])
    theirs = stored['sampled_rois'][image]
    # Equal candidates (empty boxes, which suppress nothing): the first is as good as the others.
    noise = np.zeros(len(candidates), np.float32)
    noise[[(candidates == box).all(1).argmax() for box in theirs]] = 1.0
    count, fraction = settings['num_samples_per_image'], settings['fg_fraction']
    got = sample_regions(proposals, proposal_valid, boxes, labels, valid, noise, count, fraction)
    # Drawn padding stands before the objects here, after them there.
    order = np.lexsort(theirs.T), np.lexsort(np.asarray(got.boxes).T)
    assert got.valid.all()
    np.testing.assert_array_equal(np.asarray(got.boxes)[order[1]], theirs[order[0]])
    np.testing.assert_array_equal(
        np.asarray(got.labels)[order[1]], stored['sampled_gt_classes'][image][order[0]]
    )
    np.testing.assert_array_equal(
        np.asarray(got.matched)[order[1]], stored['sampled_gt_indices'][image][order[0]]
    )
    codes = sampling.region_codes(got, boxes, WEIGHTS, inclusive=True)
    np.testing.assert_allclose(
        np.asarray(codes)[order[1]], stored['box_targets'][image][order[0]], atol=2e-5
    )
    masks = sampling.first_positives(got, valid, settings['num_mask_samples_per_image'])
    positive = stored['mask_classes'][image] > 0
    np.testing.assert_array_equal(masks.valid, positive)
    np.testing.assert_array_equal(masks.boxes[masks.valid], stored['mask_rois'][image][positive])
    np.testing.assert_array_equal(
        masks.labels[masks.valid], stored['mask_classes'][image][positive]
    )
