"""Normalisers after the forward pass: of the whole batch, constant, and free where they can be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import TinyModel, TinyTask, batch_at, run_forward
from two_stage import SquareTask, TwoStage

from spinenet_jax import parallel
from spinenet_jax.data.batch import Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.ops.nms import Rules
from spinenet_jax.parallel import replicate, split, unreplicate
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.training.state import abstract_state, create_state
from spinenet_jax.training.step import make_train_step

SGD = optax.sgd(0.1, momentum=0.9)
SIZE = (32, 32)
BOXES = Rows(Augmentation(SIZE, 1.0, 1.0, False, 3), WholeImage(SIZE))
LABELS = Rows(RandomCrop(SIZE), CentralCrop(SIZE))


@dataclasses.dataclass(frozen=True)
class SoftTask(TinyTask):
    """Divides by a number that is differentiable in the outputs."""

    def normalisers(self, outputs, targets):
        return {'rows': (jax.nn.sigmoid(outputs).sum(-1) * targets['weight']).sum()}


def run(task, devices, accumulate_steps, model=None, steps=2):
    """State and metrics after a few steps on devices."""
    model, devices = model or TinyModel(axis_name=None), jax.devices()[:devices]
    step = make_train_step(
        model,
        task,
        SGD,
        lambda step: 0.1,
        seed=0,
        accumulate_steps=accumulate_steps,
        devices=devices,
    )
    state = replicate(create_state(model, SGD, task.image_size, seed=0), devices)
    for position in range(steps):
        state, metrics = step(state, split(batch_at(position, 16), len(devices)))
    return unreplicate(state), unreplicate(metrics)


class NoNorm(nn.Module):
    """A convolution and a linear layer, each image for itself."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(4, (3, 3), name='conv')(images))
        return nn.Dense(3, name='head')(x.mean((1, 2)))


def test_normalisers_of_outputs_are_those_of_the_whole_batch():
    """Without batch norm, neither devices nor micro-batches change a step."""
    whole = run(SoftTask(), 1, 1, NoNorm())
    for devices, pieces in ((1, 4), (4, 2)):
        other = run(SoftTask(), devices, pieces, NoNorm())
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other, whole
        )


@pytest.mark.parametrize('pieces', [1, 2])
def test_no_gradient_flows_through_normalisers(pieces):
    model, task = NoNorm(), SoftTask()
    state, batch = create_state(model, SGD, task.image_size, seed=0), batch_at(0, 16)

    def loss(params, constant):
        variables, targets = {'params': params}, task.targets(batch)
        outputs = run_forward(task, model, variables, batch, True)
        normalisers = constant(task.normalisers(outputs, targets))
        return task.losses(task.numerators(outputs, targets), normalisers)['loss']

    grads = jax.grad(loss)(state.params, jax.lax.stop_gradient)
    other = jax.grad(loss)(state.params, lambda x: x)
    assert abs(optax.global_norm(grads) - optax.global_norm(other)) > 1e-3
    _, metrics = run(task, 2, pieces, model, steps=1)
    assert metrics['grad_norm'] == pytest.approx(float(optax.global_norm(grads)), rel=1e-4)


@dataclasses.dataclass(frozen=True)
class TwoStreams(TinyTask):
    """Declares a stream that nothing draws from."""

    streams = ('sampling', 'dropout')


@pytest.mark.parametrize('pieces', [1, 2])
def test_another_stream_leaves_the_draws_of_dropout_alone(pieces):
    model = TinyModel(dropout=0.5)
    one, two = run(TinyTask(), 2, pieces, model), run(TwoStreams(), 2, pieces, model)
    jax.tree.map(np.testing.assert_array_equal, one, two)


class Levels(nn.Module):
    """Two maps with batch norm, as large as RetinaNet's at two levels."""

    classes: int

    @nn.compact
    def __call__(self, images, *, train):
        x, logits, codes = images, [], []
        for level in range(1, 5):
            x = nn.Conv(16, (3, 3), (2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, axis_name='batch')(x))
            if level > 2:
                logits.append(nn.Conv(9 * self.classes, (1, 1))(x))
                codes.append(nn.Conv(36, (1, 1))(x))
        return logits, codes


def flops(task, model, images, pieces):
    """XLA's count of a compiled step on two devices; the body of a loop counts once."""
    devices = jax.devices()[:2]
    step = make_train_step(
        model, task, SGD, lambda step: 0.1, seed=0, accumulate_steps=pieces, devices=devices
    )
    state = parallel.abstract_replicas(abstract_state(model, SGD, task.image_size), 2)
    batch = parallel.abstract_batch(task.rows.train.fields, images, 2)
    return step.lower(state, batch).compile().cost_analysis()['flops']


@pytest.mark.parametrize(
    ('task', 'model', 'free'),
    [
        (DetectionTask(BOXES, 4, 3.0, (3, 4), Rules(first_class=1)), Levels(4), True),
        (ClassificationTask(LABELS, 3), TinyModel(), True),
        (SquareTask(), TwoStage(), False),
    ],
    ids=['detection', 'classification', 'two stages'],
)
def test_forward_pass_runs_once_where_normalisers_are_of_targets(task, model, free):
    """A step of two micro-batches has the operations of one, and another forward pass or none."""
    ratio = flops(task, model, 4, 2) / flops(task, model, 2, 1)
    assert (ratio < 1.05) is free
    assert jnp.isfinite(ratio)
