"""Runs a model once over a data source and scores it, on all devices of all processes.

The step is compiled once and can be used again at every evaluation of a training run. What a
task predicts and how that is scored are decided elsewhere (`tasks`, `evaluation.build`); the
same rows reach the same evaluator whatever the number of devices, processes or padded rows.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import jax_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from spinenet_jax.data.build import eval_batches
from spinenet_jax.evaluation.build import build_evaluator
from spinenet_jax.models.build import build_model
from spinenet_jax.tasks.build import build_task

EvalStep = Callable[[Any, Mapping[str, np.ndarray]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What one evaluation found.

    Attributes:
      metrics: by name, for COCO each in [0, 1]; one without ground truth is absent, and all are
        where the split has no annotations.
      per_class: the main metric by class name.
      detections: COCO's results format, boxes (x, y, width, height) in original pixels.
      images: number of images scored.
      skipped: number of images that could not be read.
      seconds: wall time, first compilation included.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    detections: list[dict[str, Any]]
    images: int
    skipped: int
    seconds: float


def make_eval_step(model: nn.Module, task: Any) -> EvalStep:
    """The pmapped step: predictions for one batch, gathered so that every process has all rows.

    Args:
      model: called with running statistics (`train=False`).
      task: gives `images(batch)` and `predictions(outputs, batch)`.

    Returns:
      A function of replicated variables {'params', 'batch_stats'} and a batch whose arrays lead
      with [local devices, B]. It returns predictions and all entries of the batch but the
      images, each leading with [global devices * B], equal on all processes.
    """

    @functools.partial(jax.pmap, axis_name='batch', out_axes=None)
    def step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        outputs = model.apply(variables, task.images(batch), train=False)
        own = {name: array for name, array in batch.items() if name != 'image'}
        return jax.lax.all_gather({**own, **task.predictions(outputs, batch)}, 'batch', tiled=True)

    return step


def evaluate(
    config: ConfigDict,
    state: Any,
    source: Any,
    *,
    eval_step: EvalStep | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Scores a model on every image of a source.

    Every process must call it with the same state; each reads its share of the images, and all
    return the same result. Leave writing files to process 0.

    Args:
      config: `task`, `model`, `data` and `eval.batch_size` (images over all devices; rounded up
        to a multiple of the number of devices) are read.
      state: has `params` and `batch_stats`, not replicated.
      source: what to evaluate on; its position i is the batch's `index` i.
      eval_step: from `make_eval_step`, to save the compilation; None builds it.
      progress: whether process 0 shows a progress bar.
    """
    start = time.monotonic()
    if eval_step is None:
        eval_step = make_eval_step(build_model(config.model, axis_name='batch'), build_task(config))
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    variables = jax_utils.replicate(variables)
    evaluator = build_evaluator(config.task, source)
    images = 0
    with tqdm(
        total=len(source),
        desc='evaluate',
        unit='image',
        disable=not progress or jax.process_index() != 0,
    ) as bar:
        for rows in _predicted_rows(eval_step, variables, _batches(config, source)):
            evaluator.update(rows)
            images += len(rows['index'])
            bar.update(len(rows['index']))
    return EvaluationResult(
        metrics=evaluator.result(),
        per_class=evaluator.per_class(),
        detections=evaluator.detections,
        images=images,
        skipped=len(source) - images,
        seconds=time.monotonic() - start,
    )


def _batches(config: ConfigDict, source: Any) -> Iterator[dict[str, np.ndarray]]:
    """This process's batches, split over its devices: each array leads with [devices, B]."""
    devices = jax.local_device_count()
    per_device = math.ceil(config.eval.batch_size / jax.device_count())
    batches = eval_batches(
        source,
        config.data,
        batch_size=per_device * devices,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in batches:
        yield {k: a.reshape((devices, per_device, *a.shape[1:])) for k, a in batch.items()}


def _predicted_rows(
    eval_step: EvalStep, variables: Any, batches: Iterator[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Rows without padding. Fetches a batch's result only after the next one was dispatched."""
    pending = None
    for batch in batches:
        result = eval_step(variables, batch)
        if pending is not None:
            yield _real_rows(pending)
        pending = result
    if pending is not None:
        yield _real_rows(pending)


def _real_rows(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copies a step's result to the host and drops the padding (index -1)."""
    rows = {name: np.asarray(array.addressable_data(0)) for name, array in result.items()}
    real = rows['index'] >= 0
    return {name: array[real] for name, array in rows.items()}
