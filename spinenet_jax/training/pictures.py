"""Draws validation images at every evaluation: what is annotated beside what the model finds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from absl import logging

from spinenet_jax.annotated import draw_annotated
from spinenet_jax.data.batch import Example, Source
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.tasks.task import Task
from spinenet_jax.training.checkpoint import absolute
from spinenet_jax.visualize import tile

MIN_SCORE = 0.3
LONG_SIDE = 960  # pixels; smaller images are enlarged so that labels can be read

TITLES = ('annotated', 'found')


def pictured(images: int, count: int) -> list[int]:
    """Positions of up to `count` images of a source, spread evenly; always the same ones."""
    return np.linspace(0, images, min(count, images), endpoint=False).astype(int).tolist()


class Picture(NamedTuple):
    """A picture as a file holds it.

    Attributes:
      image_id: of the image, in the data set.
      jpeg: the encoded picture.
      size: its (height, width) in pixels.
    """

    image_id: int
    jpeg: bytes
    size: tuple[int, int]


def write_pictures(
    workdir: str | os.PathLike,
    step: int,
    task: Task,
    source: Source,
    examples: Mapping[int, Example],
) -> list[Picture]:
    """Write a JPEG for each example to workdir/pictures, if the task draws any.

    Where the source has boxes or masks, they are drawn beside what was found. An image that cannot
    be read is left out.

    Args:
      workdir: of the run.
      step: in the names of the files.
      task: draws.
      source: of the images.
      examples: rows of predictions by position in the source.

    Returns:
      What was written.
    """
    folder = absolute(workdir) / 'pictures'
    names = {category.label: category.name for category in source.categories}
    written = []
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
        if 'boxes' in record:
            drawn = tile(
                [draw_annotated(image, record, names, LONG_SIDE), drawn], 2, LONG_SIDE, TITLES
            )
        folder.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode('.jpg', drawn[..., ::-1])[1].tobytes()
        (folder / f'{step}_{record["image_id"]}.jpg').write_bytes(encoded)
        written.append(Picture(record['image_id'], encoded, drawn.shape[:2]))
    return written
