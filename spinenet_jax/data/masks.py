"""Cuts masks to their boxes on the host: what a training batch holds of an object's segmentation.

A mask of fixed size fills the visible part of its object's box, soft values in bytes, so that a
batch does not hold a picture for each object. Only that part is drawn: the time grows with the
object, not with the image.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from spinenet_jax.data.segmentations import Polygons, Rle, Segmentation
from spinenet_jax.data.transforms import Placement

CROP_SIZE = 112  # pixels, both sides, as in both public codes
_FINER = 5  # pycocotools draws polygons on a grid this much finer than pixels


def crop_masks(
    segmentations: Sequence[Segmentation | None],
    boxes: np.ndarray,
    image_size: tuple[int, int],
    flip: bool = False,
    size: int = CROP_SIZE,
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of n objects, each resampled to fill its box.

    Args:
      segmentations: n, in pixels of the original image; None for an object without a mask.
      boxes: float32[n,4] (ymin, xmin, ymax, xmax), what is seen of the objects, in pixels of the
        original image, inside it: `original_boxes`.
      image_size: (h, w) of the original image.
      flip: whether the image was mirrored.
      size: side of a mask.

    Returns:
      uint8[n,size,size], 255 for the object, and bool[n] which objects have a mask: not one whose
      RLE is of another size than the image.
    """
    masks = np.zeros((len(boxes), size, size), np.uint8)
    has_mask = np.array([fits(s, image_size) for s in segmentations], bool)
    for n in np.flatnonzero(has_mask):
        mask = crop_mask(segmentations[n], boxes[n], image_size, size)
        masks[n] = mask[:, ::-1] if flip else mask
    return masks, has_mask


def fits(segmentation: Segmentation | None, image_size: tuple[int, int]) -> bool:
    """Whether there is a mask that can be drawn in an image."""
    if isinstance(segmentation, Rle):
        return segmentation.size == image_size
    return segmentation is not None


def crop_mask(
    segmentation: Segmentation, box: np.ndarray, image_size: tuple[int, int], size: int = CROP_SIZE
) -> np.ndarray:
    """One mask, see `crop_masks`; uint8[size,size].

    Sampled bilinearly where `tf.image.crop_and_resize` does, as both public codes do: the first
    and the last sample lie on the box's edges, counted from the first to the last pixel's middle.
    """
    ymin, xmin, ymax, xmax = box.astype(float)
    height, width = image_size
    (y, step_y), (x, step_x) = (
        _samples(low, high, length, size)
        for low, high, length in ((ymin, ymax, height), (xmin, xmax, width))
    )
    top, left = int(y), int(x)
    bottom = min(int(y + (size - 1) * step_y) + 2, height)
    right = min(int(x + (size - 1) * step_x) + 2, width)
    window = draw(segmentation, (top, left, bottom, right), image_size)
    if not window.any():
        return np.zeros((size, size), np.uint8)
    back = np.array([[step_x, 0, x - left], [0, step_y, y - top]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        window * np.uint8(255), back, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def _samples(low: float, high: float, length: int, size: int) -> tuple[float, float]:
    """First place and step of `size` samples between two edges in an image `length` long."""
    shrink = (length - 1) / length
    return low * shrink, (high - low) * shrink / (size - 1)


def draw(
    segmentation: Segmentation, window: tuple[int, int, int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """A part of a mask, pixel by pixel what pycocotools draws of the whole.

    Args:
      segmentation: in pixels of the image.
      window: (top, left, bottom, right) of the part, whole pixels, inside the image.
      image_size: (h, w) of the image.

    Returns:
      uint8[bottom-top,right-left] of 0 and 1.
    """
    if isinstance(segmentation, Rle):
        return _draw_runs(segmentation, window, image_size)
    return _draw_polygons(segmentation, window)


def original_boxes(
    boxes: np.ndarray, placement: Placement, width: int, flip: bool = False
) -> np.ndarray:
    """Where boxes of the network's input lie in the original image `width` wide.

    The inverse of `transforms.place_boxes` for the part of a box that is seen; float32[n,4].
    """
    scale, offset = np.tile(placement.scale, 2), np.tile(np.float32(placement.offset), 2)
    boxes = (boxes + offset) / scale
    if flip:
        ymin, xmin, ymax, xmax = boxes.T
        boxes = np.stack([ymin, width - xmax, ymax, width - xmin], axis=1)
    return boxes.astype(np.float32)


def _draw_polygons(polygons: Polygons, window: tuple[int, int, int, int]) -> np.ndarray:
    """Polygons moved into the window, so that only it is drawn."""
    from pycocotools import mask

    top, left, bottom, right = window
    moved = []
    for part in polygons.parts:
        grid = np.trunc(part * _FINER + 0.5)  # as pycocotools rounds, before the move
        grid[0::2] -= _FINER * left
        grid[1::2] -= _FINER * top
        # It rounds towards zero after adding a half: below zero a whole number must be a bit more.
        moved.append(np.where(grid < 0, grid - 0.9, grid) / _FINER)
    drawn = mask.frPyObjects(moved, bottom - top, right - left)
    return mask.decode(mask.merge(drawn))


def _draw_runs(
    rle: Rle, window: tuple[int, int, int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """The runs that meet the window's columns, laid out."""
    top, left, bottom, right = window
    height = image_size[0]
    ends = np.cumsum(rle.runs())
    first, last = np.searchsorted(ends, (left * height, right * height), side='right')
    ends = np.minimum(ends[first : last + 1], right * height) - left * height
    values = (np.arange(first, first + len(ends)) % 2).astype(np.uint8)
    columns = np.repeat(values, np.diff(ends, prepend=0)).reshape(right - left, height)
    return columns[:, top:bottom].T
