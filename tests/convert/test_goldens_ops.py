"""Anchors, targets, losses, detections and preprocessing equal the TF2 Model Garden's."""

import jax
import numpy as np
import pytest

from spinenet_jax.data import transforms
from spinenet_jax.data.decode import decode_image
from spinenet_jax.ops.anchors import pyramid_anchors
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.detection import DetectionTask
from tests.convert import golden
from tools.maintenance import oracle_cases as cases

RULES = Rules(first_class=1)
ROWS = golden.rows(cases.MATCHING_SIZE)
TASK = DetectionTask(ROWS, cases.NARROW['num_classes'], 3.0, (3, 7), RULES)


def targets(name):
    """Our training targets of a matching case, its boxes followed by rows of rubbish."""
    boxes, labels = cases.matching()[name]
    rows = len(boxes) + 3
    batch = {
        'boxes': np.full((1, rows, 4), np.nan, np.float32),
        'labels': np.full((1, rows), 99, np.int32),
        'valid': np.zeros((1, rows), bool),
    }
    batch['boxes'][0, : len(boxes)], batch['labels'][0, : len(boxes)] = boxes, labels
    batch['valid'][0, : len(boxes)] = True
    return TASK.targets(batch)


def head_maps(logits, codes):
    """f32[A,K] and f32[A,4] over all anchors as lists of maps over levels."""
    logit_maps, code_maps, start = [], [], 0
    for level in golden.LEVELS:
        side = cases.MATCHING_SIZE[0] >> level
        stop = start + 9 * side * side
        logit_maps.append(logits[start:stop].reshape(1, side, side, -1))
        code_maps.append(codes[start:stop].reshape(1, side, side, -1))
        start = stop
    assert start == len(logits)
    return logit_maps, code_maps


@pytest.mark.parametrize(('size', 'anchor_size'), cases.ANCHORS)
def test_anchors(size, anchor_size):
    ours = pyramid_anchors(size, anchor_size)
    theirs = golden.load('anchors')[f'{size[0]}x{size[1]}/{anchor_size:g}']
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize('name', cases.matching())
def test_matching(name):
    ours, theirs = targets(name), golden.part(golden.load('matching'), name)
    np.testing.assert_array_equal(ours.positive[0], theirs['positive'])
    np.testing.assert_array_equal(ours.labels[0], theirs['labels'])
    np.testing.assert_allclose(ours.codes[0], theirs['codes'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', cases.matching())
def test_losses(name):
    found = targets(name)
    logits, codes = cases.head_outputs(f'losses {name}', len(TASK.anchors), TASK.num_classes)
    outputs = head_maps(logits, codes)
    numerators = TASK.numerators(outputs, found)
    ours = TASK.losses(numerators, TASK.normalisers(outputs, found))
    ours = np.array([ours['loss'], ours['class_loss'], ours['box_loss']])
    np.testing.assert_allclose(ours, golden.load('losses')[name], rtol=1e-5)


@pytest.mark.parametrize('name', cases.DETECTION_CASES)
def test_detections(name):
    logits, codes = cases.detection_outputs(name, len(TASK.anchors), TASK.num_classes)
    ours = jax.tree.map(lambda x: x[0], TASK.predictions(head_maps(logits, codes), {}))
    theirs = golden.part(golden.load('detection'), name)
    count = int(theirs['count'])
    assert (count < 100) == (name == 'few')
    assert int(ours['valid'].sum()) == count
    np.testing.assert_array_equal(ours['classes'][:count], theirs['classes'][:count])
    np.testing.assert_allclose(ours['scores'][:count], theirs['scores'][:count], rtol=1e-5)
    np.testing.assert_allclose(ours['boxes'][:count], theirs['boxes'][:count], atol=1e-3)


@pytest.mark.parametrize('name', cases.JPEGS)
def test_jpeg_decoding(name):
    """Bit for bit: TensorFlow uses the fast integer transform, as published AP was measured."""
    stored = golden.load('decoding')
    ours = decode_image(stored[f'{name}/file'].tobytes(), cases.JPEG_SIZE)
    np.testing.assert_array_equal(ours, stored[f'{name}/pixels'])


@pytest.mark.parametrize('name', cases.PREPROCESSING)
def test_preprocessing(name):
    image, boxes, labels, crowd = cases.photo(name)
    draws = cases.PREPROCESSING[name][1]
    size = cases.PREPROCESSING_SIZE
    drawn = transforms.Draws(*draws) if draws else transforms.Draws()
    placement = transforms.place(image.shape[:2], size, drawn)
    pixels = transforms.place_image(image, placement, size, drawn.flip)
    placed, seen = transforms.place_boxes(boxes, placement, image.shape[1], drawn.flip)
    seen &= ~crowd if draws else True

    theirs = golden.part(golden.load('preprocessing'), name)
    np.testing.assert_array_equal(placement.scale, theirs['info'][2])
    np.testing.assert_array_equal(placement.offset, theirs['info'][3])
    np.testing.assert_array_equal(labels[seen], theirs['labels'])
    np.testing.assert_allclose(placed[seen], theirs['boxes'], atol=1e-4)
    # Ours resizes bytes, with weights of 11 bits: within one grey level of the exact value.
    difference = np.abs(pixels - theirs['image'] / 64.0)
    assert difference.max() <= 1.0
    assert difference.mean() <= 0.3
