"""What an evaluator is: takes a task's predictions over a data source and scores them."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Evaluator(Protocol):
    """Scores one pass over a data source."""

    @property
    def detections(self) -> list[dict[str, Any]] | None:
        """All objects found, in COCO's results format; None for a task without objects."""

    def update(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add rows, without padding: a task's predictions and the batch's own entries."""

    def result(self) -> dict[str, float]:
        """The metrics by name, each in [0, 1]; a metric without ground truth is absent.

        A task that measures several things puts the name of a thing in front: 'AP', 'mask/AP'.
        """

    def per_class(self) -> dict[str, float]:
        """The main metric by class name."""
