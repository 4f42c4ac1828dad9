"""The classification task: losses by hand, and predictions from known logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from spinenet_jax.data.batch import Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.errors import UserError
from spinenet_jax.tasks.build import build_task
from spinenet_jax.tasks.classification import ClassificationTask

ROWS = Rows(RandomCrop((4, 6)), CentralCrop((4, 6)))
TASK = ClassificationTask(ROWS, 8)


def targets_of(*labels):
    return TASK.targets({'label': jnp.array(labels, jnp.int32)})


def losses_of(logits, targets, task=TASK):
    normalisers = task.normalisers(logits, targets)
    assert normalisers == {'images': float(len(logits))}
    return task.losses(task.numerators(logits, targets), normalisers)


def test_loss_and_accuracy_by_hand():
    # Equal logits: log 8 each. Their argmax is 0, the background, which no label is.
    targets = targets_of(3, 7)
    losses = losses_of(jnp.zeros((2, 8)), targets)
    assert float(losses['loss']) == pytest.approx(np.log(8))
    assert float(losses['accuracy']) == 0.0
    losses = losses_of(50.0 * jax.nn.one_hot(jnp.array([3, 1]), 8), targets)
    assert float(losses['loss']) == pytest.approx(25, rel=1e-5)
    assert float(losses['accuracy']) == 0.5


def test_smoothing_reaches_the_loss():
    smooth = ClassificationTask(ROWS, 8, label_smoothing=0.1)
    logits = 5.0 * jax.nn.one_hot(jnp.array([3]), 8)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    want = -(0.9 * np.log(p[3]) + 0.1 * np.log(p).mean())
    losses = losses_of(logits, targets_of(3), smooth)
    assert float(losses['loss']) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_extreme_logits_have_a_finite_loss_and_gradient(smoothing):
    task = ClassificationTask(ROWS, 8, smoothing)
    logits = jnp.array([[200.0, -200, 0, 0, 0, 0, 0, 0]] * 2)
    targets = targets_of(1, 2)

    def loss(x):
        return task.losses(task.numerators(x, targets), task.normalisers(x, targets))['loss']

    value, grad = jax.value_and_grad(loss)(logits)
    # Labels at -200 and 0, the best logit at 200: 400 and 200. Smoothing: 200, over all classes.
    want = (1 - smoothing) * 300 + smoothing * 200
    assert float(value) == pytest.approx(want, rel=1e-5) and np.isfinite(grad).all()


def test_predictions_are_the_best_classes_without_background():
    logits = jnp.log(jnp.array([[0.4, 0.01, 0.02, 0.3, 0.04, 0.05, 0.06, 0.12]]))
    found = jax.jit(lambda x: TASK.predictions(x, {}))(logits)
    assert found['classes'].tolist() == [[3, 7, 6, 5, 4]]
    assert found['classes'].dtype == jnp.int32
    np.testing.assert_allclose(found['scores'], [[0.3, 0.12, 0.06, 0.05, 0.04]], rtol=1e-5)


def test_fewer_than_five_classes():
    task = ClassificationTask(ROWS, 3)
    found = task.predictions(jnp.array([[0.0, 1.0, 2.0]]), {})
    assert found['classes'].tolist() == [[2, 1]]


def test_images_are_normalised():
    batch = {'image': np.full((1, 4, 6, 3), 255, np.uint8), 'content_size': np.array([[4, 6]])}
    out = TASK.forward(lambda images, train: images, batch, train=False)
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(out[0, 3, 5], white, rtol=1e-5)


def settings(**train):
    config = common.get_config()
    config.task, config.model.num_classes, config.data.image_size = 'classification', 8, (4, 6)
    config.train.update(train)
    return config


def test_built_from_config():
    assert build_task(settings(label_smoothing=0.0)) == TASK
    for wrong in (-0.1, 1.0):
        with pytest.raises(UserError, match=f'train.label_smoothing={wrong}'):
            build_task(settings(label_smoothing=wrong))
    config = settings(label_smoothing=0.0)
    config.task = 'divination'
    with pytest.raises(UserError, match="'divination': choose one of 'detection', 'instance"):
        build_task(config)
