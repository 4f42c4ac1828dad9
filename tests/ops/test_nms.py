"""Suppression against a plain reference, and the cases that break tiled versions."""

from functools import partial

import jax
import numpy as np
import pytest

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import nms
from tests import tf1

SIZE = (64, 64)


def overlaps_of(box, others):
    """IoU of a box f[4] with each of f[M,4], in numpy."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return intersection / (np.prod(box[2:] - box[:2]) + areas - intersection)


def reference(logits, boxes, rules):
    """Textbook NMS a class in numpy; returns (score, class, anchor) rows, best first."""
    scores = np.asarray(jax.nn.sigmoid(logits))
    kept = []
    for kind in range(rules.first_class, scores.shape[1]):
        order = np.argsort(-scores[:, kind], kind='stable')[: rules.candidates]
        chosen = []
        for anchor in order:
            if scores[anchor, kind] <= rules.score:
                break
            if not chosen or overlaps_of(boxes[anchor], boxes[chosen]).max() <= rules.iou:
                chosen.append(anchor)
        kept += [(scores[anchor, kind], kind, anchor) for anchor in chosen]
    kept.sort(key=lambda row: -row[0])  # stable: class, then order within the class
    return kept[: rules.detections]


def random_case(seed, anchors=60, classes=4, ties=False):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (anchors, 2))
    anchor_boxes = np.concatenate([corner, corner + rng.uniform(4, 24, (anchors, 2))], 1)
    logits = rng.normal(-1, 2, (anchors, classes))
    logits = np.round(logits) if ties else logits
    codes = rng.normal(0, 0.1, (anchors, 4))
    return tuple(x.astype(np.float32) for x in (logits, codes, anchor_boxes))


# With few=7 the short way is not enough and the long one is taken.
@pytest.mark.parametrize(
    ('iou', 'few', 'ties'), [(0.1, 1000, True), (0.3, 7, True), (0.5, 1000, False), (0.7, 7, False)]
)
def test_equals_reference(iou, few, ties):
    rules = nms.Rules(score=0.05, iou=iou, candidates=40, detections=20, first_class=1)
    cases = [random_case(seed, ties=ties) for seed in range(3)]
    logits, codes, anchors = cases[0][0], cases[0][1], cases[0][2]
    batch_logits = np.stack([case[0] for case in cases])
    batch_codes = np.stack([codes] * 3)
    found = nms.detect(batch_logits, batch_codes, anchors, SIZE, rules, few)
    boxes = np.asarray(box_ops.clip(box_ops.decode(codes, anchors), SIZE))
    for image, logits in enumerate(batch_logits):
        want = reference(logits, boxes, rules)
        count = int(found.valid[image].sum())
        assert count == len(want)
        np.testing.assert_array_equal(found.classes[image, :count], [k for _, k, _ in want])
        np.testing.assert_allclose(found.scores[image, :count], [s for s, _, _ in want], 1e-6)
        np.testing.assert_allclose(
            found.boxes[image, :count], boxes[[a for _, _, a in want]], 1e-5, 1e-5
        )
        assert not np.any(found.boxes[image, count:])


def soft_reference(logits, boxes, rules):
    """Soft-NMS a class in numpy, candidate after candidate; (score, class, anchor), best first."""
    scores = np.asarray(jax.nn.sigmoid(logits), np.float64)
    kept = []
    for kind in range(rules.first_class, scores.shape[1]):
        order = np.argsort(-scores[:, kind], kind='stable')[: rules.candidates]
        left = {anchor: scores[anchor, kind] for anchor in order}
        while left and max(left.values()) > rules.score:
            best = max(left, key=left.get)
            kept.append((left.pop(best), kind, best))
            for anchor in left:
                overlap = overlaps_of(boxes[best], boxes[[anchor]])[0]
                left[anchor] *= np.exp(-(overlap**2) / rules.soft_sigma)
    kept.sort(key=lambda row: -row[0])
    return kept[: rules.detections]


@pytest.mark.parametrize(('sigma', 'few'), [(0.5, 1000), (0.1, 7), (2.0, 60)])
def test_soft_suppression_equals_brute_force(sigma, few):
    """With few=60, scores fall below those that the short way leaves out: it must not be used."""
    rules = nms.Rules(0.05, 0.5, candidates=40, detections=20, first_class=1, soft_sigma=sigma)
    for seed in range(3):
        logits, codes, anchors = random_case(seed)
        found = nms.detect(logits[None], codes[None], anchors, SIZE, rules, few)
        boxes = np.asarray(box_ops.clip(box_ops.decode(codes, anchors), SIZE))
        wanted = soft_reference(logits, boxes, rules)
        count = int(found.valid[0].sum())
        assert count == len(wanted) == 20
        assert found.scores[0] == pytest.approx([row[0] for row in wanted], abs=1e-5)
        assert found.classes[0].tolist() == [row[1] for row in wanted]
        np.testing.assert_allclose(found.boxes[0], boxes[[row[2] for row in wanted]], atol=1e-4)


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


def test_no_candidate_gives_no_detection():
    logits, codes, anchors = random_case(0)
    found = nms.detect(logits[None] - 100, codes[None], anchors, SIZE, nms.Rules())
    assert not found.valid.any() and not found.boxes.any()


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
