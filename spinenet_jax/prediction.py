"""Runs a trained model on images that belong to no data set: files, or arrays of pixels.

Finds and reads the images and runs the model in batches. Loading the model is left to `inference`,
records and pictures to the task, writing files to `prediction_files`.
"""

import dataclasses
import glob
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import jax
import numpy as np

from spinenet_jax import parallel
from spinenet_jax.data.batch import NO_RECORD, Example, blank_row
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.data.image_folder import SUFFIXES
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.runner import Variables
from spinenet_jax.inference import Trained

SMALLEST_PICTURE = 640  # pixels of the longer side; below it, labels would hide the image
LARGEST_PICTURE = 65_500  # pixels of the longer side; a JPEG holds no more
HELD_PIXELS = 2**28  # of decoded images, 800 MB; a batch of larger ones is not filled up
Found = TypeVar('Found')


@dataclasses.dataclass(frozen=True)
class Prediction(Generic[Found]):
    """What was found in one image.

    Attributes:
      path: of the file; '' for an array.
      image: u8[h,w,3] RGB, turned upright as its EXIF tag says; None if it could not be read.
      found: in pixels of `image`, as the task gives it; None if it could not be read.
      problem: why the image could not be read, '' if it was.
    """

    path: str
    image: np.ndarray | None
    found: Found | None = None
    problem: str = ''


def find_images(patterns: Iterable[str]) -> list[str]:
    """Paths that files, globs ('photos/*.jpg', '**' for all depths) and folders stand for.

    A folder gives its image files, by suffix and not those of its subfolders. Sorted within each
    pattern, each file once.

    Raises:
      UserError: a pattern that nothing matches.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        pattern = os.path.expanduser(pattern)
        if os.path.isdir(pattern):
            paths = [os.path.join(pattern, name) for name in _names(pattern)]
        elif os.path.isfile(pattern):
            paths = [pattern]
        else:
            paths = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        if not paths:
            raise UserError(f'--images={pattern}: no image there')
        found.update(dict.fromkeys(paths))
    return list(found)


def _names(folder: str) -> list[str]:
    """The image files of a folder, by suffix."""
    try:
        return sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    except OSError as error:
        raise UserError(f'--images={folder}: cannot be listed ({error.strerror})') from error


def predict(
    trained: Trained,
    images: Sequence[str | np.ndarray],
    *,
    variables: Variables | None = None,
    batch_size: int | None = None,
) -> Iterator[Prediction]:
    """Runs on images, in order; a file that cannot be read is given with its `problem`.

    Args:
      trained: the model.
      images: files, or u8[h,w,3] RGB; none gives nothing.
      variables: from `placed_variables`; by default they are sent to the devices here.
      batch_size: largest batch over all devices; by default `eval.batch_size` of the config, or the
        number of images where these are fewer. The model is compiled for each size.
    """
    devices = jax.local_device_count()
    wanted = batch_size or min(trained.config.eval.batch_size, max(len(images), 1))
    size = devices * math.ceil(wanted / devices)
    variables = placed_variables(trained) if variables is None else variables
    for read in _batches(images, size, trained.config.data.max_pixels):
        pixels = [p.image for p in read if p.image is not None]
        rows = _run(trained, variables, pixels, size) if pixels else iter(())
        for prediction in read:
            if prediction.image is None:
                yield prediction
            else:
                yield dataclasses.replace(prediction, found=trained.task.found(next(rows)))


def placed_variables(trained: Trained) -> Variables:
    """The weights on every device, for `predict`."""
    return parallel.replicate({'params': trained.params, 'batch_stats': trained.batch_stats})


def _read(image: str | np.ndarray, max_pixels: int) -> Prediction:
    """An image file or array without anything found in it yet; why, where it cannot be read."""
    if isinstance(image, np.ndarray):
        return Prediction('', image)
    try:
        return Prediction(image, read_image(image, None, max_pixels))
    except BadImageError as error:
        return Prediction(image, None, problem=str(error))


def picture_side(image: np.ndarray) -> int:
    """The longer side of the picture of an image, pixels: small images are enlarged."""
    return min(max(SMALLEST_PICTURE, *image.shape[:2]), LARGEST_PICTURE)


def _batches(
    images: Sequence[str | np.ndarray], size: int, max_pixels: int
) -> Iterator[list[Prediction]]:
    """At most `size` images at a time, fewer where they are so large that memory would not do."""
    batch: list[Prediction] = []
    pixels = 0
    for given in images:
        batch.append(_read(given, max_pixels))
        image = batch[-1].image
        pixels += 0 if image is None else image.shape[0] * image.shape[1]
        if len(batch) == size or pixels >= HELD_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _run(
    trained: Trained, variables: Variables, images: Sequence[np.ndarray], size: int
) -> Iterator[Example]:
    """Rows of predictions of the images; the batch is filled with blank rows up to `size`."""
    rows = trained.task.rows
    examples = [{**rows.eval(NO_RECORD, image), 'index': np.int32(-1)} for image in images]
    examples += [blank_row(rows.eval_fields)] * (size - len(images))
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    result = parallel.gathered_rows(trained.eval_step(variables, parallel.shard(batch)))
    for n in range(len(images)):
        yield {name: array[n] for name, array in result.items()}
