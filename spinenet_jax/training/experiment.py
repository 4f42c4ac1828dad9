"""Assembles what a training run needs from a config: model, task, data and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.data.batch import Batch, Category, Source, check_categories
from spinenet_jax.data.build import build_source, train_batches
from spinenet_jax.evaluation.runner import EvaluationResult, evaluate
from spinenet_jax.lowering.policy import policy_of
from spinenet_jax.models.graph import resolve
from spinenet_jax.parallel import AXIS
from spinenet_jax.tasks.build import build_task, build_task_model
from spinenet_jax.tasks.task import Task
from spinenet_jax.training.memory import choose_remat, device_memory
from spinenet_jax.training.pictures import pictured
from spinenet_jax.training.state import TrainState
from spinenet_jax.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the loop needs to know of a config.

    Attributes:
      model: what the task runs.
      task: see `tasks.task`.
      image_count: images in an epoch.
      batches: start step -> endless batches of this process, leaves [local batch, ...].
      evaluate: unreplicated state -> result on the validation split.
      eval_source: the validation split, for pictures; None draws none.
      categories: for categories.json.
      train_source: what `batches` reads, for hosts to compare.
      reports: lines on what the data sources found or left out.
      unreadable: says at any time what could not be read so far, '' if nothing.
    """

    model: nn.Module
    task: Task
    image_count: int
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[[TrainState], EvaluationResult]
    eval_source: Source | None = None
    categories: Sequence[Category] = ()
    reports: Sequence[str] = ()
    unreadable: Callable[[], str] = lambda: ''
    train_source: Source | None = None


def build_experiment(config: ConfigDict) -> Experiment:
    """Read the data, build model and task.

    Resolves in the config itself what it has from elsewhere, so that config.json says it all:
    `model.num_classes` 0, and a `model.graph` that is a file.

    Raises:
      UserError: in one line, whatever the config asks for and cannot have.
    """
    if config.model.backbone == 'spinenet':
        config.model.graph = resolve(config.model.graph)
    # Refuses bad settings before the data is read, which may take minutes.
    needs = build_task(config).rows.needs
    train = build_source(config.data, 'train', config.model.num_classes, needs)
    if config.model.num_classes == 0:
        config.model.num_classes = 1 + max(category.label for category in train.categories)
        logging.info('model.num_classes: %d, from the data', config.model.num_classes)
    held_out = build_source(config.data, 'eval', config.model.num_classes, needs)
    check_categories(train.categories, held_out.categories)
    task = build_task(config)
    remat = choose_remat(config, jax.device_count(), device_memory())
    policy = policy_of(jax.local_devices()[0])
    model = build_task_model(config, axis_name=AXIS, policy=policy, remat=remat)
    eval_step = make_eval_step(model, task)
    drawn = pictured(len(held_out), config.eval.pictures)

    def batches(start_step: int) -> Iterator[Batch]:
        return train_batches(
            train,
            task.rows.train,
            config.data,
            batch_size=config.train.batch_size // jax.process_count(),
            seed=config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return Experiment(
        model=model,
        task=task,
        image_count=len(train),
        batches=batches,
        evaluate=lambda state: evaluate(config, task, state, held_out, eval_step, examples=drawn),
        eval_source=held_out,
        categories=train.categories,
        reports=[*train.report, *held_out.report],
        unreadable=lambda: train.unreadable.summary(),
        train_source=train,
    )
