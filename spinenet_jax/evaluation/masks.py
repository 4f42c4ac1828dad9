"""Pastes predicted masks into the images they belong to, as run-length encodings.

A mask is enlarged inside its box only, one at a time, already in the column order that run-length
encoding needs; there is never a picture a mask. Small ones are encoded many at once, as many as
`LARGEST_GROUP` allows. The result is that of both public codes' pasting.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

THRESHOLD = 0.5
LARGEST_GROUP = 2**24  # pixels of the boxes encoded at once; each takes two bytes


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
    boxes = np.asarray(boxes, np.float64)
    half = (boxes[:, 2:] - boxes[:, :2]) * (0.5 * side / (side - 2))
    centre = boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]) * 0.5
    first = np.trunc(centre - half).astype(np.int64)
    last = np.maximum(np.trunc(centre + half).astype(np.int64), first)
    if not len(masks):
        return []
    runs = []
    for group in _groups(_windows(first, last, image_size)[1].prod(1).tolist()):
        runs += _runs(masks[group], first[group], last[group], image_size)
    rle = [{'size': [height, width], 'counts': counts} for counts in runs]
    return coco_mask.frPyObjects(rle, height, width)


def _groups(areas: list[int]) -> Iterator[slice]:
    """All positions in order, of at most `LARGEST_GROUP` pixels together, or one alone."""
    start = total = 0
    for n, area in enumerate(areas):
        if n > start and total + area > LARGEST_GROUP:
            yield slice(start, n)
            start, total = n, 0
        total += area
    yield slice(start, len(areas))


def _windows(
    first: np.ndarray, last: np.ndarray, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What of each box lies in the image: its first pixel and its size, int64[n,2] (y, x) each."""
    low, high = np.clip(first, 0, image_size), np.clip(last + 1, 0, image_size)
    return low, np.where((high > low).all(1, keepdims=True), high - low, 0)


def _runs(
    masks: np.ndarray, first: np.ndarray, last: np.ndarray, image_size: tuple[int, int]
) -> list[np.ndarray]:
    """Lengths of the runs of each mask in the image, down its columns: int64[k] each.

    masks f32[n,m,m]; first, last int64[n,2], (y, x) of the first and last pixel of the boxes.
    """
    low, size = _windows(first, last, image_size)
    # All windows one after the other, column by column, with a zero above and one below each
    # column: every run has its start and its end there.
    lengths = size[:, 1] * (size[:, 0] + 2)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.zeros(starts[-1], bool)
    padded = np.zeros((masks.shape[1] + 2,) * 2, np.float32)
    shifts, full = (low - first).tolist(), (last - first + 1).tolist()
    for n, (rows, columns) in enumerate(size.tolist()):
        if not columns:
            continue
        padded[1:-1, 1:-1] = masks[n].T
        large = cv2.resize(padded, full[n], interpolation=cv2.INTER_LINEAR)
        window = inside[starts[n] : starts[n + 1]].reshape(columns, rows + 2)
        y, x = shifts[n]
        np.greater(large[x : x + columns, y : y + rows], THRESHOLD, out=window[:, 1:-1])

    edges = np.flatnonzero(inside[1:] != inside[:-1])
    owner = np.repeat(np.arange(len(masks)), np.diff(np.searchsorted(edges, starts)))
    column, row = np.divmod(edges - starts[owner], size[owner, 0] + 2)
    places = (low[owner, 1] + column) * image_size[0] + low[owner, 0] + row
    if len(places):
        # Runs that go on from the foot of a column to the head of the next are one.
        ends, next_starts = places[1:-1:2], places[2::2]
        joined = (ends == next_starts) & (owner[1:-1:2] == owner[2::2])
        keep = np.concatenate([[True], np.repeat(~joined, 2), [True]])
        places, owner = places[keep], owner[keep]
    # The last run of every mask ends with the image; it may have no pixel.
    everyone = np.arange(len(masks))
    order = np.argsort(np.concatenate([owner, everyone]), kind='stable')
    pixels = image_size[0] * image_size[1]
    ends = np.concatenate([places, np.full(len(masks), pixels)])[order]
    final = np.cumsum(np.bincount(owner, minlength=len(masks)) + 1) - 1
    runs = np.diff(ends, prepend=0)
    runs[final[:-1] + 1] += pixels  # the first run of a mask begins with the image
    return [
        runs[start : stop + (runs[stop] > 0)]
        for start, stop in zip([0, *(final[:-1] + 1).tolist()], final.tolist(), strict=True)
    ]
