"""Rows of boxes and small masks to COCO numbers at the size of the original images."""

import contextlib
import io
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spinenet_jax.data.coco import CocoSource
from spinenet_jax.evaluation.coco import METRICS, rounded
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


def write_split(root, rng):
    """Six images with polygons in parts, RLE, crowds: annotations as COCO has them."""
    (root / 'annotations').mkdir()
    (root / 'val').mkdir()
    annotations, images = [], []
    for image in range(6):
        images.append({'id': 50 + image, 'file_name': f'{image}.jpg', 'height': 60, 'width': 90})
        (root / f'val/{image}.jpg').write_bytes(b'not read')
        for n in range(5):
            (y, x), (h, w) = rng.uniform(0, (30, 50)), rng.uniform(8, 30, 2)
            triangle = [x, y, x + w, y, x + w, y + h]
            other = [x, y + h / 2, x + w / 3, y + h / 2, x, y + h]
            segmentation = [np.round(p, 2).tolist() for p in (triangle, other)]
            rle = coco.merge(coco.frPyObjects(segmentation, *SIZE))
            if n == 1:
                segmentation = {**rle, 'counts': rle['counts'].decode()}
            elif n == 2:  # a crowd, uncompressed as COCO has it
                mask = coco.decode(rle)
                ends = np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=0, append=2))
                counts = np.diff(ends, prepend=0).tolist()
                segmentation = {'size': list(SIZE), 'counts': counts}
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': 50 + image,
                    'category_id': int(rng.integers(1, 3)),
                    'bbox': [x, y, w, h],
                    'area': float(coco.area(rle)),
                    'iscrowd': int(n == 2),
                    'segmentation': segmentation,
                }
            )
    categories = [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}]
    data = {'images': images, 'annotations': annotations, 'categories': categories}
    (root / 'annotations/instances_val.json').write_text(json.dumps(data))
    return root / 'annotations/instances_val.json'


def found_near(annotations, rng):
    """Rows of detections near the objects, triangles for masks, and a few nowhere near."""
    rows = {name: [] for name in ('boxes', 'scores', 'classes', 'valid', 'masks')}
    for image in range(6):
        mine = [a for a in annotations if a['image_id'] == 50 + image]
        boxes = np.array([a['bbox'] for a in mine] + [[5, 5, 20, 20]] * 2)
        boxes = boxes[:, [1, 0, 3, 2]] + rng.normal(0, 0.7, (7, 4))
        boxes[:, 2:] += boxes[:, :2]
        rows['boxes'].append(2 * boxes)
        rows['scores'].append(rng.uniform(0.1, 1, 7))
        rows['classes'].append([a['category_id'] for a in mine] + [1, 2])
        rows['valid'].append([True] * 7)
        upper = np.triu(np.full((28, 28), 0.9)) + rng.uniform(0, 0.3, (7, 28, 28))
        rows['masks'].append(upper)
    return {
        'index': np.arange(6),
        'scale': np.full((6, 2), 2.0, np.float32),
        'original_size': np.tile(np.int32(SIZE), (6, 1)),
        **{k: np.array(v, bool if k == 'valid' else None) for k, v in rows.items()},
    }


def test_numbers_are_those_of_pycocotools_alone(tmp_path):
    rng = np.random.default_rng(0)
    path = write_split(tmp_path, rng)
    source = CocoSource(tmp_path, 'val', with_segmentations=True)
    assert source.report == []
    evaluator = InstanceEvaluator(source, 2)
    evaluator.update(found_near(json.loads(path.read_text())['annotations'], rng))
    result = evaluator.result()
    assert 0.05 < result['mask/AP'] < 0.9 and 0.1 < result['AP'] < 0.9
    # What detections.json holds, scored by COCO's own script on COCO's own file.
    detections = json.loads(json.dumps([rounded(d) for d in evaluator.detections]))
    assert isinstance(detections[0]['segmentation']['counts'], str)
    exact = json.loads(json.dumps(evaluator.detections))
    for kind, prefix in (('bbox', ''), ('segm', 'mask/')):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
            scorer = COCOeval(truth, truth.loadRes(exact), kind)
            scorer.evaluate()
            scorer.accumulate()
            scorer.summarize()
        for name, stat in zip(METRICS, scorer.stats, strict=True):
            assert result.get(prefix + name, -1) == pytest.approx(stat, abs=1e-12), (kind, name)


def test_threads_end_with_the_result():
    before = set(threading.enumerate())
    truth = source(3)
    evaluator = InstanceEvaluator(truth, 2)
    evaluator.update(rows_of(truth, [0, 1]))
    evaluator.result()
    assert set(threading.enumerate()) <= before
    evaluator.update(rows_of(truth, [2]))  # and start anew
    assert len(evaluator.detections) == 3 and set(threading.enumerate()) <= before
