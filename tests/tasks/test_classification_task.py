"""The classification task: losses by hand, and predictions from known logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.tasks.build import build_task
from spinenet_jax.tasks.classification import ClassificationTask

TASK = ClassificationTask((4, 6), 8)


def targets_of(*labels):
    return TASK.targets({'label': jnp.array(labels, jnp.int32)})


def test_loss_and_accuracy_by_hand():
    # Equal logits: log 8 each. Their argmax is 0, the background, which no label is.
    targets = targets_of(3, 7)
    sums, counts = TASK.sums(jnp.zeros((2, 8)), targets), TASK.counts(targets)
    assert counts == {'images': 2.0}
    loss = TASK.loss(sums, counts)
    assert float(loss['loss']) == pytest.approx(np.log(8))
    assert float(loss['accuracy']) == 0.0
    right = 50.0 * jax.nn.one_hot(jnp.array([3, 1]), 8)
    loss = TASK.loss(TASK.sums(right, targets), counts)
    assert float(loss['loss']) == pytest.approx(25, rel=1e-5)
    assert float(loss['accuracy']) == 0.5


def test_smoothing_reaches_the_loss():
    smooth = ClassificationTask((4, 6), 8, label_smoothing=0.1)
    logits = 5.0 * jax.nn.one_hot(jnp.array([3]), 8)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    want = -(0.9 * np.log(p[3]) + 0.1 * np.log(p).mean())
    assert float(smooth.sums(logits, targets_of(3))['entropy']) == pytest.approx(want, rel=1e-5)


def test_predictions_are_the_best_classes_without_background():
    logits = jnp.log(jnp.array([[0.4, 0.01, 0.02, 0.3, 0.04, 0.05, 0.06, 0.12]]))
    found = jax.jit(lambda x: TASK.predictions(x, {}))(logits)
    assert found['classes'].tolist() == [[3, 7, 6, 5, 4]]
    assert found['classes'].dtype == jnp.int32
    np.testing.assert_allclose(found['scores'], [[0.3, 0.12, 0.06, 0.05, 0.04]], rtol=1e-5)


def test_fewer_than_five_classes():
    task = ClassificationTask((4, 6), 3)
    found = task.predictions(jnp.array([[0.0, 1.0, 2.0]]), {})
    assert found['classes'].tolist() == [[2, 1]]


def test_images_are_normalised():
    batch = {'image': np.full((1, 4, 6, 3), 255, np.uint8), 'content_size': np.array([[4, 6]])}
    out = TASK.images(batch)
    np.testing.assert_allclose(out[0, 3, 5], (1 - np.array([0.485, 0.456, 0.406])) /
                               np.array([0.229, 0.224, 0.225]), rtol=1e-5)  # fmt: skip


def settings(**train):
    config = {'task': 'classification', 'data': {'image_size': (4, 6)}}
    return ConfigDict({**config, 'model': {'num_classes': 8}, 'train': train})


def test_built_from_config():
    assert build_task(settings(label_smoothing=0.0)) == TASK
    for wrong in (-0.1, 1.0):
        with pytest.raises(UserError, match=f'train.label_smoothing={wrong}'):
            build_task(settings(label_smoothing=wrong))
    config = settings(label_smoothing=0.0)
    config.task = 'divination'
    with pytest.raises(UserError, match="'divination': choose one of 'detection', 'classif"):
        build_task(config)
