"""Pictures of validation images with what the model finds in them, written at every evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping

import cv2
import numpy as np
from absl import logging

from spinenet_jax.data.batch import Example, Source
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.tasks.task import Task
from spinenet_jax.training.checkpoint import absolute

MIN_SCORE = 0.3
LONG_SIDE = 960  # pixels; smaller images are enlarged so that labels can be read


def pictured(images: int, count: int) -> list[int]:
    """Positions of up to `count` images of a source, spread evenly; always the same ones."""
    return np.linspace(0, images, min(count, images), endpoint=False).astype(int).tolist()


def write_pictures(
    workdir: str | os.PathLike,
    step: int,
    task: Task,
    source: Source,
    examples: Mapping[int, Example],
) -> None:
    """Write a JPEG for each example to workdir/pictures, if the task draws any.

    An image that cannot be read is left out.

    Args:
      workdir: of the run.
      step: in the names of the files.
      task: draws.
      source: of the images.
      examples: rows of predictions by position in the source.
    """
    folder = absolute(workdir) / 'pictures'
    names = {category.label: category.name for category in source.categories}
    for position, row in examples.items():
        try:
            record = source[position]
            image = read_image(record['image'], record['size'])
        except BadImageError as error:
            logging.warning('no picture of image %d of %s: %s', position, source.name, error)
            continue
        drawn = task.picture(image, task.found(row), names, min_score=MIN_SCORE, side=LONG_SIDE)
        if drawn is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode('.jpg', drawn[..., ::-1])[1].tobytes()
        (folder / f'{step}_{record["image_id"]}.jpg').write_bytes(encoded)
