"""Rows of boxes and small masks to COCO numbers at the size of the original images."""

from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco

from spinenet_jax.evaluation.instances import InstanceEvaluator

SIZE = (60, 90)  # original; the network sees twice as many pixels


def source(images):
    boxes = [[10, 10, 40, 40], [20, 5, 30, 50]]  # xywh
    annotations = []
    for image in range(images):
        x, y, w, h = boxes[image % 2]
        canvas = np.zeros(SIZE, np.uint8, order='F')
        canvas[y : y + h, x : x + w] = 1
        rle = coco.encode(canvas)
        annotations.append(
            {
                'id': image,
                'image_id': 100 + image,
                'category_id': 3,
                'bbox': [x, y, w, h],
                'area': w * h,
                'iscrowd': 0,
                'segmentation': {**rle, 'counts': rle['counts'].decode()},
            }
        )
    return SimpleNamespace(
        image_ids=[100 + i for i in range(images)],
        categories=[SimpleNamespace(label=1, id=3, name='thing')],
        ground_truth={
            'images': [{'id': 100 + i, 'height': 60, 'width': 90} for i in range(images)],
            'annotations': annotations,
            'categories': [{'id': 3, 'name': 'thing'}],
        },
    )


def rows_of(truth, indices):
    boxes = []
    for index in indices:
        x, y, w, h = truth.ground_truth['annotations'][index]['bbox']
        boxes.append([[2 * y, 2 * x, 2 * (y + h), 2 * (x + w)], [np.nan] * 4])
    count = len(indices)
    return {
        'index': np.array(indices),
        'scale': np.full((count, 2), 2.0, np.float32),
        'original_size': np.tile(np.int32(SIZE), (count, 1)),
        'boxes': np.array(boxes, np.float32),
        'scores': np.full((count, 2), 0.9, np.float32),
        'classes': np.ones((count, 2), np.int32),
        'valid': np.tile([True, False], (count, 1)),
        'masks': np.ones((count, 2, 28, 28), np.float32),
    }


@pytest.mark.parametrize('threads', [1, 3])
def test_filled_masks(threads):
    images = 70  # more than may wait
    truth = source(images)
    evaluator = InstanceEvaluator(truth, threads)
    for start in range(0, images, 7):
        evaluator.update(rows_of(truth, list(range(start, start + 7))))
    result = evaluator.result()
    assert result['AP'] == pytest.approx(1.0)
    # A pasted mask ends up to a pixel beyond its box, as in the public code.
    assert result['mask/AP50'] == pytest.approx(1.0) and result['mask/AP'] > 0.8
    assert evaluator.per_class() == pytest.approx({'thing': result['mask/AP']})
    ids = [record['image_id'] for record in evaluator.detections]
    assert ids == truth.image_ids
    mask = coco.decode(evaluator.detections[0]['segmentation'])
    assert mask.shape == SIZE and abs(int(mask.sum()) - 1600) < 170


def test_a_box_that_reaches_into_the_padding_is_cut_after_pasting():
    # The right half of the mask is empty, and lies outside the image: all that is inside is full.
    truth = source(1)
    rows = rows_of(truth, [0])
    rows['boxes'][0, 0] = (0, 0, 120, 360)
    rows['masks'][0, 0, :, 14:] = 0
    evaluator = InstanceEvaluator(truth, 1)
    evaluator.update(rows)
    (record,) = evaluator.detections
    assert record['bbox'] == [0, 0, 90, 60]
    assert coco.decode(record['segmentation'])[1:-1, 1:85].all()
