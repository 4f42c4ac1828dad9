"""Matching by hand and against a loop in numpy."""

import jax
import numpy as np

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import matching

match_anchors = jax.jit(matching.match_anchors)

ANCHORS = np.array([[0, 0, 10, 10], [0, 10, 10, 20], [0, 20, 10, 30], [50, 50, 60, 60]], np.float32)


def reference(anchors, boxes, labels, threshold=0.5):
    """The rule, a box and an anchor at a time."""
    overlaps = np.asarray(box_ops.iou(anchors, boxes))
    out = np.full(len(anchors), -1)
    owner = np.full(len(anchors), -1)
    for anchor in range(len(anchors)):
        best = overlaps[anchor].argmax()
        if overlaps[anchor, best] >= threshold:
            out[anchor], owner[anchor] = labels[best], best
    for box in reversed(range(len(boxes))):  # the first box claims last
        anchor = overlaps[:, box].argmax()
        out[anchor], owner[anchor] = labels[box], box
    return out, owner


def test_by_hand():
    # Box 0 is anchor 0. Box 1 overlaps anchor 1 by 40 / 160 = 0.25 and anchor 2 by as much: the
    # first has it. Box 2 overlaps nothing: anchor 0, but box 0 comes first.
    boxes = np.array([[0, 0, 10, 10], [0, 16, 10, 24], [80, 80, 90, 90]], np.float32)
    got = match_anchors(ANCHORS, boxes, np.array([7, 8, 9]), np.ones(3, bool))
    np.testing.assert_array_equal(got.labels, [7, 8, -1, -1])
    np.testing.assert_array_equal(got.positive, [True, True, False, False])
    np.testing.assert_allclose(got.codes[1], box_ops.encode(boxes[1], ANCHORS[1]), rtol=1e-6)
    assert not got.codes[2:].any()


def test_no_box():
    got = match_anchors(ANCHORS, np.zeros((2, 4)), np.ones(2, np.int32), np.zeros(2, bool))
    assert not got.positive.any() and (got.labels == -1).all() and not got.codes.any()


def test_padding_may_hold_anything():
    boxes = np.array([[1, 1, 9, 9], [np.nan] * 4, [0, 10, 10, 20]], np.float32)
    labels, valid = np.array([3, 99, 99]), np.array([True, False, False])
    got = match_anchors(ANCHORS, boxes, labels, valid)
    want = match_anchors(ANCHORS, boxes[:1], labels[:1], valid[:1])
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_equals_reference():
    rng = np.random.default_rng(1)
    for _ in range(5):
        corner = rng.uniform(0, 30, (50, 2))
        anchors = np.concatenate([corner, corner + rng.uniform(3, 20, (50, 2))], 1)
        corner = rng.uniform(0, 30, (8, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(3, 20, (8, 2))], 1)
        anchors, boxes = np.float32(anchors), np.float32(boxes)
        labels = rng.integers(1, 9, 8).astype(np.int32)
        got = match_anchors(anchors, boxes, labels, np.ones(8, bool))
        want, owner = reference(anchors, boxes, labels)
        np.testing.assert_array_equal(got.labels, want)
        rows = want > 0
        np.testing.assert_allclose(
            got.codes[rows], box_ops.encode(boxes[owner[rows]], anchors[rows]), 1e-5, 1e-6
        )
