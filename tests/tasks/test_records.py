"""What was found in an image, with masks: in its pixels, as JSON records, as a picture."""

import json

import numpy as np
from pycocotools import mask as coco

from spinenet_jax.data.batch import Category
from spinenet_jax.tasks.records import InstanceRecords, detections_of, draw, instances_of

SIZE = (60, 90)  # of the image; the network sees twice as many pixels, and padding


def row():
    """Two objects: the upper left half of a box is the first, the second fills its box."""
    halves = np.zeros((3, 28, 28), np.float32)
    halves[0, :, :14] = 1
    halves[1] = 0.9
    return {
        'boxes': np.float32([[20, 20, 80, 100], [60, 100, 200, 300], [np.nan] * 4]),
        'scores': np.float32([0.9, 0.4, 0.0]),
        'classes': np.int32([1, 2, 0]),
        'valid': np.array([True, True, False]),
        'masks': halves,
        'scale': np.float32([2, 2]),
        'original_size': np.int32(SIZE),
    }


def test_instances_are_detections_with_masks_of_the_image():
    found = instances_of(row())
    for ours, theirs in zip(found, detections_of(row()), strict=False):
        np.testing.assert_array_equal(ours, theirs)
    left, full = (coco.decode(rle) for rle in found.masks)
    assert left.shape == full.shape == SIZE
    # The box is rows 10 to 40, columns 10 to 50: the left half ends at column 30.
    assert left[11:39, 11:29].all() and not left[:, 32:].any() and not left[42:].any()
    # The second reaches into the padding and ends with the image, rows 30 and columns 50 on.
    assert full[31:, 51:].all() and not full[:29].any() and not full[:, :49].any()
    assert found.boxes[1].tolist() == [30, 50, 60, 90]


def test_records_hold_run_lengths():
    records = InstanceRecords([Category(1, 7, 'cat'), Category(2, 9, 'dog')])
    for path in ('a.jpg', 'b.jpg'):
        assert records.add(path, SIZE, instances_of(row())) == ''
    annotations = json.loads(json.dumps(records.as_dict))['annotations']
    assert [a['image_id'] for a in annotations] == [1, 1, 2, 2]
    assert [a['category_id'] for a in annotations] == [7, 9, 7, 9]
    for annotation, rle in zip(annotations[2:], instances_of(row()).masks, strict=True):
        np.testing.assert_array_equal(coco.decode(annotation['segmentation']), coco.decode(rle))
        assert annotation['area'] == coco.decode(rle).sum()
    assert records.summary(0.5) == '2 of 4 detections drawn'


def test_an_image_without_anything():
    empty = {**row(), 'valid': np.zeros(3, bool)}
    found = instances_of(empty)
    assert found.masks == [] and found.boxes.shape == (0, 4)
    records = InstanceRecords([])
    records.add('a.jpg', SIZE, found)
    assert records.as_dict['annotations'] == []
    image = np.full((*SIZE, 3), 90, np.uint8)
    assert (draw(image, found, {}, min_score=0.3, side=90) == 90).all()


def test_the_picture_shows_masks():
    image = np.full((*SIZE, 3), 90, np.uint8)
    drawn = draw(image, instances_of(row()), {1: '', 2: ''}, min_score=0.5, side=180)
    assert drawn.shape == (120, 180, 3) and (image == 90).all()
    # Twice as large; the first object is filled, the second not certain enough.
    assert (drawn[40:70, 30:50] != 90).any(-1).all()
    assert (drawn[90:, 120:] == 90).all() and (drawn[25:75, 70:95] == 90).all()
