"""From Mask R-CNN's padded rows to COCO numbers: the evaluator of instance segmentation.

Maps boxes back to each original image and pastes the masks there, in threads, while the device
works on the next images.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spinenet_jax.data.batch import Source
from spinenet_jax.data.cores import core_count
from spinenet_jax.evaluation.coco import CocoEvaluator
from spinenet_jax.evaluation.detection import to_original_pixels
from spinenet_jax.evaluation.masks import paste

_MOST_PENDING = 64  # images whose masks wait to be pasted, 0.3 MB each


PASTED = ('boxes', 'scale', 'original_size', 'valid', 'masks')  # what `paste_masks` reads


def paste_masks(row: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The masks of the valid detections of one image, at its size, as COCO's compressed RLE.

    Args:
      row: boxes f32[D,4] in network pixels, masks f[D,m,m], valid bool[D], scale f32[2],
        original_size i32[2], see `InstanceEvaluator.update`.
    """
    keep = np.asarray(row['valid'], bool)
    # A mask fills its box, also where that reaches into the padding: cut after pasting.
    boxes = np.asarray(row['boxes'])[keep] / np.tile(row['scale'], 2)
    height, width = map(int, row['original_size'])
    return paste(np.asarray(row['masks'][keep], np.float32), boxes, (height, width))


class InstanceEvaluator:
    """Scores rows of predictions against the ground truth of a data source, boxes and masks.

    Every image of the ground truth counts: one that could not be found or read has missed all.
    """

    def __init__(self, source: Source, threads: int = 0):
        """Prepares to score.

        Args:
          source: gives `image_ids`, `categories` and `ground_truth` (None: not annotated), whose
            annotations have segmentations.
          threads: that paste masks; 0 means one a core.
        """
        self._image_ids = np.asarray(source.image_ids)
        truth, categories = source.ground_truth, source.categories
        self._coco = CocoEvaluator(truth, categories, whole_split=True, masks=True)
        self._threads = threads or core_count()
        self._pool: ThreadPoolExecutor | None = None
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
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, 'paste')
        for row, index in enumerate(rows['index']):
            one = {name: rows[name][row] for name in PASTED}
            found = boxes[row], rows['scores'][row], rows['classes'][row], one['valid']
            pasted = self._pool.submit(paste_masks, one)
            self._pending.append((self._image_ids[index], found, pasted))
        self._collect(_MOST_PENDING)

    def result(self) -> dict[str, float]:
        """COCO's twelve numbers of boxes and of masks; empty where there are no annotations."""
        self._finish()
        return self._coco.result()

    def per_class(self) -> dict[str, float]:
        """AP of masks by category name."""
        self._finish()
        return self._coco.per_class('segm')

    @property
    def detections(self) -> list[dict[str, Any]]:
        """All detections as COCO's results format wants them, masks as RLE."""
        self._finish()
        return self._coco.detections

    def _finish(self) -> None:
        """Waits for all masks and stops the threads; a further update starts new ones."""
        self._collect(0)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _collect(self, most: int) -> None:
        """Hands pasted images on, in order, until at most `most` are left."""
        while len(self._pending) > most or (self._pending and self._pending[0][2].done()):
            image_id, found, pasted = self._pending.popleft()
            self._coco.update([image_id], *(x[None] for x in found), [pasted.result()])
