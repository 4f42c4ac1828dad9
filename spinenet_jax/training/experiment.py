"""Which model, task and data does a config stand for? The one place where training is assembled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.data.batch import check_categories
from spinenet_jax.data.build import build_source, check_task, train_batches
from spinenet_jax.evaluation.runner import EvaluationResult, evaluate
from spinenet_jax.lowering.policy import policy_of
from spinenet_jax.models.build import build_model
from spinenet_jax.tasks.build import build_task
from spinenet_jax.training.memory import choose_remat, device_memory
from spinenet_jax.training.state import AXIS, TrainState
from spinenet_jax.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the loop needs to know of a config.

    model, task: as `models.build` and `tasks.build` give them.
    image_count: images in an epoch.
    batches: start step -> endless batches of this process, leaves [local batch, ...].
    evaluate: unreplicated state -> result on the validation split.
    eval_source, categories: for the pictures and for categories.json.
    reports: lines on what the data sources found or left out.
    unreadable: says at any time what could not be read so far, '' if nothing.
    """

    model: nn.Module
    task: Any
    image_count: int
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]]
    evaluate: Callable[[TrainState], EvaluationResult]
    eval_source: Any = None
    categories: Sequence[Any] = ()
    reports: Sequence[str] = ()
    unreadable: Callable[[], str] = lambda: ''


def build_experiment(config: ConfigDict) -> Experiment:
    """Read the data, build model and task; resolves `model.num_classes` 0 in the config itself.

    Raises UserError with one line for whatever the config asks for and cannot have.
    """
    check_task(config.data, config.task)
    train = build_source(config.data, 'train', config.model.num_classes)
    if config.model.num_classes == 0:
        config.model.num_classes = 1 + max(category.label for category in train.categories)
        logging.info('model.num_classes: %d, from the data', config.model.num_classes)
    held_out = build_source(config.data, 'eval', config.model.num_classes)
    check_categories(train.categories, held_out.categories)
    task = build_task(config)
    remat = choose_remat(config, jax.device_count(), device_memory())
    model = build_model(
        config.model,
        task=config.task,
        axis_name=AXIS,
        policy=policy_of(jax.local_devices()[0]),
        remat=remat,
    )
    eval_step = make_eval_step(model, task)

    def batches(start_step: int) -> Iterator[Mapping[str, np.ndarray]]:
        return train_batches(
            train,
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
        evaluate=lambda state: evaluate(config, state, held_out, eval_step),
        eval_source=held_out,
        categories=train.categories,
        reports=[*train.report, *held_out.report],
        unreadable=lambda: train.unreadable.summary(),
    )
