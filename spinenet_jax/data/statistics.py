"""Summarises a detection data set: objects and sizes of each class, and how well anchors fit.

For looking at data before training; `tools/check_data.py` prints and draws what this returns.
"""

from typing import NamedTuple

import numpy as np

from spinenet_jax.data.batch import Source
from spinenet_jax.ops.anchors import pyramid_anchors

SMALL, LARGE = 32**2, 96**2  # COCO's limits of object area, in pixels of the original image
CHUNK = 32  # boxes compared with all anchors at a time: 10 MB at 640 pixels


class ClassSummary(NamedTuple):
    """Objects of one class.

    Attributes:
      name: of the class.
      objects: boxes that training uses.
      images: images with at least one of them.
      small, medium, large: objects by area (below 32^2, up to 96^2, above), original pixels.
      median_side: median of sqrt(width * height), original pixels; NaN without objects.
    """

    name: str
    objects: int
    images: int
    small: int
    medium: int
    large: int
    median_side: float


class DataSummary(NamedTuple):
    """What a data set holds.

    Attributes:
      images: number of usable images. empty_images: those without an object to train on.
      objects_per_image: i64[images].
      crowds: regions marked as crowds, which training leaves out.
      classes: one summary a class, in the order of labels.
      boxes: f32[n,4] of all objects, scaled as evaluation scales their image into the network's
        input, but not moved; pixels.
    """

    images: int
    empty_images: int
    objects_per_image: np.ndarray
    crowds: int
    classes: list[ClassSummary]
    boxes: np.ndarray


def summarise(source: Source, image_size: tuple[int, int]) -> DataSummary:
    """Counts the objects of a source; reads annotations only, no image.

    Args:
      source: a reader for detection (records with `boxes`, `labels`, `is_crowd` and `size`).
      image_size: (height, width) of the network's input, pixels.

    Returns:
      The summary. Boxes of images whose size the annotations do not say are counted, but are not
      among `boxes`.
    """
    counts, rows, scaled, crowds = [], [], [], 0
    for index in range(len(source)):
        record = source[index]
        used = ~record['is_crowd']
        boxes, labels = record['boxes'][used], record['labels'][used]
        counts.append(len(boxes))
        crowds += int((~used).sum())
        sides = boxes[:, 2:] - boxes[:, :2]
        image = np.full(len(boxes), index)
        rows.append(np.stack([labels, image, sides[:, 0] * sides[:, 1]], axis=1))
        if record['size'] is not None:
            scaled.append(boxes * min(np.divide(image_size, record['size'])))
    label, image, area = np.concatenate([np.zeros((0, 3)), *rows]).T
    classes = []
    for category in source.categories:
        mine = label == category.label
        small, large = (area[mine] < SMALL).sum(), (area[mine] > LARGE).sum()
        classes.append(
            ClassSummary(
                name=category.name,
                objects=int(mine.sum()),
                images=len(np.unique(image[mine])),
                small=int(small),
                medium=int(mine.sum() - small - large),
                large=int(large),
                median_side=float(np.sqrt(np.median(area[mine]))) if mine.any() else float('nan'),
            )
        )
    per_image = np.array(counts, np.int64)
    return DataSummary(
        images=len(per_image),
        empty_images=int((per_image == 0).sum()),
        objects_per_image=per_image,
        crowds=crowds,
        classes=classes,
        boxes=np.concatenate([np.zeros((0, 4)), *scaled]).astype(np.float32),
    )


def best_overlaps(
    boxes: np.ndarray,
    image_size: tuple[int, int],
    anchor_size: float,
    levels: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """How well the best anchor fits each box.

    An anchor whose IoU with a box is at least 0.5 learns the box; a box that no anchor fits so well
    is learnt by a single anchor (`ops.matching`), and such boxes are found less reliably.

    Args:
      boxes: f32[n,4] in pixels of the network's input.
      image_size, anchor_size, levels: as in `ops.anchors.pyramid_anchors`.

    Returns:
      f32[n], the largest IoU with any anchor, and i32[n], the level of that anchor.
    """
    first, last = levels
    best = np.zeros(len(boxes), np.float32)
    level_of = np.full(len(boxes), first, np.int32)
    for level in range(first, last + 1):
        anchors = pyramid_anchors(image_size, anchor_size, (level, level))
        for start in range(0, len(boxes), CHUNK):
            part = slice(start, start + CHUNK)
            overlap = _iou(boxes[part], anchors).max(axis=1)
            level_of[part] = np.where(overlap > best[part], level, level_of[part])
            best[part] = np.maximum(overlap, best[part])
    return best, level_of


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f32[n,4], f32[m,4] to f32[n,m]; as `ops.boxes.iou`, on the host for any number of boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    union = area_a[:, None] + area_b[None, :] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
