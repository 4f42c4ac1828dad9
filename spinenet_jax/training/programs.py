"""The steps of a config without a run: to time them, or to compile them for absent devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax import parallel
from spinenet_jax.tasks.build import build_task
from spinenet_jax.tasks.task import Task
from spinenet_jax.training import optim
from spinenet_jax.training.state import abstract_state
from spinenet_jax.training.step import TrainStep, make_eval_step, make_train_step

STEPS_PER_EPOCH, EPOCHS = 463, 350  # COCO's with 256 images a step; a step costs the same in any


class Lowered(NamedTuple):
    """A step that is ready to be compiled.

    Attributes:
      step: lowered for its devices.
      held: bytes a device by purpose: 'parameters', 'optimizer', 'statistics', 'batch'; unpadded.
    """

    step: jax.stages.Lowered
    held: dict[str, int]


def config_train_step(
    config: ConfigDict,
    model: nn.Module,
    task: Task,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[TrainStep, optax.GradientTransformation]:
    """The step of `train.py` for `config`, and its optimizer."""
    schedule = optim.learning_rate_schedule(
        config.optim, config.train.batch_size, STEPS_PER_EPOCH, STEPS_PER_EPOCH * EPOCHS
    )
    optimizer = optim.make_optimizer(config.optim, schedule)
    step = make_train_step(
        model,
        task,
        optimizer,
        schedule,
        seed=config.seed,
        accumulate_steps=config.optim.accumulate_steps,
        devices=devices,
    )
    return step, optimizer


def lower_train_step(
    config: ConfigDict, model: nn.Module, devices: Sequence[jax.Device]
) -> Lowered:
    """The step of `train.py` with `config.train.batch_size` images over all devices."""
    task = build_task(config)
    step, optimizer = config_train_step(config, model, task, devices)
    state = abstract_state(model, optimizer, task.image_size)
    parts = {
        'parameters': state.params,
        'optimizer': state.opt_state,
        'statistics': state.batch_stats,
    }
    fields, images = task.rows.train.fields, config.train.batch_size
    batch = parallel.abstract_batch(fields, images, len(devices))
    lowered = step.lower(parallel.abstract_replicas(state, len(devices)), batch)
    return Lowered(lowered, _held(parts, batch, len(devices)))


def lower_eval_step(config: ConfigDict, model: nn.Module, devices: Sequence[jax.Device]) -> Lowered:
    """The step of `eval.py`, post-processing included, with `config.eval.batch_size` images."""
    task = build_task(config)
    step = make_eval_step(model, task, devices=devices)
    state = abstract_state(model, optax.identity(), task.image_size)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    parts = {'parameters': state.params, 'statistics': state.batch_stats}
    fields, images = task.rows.eval_fields, config.eval.batch_size
    batch = parallel.abstract_batch(fields, images, len(devices))
    lowered = step.lower(parallel.abstract_replicas(variables, len(devices)), batch)
    return Lowered(lowered, _held(parts, batch, len(devices)))


def _held(
    parts: Mapping[str, optax.Params], batch: dict[str, jax.ShapeDtypeStruct], count: int
) -> dict[str, int]:
    """Bytes on each of `count` devices, over which the batch is split."""
    held = {name: _size(tree) for name, tree in parts.items()}
    return {**held, 'batch': _size(batch) // count}


def _size(tree: optax.Params) -> int:
    """Bytes of all leaves."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
