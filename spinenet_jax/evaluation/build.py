"""Which evaluator scores which task: the one place that knows."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.classification import ClassificationEvaluator
from spinenet_jax.evaluation.detection import DetectionEvaluator


class Evaluator(Protocol):
    """What the runner asks of an evaluator."""

    detections: list[dict[str, Any]] | None

    def update(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds rows: a task's predictions and the batch's own entries, without padding."""

    def result(self) -> dict[str, float]:
        """The metrics by name; a metric without ground truth is absent."""

    def per_class(self) -> dict[str, float]:
        """The main metric by class name."""


def build_evaluator(task_name: str, source: Any) -> Evaluator:
    """A fresh evaluator for one pass over `source`; UserError for an unknown task."""
    if task_name == 'detection':
        return DetectionEvaluator(source)
    if task_name == 'classification':
        return ClassificationEvaluator(source)
    raise UserError(f"config.task is {task_name!r}: want 'detection' or 'classification'")
