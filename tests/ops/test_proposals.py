"""Proposals against a loop in numpy and TF1's own."""

import jax
import numpy as np
import pytest

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import proposals
from spinenet_jax.ops.anchors import pyramid_anchors
from tests import tf1
from tests.ops.test_nms import overlaps_of

SIZE, LEVELS = (64, 96), (3, 4)
ANCHORS = pyramid_anchors(SIZE, 3.0, LEVELS, (1.0,))
RULES = proposals.ProposalRules(candidates=60, proposals=40, iou=0.6)


def outputs(seed=0, batch=2):
    rng = np.random.default_rng(seed)
    shapes = [(8, 12), (4, 6)]
    logits = [rng.normal(0, 2, (batch, *s, 3)).astype(np.float32) for s in shapes]
    codes = [rng.normal(0, 0.3, (batch, *s, 12)).astype(np.float32) for s in shapes]
    return logits, codes


def reference(logits, codes, rules):
    """One image, a level and a box at a time; (score, box) rows."""
    kept, start = [], 0
    for level_logits, level_codes in zip(logits, codes, strict=True):
        scores = np.asarray(jax.nn.sigmoid(level_logits.reshape(-1)))
        anchors = ANCHORS[start : start + len(scores)]
        start += len(scores)
        boxes = np.asarray(box_ops.clip(box_ops.decode(level_codes.reshape(-1, 4), anchors), SIZE))
        chosen = []
        for row in np.argsort(-scores, kind='stable')[: rules.candidates]:
            if not boxes[row].any():
                continue
            if not chosen or not (overlaps_of(boxes[row], boxes[chosen]) >= rules.iou).any():
                chosen.append(row)
        kept += [(scores[row], boxes[row]) for row in chosen[: rules.proposals]]
    kept.sort(key=lambda pair: -pair[0])
    return kept[: rules.proposals]


def test_equals_reference():
    logits, codes = outputs()
    codes[0][0, 0, 0, :] = [-50, -50, 0, 0] * 3  # out of the image: empty at the origin
    logits[0][0, 0, 0] = 9.0
    found = proposals.propose(logits, codes, ANCHORS, SIZE, RULES)
    for image in range(2):
        want = reference([x[image] for x in logits], [x[image] for x in codes], RULES)
        count = int(found.valid[image].sum())
        assert count == len(want)
        np.testing.assert_allclose(found.scores[image, :count], [s for s, _ in want], 1e-6)
        np.testing.assert_allclose(found.boxes[image, :count], [b for _, b in want], 1e-5, 1e-4)


def test_rows_without_a_proposal_are_zero():
    logits, codes = outputs(batch=1)
    codes = [np.zeros_like(c) for c in codes]
    rules = proposals.ProposalRules(candidates=500, proposals=1000, iou=0.01)
    found = proposals.propose(logits, codes, ANCHORS, SIZE, rules)
    rows = ANCHORS.shape[0]
    assert found.boxes.shape == (1, rows, 4) and 0 < int(found.valid.sum()) < rows
    assert not found.boxes[~found.valid].any() and not found.scores[~found.valid].any()


def test_no_gradient():
    logits, codes = outputs(batch=1)

    def total(logits, codes):
        found = proposals.propose(logits, codes, ANCHORS, SIZE, RULES)
        return found.boxes.sum() + found.scores.sum()

    for part in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(logits, codes)):
        assert not part.any()


# TF1's proposals at inference, and those of a training step, from its own outputs.
@pytest.mark.parametrize(
    ('name', 'candidates', 'count'),
    [('mask_rcnn', 600, 300), ('cascade', 600, 200), ('mask_rcnn_train', 600, 200)],
)
def test_equals_tf1(name, candidates, count):
    stored = tf1.arrays(name)
    size = tuple(tf1.settings(name.removesuffix('_train'))['image_size'])
    anchors = pyramid_anchors(size, 3.0, scales=(1.0,), ratios=tf1.RATIOS)
    rules = proposals.ProposalRules(candidates, count, inclusive=True)
    found = proposals.propose(
        tf1.levels(stored, 'rpn_scores'), tf1.levels(stored, 'rpn_boxes'), anchors, size, rules
    )
    scores = stored['rpn_roi_scores']
    np.testing.assert_array_equal(found.valid, scores > -1)
    np.testing.assert_allclose(found.scores, np.maximum(scores, 0), atol=2e-7)
    np.testing.assert_allclose(found.boxes, stored['rpn_rois'], atol=1e-4)
