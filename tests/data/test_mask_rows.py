"""Masks from the JSON to the rows of a training batch, beside their boxes, good ones and bad."""

import numpy as np
import pytest
from pycocotools import mask as coco

from spinenet_jax.data.batch import SEGMENTATIONS
from spinenet_jax.data.build import box_rows, build_source, mask_rows, train_batches
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.decode import read_image
from spinenet_jax.data.pipeline import Augmentation, train_example
from spinenet_jax.data.segmentations import Polygons
from spinenet_jax.data.transforms import Draws
from spinenet_jax.errors import UserError
from tests.data.test_pipeline import config

# An "L": the upright is 80 of 320 pixels wide, the foot 80 of 200 pixels high.
L_SHAPE = [200, 100, 280, 100, 280, 220, 520, 220, 520, 300, 200, 300]
SIZE = (400, 800)


def inside(mask):
    return mask > 127


def l_record(**changes):
    return {
        'image': b'',
        'image_id': 1,
        'size': SIZE,
        'boxes': np.float32([[100, 200, 300, 520]]),
        'labels': np.int32([1]),
        'is_crowd': np.array([False]),
        'segmentations': [Polygons([np.array(L_SHAPE, float)])],
        **changes,
    }


def row_of(draws, size, max_boxes=3, **changes):
    image = np.zeros((*SIZE, 3), np.uint8)
    augmentation = Augmentation(size, 1.0, 1.0, True, max_boxes, with_masks=True)
    row = train_example(l_record(**changes), image, augmentation, draws)
    assert {name: (v.shape, v.dtype) for name, v in row.items()} == {
        name: (field.shape, field.dtype) for name, field in augmentation.fields.items()
    }
    return row


@pytest.mark.parametrize('flip', [False, True])
def test_flipped_and_scaled_by_hand(flip):
    row = row_of(Draws(flip=flip), (200, 400))
    left, right = (140, 300) if flip else (100, 260)
    np.testing.assert_array_equal(row['boxes'][0], [50, left, 150, right])
    assert row['has_mask'].tolist() == row['valid'].tolist() == [True, False, False]
    mask = inside(row['masks'][0, :, ::-1] if flip else row['masks'][0])
    # The upright ends after 8/32 of 112 columns, the foot begins after 12/20 of 112 rows.
    assert mask[1:66, 1:27].all() and not mask[:66, 29:].any()
    assert mask[68:111, 1:111].all()
    assert not row['masks'][1:].any()


def test_cut_by_hand():
    # Twice as large, 800 x 1600, of which rows 100 to 500 and columns 200 to 1000 are seen: rows 50
    # to 250 and columns 100 to 500 of the image, so rows 100 to 250 and columns 200 to 500 of the
    # box.
    row = row_of(Draws(scale=2.0, offset_y=0.25, offset_x=0.25), SIZE)
    np.testing.assert_array_equal(row['boxes'][0], [100, 200, 400, 800])
    mask = inside(row['masks'][0])
    # The upright ends after 8/30 of 112 columns, the foot begins after 12/15 of 112 rows.
    assert mask[1:89, 1:29].all() and not mask[:88, 31:].any()
    assert mask[91:, 1:].all()


def test_masks_stay_with_their_boxes_when_there_are_too_many():
    # Boxes 1 and 3 of four are the largest that can be trained; box 0 is a crowd. Their masks are
    # the left and the lower half.
    boxes = np.float32([[0, 0, 400, 800], [0, 0, 200, 400], [50, 50, 80, 80], [200, 400, 400, 800]])
    left_half = [0, 0, 200, 0, 200, 200, 0, 200]
    lower_half = [400, 300, 800, 300, 800, 400, 400, 400]
    small = [50, 50, 80, 50, 80, 80, 50, 80]
    polygons = [Polygons([np.array(p, float)]) for p in (L_SHAPE, left_half, small, lower_half)]
    row = row_of(
        Draws(),
        SIZE,
        max_boxes=2,
        boxes=boxes,
        labels=np.int32([1, 2, 3, 4]),
        is_crowd=np.array([True, False, False, False]),
        segmentations=polygons,
    )
    assert row['labels'].tolist() == [2, 4] and row['has_mask'].all()
    left, lower = inside(row['masks'])
    assert left[:, :55].all() and not left[:, 57:].any()
    assert lower[57:].all() and not lower[:55].any()


def test_an_object_without_a_mask_keeps_its_box():
    row = row_of(Draws(), SIZE, segmentations=[None])
    assert row['valid'][0] and not row['has_mask'].any() and not row['masks'].any()


