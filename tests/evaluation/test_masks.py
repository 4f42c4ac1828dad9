"""Pasted masks against a full canvas, and TF1's."""

import tracemalloc

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from spinenet_jax.evaluation import masks
from spinenet_jax.evaluation.masks import paste
from tests import tf1


def decode(rle):
    return coco.decode(rle)


def reference(mask, box, size):
    """A full canvas for one mask, as the public code has it."""
    side = mask.shape[0]
    padded = np.pad(mask, 1).astype(np.float32)
    grow = (side + 2) / side
    ymin, xmin, ymax, xmax = box.astype(float)
    y, x = (ymin + ymax) / 2, (xmin + xmax) / 2
    h, w = (ymax - ymin) / 2 * grow, (xmax - xmin) / 2 * grow
    top, left, bottom, right = (int(v) for v in (y - h, x - w, y + h, x + w))
    large = cv2.resize(padded, (max(right - left + 1, 1), max(bottom - top + 1, 1))) > 0.5
    canvas = np.zeros(size, np.uint8)
    for i, j in np.ndindex(large.shape):
        if 0 <= top + i < size[0] and 0 <= left + j < size[1]:
            canvas[top + i, left + j] = large[i, j]
    return canvas


def test_equals_a_full_canvas():
    rng = np.random.default_rng(0)
    size = (40, 57)
    masks = cv2.GaussianBlur(rng.random((60, 28 * 28)).astype(np.float32), (1, 9), 3)
    masks = masks.reshape(60, 28, 28)
    masks[:20] = 1.0
    low = rng.uniform(-20, 50, (60, 2))
    boxes = np.concatenate([low, low + np.exp(rng.uniform(0, 5, (60, 2)))], 1).astype(np.float32)
    boxes[0] = (-5, -5, 60, 70)  # all of the image
    boxes[1] = (10, 10, 10, 10)
    boxes[2] = (50, 70, 90, 90)  # none of it
    found = paste(masks, boxes, size)
    seen = 0
    for mask, box, rle in zip(masks, boxes, found, strict=True):
        want = reference(mask, box, size)
        np.testing.assert_array_equal(decode(rle), want)
        # Byte for byte what pycocotools writes, so that files do not depend on how it was pasted.
        assert rle['counts'] == coco.encode(np.asfortranarray(want))['counts']
        assert rle['size'] == list(size)
        seen += want.any()
    assert seen > 30


@pytest.mark.parametrize('most', [1, 900, 5000])
def test_groups_give_the_same_run_lengths(monkeypatch, most):
    rng = np.random.default_rng(0)
    low = rng.uniform(-20, 50, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 50, (40, 2))], 1).astype(np.float32)
    arguments = rng.random((40, 28, 28), np.float32), boxes, (40, 57)
    want, counts = paste(*arguments), []
    runs = masks._runs

    def counted(part, first, last, size):
        pixels = masks._windows(first, last, size)[1].prod(1).sum()
        assert pixels <= most or len(part) == 1
        counts.append(len(part))
        return runs(part, first, last, size)

    monkeypatch.setattr(masks, 'LARGEST_GROUP', most)
    monkeypatch.setattr(masks, '_runs', counted)
    assert paste(*arguments) == want
    assert sum(counts) == 40 and len(counts) > 2
    assert most == 1 or max(counts) > 1


def test_many_large_masks_take_little_memory():
    """All boxes of an image were once held at once: here 120 MB."""
    boxes = np.tile(np.float32([0, 0, 1000, 1000]), (60, 1))
    probabilities = np.ones((60, 28, 28), np.float32)
    tracemalloc.start()
    paste(probabilities, boxes, (1000, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * masks.LARGEST_GROUP


def test_none():
    assert paste(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (5, 5)) == []


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade'])
@pytest.mark.parametrize('image', [0, 1])
def test_equals_tf1(name, image):
    stored = tf1.arrays(name)
    theirs = stored[f'pasted_masks/{image}']
    count = min(len(theirs), stored['num_detections'][image])
    masks = 1 / (1 + np.exp(-stored['mask_logits'][image][:count]))
    boxes = stored[f'original_boxes/{image}'][:count]
    found = paste(masks, boxes, theirs.shape[1:])
    ours = np.stack([decode(rle) for rle in found])
    # Where a probability is one half up to rounding, a pixel may fall on either side.
    assert theirs[:count].any() and (ours != theirs[:count]).sum() <= 1e-4 * ours.size
