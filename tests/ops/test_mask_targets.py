"""Mask targets by hand, against a loop in numpy, and against TF1's."""

import jax
import numpy as np
import pytest

from spinenet_jax.ops.mask_targets import crop_masks
from tests import tf1

crop = jax.jit(crop_masks, static_argnames='size')


def test_by_hand():
    # A 4 x 4 mask, top half 1, fills the box 0..8: a mask pixel is 2 pixels. The region 0..8 in two
    # bins is sampled at 2 and 6 pixels, that is at mask rows 1 and 3: 1 and 0. The region 1..5
    # at 2 and 4, rows 1 and 2: 1 and 0; at 1.5 and 3.5 (region 0.5..4.5), rows 0.75 and 1.75: 1
    # and a quarter. Beside the box nothing.
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, :2] = 1
    box = np.array([[0, 0, 8, 8]], np.float32)
    regions = np.array([[0, 0, 8, 8], [1, 2, 5, 6], [0.5, 2, 4.5, 6], [0, 20, 8, 28]], np.float32)
    got = crop(mask, box, np.zeros(4, int), regions, size=2)
    np.testing.assert_allclose(got[:, :, 0], [[1, 0], [1, 0], [1, 0.25], [0, 0]], atol=1e-6)


def test_equals_reference():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 6, 6)).astype(np.float32)
    corner = rng.uniform(0, 40, (3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (3, 2))], 1).astype(np.float32)
    matched = np.array([0, 2, 1, 1, 0])
    regions = (boxes[matched] + rng.normal(0, 4, (5, 4))).astype(np.float32)
    got = crop(masks, boxes, matched, regions, size=5)
    padded = np.pad(masks, ((0, 0), (20, 20), (20, 20)))
    for r, n in enumerate(matched):
        for i, j in np.ndindex(5, 5):
            box, region = boxes[n].astype(float), regions[r].astype(float)
            at = region[:2] + (np.array([i, j]) + 0.5) / 5 * (region[2:] - region[:2])
            y, x = (at - box[:2]) / (box[2:] - box[:2]) * 6 + 20
            row, column = int(np.floor(y)), int(np.floor(x))
            patch = padded[n, row : row + 2, column : column + 2]
            want = np.array([row + 1 - y, y - row]) @ patch @ np.array([column + 1 - x, x - column])
            np.testing.assert_allclose(got[r, i, j], want, atol=1e-5)


def test_bytes_are_soft_values():
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 256, (2, 9, 9)).astype(np.uint8)
    boxes = np.array([[0, 0, 9, 9], [2, 3, 4, 9]], np.float32)
    arguments = boxes, np.array([1, 0]), boxes[::-1] + 1
    got, want = crop(masks, *arguments), crop(masks.astype(np.float32) / 255, *arguments)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_degenerate_boxes_give_finite_values():
    masks = np.ones((2, 4, 4), np.float32)
    boxes = np.array([[5, 5, 5, 5], [0, 0, 8, 8]], np.float32)
    regions = np.array([[0, 0, 9, 9], [3, 3, 3, 3]], np.float32)
    assert np.isfinite(crop(masks, boxes, np.array([0, 1]), regions)).all()


def test_equals_tf1():
    stored = tf1.arrays('ops')
    masks = stored['crop_masks_in'][0].astype(np.float32)
    boxes, regions = stored['crop_gt_boxes'][0], stored['crop_rois'][0]
    got = crop(masks, boxes, np.arange(len(masks)), regions)
    np.testing.assert_allclose(got, stored['crop_masks_out'][0], atol=2e-4)


@pytest.mark.parametrize('name', ['mask_rcnn_train', 'mask_rcnn_train_frozen_bn'])
def test_equals_tf1_training(name):
    stored, truth = tf1.arrays(name), tf1.arrays('mask_rcnn_train')
    for image in range(2):
        boxes, rois = truth['gt_boxes'][image], stored['mask_rois'][image]
        positive = stored['mask_classes'][image] > 0
        row = {
            tuple(r): i
            for r, i in zip(
                stored['sampled_rois'][image], stored['sampled_gt_indices'][image], strict=True
            )
        }
        matched = np.array([row[tuple(r)] for r in rois])
        masks = truth['gt_masks'][image].astype(np.float32)
        got = crop(masks, boxes, matched, rois)
        want = stored['mask_targets'][image]
        np.testing.assert_allclose(got[positive], want[positive], atol=2e-4)
