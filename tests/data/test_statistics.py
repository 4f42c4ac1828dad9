"""Counts of a data set and the fit of anchors, by hand."""

import numpy as np

from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.statistics import best_overlaps, summarise


def test_counts_by_hand(make_coco, coco_json):
    annotations = [
        {'image_id': 100, 'category_id': 3, 'bbox': [0, 0, 10, 20]},  # area 200: small
        {'image_id': 100, 'category_id': 3, 'bbox': [0, 0, 40, 30]},  # area 1200: medium
        {'image_id': 101, 'category_id': 7, 'bbox': [5, 5, 10, 10], 'iscrowd': 1},
    ]
    root = make_coco(coco_json(3, annotations))
    found = summarise(CocoSource(root, 'train'), (60, 60))
    assert (found.images, found.empty_images, found.crowds) == (3, 2, 1)
    assert found.objects_per_image.tolist() == [2, 0, 0]
    cat, dog = found.classes
    assert (cat.name, cat.objects, cat.images) == ('cat', 2, 1)
    assert (cat.small, cat.medium, cat.large) == (1, 1, 0)
    assert cat.median_side == np.sqrt(700)
    assert dog.objects == 0 and np.isnan(dog.median_side)
    # 40 x 30 pixels into 60 x 60: one and a half times as large.
    np.testing.assert_allclose(found.boxes[0], [0, 0, 30, 15])


def test_a_data_set_without_objects(make_coco, coco_json):
    found = summarise(CocoSource(make_coco(coco_json(1)), 'train'), (64, 64))
    assert found.boxes.shape == (0, 4) and found.empty_images == 1


def test_an_anchor_fits_itself_and_a_sliver_fits_none():
    # The first cell of level 3 is centred on (4, 4); its smallest square anchor has 24 pixels.
    boxes = np.array([[-8, -8, 16, 16], [0, 0, 2, 64]], np.float32)
    overlaps, levels = best_overlaps(boxes, (64, 64), 3.0, (3, 7))
    np.testing.assert_allclose(overlaps[0], 1.0, rtol=1e-6)
    assert levels[0] == 3
    assert overlaps[1] < 0.5
