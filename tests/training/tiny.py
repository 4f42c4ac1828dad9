"""The smallest setup that has everything the training code touches.

A convolution with synchronised batch norm, a linear layer, dropout; a task with a padded
count-weighted loss; an endless stream of batches that is a function of (seed, position).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from configs import common
from spinenet_jax.data.batch import Field, Rows
from spinenet_jax.evaluation.runner import EvaluationResult
from spinenet_jax.training.experiment import Experiment
from spinenet_jax.training.preempt import PreemptionWatch

CLASSES = 3


class StopAfter(PreemptionWatch):
    """Asks to stop after a given step, as a signal would."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def reached(self, step):
        return step == self.step


class TinyModel(nn.Module):
    """conv, batch norm, dropout, mean, dense."""

    width: int = 4
    axis_name: str | None = 'batch'
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3), use_bias=False, name='conv')(images)
        norm = nn.BatchNorm(
            use_running_average=not train, axis_name=self.axis_name if train else None, name='norm'
        )
        x = nn.relu(norm(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(CLASSES, name='head')(x.mean((1, 2)))


class TinyRow:
    """What the rows of `batch_at` hold, for training and evaluation alike."""

    needs = frozenset({'label'})
    fields = {  # noqa: RUF012
        'image': Field((8, 8, 3), np.uint8),
        'label': Field((), np.int32),
        'valid': Field((), np.bool_),
    }


@dataclasses.dataclass(frozen=True)
class TinyTask:
    """Cross-entropy over the valid rows only."""

    rows = Rows(TinyRow(), TinyRow())
    image_size = (8, 8)
    streams = ('dropout',)
    main_metric = 'AP'

    def targets(self, batch):
        weight = batch['valid'].astype(jnp.float32)
        return {'onehot': jax.nn.one_hot(batch['label'], CLASSES), 'weight': weight}

    def forward(self, model, batch, *, train):
        return model(batch['image'].astype(jnp.float32) / 255.0, train=train)

    def normalisers(self, outputs, targets):
        return {'rows': targets['weight'].sum()}

    def numerators(self, outputs, targets):
        losses = -(jax.nn.log_softmax(outputs) * targets['onehot']).sum(-1)
        return {
            'entropy': (losses * targets['weight']).sum(),
            'size': (jnp.square(outputs).sum(-1) * targets['weight']).sum(),
        }

    def losses(self, numerators, normalisers):
        rows = normalisers['rows'] + 1
        parts = {name + '_loss': value / rows for name, value in numerators.items()}
        return {'loss': parts['entropy_loss'] + 0.1 * parts['size_loss'], **parts}

    def predictions(self, outputs, batch):
        return {'classes': outputs.argmax(-1).astype(jnp.int32), 'scores': outputs.max(-1)}


def run_forward(task, model, variables, batch, train=False):
    """The task's forward pass outside of a step; in training, the outputs without statistics."""
    if not train:
        return nn.apply(task.forward, model)(variables, batch, train=False)
    apply = nn.apply(task.forward, model, mutable=['batch_stats'])
    return apply(variables, batch, train=True)[0]


def batch_at(position: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Global batch number `position`: uint8 images whose brightness tells the label."""
    rng = np.random.default_rng((seed, position))
    label = rng.integers(0, CLASSES, size).astype(np.int32)
    noise = rng.integers(0, 80, (size, 8, 8, 3))
    image = (noise + 80 * label[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return {'image': image, 'label': label, 'valid': rng.random(size) < 0.8}


def stream(start_step: int, batch_size: int, seed: int = 0, bad_step: int = -1):
    """Endless batches of this process: its part of every global batch, in process order."""
    local, first = batch_size // jax.process_count(), jax.process_index()
    for step in itertools.count(start_step):
        batch = batch_at(step, batch_size, seed)
        if step == bad_step:
            batch['image'] = batch['image'].astype(np.float32) * np.nan
        yield {k: v[first * local : (first + 1) * local] for k, v in batch.items()}


def accuracy(state, seed: int = 99) -> EvaluationResult:
    """Scores the tiny model on one fixed batch."""
    batch = batch_at(0, 64, seed)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    outputs = run_forward(TinyTask(), TinyModel(axis_name=None), variables, batch)
    found = np.asarray(outputs).argmax(-1)
    score = float((found == batch['label']).mean())
    return EvaluationResult({'AP': score}, {}, [], images=64, skipped=0, seconds=0.0)


def tiny_config(**train):
    """A config of five epochs of four steps that the loop reads as it would a real one."""
    config = common.get_config()
    config.train.update(
        {
            'batch_size': 8,
            'epochs': 5,
            'log_every_steps': 1,
            'checkpoint_every_steps': 3,
            'eval_every_epochs': 2,
            **train,
        }
    )
    config.optim.learning_rate_batch = 8
    config.optim.learning_rate = 0.1
    config.optim.warmup_epochs = 1.0
    config.optim.decay_epochs = (3, 4)
    return config


def tiny_experiment(config, bad_step: int = -1, evaluate=accuracy) -> Experiment:
    """32 images an epoch; images of step `bad_step` (from 0) are not numbers."""
    return Experiment(
        model=TinyModel(dropout=0.2),
        task=TinyTask(),
        image_count=32,
        batches=lambda start: stream(start, config.train.batch_size, config.seed, bad_step),
        evaluate=evaluate,
        reports=['32 images'],
    )
