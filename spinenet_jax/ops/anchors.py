"""The anchor boxes of a pyramid: fixed reference boxes that the box head's codes refer to."""

from collections.abc import Sequence

import numpy as np

from spinenet_jax.ops.resample import level_size

SCALES = tuple(2 ** (k / 3) for k in range(3))
RATIOS = (0.5, 1.0, 2.0)  # width / height
ANCHORS_PER_CELL = len(SCALES) * len(RATIOS)


def pyramid_anchors(
    image_size: tuple[int, int],
    anchor_size: float,
    levels: tuple[int, int] = (3, 7),
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
) -> np.ndarray:
    """Anchors of all levels, lowest level first, then row, column, scale, ratio.

    A cell of level l is 2**l pixels wide, its anchors are centred on it with sides
    `anchor_size` * 2**l * scale; they may leave the image. Where the size is not a multiple of the
    cell the last cells hang over the edge (the Model Garden stretches cells instead).

    Args:
      image_size: (height, width) of the network's input, pixels.
      anchor_size: side of the smallest square anchor in cells, above 0 (paper: 3, or 4 for 143
        and 190).
      levels: (lowest, highest) level.
      scales: of the sides, relative to `anchor_size`; the region proposal network has (1,).
      ratios: width / height; TF1's order is (1, 2, 0.5).

    Returns:
      f32[A,4] of (ymin, xmin, ymax, xmax) in pixels; 640x640 has 76,725, with one scale 25,575.
    """
    roots = np.tile(np.sqrt(ratios), len(scales))
    scales = np.repeat(scales, len(ratios))
    parts = []
    for level in range(levels[0], levels[1] + 1):
        stride = 2**level
        rows, columns = level_size(image_size, level)
        sides = anchor_size * stride * scales[:, None] * np.stack([1 / roots, roots], axis=1)
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij'), axis=-1)
        centres = ((grid + 0.5) * stride).reshape(-1, 1, 2)
        parts.append(np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1))
    return np.concatenate([part.reshape(-1, 4) for part in parts]).astype(np.float32)
