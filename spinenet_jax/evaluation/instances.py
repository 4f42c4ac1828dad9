"""From Mask R-CNN's padded rows to COCO numbers: the evaluator of instance segmentation.

Maps boxes back to each original image and pastes the masks there, in threads, while the device
works on the next images.
"""

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spinenet_jax.evaluation.coco import CocoEvaluator
from spinenet_jax.evaluation.detection import to_original_pixels
from spinenet_jax.evaluation.masks import paste

_MOST_PENDING = 64  # images whose masks wait to be pasted, 0.3 MB each


class InstanceEvaluator:
    """Scores rows of predictions against the ground truth of a data source, boxes and masks.

    Every image of the ground truth counts: one that could not be found or read has missed all.
    """

    def __init__(self, source: Any, threads: int = 0):
        """Prepares to score.

        Args:
          source: gives `image_ids`, `categories` and `ground_truth` (None: not annotated), whose
            annotations have segmentations.
          threads: that paste masks; 0 means one a core.
        """
        self._image_ids = np.asarray(source.image_ids)
        truth, categories = source.ground_truth, source.categories
        self._coco = CocoEvaluator(truth, categories, whole_split=True, masks=True)
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, 'paste')
        self._pending: deque = deque()

    def update(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds the predictions for some images.

        Args:
          rows: arrays over R images, none of them padding: index i32[R] position in the source,
            scale f32[R,2] network over original pixels (y, x), original_size i32[R,2]
            (height, width), boxes f32[R,D,4] in network pixels, scores f32[R,D],
            classes i32[R,D], valid bool[R,D], masks f[R,D,m,m] probabilities of the predicted
            class.
        """
        boxes = to_original_pixels(rows['boxes'], rows['scale'], rows['original_size'])
        # A mask fills its box, also where that reaches into the padding: cut after pasting.
        uncut = np.asarray(rows['boxes']) / np.tile(rows['scale'], 2)[:, None, :]
        for row, index in enumerate(rows['index']):
            keep = np.asarray(rows['valid'][row], bool)
            height, width = map(int, rows['original_size'][row])
            masks = np.asarray(rows['masks'][row][keep], np.float32)
            pasted = self._pool.submit(paste, masks, uncut[row][keep], (height, width))
            found = boxes[row], rows['scores'][row], rows['classes'][row], keep
            self._pending.append((self._image_ids[index], found, pasted))
        self._collect(_MOST_PENDING)

    def result(self) -> dict[str, float]:
        """COCO's twelve numbers of boxes and of masks; empty where there are no annotations."""
        self._collect(0)
        return self._coco.result()

    def per_class(self) -> dict[str, float]:
        """AP of masks by category name."""
        self._collect(0)
        return self._coco.per_class('segm')

    @property
    def detections(self) -> list[dict[str, Any]]:
        """All detections as COCO's results format wants them, masks as RLE."""
        self._collect(0)
        return self._coco.detections

    def _collect(self, most: int) -> None:
        """Hands pasted images on, in order, until at most `most` are left."""
        while len(self._pending) > most or (self._pending and self._pending[0][2].done()):
            image_id, found, pasted = self._pending.popleft()
            self._coco.update([image_id], *(x[None] for x in found), [pasted.result()])
