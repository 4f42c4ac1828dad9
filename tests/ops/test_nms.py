"""Suppression against a plain reference, and the cases that break tiled versions."""

from functools import partial

import jax
import numpy as np
import pytest

from spinenet_jax.ops import nms
from tests import tf1


def overlaps_of(box, others):
    """IoU of a box f[4] with each of f[M,4], in numpy."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return intersection / (np.prod(box[2:] - box[:2]) + areas - intersection)


def test_soft_suppression_by_hand():
    """Two boxes of IoU 1/3: the worse of score 0.8 falls to 0.8 exp(-(1/3)^2 / 0.5) = 0.6406."""
    boxes = np.float32([[0, 0, 10, 10], [0, 5, 10, 15], [40, 40, 50, 50]])
    found = nms.greedy(
        boxes,
        np.float32([0.9, 0.8, 0.7]),
        np.int32([1, 1, 1]),
        nms.Rules(score=0.1, detections=4, soft_sigma=0.5),
    )
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6406, 0], abs=1e-4)
    assert found.valid.tolist() == [True, True, True, False]
    other = nms.greedy(
        boxes,
        np.float32([0.9, 0.8, 0.7]),
        np.int32([1, 2, 1]),
        nms.Rules(score=0.1, detections=4, soft_sigma=0.5),
    )
    assert other.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0])  # another class stays


def test_chain_below_half_overlap():
    # Widths 10, shifted by 4.286: neighbours overlap by 5.714 of 14.286 = 0.40, the ends by
    # 1.428 of 18.572 = 0.08. A suppresses B; B, gone, must not suppress C.
    left = np.array([0.0, 4.286, 8.572])
    boxes = np.stack([np.zeros(3), left, np.full(3, 10.0), left + 10.0], 1).astype(np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    found = nms.greedy(boxes, scores, np.zeros(3, np.int32), nms.Rules(iou=0.3))
    np.testing.assert_allclose(found.scores[found.valid], [0.9, 0.7])


def test_empty_boxes_end_the_loop():
    boxes = np.zeros((5, 4), np.float32)
    found = nms.greedy(boxes, np.full(5, 0.5, np.float32), np.zeros(5, np.int32), nms.Rules())
    assert int(found.valid.sum()) == 5  # empty boxes overlap nothing, not even themselves


suppress = jax.jit(nms.suppress, static_argnames=('iou', 'limit', 'at_threshold', 'block'))


def random_boxes(seed, count):
    """Boxes in clusters, so that chains of suppression are long; f32[count,4]."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (5, 2))[rng.integers(0, 5, count)] + rng.normal(0, 6, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 24, (count, 2))], 1).astype(np.float32)


@pytest.mark.parametrize(('iou', 'limit'), [(0.2, 200), (0.5, 30), (0.7, 200)])
def test_blocks_equal_greedy(iou, limit):
    boxes, count = random_boxes(3, 150), 150
    valid = np.random.default_rng(4).random(count) < 0.9
    boxes[~valid] = np.nan
    want = []
    for row in np.flatnonzero(valid):
        if not want or overlaps_of(boxes[row], boxes[want]).max() <= iou:
            want.append(row)
    for block in (32, 256):
        keep = suppress(boxes, valid, iou, limit, block=block)
        np.testing.assert_array_equal(np.flatnonzero(keep), want[:limit])


@pytest.mark.parametrize(('classes', 'detections'), [(1, 100), (20, 100), (20, 700)])
def test_sorted_candidates_give_what_greedy_gives(classes, detections):
    """Several blocks, equal scores, chains of overlaps, and limits on either side of what stays."""
    rng, count = np.random.default_rng(5), 600
    boxes, kinds = random_boxes(6, count), rng.integers(0, classes, count).astype(np.int32)
    boxes[::50, 2:] = boxes[::50, :2]  # empty
    scores = np.sort(rng.integers(0, 300, count) / 300).astype(np.float32)[::-1].copy()
    rules = nms.Rules(score=0.05, detections=detections)
    found, want = (f(boxes, scores, kinds, rules) for f in (nms.best_of_sorted, nms.greedy))
    assert want.valid.all() == (detections == 100)
    for ours, theirs in zip(found, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_overlap_of_exactly_the_threshold():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 20, 20]], np.float32)  # 50 of 100
    valid = np.ones(3, bool)
    np.testing.assert_array_equal(suppress(boxes, valid, 0.5, 3), [True, True, True])
    np.testing.assert_array_equal(suppress(boxes, valid, 0.5, 3, True), [True, False, True])


@pytest.mark.parametrize(('limit', 'iou'), [(1000, 0.7), (150, 0.5)])
def test_equals_tf1(limit, iou):
    # TF1's is right from 0.5 on only; below, it keeps boxes that it should not and the reverse.
    stored = tf1.arrays('ops')
    boxes, scores = stored['nms_boxes'][0], stored['nms_scores'][0]
    keep = np.flatnonzero(suppress(boxes, boxes.any(1), iou, limit, at_threshold=True))
    theirs, their_boxes = (stored[f'nms_out_{k}/{limit}_{iou}'][0] for k in ('scores', 'boxes'))
    assert len(keep) == (theirs > -1).sum()
    np.testing.assert_array_equal(scores[keep], theirs[: len(keep)])
    np.testing.assert_array_equal(boxes[keep], their_boxes[: len(keep)])


def test_the_turns_of_suppression_can_be_counted_from_its_program():
    """Estimates take the largest number in a loop's condition: 600 boxes are three blocks."""
    program = jax.make_jaxpr(partial(nms.suppress, iou=0.7, limit=500))(
        np.zeros((600, 4), np.float32), np.zeros(600, bool)
    )
    (loop,) = [equation for equation in program.eqns if equation.primitive.name == 'while']
    condition = [x for equation in loop.params['cond_jaxpr'].eqns for x in equation.invars]
    assert [int(x.val) for x in condition if hasattr(x, 'val')] == [3]
