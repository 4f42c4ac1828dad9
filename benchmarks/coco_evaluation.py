"""Times scoring the 5,000 images of val2017, 100 detections each, boxes alone or masks as well.

    python benchmarks/coco_evaluation.py [--images=5000] [--backends faster pycocotools] [--masks]

Makes ground truth like val2017's (80 classes of very different frequency, 7.3 boxes an image, two
fifths of them small) and detections, 100 an image, of which some are near a true box. Scores them
with our CocoEvaluator, each backend in a process of its own. Prints one JSON line each (with
--record also appended to benchmarks/logs/coco_evaluation.jsonl): seconds of collecting
(`collect_s`) and of scoring (`score_s`), and the peak memory of the process, detections included.
Their metrics must be equal, up to the order in which means are added up. With --masks, every object
and detection has a mask, an ellipse; `paste_s` is the time for pasting 28 x 28 probabilities into
the images, and `paste_cpu_s` and `score_cpu_s` are processor seconds, which say more on a machine
that is shared.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLASSES, BOXES_AN_IMAGE, DETECTIONS_AN_IMAGE, SIDES = 80, 7.3, 100, (480, 640)


def random_boxes(rng, count):
    """Boxes f32[count,4] (ymin, xmin, ymax, xmax) of COCO's sizes: 4 to 400 pixels, most small."""
    import numpy as np

    sides = np.clip(
        np.exp(rng.normal(3.9, 1.1, (count, 1)) + rng.normal(0, 0.4, (count, 2))), 4, 400
    )
    corner = rng.random((count, 2)) * (SIDES - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def synthetic_ground_truth(images, seed=0):
    """A COCO instances dict; image i has id i + 1, classes are frequent as 1 / rank."""
    import numpy as np

    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, CLASSES + 1)
    annotations = []
    for image_id in range(1, images + 1):
        count = rng.geometric(1 / (1 + BOXES_AN_IMAGE)) - 1  # some images have none
        classes = rng.choice(CLASSES, count, p=share / share.sum()) + 1
        for (ymin, xmin, ymax, xmax), k in zip(
            random_boxes(rng, count).tolist(), classes, strict=True
        ):
            bbox = [xmin, ymin, xmax - xmin, ymax - ymin]
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(k),
                    'bbox': bbox,
                    'area': 0.6 * bbox[2] * bbox[3],  # of the mask
                    'iscrowd': int(rng.random() < 0.01),
                }
            )
    return {
        'images': [{'id': n + 1, 'height': SIDES[0], 'width': SIDES[1]} for n in range(images)],
        'annotations': annotations,
        'categories': [{'id': k + 1, 'name': f'class {k + 1}'} for k in range(CLASSES)],
    }


