"""Runs a model once over a data source and scores it, on all devices of all processes.

The step comes from outside (`training.step`), so that it is compiled once for all evaluations of
a run. What a task predicts and how that is scored are decided elsewhere (`tasks`,
`evaluation.build`); the same rows reach the same evaluator whatever the number of devices,
processes or padded rows.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import jax_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from spinenet_jax.data.build import eval_batches
from spinenet_jax.evaluation.build import build_evaluator

EvalStep = Callable[[Any, Mapping[str, np.ndarray]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What one evaluation found.

    Attributes:
      metrics: by name, each in [0, 1]; one without ground truth is absent, and all are where the
        split has no annotations.
      per_class: the main metric by class name.
      detections: COCO's results format, boxes (x, y, width, height) in original pixels; None for
        a task without boxes.
      images: number of images that the model saw.
      skipped: number of images that could not be read; scored as if nothing was found in them.
      seconds: wall time, first compilation included.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    detections: list[dict[str, Any]] | None
    images: int
    skipped: int
    seconds: float


def evaluate(
    config: ConfigDict,
    state: Any,
    source: Any,
    eval_step: EvalStep,
    *,
    progress: bool = True,
) -> EvaluationResult:
    """Scores a model on every image of a source.

    Every process must call it with the same state; each reads its share of the images, and all
    return the same result. Leave writing files to process 0.

    Args:
      config: `task`, `data` and `eval.batch_size` (images over all devices; rounded up
        to a multiple of the number of devices) are read.
      state: has `params` and `batch_stats`, not replicated.
      source: what to evaluate on; its position i is the batch's `index` i.
      eval_step: from `training.step.make_eval_step`: (replicated variables, batch leading with
        [local devices, B]) -> predictions and batch entries, [local devices, all rows, ...].
      progress: whether process 0 shows a progress bar, if it has a terminal.
    """
    start = time.monotonic()
    variables = jax_utils.replicate({'params': state.params, 'batch_stats': state.batch_stats})
    evaluator = build_evaluator(config.task, source)
    images = 0
    with tqdm(
        total=len(source),
        desc='evaluate',
        unit='image',
        delay=0.1,  # no bar before the first batch: until then the step is compiled
        leave=False,
        disable=None if progress and jax.process_index() == 0 else True,  # None: on terminals only
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
    """Copies one device's share, which holds all rows, to the host and drops padding (index -1)."""
    rows = {k: np.asarray(a.addressable_data(0)).reshape(a.shape[1:]) for k, a in result.items()}
    real = rows['index'] >= 0
    return {name: array[real] for name, array in rows.items()}
