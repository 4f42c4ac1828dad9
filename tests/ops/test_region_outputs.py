"""Detections of regions against a loop in numpy and TF1's, cascades, and masks by class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops import nms
from spinenet_jax.ops.detections import detect_scored
from spinenet_jax.ops.region_outputs import CASCADE_WEIGHTS, detect_regions, refine, select_class
from tests import tf1
from tests.ops.test_nms import overlaps_of

SIZE = (64, 80)
detect = jax.jit(detect_regions, static_argnames=('size', 'rules', 'weights', 'inclusive'))


def random_case(seed, shared, regions=40, classes=5):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (1, regions, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, corner.shape)], -1)
    logits = rng.normal(0, 2, (1, regions, classes))
    codes = rng.normal(0, 1, (1, regions, 4 * (1 if shared else classes)))
    valid = rng.random((1, regions)) < 0.9
    return *(x.astype(np.float32) for x in (logits, codes, boxes)), valid


def reference(logits, codes, regions, valid, rules):
    """Textbook suppression a class; (score, class, box) rows, best first."""
    scores = np.asarray(jax.nn.softmax(logits))
    codes = codes.reshape(len(codes), -1, 4)
    kept = []
    for kind in range(1, scores.shape[1]):
        of_class = codes[:, kind if codes.shape[1] > 1 else 0]
        boxes = box_ops.decode(of_class, regions, (10, 10, 5, 5))
        boxes = np.asarray(box_ops.clip(boxes, SIZE))
        chosen = []
        for row in np.argsort(-scores[:, kind], kind='stable'):
            if not valid[row] or scores[row, kind] <= rules.score:
                continue
            if not chosen or overlaps_of(boxes[row], boxes[chosen]).max() <= rules.iou:
                chosen.append(row)
        kept += [(scores[row, kind], kind, boxes[row]) for row in chosen]
    kept.sort(key=lambda row: -row[0])
    return kept[: rules.detections]


# The second case needs the slow way: more detections than the thousand best candidates give.
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('few', [1000, 11])
def test_equals_reference(shared, few):
    rules = nms.Rules(score=0.05, iou=0.3, candidates=few, detections=30, first_class=1)
    logits, codes, regions, valid = random_case(0, shared)
    if few < 40:
        rules = rules._replace(candidates=40)
        scores = jnp.where(valid[..., None], jax.nn.softmax(logits), -1.0)
        boxes = box_ops.decode(codes.reshape(1, 40, -1, 4), regions[:, :, None], (10, 10, 5, 5))
        found = detect_scored(scores, box_ops.clip(boxes, SIZE), rules, few)
    else:
        found = detect(logits, codes, regions, valid, SIZE, rules)
    want = reference(logits[0], codes[0], regions[0], valid[0], rules)
    count = int(found.valid[0].sum())
    assert count == len(want) > 11
    np.testing.assert_array_equal(found.classes[0, :count], [k for _, k, _ in want])
    np.testing.assert_allclose(found.scores[0, :count], [s for s, _, _ in want], 1e-6)
    np.testing.assert_allclose(found.boxes[0, :count], [b for _, _, b in want], 1e-5, 1e-4)


def check_detections(found, stored):
    """Equal to TF1's as far as these are detections."""
    for image, count in enumerate(stored['num_detections']):
        assert int(found.valid[image].sum()) == count
        np.testing.assert_array_equal(
            found.classes[image, :count], stored['detection_classes'][image, :count]
        )
        for key, tolerance in (('scores', 2e-7), ('boxes', 1e-4)):
            ours, theirs = getattr(found, key), stored[f'detection_{key}']
            np.testing.assert_allclose(ours[image, :count], theirs[image, :count], 0, tolerance)


def rules_of(settings):
    return nms.Rules(
        settings['score_threshold'],
        settings['nms_iou_threshold'],
        settings['pre_nms_num_boxes'],
        settings['max_total_size'],
        first_class=1,
    )


def test_detections_equal_tf1():
    stored, settings = tf1.arrays('mask_rcnn'), tf1.settings('mask_rcnn')
    found = detect(
        stored['class_outputs'],
        stored['box_outputs'],
        stored['rpn_rois'],
        stored['rpn_roi_scores'] > -1,
        tuple(settings['image_size']),
        rules_of(settings),
        inclusive=True,
    )
    check_detections(found, stored)


def test_cascade_equals_tf1():
    stored, settings = tf1.arrays('cascade'), tf1.settings('cascade')
    size = tuple(settings['image_size'])
    assert tuple(map(tuple, settings['cascade_box_weights'])) == CASCADE_WEIGHTS
    for stage, weights in enumerate(CASCADE_WEIGHTS[:2]):
        regions, codes = stored[f'stage_rois/{stage}'], stored[f'box_outputs/{stage}']
        ours = refine(codes, regions, size, weights, inclusive=True)
        np.testing.assert_allclose(ours, stored[f'stage_rois/{stage + 1}'], atol=1e-4)
    logits = np.mean([stored[f'class_outputs/{stage}'] for stage in range(3)], axis=0)
    found = detect(
        logits,
        stored['box_outputs/2'],
        stored['stage_rois/2'],
        stored['rpn_roi_scores'] > -1,
        size,
        rules_of(settings),
        CASCADE_WEIGHTS[2],
        inclusive=True,
    )
    check_detections(found, stored)


def test_no_gradient_through_refined_regions():
    codes, regions = np.ones((1, 2, 4), np.float32), np.ones((1, 2, 4), np.float32)
    grad = jax.grad(lambda c: refine(c, regions, SIZE, CASCADE_WEIGHTS[0]).sum())(codes)
    assert not grad.any()


def test_masks_of_the_class():
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    classes = np.array([[0, 4, 2], [1, 1, 3]])
    got, grad = jax.value_and_grad(lambda v: select_class(v, classes)[0, 1].sum())(values)
    np.testing.assert_allclose(got, values[0, 1, :, :, 4].sum(), rtol=1e-5)
    np.testing.assert_array_equal(grad.nonzero()[4], np.full(16, 4))
    for b, r in np.ndindex(2, 3):
        np.testing.assert_array_equal(
            select_class(values, classes)[b, r], values[b, r, :, :, classes[b, r]]
        )
    codes = values.reshape(2, 3, 16, 5).swapaxes(2, 3)  # classes before the last axis
    np.testing.assert_array_equal(
        select_class(codes, classes, -2)[1, 2], values[1, 2].reshape(16, 5)[:, 3]
    )
