"""Runs a model once over a data source and scores it, on all devices of all processes.

The step comes from outside (`training.step`), so that it is compiled once for all evaluations of
a run. What a task predicts and how that is scored are the task's; the same rows reach the same
evaluator whatever the number of devices, processes or padded rows.
"""

import dataclasses
import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import jax
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from spinenet_jax import parallel
from spinenet_jax.data.batch import Batch, Example, Rows, Source
from spinenet_jax.data.build import eval_batches
from spinenet_jax.evaluation.evaluator import Evaluator

Variables = Mapping[str, optax.Params]  # 'params' and 'batch_stats'


class EvalStep(Protocol):
    """What `training.step.make_eval_step` gives: a pmapped function."""

    def __call__(
        self, variables: Variables, batch: Mapping[str, jax.Array]
    ) -> Mapping[str, jax.Array]:
        """Predictions and batch entries of all rows, [local devices, all rows, ...]."""

    def lower(self, variables: Variables, batch: Mapping[str, jax.Array]) -> jax.stages.Lowered:
        """The program, for arguments that may be abstract."""


class Weights(Protocol):
    """What holds a model's weights: a training state, a loaded model."""

    @property
    def params(self) -> optax.Params:
        """The parameters."""

    @property
    def batch_stats(self) -> optax.Params:
        """The running statistics of batch norm."""


class EvaluatedTask(Protocol):
    """The part of a task (`tasks.task.Task`) that evaluation uses."""

    @property
    def rows(self) -> Rows:
        """How images become rows of a batch."""

    def evaluator(self, source: Source) -> Evaluator:
        """A fresh evaluator for one pass over `source`."""


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
      examples: rows of the images that were asked for, by their position in the source; those
        that could not be read are missing.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    detections: list[dict[str, Any]] | None
    images: int
    skipped: int
    seconds: float
    examples: Mapping[int, Example] = dataclasses.field(default_factory=dict)


def evaluate(
    config: ConfigDict,
    task: EvaluatedTask,
    weights: Weights,
    source: Source,
    eval_step: EvalStep,
    *,
    examples: Collection[int] = (),
    progress: bool = True,
) -> EvaluationResult:
    """Scores a model on every image of a source.

    Every process must call it with the same weights; each reads its share of the images, and all
    return the same result. Leave writing files to process 0.

    Args:
      config: `data` and `eval.batch_size` (images over all devices; rounded up to a multiple of
        the number of devices) are read.
      task: makes the rows and the evaluator.
      weights: not replicated.
      source: what to evaluate on; its position i is the batch's `index` i.
      eval_step: from `training.step.make_eval_step`.
      examples: positions of images whose rows are kept, to draw them.
      progress: whether process 0 shows a progress bar, if it has a terminal.
    """
    start = time.monotonic()
    variables = {'params': weights.params, 'batch_stats': weights.batch_stats}
    variables = parallel.replicate(variables)
    evaluator, images, kept = task.evaluator(source), 0, {}
    with tqdm(
        total=len(source),
        desc='evaluate',
        unit='image',
        delay=0.1,  # no bar before the first batch: until then the step is compiled
        leave=False,
        disable=None if progress and jax.process_index() == 0 else True,  # None: on terminals only
    ) as bar:
        for rows in _predicted_rows(eval_step, variables, _batches(config, task, source)):
            evaluator.update(rows)
            images += len(rows['index'])
            bar.update(len(rows['index']))
            for n, index in enumerate(rows['index'].tolist()):
                if index in examples:
                    kept[index] = {name: array[n] for name, array in rows.items()}
    return EvaluationResult(
        metrics=evaluator.result(),
        per_class=evaluator.per_class(),
        detections=evaluator.detections,
        images=images,
        skipped=len(source) - images,
        seconds=time.monotonic() - start,
        examples=kept,
    )


def _batches(
    config: ConfigDict, task: EvaluatedTask, source: Source
) -> Iterator[dict[str, jax.Array]]:
    """This process's batches, on its devices."""
    per_device = math.ceil(config.eval.batch_size / jax.device_count())
    batches = eval_batches(
        source,
        task.rows.eval,
        config.data,
        batch_size=per_device * jax.local_device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in batches:
        yield parallel.shard(batch)


def _predicted_rows(
    eval_step: EvalStep, variables: Variables, batches: Iterator[dict[str, jax.Array]]
) -> Iterator[Batch]:
    """Rows without padding. Fetches a batch's result only after the next one was dispatched."""
    pending = None
    for batch in batches:
        result = eval_step(variables, batch)
        if pending is not None:
            yield _real_rows(pending)
        pending = result
    if pending is not None:
        yield _real_rows(pending)


def _real_rows(result: Mapping[str, jax.Array]) -> Batch:
    """The rows of a batch on the host, without padding (index -1)."""
    rows = parallel.gathered_rows(result)
    real = rows['index'] >= 0
    return {name: array[real] for name, array in rows.items()}
