"""Pastes predicted masks into the images they belong to, as run-length encodings.

A mask is enlarged inside its box only, one at a time, already in the column order that run-length
encoding needs; there is never a picture a mask. The result is that of both public codes' pasting.
"""

from typing import Any

import cv2
import numpy as np

THRESHOLD = 0.5


def paste(
    masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The masks of one image as COCO's compressed RLE.

    As in both public codes (after Detectron's `segm_results`): a rim of zeros around the mask, the
    box enlarged alike about its centre and cut to whole pixels, the last one included; bilinear
    interpolation; a pixel belongs to the object above one half. What lies outside the image is
    cut.

    Args:
      masks: f32[n,m,m] probabilities.
      boxes: f32[n,4] (ymin, xmin, ymax, xmax) in pixels of the original image.
      image_size: (height, width) of the original image.

    Returns:
      n of {'size': [height, width], 'counts': bytes}; an empty mask is one run of zeros.
    """
    from pycocotools import mask as coco_mask

    height, width = image_size
    side = masks.shape[-1] + 2
    padded = np.zeros((side, side), np.float32)
    boxes = np.asarray(boxes, np.float64)
    half = (boxes[:, 2:] - boxes[:, :2]) * (0.5 * side / (side - 2))
    centre = boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]) * 0.5
    first = np.trunc(centre - half).astype(np.int64)
    last = np.trunc(centre + half).astype(np.int64)
    runs = []
    for mask, low, high in zip(masks, first.tolist(), last.tolist(), strict=True):
        padded[1:-1, 1:-1] = mask.T  # columns first
        runs.append({'size': [height, width], 'counts': _runs(padded, low, high, image_size)})
    return coco_mask.frPyObjects(runs, height, width) if runs else []


def _runs(padded, low, high, image_size) -> np.ndarray:
    """uint32[k] lengths of the runs of one mask pasted into an image, down its columns.

    padded f32[m,m], columns first; low, high (y, x) first and last pixel of its box.
    """
    (top, left), (bottom, right) = low, high
    height, width = image_size
    y0, y1 = max(top, 0), min(bottom + 1, height)
    x0, x1 = max(left, 0), min(right + 1, width)
    if y0 >= y1 or x0 >= x1:
        return np.array([height * width], np.uint32)
    size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
    large = cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR)
    # A zero above and one below every column: every run has its start and its end there.
    columns, rows = x1 - x0, y1 - y0
    inside = np.zeros((columns, rows + 2), bool)
    np.greater(large[x0 - left : x1 - left, y0 - top : y1 - top], THRESHOLD, out=inside[:, 1:-1])
    flat = inside.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(edges, rows + 2)
    places = (x0 + column) * height + y0 + row
    if rows == height and len(places):
        # Runs that go on from the foot of a column to the head of the next are one.
        joined = places[1:-1].reshape(-1, 2)
        joined = joined[joined[:, 0] != joined[:, 1]]
        places = np.concatenate([places[:1], joined.reshape(-1), places[-1:]])
    ends = np.concatenate([[0], places, [height * width]])
    runs = np.diff(ends)
    return (runs if runs[-1] else runs[:-1]).astype(np.uint32)
