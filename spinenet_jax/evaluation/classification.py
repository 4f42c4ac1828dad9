"""Scores a classifier's rows: top-1 and top-5 accuracy."""

from collections.abc import Mapping

import numpy as np

from spinenet_jax.data.batch import Source

TOP = (1, 5)


class ClassificationEvaluator:
    """Counts right answers over a data source.

    Every image of the source counts, one that could not be read as wrong; those whose label the
    data set keeps secret (-1) do not.
    """

    detections = None  # there are no boxes

    def __init__(self, source: Source):
        """`source` gives its length and its `categories`."""
        self._names = {c.label: c.name for c in source.categories}
        self._count = len(source)
        labels = 1 + max(self._names, default=0)
        self._seen = np.zeros(labels, np.int64)
        self._right = np.zeros((len(TOP), labels), np.int64)

    def update(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds the predictions for some images.

        Args:
          rows: arrays over R images, none of them padding: label i32[R] from 1 (or -1) and
            classes i32[R,n], the best first.
        """
        label, classes = np.asarray(rows['label']), np.asarray(rows['classes'])
        known = label >= 0
        self._count -= int((~known).sum())
        label, hits = label[known], classes[known] == label[known, None]
        np.add.at(self._seen, label, 1)
        for place, k in enumerate(TOP):
            np.add.at(self._right[place], label, hits[:, :k].any(1))

    def result(self) -> dict[str, float]:
        """top1 and top5, shares in [0, 1]; empty where no label is known."""
        if not self._seen.sum():
            return {}
        return {
            f'top{k}': float(self._right[place].sum() / self._count) for place, k in enumerate(TOP)
        }

    def per_class(self) -> dict[str, float]:
        """top1 by class name, of the images that could be read; classes without are absent."""
        return {
            name: float(self._right[0, label] / self._seen[label])
            for label, name in sorted(self._names.items())
            if self._seen[label]
        }
