"""The classification task in the one training step: any number of devices, and micro-batches."""

import jax
import numpy as np
import optax
import pytest
from tiny import CLASSES, TinyModel, batch_at

from spinenet_jax.data.batch import Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.parallel import replicate, split, unreplicate
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.training.state import create_state
from spinenet_jax.training.step import make_eval_step, make_train_step

ROWS = Rows(RandomCrop((8, 8)), CentralCrop((8, 8)))
TASK = ClassificationTask(ROWS, CLASSES, label_smoothing=0.1)
SGD = optax.sgd(0.1, momentum=0.9)


def batch(position, size=16):
    """Labels 1 and 2, as background is no label."""
    made = batch_at(position, size)
    content = np.full((size, 2), 8, np.int32)
    return {'image': made['image'], 'content_size': content, 'label': made['label'] % 2 + 1}


def run(devices, accumulate_steps=1, steps=3):
    devices = jax.devices()[:devices]
    step = make_train_step(
        TinyModel(),
        TASK,
        SGD,
        lambda step: 0.1,
        seed=0,
        accumulate_steps=accumulate_steps,
        devices=devices,
    )
    state = replicate(create_state(TinyModel(), SGD, TASK.image_size, seed=0), devices)
    for position in range(steps):
        state, metrics = step(state, split(batch(position), len(devices)))
    return unreplicate(state), unreplicate(metrics)


def test_one_device_equals_four():
    (one, told), (four, told_four) = run(1), run(4)
    for a, b in zip(jax.tree.leaves((one, told)), jax.tree.leaves((four, told_four)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert set(told) == {'loss', 'accuracy', 'grad_norm', 'learning_rate'}
    assert 0 <= told['accuracy'] <= 1


def test_metrics_are_means_over_images_with_micro_batches_too():
    _, told = run(2, accumulate_steps=4, steps=1)
    _, plain = run(2, steps=1)
    # Batch norm sees other statistics in a micro-batch, so the values are near, not equal.
    assert told['loss'] == pytest.approx(plain['loss'], rel=0.3)
    assert (told['accuracy'] * 16) % 1 == 0


def test_predictions_of_all_devices_are_gathered():
    state, _ = run(4, steps=1)
    variables = replicate({'params': state.params, 'batch_stats': state.batch_stats})
    rows = make_eval_step(TinyModel(), TASK)(variables, split(batch(0), 4))
    classes, label = np.asarray(rows['classes']), np.asarray(rows['label'])
    assert classes.shape == (4, 16, 2) and label.shape == (4, 16)
    np.testing.assert_array_equal(label[3], batch(0)['label'])
    assert set(np.unique(classes)) == {1, 2}
