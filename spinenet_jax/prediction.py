"""Runs a trained model on photos that belong to no data set.

Finds and reads the images, runs the model in batches, and turns its rows into records and
pictures. Loading the model is left to `inference`, drawing to `visualize`, writing files to
`prediction_files`.
"""

import dataclasses
import glob
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import jax_utils

from spinenet_jax.data.batch import NO_RECORD
from spinenet_jax.data.build import eval_row
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.data.image_folder import SUFFIXES
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.coco import to_xywh
from spinenet_jax.evaluation.detection import to_original_pixels
from spinenet_jax.inference import Trained
from spinenet_jax.visualize import draw_detections, fit

SMALLEST_PICTURE = 640  # pixels of the longer side; below it, labels would hide the image
LARGEST_PICTURE = 65_500  # pixels of the longer side; a JPEG holds no more
HELD_PIXELS = 2**28  # of decoded images, 800 MB; a batch of larger ones is not filled up
MADE_HERE = 'made by predict.py of spinenet_jax'


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
      path: of the image file.
      image: u8[h,w,3] RGB, turned upright as its EXIF tag says; None if it could not be read.
      boxes: f32[D,4] (ymin, xmin, ymax, xmax) in pixels of `image`, best first; None where the
        model only names classes.
      scores: f32[D] in [0, 1].
      labels: i32[D], from 1.
      problem: why the image could not be read, '' if it was.
    """

    path: str
    image: np.ndarray | None
    boxes: np.ndarray | None
    scores: np.ndarray
    labels: np.ndarray
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


def predict(trained: Trained, paths: Sequence[str]) -> Iterator[Prediction]:
    """Runs on image files, in order; a file that cannot be read gives a row with `problem`.

    Args:
      trained: the model; `eval.batch_size` of its config is the largest batch over all devices.
      paths: image files; none gives nothing.
    """
    devices = jax.local_device_count()
    wanted = min(trained.config.eval.batch_size, max(len(paths), 1))
    size = devices * math.ceil(wanted / devices)
    variables = {'params': trained.params, 'batch_stats': trained.batch_stats}
    variables = jax_utils.replicate(variables)
    for read in _batches(paths, size, trained.config.data.max_pixels):
        rows = _run(trained, variables, [p.image for p in read if p.image is not None], size)
        for prediction in read:
            if prediction.image is None:
                yield prediction
                continue
            boxes, scores, labels = next(rows)
            yield dataclasses.replace(prediction, boxes=boxes, scores=scores, labels=labels)


def picture(prediction: Prediction, names: dict[int, str], score_threshold: float) -> np.ndarray:
    """The image with its boxes, u8[h,w,3] RGB; small images are enlarged to be readable.

    Args:
      prediction: of an image that could be read.
      names: class name by label; a label without one is drawn as its number.
      score_threshold: boxes below it are not drawn.
    """
    keep = prediction.scores >= score_threshold
    image, boxes = prediction.image, prediction.boxes[keep]
    side = min(max(*image.shape[:2], SMALLEST_PICTURE), LARGEST_PICTURE)
    if side != max(image.shape[:2]):
        image, boxes = fit(image, boxes, side)
    labels = prediction.labels[keep].tolist()
    words = [names.get(label, str(label)) for label in labels]
    return draw_detections(image, boxes, labels, prediction.scores[keep], words)


class Records:
    """Detections as one COCO dict: images, categories, and annotations with a score."""

    def __init__(self, categories: Sequence[Any]):
        """`categories` have label, id and name; a label without one becomes its own id."""
        self._ids = {c.label: c.id for c in categories}
        self.names = {c.label: c.name for c in categories}
        self.as_dict: dict[str, Any] = {
            'info': {'description': MADE_HERE},
            'images': [],
            'categories': [{'id': c.id, 'name': c.name} for c in categories],
            'annotations': [],
        }

    def add(self, prediction: Prediction) -> None:
        """Adds an image, numbered from 1, and what was found in it (bbox is x, y, w, h)."""
        height, width = prediction.image.shape[:2]
        image_id = len(self.as_dict['images']) + 1
        self.as_dict['images'].append(
            {'id': image_id, 'file_name': prediction.path, 'height': height, 'width': width}
        )
        found = (prediction.boxes, prediction.scores, prediction.labels)
        for box, score, label in zip(*(a.tolist() for a in found), strict=True):
            self.as_dict['annotations'].append(
                {
                    'id': len(self.as_dict['annotations']) + 1,
                    'image_id': image_id,
                    'category_id': self._ids.get(label, label),
                    'bbox': to_xywh(box),
                    'score': round(score, 6),
                }
            )

    def drawn(self, score_threshold: float) -> str:
        """How many detections `picture` draws at this threshold, in words to print."""
        scores = [annotation['score'] for annotation in self.as_dict['annotations']]
        count = sum(score >= score_threshold for score in scores)
        words = f'{count} of {len(scores)} detections drawn'
        if scores and not count:
            words += f' (scores are up to {max(scores):.2f}, --score={score_threshold:g})'
        return words


class ClassRecords:
    """The best classes of images as one dict: images, each with its classes and their scores."""

    def __init__(self, categories: Sequence[Any]):
        """`categories` have label, id and name; a label without one is named by its number."""
        self._categories = {c.label: c for c in categories}
        self.as_dict: dict[str, Any] = {'info': {'description': MADE_HERE}, 'images': []}

    def add(self, prediction: Prediction) -> None:
        """Adds an image and its classes, best first."""
        height, width = prediction.image.shape[:2]
        classes = []
        for label, score in zip(
            prediction.labels.tolist(), prediction.scores.tolist(), strict=True
        ):
            known = self._categories.get(label)
            classes.append(
                {
                    'id': known.id if known else label,
                    'name': known.name if known else str(label),
                    'score': round(score, 6),
                }
            )
        self.as_dict['images'].append(
            {'file_name': prediction.path, 'height': height, 'width': width, 'classes': classes}
        )

    def last_line(self) -> str:
        """The image added last, as a line to print: its path, and the classes with their scores."""
        image = self.as_dict['images'][-1]
        classes = ', '.join(f'{c["name"]} {c["score"]:.3f}' for c in image['classes'])
        return f'{image["file_name"]}: {classes}'


def _batches(paths: Sequence[str], size: int, max_pixels: int) -> Iterator[list[Prediction]]:
    """At most `size` images at a time, fewer where they are so large that memory would not do."""
    batch: list[Prediction] = []
    pixels = 0
    for path in paths:
        batch.append(_read(path, max_pixels))
        image = batch[-1].image
        pixels += 0 if image is None else image.shape[0] * image.shape[1]
        if len(batch) == size or pixels >= HELD_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _read(path: str, max_pixels: int) -> Prediction:
    """The image without anything found in it yet."""
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    try:
        return Prediction(path, read_image(path, None, max_pixels), *nothing)
    except BadImageError as error:
        return Prediction(path, None, *nothing, problem=str(error))


def _run(
    trained: Trained, variables: Any, images: list[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray | None, np.ndarray, np.ndarray]]:
    """Boxes in pixels of each image, scores and labels; the batch is filled with blank rows."""
    if not images:
        return
    to_row = eval_row(trained.config.data)
    examples = [to_row(NO_RECORD, image) for image in images]
    examples += [{k: np.zeros_like(v) for k, v in examples[0].items()}] * (size - len(images))
    devices = jax.local_device_count()
    batch = {
        name: np.stack([e[name] for e in examples]).reshape(devices, -1, *examples[0][name].shape)
        for name in ('image', 'content_size', 'scale', 'original_size')
    }
    result = trained.eval_step(variables, batch)
    result = {k: np.asarray(a.addressable_data(0)).reshape(a.shape[1:]) for k, a in result.items()}
    result = {name: array[: len(images)] for name, array in result.items()}
    if 'boxes' not in result:
        for scores, classes in zip(result['scores'], result['classes'], strict=True):
            yield None, scores, classes
        return
    boxes = to_original_pixels(result['boxes'], result['scale'], result['original_size'])
    for row, valid in enumerate(result['valid']):
        yield boxes[row][valid], result['scores'][row][valid], result['classes'][row][valid]
