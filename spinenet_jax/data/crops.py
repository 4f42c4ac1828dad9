"""Crops for image classification: a random window in training, the central one in evaluation.

The random crop of the Inception papers as TensorFlow draws it, and the central crop of the
published evaluations. Both are resized bilinearly without antialiasing, as the TF1 original does.
Which images get which draws is left to pipeline.py, normalisation to the device.
"""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from spinenet_jax.data.batch import (
    LABEL,
    LABEL_FIELDS,
    ORIGIN_FIELDS,
    Example,
    Fields,
    Record,
    image_fields,
)

_TRIES = 10
_FALLBACK_SHARE = 0.875  # of the central window, where ten tries gave no other


class Window(NamedTuple):
    """A part of an image in whole pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Training rows: a random window, resized to `image_size` (h, w), mirrored half of the time.

    Attributes:
      area: (smallest, largest) share of the image, in (0, 1].
      aspect: (smallest, largest) width over height of the window.
      flip: whether images are mirrored.
    """

    image_size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    needs = LABEL

    @property
    def fields(self) -> Fields:
        """See `batch.TrainRow`."""
        return {**image_fields(self.image_size), **LABEL_FIELDS}

    def __call__(self, record: Record, image: np.ndarray, rng: np.random.Generator) -> Example:
        """One row of a train batch from decoded pixels uint8[h,w,3]."""
        mirrored = rng.random() < 0.5  # drawn first and always, so that the switch moves no crop
        size = image.shape[:2]
        window = random_window(rng, size, self.area, self.aspect)
        if window is None:
            window = central_window(size, self.image_size, _FALLBACK_SHARE)
        row = _row(record, image, window, self.image_size)
        if self.flip and mirrored:
            row['image'] = np.ascontiguousarray(row['image'][:, ::-1])
        return row


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """Evaluation rows: the central window, resized to `image_size` (h, w).

    Attributes:
      share: of the largest window of that aspect that fits into the image, side over side.
    """

    image_size: tuple[int, int]
    share: float = 0.875

    needs = LABEL

    @property
    def fields(self) -> Fields:
        """See `batch.EvalRow`."""
        return {**image_fields(self.image_size), **LABEL_FIELDS, **ORIGIN_FIELDS}

    def __call__(self, record: Record, image: np.ndarray) -> Example:
        """One row of an eval batch, without `index`, from decoded pixels uint8[h,w,3]."""
        window = central_window(image.shape[:2], self.image_size, self.share)
        row = _row(record, image, window, self.image_size)
        scale = np.float32(self.image_size) / np.float32((window.height, window.width))
        return {**row, 'scale': scale, 'original_size': np.int32(image.shape[:2])}


def random_window(
    rng: np.random.Generator,
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Window | None:
    """A window drawn as TensorFlow's `sample_distorted_bounding_box` does.

    The aspect is uniform in its range; the height is uniform between those that give the smallest
    and the largest area, or fill the image; the place is uniform. (Other libraries make the area
    uniform, which shows larger parts.) A window outside the limits after rounding is drawn again.
    None after ten tries: an image too narrow for the limits.

    Args:
      size: (h, w) of the image, at least 1.
      area, aspect: see `RandomCrop`.
    """
    full_height, full_width = size
    low, high = (share * full_height * full_width for share in area)
    for _ in range(_TRIES):
        ratio = rng.uniform(*aspect)
        tallest = min(round(np.sqrt(high / ratio)), int((full_width + 0.499) / ratio), full_height)
        shortest = min(round(np.sqrt(low / ratio)), tallest)
        height = int(rng.integers(shortest, tallest + 1))
        width = round(height * ratio)
        if width * height < low:  # rounding alone should not cost a try
            height, width = height + 1, round((height + 1) * ratio)
        if low <= width * height <= high and height <= full_height and 1 <= width <= full_width:
            top = int(rng.integers(full_height - height + 1))
            return Window(top, int(rng.integers(full_width - width + 1)), height, width)
    return None


def central_window(size: tuple[int, int], output: tuple[int, int], share: float) -> Window:
    """The window in the middle of an image of `size` (h, w), with the aspect of `output` (h, w).

    Its sides are `share`, in (0, 1], of the largest such window's, rounded, at least one pixel;
    an odd margin leaves the larger half above and on the left.
    """
    scale = share * min(size[0] / output[0], size[1] / output[1])
    height, width = (max(1, round(side * scale)) for side in output)
    return Window((size[0] - height + 1) // 2, (size[1] - width + 1) // 2, height, width)


def _row(record: Record, image: np.ndarray, window: Window, image_size: tuple[int, int]) -> Example:
    """What both kinds of rows hold."""
    top, left, height, width = window
    part = image[top : top + height, left : left + width]
    resized = cv2.resize(part, image_size[::-1], interpolation=cv2.INTER_LINEAR)
    return {
        'image': resized,
        'content_size': np.int32(image_size),
        'label': np.int32(record['label']),
    }
