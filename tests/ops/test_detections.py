"""From raw outputs to detections against a plain reference, the short way and the long one."""

import jax
import numpy as np
import pytest

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.detections import detect
from spinenet_jax.ops.nms import Rules
from tests.ops.test_nms import overlaps_of

SIZE = (64, 64)


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
    rules = Rules(score=0.05, iou=iou, candidates=40, detections=20, first_class=1)
    cases = [random_case(seed, ties=ties) for seed in range(3)]
    logits, codes, anchors = cases[0][0], cases[0][1], cases[0][2]
    batch_logits = np.stack([case[0] for case in cases])
    batch_codes = np.stack([codes] * 3)
    found = detect(batch_logits, batch_codes, anchors, SIZE, rules, few)
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
    rules = Rules(0.05, 0.5, candidates=40, detections=20, first_class=1, soft_sigma=sigma)
    for seed in range(3):
        logits, codes, anchors = random_case(seed)
        found = detect(logits[None], codes[None], anchors, SIZE, rules, few)
        boxes = np.asarray(box_ops.clip(box_ops.decode(codes, anchors), SIZE))
        wanted = soft_reference(logits, boxes, rules)
        count = int(found.valid[0].sum())
        assert count == len(wanted) == 20
        assert found.scores[0] == pytest.approx([row[0] for row in wanted], abs=1e-5)
        assert found.classes[0].tolist() == [row[1] for row in wanted]
        np.testing.assert_allclose(found.boxes[0], boxes[[row[2] for row in wanted]], atol=1e-4)


def test_no_candidate_gives_no_detection():
    logits, codes, anchors = random_case(0)
    found = detect(logits[None] - 100, codes[None], anchors, SIZE, Rules())
    assert not found.valid.any() and not found.boxes.any()
