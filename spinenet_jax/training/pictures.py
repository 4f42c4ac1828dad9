"""What does the detector see by now? Pictures of validation images with its detections."""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np
from absl import logging

from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.training.checkpoint import absolute
from spinenet_jax.visualize import draw_detections, fit

MIN_SCORE = 0.3
LONG_SIDE = 960  # pixels; smaller images are enlarged so that labels can be read


def write_pictures(
    workdir: str | os.PathLike,
    step: int,
    source: Any,
    detections: list[dict[str, Any]],
    count: int,
) -> None:
    """Write `count` JPEGs to workdir/pictures, of the same images at every evaluation.

    The images are spread evenly over the source; one that cannot be read is left out.
    detections: COCO's results format, boxes (x, y, width, height) in original pixels.
    """
    folder = absolute(workdir) / 'pictures'
    folder.mkdir(parents=True, exist_ok=True)
    names = {category.id: category.name for category in source.categories}
    positions = np.linspace(0, len(source), min(count, len(source)), endpoint=False).astype(int)
    for position in positions.tolist():
        record = source[position]
        found = [
            d for d in detections if d['image_id'] == record['image_id'] and d['score'] >= MIN_SCORE
        ]
        try:
            image = read_image(record['image'], record['size'])
        except BadImageError as error:
            logging.warning('no picture of %s: %s', source.describe(position), error)
            continue
        drawn = _draw(image, found, names)
        encoded = cv2.imencode('.jpg', drawn[..., ::-1])[1].tobytes()
        (folder / f'{step}_{record["image_id"]}.jpg').write_bytes(encoded)


def _draw(image, found, names) -> np.ndarray:
    """The image at its picture's size with all found objects on it."""
    xywh = np.array([d['bbox'] for d in found], np.float32).reshape(-1, 4)
    corners = np.concatenate([xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, :1:-1]], axis=1)
    image, boxes = fit(image, corners, LONG_SIDE)
    labels = [d['category_id'] for d in found]
    return draw_detections(
        image, boxes, labels, [d['score'] for d in found], [names[label] for label in labels]
    )
