"""The detection task: losses by hand, padding, and detections from known outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.data.batch import Rows
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.ops import boxes as box_ops
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.detection import DetectionTask, spread

SIZE = (128, 96)
CLASSES = 4


@pytest.fixture(scope='module')
def task():
    rows = Rows(Augmentation(SIZE, 1.0, 1.0, False, 6), WholeImage(SIZE))
    return DetectionTask(rows, CLASSES, 3.0, (3, 7), Rules(first_class=1))


def batch_of(boxes, labels, rows=6):
    """One image with the given boxes, padded to `rows` with values that must not matter."""
    count = len(labels)
    padded = np.full((1, rows, 4), 1e6, np.float32)
    padded[0, :count] = np.reshape(boxes, (-1, 4))
    numbers = np.full((1, rows), 99, np.int32)
    numbers[0, :count] = labels
    return {
        'image': np.zeros((1, *SIZE, 3), np.uint8),
        'content_size': np.array([SIZE], np.int32),
        'boxes': padded,
        'labels': numbers,
        'valid': np.arange(rows)[None] < count,
    }


def outputs_of(task, logits, codes):
    """Flat f32[B,A,K] and f32[B,A,4] cut into the levels' maps."""
    cut = [], []
    start = 0
    for level in range(3, 8):
        rows, columns = -(-SIZE[0] // 2**level), -(-SIZE[1] // 2**level)
        stop = start + rows * columns * 9
        for maps, flat in zip(cut, (logits, codes), strict=True):
            maps.append(jnp.reshape(flat[:, start:stop], (len(flat), rows, columns, -1)))
        start = stop
    return cut


def test_targets_and_their_number(task):
    targets = jax.jit(task.targets)(batch_of([[8, 8, 32, 32], [40, 0, 128, 96]], [1, 3]))
    labels = np.asarray(targets.labels[0])
    assert set(labels) == {-1, 1, 3}
    assert float(task.normalisers(None, targets)['positives']) == (labels > 0).sum()


def test_losses_by_hand(task):
    batch = batch_of([[8, 8, 32, 32]], [2])
    targets = jax.jit(task.targets)(batch)
    anchors, positives = targets.labels.shape[1], int(targets.positive.sum())
    logits, codes = np.zeros((1, anchors, CLASSES)), np.asarray(targets.codes) + 0.5
    outputs = outputs_of(task, logits, codes)
    numerators = jax.jit(task.numerators)(outputs, targets)
    losses = task.losses(numerators, task.normalisers(outputs, targets))
    # At logit 0 each element costs log 2 / 2^1.5: times 0.25 for a positive, 0.75 for the others.
    unit = np.log(2) / 2**1.5
    others = anchors * CLASSES - positives
    expected = unit * (0.25 * positives + 0.75 * others)
    np.testing.assert_allclose(numerators['class'], expected, 1e-4)
    # An error of 0.5 costs 0.1 * 0.5 - 0.005 = 0.045, four a positive.
    np.testing.assert_allclose(numerators['box'], 4 * 0.045 * positives, 1e-5)
    np.testing.assert_allclose(losses['box_loss'], 0.045 * positives / (positives + 1), 1e-5)
    total = losses['class_loss'] + 50 * losses['box_loss']
    np.testing.assert_allclose(losses['loss'], total, 1e-6)


def test_image_without_boxes_has_finite_loss_and_gradient(task):
    batch = batch_of(np.zeros((0, 4)), [])
    targets = jax.jit(task.targets)(batch)
    anchors = targets.labels.shape[1]

    def loss(logits):
        outputs = outputs_of(task, logits, jnp.ones((1, anchors, 4)))
        normalisers = task.normalisers(outputs, targets)
        return task.losses(task.numerators(outputs, targets), normalisers)['loss']

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.full((1, anchors, CLASSES), -4.0))
    assert np.isfinite(value) and value > 0 and np.isfinite(grad).all()
    assert float(task.normalisers(None, targets)['positives']) == 0


def test_perfect_outputs_give_the_boxes_back(task):
    boxes = np.array([[8, 8, 32, 32], [20, 30, 110, 90], [50, 2, 60, 20]], np.float32)
    targets = jax.jit(task.targets)(batch_of(boxes, [1, 2, 3]))
    logits = np.where(np.arange(CLASSES) == np.asarray(targets.labels)[..., None], 6.0, -9.0)
    logits[..., 0] = 9.0  # background is never detected
    found = jax.jit(task.predictions)(outputs_of(task, logits, targets.codes), {})
    valid = np.asarray(found['valid'][0])
    order = np.argsort(np.asarray(found['classes'][0][valid]))
    np.testing.assert_array_equal(np.asarray(found['classes'][0])[valid][order], [1, 2, 3])
    np.testing.assert_allclose(np.asarray(found['boxes'][0])[valid][order], boxes, atol=0.01)


def test_boxes_are_clipped_to_the_input(task):
    anchors = np.asarray(task.anchors)
    logits = np.full((1, len(anchors), CLASSES), -9.0)
    logits[0, -1, 1] = 3.0
    codes = np.zeros((1, len(anchors), 4))
    found = jax.jit(task.predictions)(outputs_of(task, logits, codes), {})
    want = box_ops.clip(anchors[-1], SIZE)
    np.testing.assert_allclose(found['boxes'][0, 0], want, atol=1e-4)
    assert int(found['valid'].sum()) == 1


def test_images_are_normalised_and_padded_with_zero(task):
    batch = batch_of(np.zeros((0, 4)), [])
    batch['content_size'] = np.array([[64, 96]], np.int32)
    images = np.asarray(task.forward(lambda images, train: images, batch, train=False))
    assert not images[0, 64:].any()
    np.testing.assert_allclose(images[0, 0, 0], [-2.1179039, -2.0357142, -1.8044444], rtol=1e-5)


@pytest.mark.parametrize('limit', [5, 2000])
def test_spread_repeats_exactly(limit):
    values = np.array([[-1, 0, limit - 1], [3, 2, 1]], np.int32)
    got = spread(values, 4, limit)
    np.testing.assert_array_equal(got, np.repeat(values, 4, axis=-1))
