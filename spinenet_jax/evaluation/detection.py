"""Scores a detector's rows with COCO's metrics, in pixels of each original image."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from spinenet_jax.data.batch import Source
from spinenet_jax.evaluation.coco import CocoEvaluator


class DetectionEvaluator:
    """Scores rows of predictions against the ground truth of a data source.

    Every image of the ground truth counts: one that could not be found or read has missed all.
    """

    def __init__(self, source: Source):
        """`source` gives `image_ids`, `categories` and `ground_truth` (None: not annotated)."""
        self._image_ids = np.asarray(source.image_ids)
        self._coco = CocoEvaluator(source.ground_truth, source.categories, whole_split=True)

    def update(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds the predictions for some images.

        Args:
          rows: arrays over R images, none of them padding: index i32[R] position in the source,
            scale f32[R,2] network over original pixels (y, x), original_size i32[R,2]
            (height, width), boxes f32[R,D,4] in network pixels, scores f32[R,D],
            classes i32[R,D], valid bool[R,D].
        """
        boxes = to_original_pixels(rows['boxes'], rows['scale'], rows['original_size'])
        self._coco.update(
            self._image_ids[rows['index']], boxes, rows['scores'], rows['classes'], rows['valid']
        )

    def result(self) -> dict[str, float]:
        """COCO's twelve numbers; empty where the split has no annotations."""
        return self._coco.result()

    def per_class(self) -> dict[str, float]:
        """AP by category name."""
        return self._coco.per_class()

    @property
    def detections(self) -> list[dict[str, Any]]:
        """All detections in COCO's results format, not rounded: see `coco.rounded`."""
        return self._coco.detections


def to_original_pixels(
    boxes: np.ndarray, scale: np.ndarray, original_size: np.ndarray
) -> np.ndarray:
    """Moves boxes from the padded network input to the image they came from.

    Args:
      boxes: f32[R,D,4] (ymin, xmin, ymax, xmax) in network pixels.
      scale: f32[R,2] network over original pixels, (y, x), positive.
      original_size: i32[R,2] (height, width).

    Returns:
      f32[R,D,4], clipped to the original image.
    """
    scaled = np.asarray(boxes) / np.tile(scale, 2)[:, None, :]
    return np.clip(scaled, 0, np.tile(original_size, 2)[:, None, :]).astype(np.float32)