GOOD = {'image_id': 100, 'category_id': 3, 'bbox': [4, 5, 20, 10]}
SQUARE = [4, 5, 24, 5, 24, 15, 4, 15]
BAD = {
    'none': (None, 'without a segmentation'),
    'an empty polygon': ([[]], 'fewer than three points'),
    'two points': ([[4, 5, 24, 15]], 'fewer than three points'),
    'an odd number': ([SQUARE[:-1]], 'odd number'),
    'RLE of another size': ({'size': [40, 30], 'counts': [600, 600]}, "not their image's"),
    'a wrong sum': ({'size': [30, 40], 'counts': [600, 60]}, 'do not add up'),
    'elsewhere': ([[30, 20, 38, 20, 38, 28]], 'do not touch their box'),
    'a word': ('polygon', 'neither polygons nor RLE'),
}


@pytest.mark.parametrize(('segmentation', 'line'), BAD.values(), ids=BAD)
def test_a_bad_mask_is_reported_and_its_box_trains(make_coco, coco_json, segmentation, line):
    root = make_coco(coco_json(1, [{**GOOD, 'segmentation': segmentation}]))
    cfg = config(root, flip=False, scale_min=1.0, scale_max=1.0)
    rows = mask_rows(cfg)
    source = build_source(cfg, 'train', 0, rows.needs)
    assert any(line in text and 'first: 1' in text for text in source.report), source.report
    record = source[0]
    row = rows.train(record, read_image(record['image']), np.random.default_rng(0))
    assert row['valid'].sum() == 1 and not row['has_mask'].any()


def test_parts_outside_the_image_are_cut(make_coco, coco_json):
    beyond = [[20, 5, 60, 5, 60, 15, 20, 15]]
    root = make_coco(coco_json(1, [{**GOOD, 'bbox': [20, 5, 40, 10], 'segmentation': beyond}]))
    source = CocoSource(root, 'train', with_segmentations=True)
    assert any('out of their image' in line for line in source.report)
    augmentation = Augmentation((30, 40), 1.0, 1.0, False, 2, with_masks=True)
    row = train_example(source[0], np.zeros((30, 40, 3), np.uint8), augmentation, Draws())
    np.testing.assert_array_equal(row['boxes'][0], [5, 20, 15, 40])
    assert row['has_mask'][0] and inside(row['masks'][0, 6:-6, 6:]).all()


def test_batches_and_epochs(make_coco, coco_json):
    """All the way through the threads; a source of boxes alone has read no segmentation."""
    boxes = [{**GOOD, 'image_id': 100 + n, 'segmentation': [SQUARE]} for n in range(5)]
    cfg = config(make_coco(coco_json(5, boxes)), scale_min=1.0, scale_max=1.0)
    rows = mask_rows(cfg)
    assert rows.needs >= SEGMENTATIONS and not box_rows(cfg).needs & SEGMENTATIONS
    source = build_source(cfg, 'train', 0, rows.needs)
    assert source.report == []
    stream = train_batches(
        source,
        rows.train,
        cfg,
        batch_size=4,
        seed=0,
        start_step=0,
        process_index=0,
        process_count=1,
    )
    batch = next(stream)
    stream.close()
    assert batch['masks'].shape == (4, 6, 112, 112) and batch['masks'].dtype == np.uint8
    assert batch['has_mask'].sum() == 4 and inside(batch['masks'][:, 0, 8:-8, 8:-8]).all()
    without = build_source(cfg, 'train', 0, box_rows(cfg).needs)
    assert 'segmentations' not in without[0] and without._table.segmentations is None


def test_ground_truth_has_masks_only_where_they_are_asked_for(make_coco, coco_json):
    crowd = {'size': [30, 40], 'counts': [0, 600, 600]}
    bad = {'size': [40, 30], 'counts': [0, 1200]}
    masks = [[SQUARE], crowd, bad]
    data = coco_json(1, [{**GOOD, 'segmentation': m} for m in masks])
    data['images'][0].pop('height')  # unknown: taken from the file
    root = make_coco(data)
    source = CocoSource(root, 'train', with_segmentations=True)
    truth = source.ground_truth
    assert truth['images'][0]['height'] == 30 and truth['images'][0]['width'] == 40
    polygons, rle = (a['segmentation'] for a in truth['annotations'][:2])
    assert polygons == [SQUARE]
    assert coco.decode(rle)[:, :20].all() and not coco.decode(rle)[:, 20:].any()
    plain = CocoSource(root, 'train').ground_truth
    assert not any('segmentation' in a for a in plain['annotations'])
    root = make_coco(coco_json(1, [{**GOOD, 'segmentation': bad}]))
    known = CocoSource(root, 'train', with_segmentations=True)
    assert 'segmentation' not in known.ground_truth['annotations'][0]


def test_a_source_without_masks_says_so():
    cfg = config('nowhere', source='tfds')
    with pytest.raises(UserError, match=r'"tfds" has no segmentations.*choose one of coco, digits'):
        build_source(cfg, 'train', 0, mask_rows(cfg).needs)