def synthetic_detections(ground_truth, seed=1):
    """Rows of CocoEvaluator.update, 100 images at a time: ids, boxes, scores, classes, valid."""
    import numpy as np

    rng = np.random.default_rng(seed)
    true = {image['id']: [] for image in ground_truth['images']}
    for a in ground_truth['annotations']:
        x, y, w, h = a['bbox']
        true[a['image_id']].append((y, x, y + h, x + w, a['category_id']))
    batches, ids = [], list(true)
    for start in range(0, len(ids), 100):
        some = ids[start : start + 100]
        shape = (len(some), DETECTIONS_AN_IMAGE)
        boxes = random_boxes(rng, shape[0] * shape[1]).reshape(*shape, 4)
        scores = rng.beta(1, 6, shape).astype(np.float32)
        classes = rng.integers(1, CLASSES + 1, shape)
        for row, image_id in enumerate(some):
            near = np.array(true[image_id]).reshape(-1, 5)[: DETECTIONS_AN_IMAGE // 2]
            noise = rng.normal(0, 0.08, (len(near), 4)) * np.tile(near[:, 2:4] - near[:, :2], 2)
            boxes[row, : len(near)] = near[:, :4] + noise
            classes[row, : len(near)] = near[:, 4]
            scores[row, : len(near)] = rng.beta(3, 2, len(near))
        batches.append((some, boxes, scores, classes, np.ones(shape, bool)))
    return batches


def add_outlines(ground_truth):
    """Gives every annotation the polygon of an ellipse in its box, of 24 points."""
    import numpy as np

    angles = np.arange(24) * (2 * np.pi / 24)
    for a in ground_truth['annotations']:
        x, y, w, h = a['bbox']
        points = np.stack([x + w * (1 + np.cos(angles)) / 2, y + h * (1 + np.sin(angles)) / 2], 1)
        a['segmentation'] = [np.round(points, 2).reshape(-1).tolist()]


def paste_all(batches, threads):
    """Masks of every image of every batch: probabilities that look like a blurred ellipse."""
    import numpy as np

    from spinenet_jax.evaluation.masks import paste

    rng = np.random.default_rng(2)
    place = np.mgrid[0:28, 0:28] / 13.5 - 1
    noise = rng.normal(0, 0.1, (DETECTIONS_AN_IMAGE, 28, 28))
    masks = 1 / (1 + np.exp(-6 * (1 - (place**2).sum(0) + noise)))
    masks = masks.astype(np.float32)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [
            list(pool.map(lambda boxes: paste(masks, boxes, SIDES), batch[1])) for batch in batches
        ]


def measure(images, backend, with_masks=False):
    """Seconds and metrics of one backend; to be run in a fresh process for its memory."""
    from spinenet_jax.data.batch import Category
    from spinenet_jax.evaluation.coco import CocoEvaluator

    ground_truth = synthetic_ground_truth(images)
    batches, facts = synthetic_detections(ground_truth), {'masks': with_masks}
    if with_masks:
        add_outlines(ground_truth)
        clock, cpu = time.perf_counter(), time.process_time()
        masks = paste_all(batches, os.cpu_count())
        facts['paste_s'] = round(time.perf_counter() - clock, 2)
        facts['paste_cpu_s'] = round(time.process_time() - cpu, 2)
        batches = [(*batch, some) for batch, some in zip(batches, masks, strict=True)]
    categories = [Category(c['id'], c['id'], c['name']) for c in ground_truth['categories']]
    evaluator = CocoEvaluator(ground_truth, categories, backend, True, with_masks)
    began = time.perf_counter()
    for batch in batches:
        evaluator.update(*batch)
    collected, cpu = time.perf_counter(), time.process_time()
    metrics = evaluator.result()
    if with_masks:
        facts['score_cpu_s'] = round(time.process_time() - cpu, 2)
        facts['mask_AP'] = round(metrics['mask/AP'], 6)
    return {
        'annotations': len(ground_truth['annotations']),
        'detections': len(evaluator.detections),
        'collect_s': round(collected - began, 2),
        'score_s': round(time.perf_counter() - collected, 2),
        **facts,
        'peak_rss_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }, metrics


def main():
    """One line for each backend."""
    from benchmarks import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=5000)
    both = ('faster', 'pycocotools')
    parser.add_argument('--backends', nargs='+', choices=both, default=both)
    parser.add_argument('--masks', action='store_true', help='paste and score masks as well')
    parser.add_argument('--record', action='store_true', help="append to the repository's log")
    given = parser.parse_args()
    if given.images < 1:
        parser.error(f'--images={given.images}: at least one')
    every = {}
    for backend in given.backends:
        facts = {'backend': backend, 'images': given.images}
        facts['load_before'] = round(os.getloadavg()[0], 2)
        fresh = multiprocessing.get_context('spawn')
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
            result, every[backend] = pool.submit(
                measure, given.images, backend, given.masks
            ).result()
        first = next(iter(every.values()))
        largest = max(abs(every[backend][name] - first[name]) for name in first)
        difference = {'AP': round(every[backend]['AP'], 6), 'largest_difference': largest}
        machine.report('coco_evaluation', facts | result | difference, given.record)
        if largest > 1e-9:
            sys.exit('error: the backends disagree')


if __name__ == '__main__':
    main()
