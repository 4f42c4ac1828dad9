"""Scales, flips and crops images together with their boxes, for detection.

Flip and jitter-resize as the public SpineNet code trains and evaluates (TF Model Garden,
`ops/preprocess_ops.py`). Pure functions of arrays and of explicit random draws; which images get
which draws is left to pipeline.py, normalisation to the device.
"""

from typing import NamedTuple

import cv2
import numpy as np

_LARGEST_RESIZE = 8  # times the output's area; beyond it only the visible part is computed
_LONGEST_WARP = 32_000  # pixels; OpenCV's warpAffine takes no longer sides


class Draws(NamedTuple):
    """The random choices for one image: `scale` relative to the output size, offsets in [0, 1)."""

    flip: bool = False
    scale: float = 1.0
    offset_y: float = 0.0
    offset_x: float = 0.0


class Placement(NamedTuple):
    """How an image is scaled and cut: all pairs are (y, x)."""

    new_size: tuple[int, int]  # of the whole scaled image
    offset: tuple[int, int]  # first scaled pixel that is seen
    content_size: tuple[int, int]  # what is seen; the rest of the output is padding
    scale: np.ndarray  # float32[2], new size / old size


def sample_draws(rng: np.random.Generator, scale_min: float, scale_max: float, flip: bool) -> Draws:
    """Draws for one training image. Always four numbers, so that a switch changes no other draw."""
    u = rng.random(4)
    return Draws(
        flip=bool(flip and u[0] < 0.5),
        scale=float(scale_min + (scale_max - scale_min) * u[1]),
        offset_y=float(u[2]),
        offset_x=float(u[3]),
    )


def place(size: tuple[int, int], output_size: tuple[int, int], draws: Draws) -> Placement:
    """Fits an image of `size` into `draws.scale` times `output_size`, aspect kept.

    Scale 1 makes the image as large as fits; less leaves padding at the bottom and right; more
    cuts a window at an offset drawn for each axis. All sizes (h, w) in pixels, at least 1. Sizes
    are rounded half to even in float32, like the original.
    """
    old, output = np.float32(size), np.float32(output_size)
    scaled = np.round(np.float32(draws.scale) * output)
    new = np.maximum(np.round(old * np.min(scaled / old)), 1)
    room = np.maximum(new - output, 0)
    offset = (room * np.float32((draws.offset_y, draws.offset_x))).astype(int)
    return Placement(
        new_size=(int(new[0]), int(new[1])),
        offset=(int(offset[0]), int(offset[1])),
        content_size=tuple(int(v) for v in np.minimum(new, output)),
        scale=new / old,
    )


def place_image(
    image: np.ndarray, placement: Placement, output_size: tuple[int, int], flip: bool = False
) -> np.ndarray:
    """The pixels of the network's input: uint8[h,w,3] -> uint8[H,W,3], padding zero.

    Bilinear with half-pixel centres and no antialiasing. A large scale factor needs no more memory
    than a few outputs: beyond that only the visible window is computed, equal to within 1 of 255.
    """
    out = np.zeros((*output_size, 3), np.uint8)
    (h, w), (y, x) = placement.content_size, placement.offset
    new_h, new_w = placement.new_size
    if flip:
        image = cv2.flip(image, 1)
    if new_h * new_w > _LARGEST_RESIZE * output_size[0] * output_size[1]:
        if max(image.shape[:2]) > _LONGEST_WARP:
            sides = min(image.shape[1], _LONGEST_WARP), min(image.shape[0], _LONGEST_WARP)
            image = cv2.resize(image, sides, interpolation=cv2.INTER_LINEAR)
        ay, ax = image.shape[0] / new_h, image.shape[1] / new_w
        back = np.array([[ax, 0, (x + 0.5) * ax - 0.5], [0, ay, (y + 0.5) * ay - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out[:h, :w] = cv2.warpAffine(
            image, back, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
    elif (h, w) == (new_h, new_w):
        cv2.resize(image, (w, h), dst=out[:h, :w], interpolation=cv2.INTER_LINEAR)
    else:
        resized = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
        out[:h, :w] = resized[y : y + h, x : x + w]
    return out


def place_boxes(
    boxes: np.ndarray, placement: Placement, width: int, flip: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels of the network's input, and which of them are left.

    boxes float32[n,4] in pixels of an original image `width` wide -> float32[n,4] clipped to the
    content, bool[n] false where nothing of the box is seen. No minimum visible part: a sliver
    stays, as in the original. n may be 0.
    """
    boxes = boxes.astype(np.float32)
    if flip:
        ymin, xmin, ymax, xmax = boxes.T
        boxes = np.stack([ymin, width - xmax, ymax, width - xmin], axis=1)
    scale, offset = np.tile(placement.scale, 2), np.tile(np.float32(placement.offset), 2)
    limit = np.tile(np.float32(placement.content_size), 2)
    boxes = np.clip(boxes * scale - offset, 0, limit)
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
