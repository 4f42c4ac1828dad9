"""What was found in single images: its types, its JSON records and its pictures."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from spinenet_jax.data.batch import Category, Example
from spinenet_jax.evaluation.coco import rounded, to_xywh
from spinenet_jax.evaluation.detection import to_original_pixels
from spinenet_jax.evaluation.instances import paste_masks
from spinenet_jax.visualize import Drawn, draw_detections, draw_instances, fit


class Detections(NamedTuple):
    """The objects found in one image, best first.

    Attributes:
      boxes: f32[D,4] (ymin, xmin, ymax, xmax) in pixels of the image.
      scores: f32[D] in [0, 1].
      labels: i32[D], from 1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Instances(NamedTuple):
    """The objects found in one image with their masks, best first.

    Attributes:
      boxes, scores, labels: as of `Detections`.
      masks: D of {'size': [h, w], 'counts': bytes}, COCO's compressed RLE at the size of the image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]]


class BestClasses(NamedTuple):
    """The most likely classes of one image, best first: scores f32[n] and labels i32[n], from 1."""

    scores: np.ndarray
    labels: np.ndarray


def detections_of(row: Example) -> Detections:
    """Moves a detector's row into pixels of its image, and drops padding.

    Args:
      row: boxes f32[D,4] in pixels of the network's input, scores f32[D], classes i32[D], valid
        bool[D], scale f32[2] and original_size i32[2], see `data.batch`.
    """
    boxes = to_original_pixels(row['boxes'][None], row['scale'][None], row['original_size'][None])
    keep = row['valid']
    return Detections(boxes[0][keep], row['scores'][keep], row['classes'][keep])


def instances_of(row: Example) -> Instances:
    """`detections_of` with masks: pasted into the image from masks f32[D,m,m] of the row."""
    return Instances(*detections_of(row), paste_masks(row))


def draw(
    image: np.ndarray,
    found: Detections | Instances,
    names: Mapping[int, str],
    *,
    min_score: float,
    side: int,
) -> np.ndarray:
    """The image with what was found, its masks or its boxes; see `task.Task.picture`."""
    keep = found.scores >= min_score
    boxes, labels = found.boxes[keep], found.labels[keep].tolist()
    if max(image.shape[:2]) != side:
        image, boxes = fit(image, boxes, side)
    words = [names.get(label, str(label)) for label in labels]
    scores = found.scores[keep].tolist()
    if isinstance(found, Detections):
        return draw_detections(image, boxes, labels, scores, words)
    from pycocotools import mask as coco_mask

    masks = [partial(coco_mask.decode, found.masks[n]) for n in np.flatnonzero(keep)]
    masks = Drawn(masks, image.shape[:2])
    return draw_instances(image, masks, boxes, labels, scores, words)


class DetectionRecords:
    """Detections as one COCO dict: images, categories, and annotations with a score."""

    def __init__(self, categories: Sequence[Category]):
        """A label that no category has becomes its own category id."""
        self._ids = {c.label: c.id for c in categories}
        self.as_dict: dict[str, list[dict[str, Any]]] = {
            'images': [],
            'categories': [{'id': c.id, 'name': c.name} for c in categories],
            'annotations': [],
        }

    def add(self, path: str, size: tuple[int, int], found: Detections) -> str:
        """Adds an image, numbered from 1, and what was found in it (bbox is x, y, w, h)."""
        height, width = size
        image_id = len(self.as_dict['images']) + 1
        self.as_dict['images'].append(
            {'id': image_id, 'file_name': path, 'height': height, 'width': width}
        )
        for box, score, label in zip(*(array.tolist() for array in found), strict=True):
            annotation = {
                'id': len(self.as_dict['annotations']) + 1,
                'image_id': image_id,
                'category_id': self._ids.get(label, label),
                'bbox': to_xywh(box),
                'score': score,
            }
            self.as_dict['annotations'].append(rounded(annotation))
        return ''

    def summary(self, min_score: float) -> str:
        """How many detections are drawn at this threshold."""
        scores = [annotation['score'] for annotation in self.as_dict['annotations']]
        count = sum(score >= min_score for score in scores)
        words = f'{count} of {len(scores)} detections drawn'
        if scores and not count:
            words += f' (scores are up to {max(scores):.2f}, --score={min_score:g})'
        return words


class InstanceRecords:
    """Instances as one COCO dict: that of `DetectionRecords` with `segmentation` (RLE) and `area`.

    `area` is the number of the mask's pixels.
    """

    def __init__(self, categories: Sequence[Category]):
        """A label that no category has becomes its own category id."""
        self._detections = DetectionRecords(categories)

    @property
    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """All that was added, as JSON values."""
        return self._detections.as_dict

    def add(self, path: str, size: tuple[int, int], found: Instances) -> str:
        """Adds an image, numbered from 1, and what was found in it (bbox is x, y, w, h)."""
        from pycocotools import mask as coco_mask

        line = self._detections.add(path, size, Detections(*found[:3]))
        annotations = self.as_dict['annotations']
        new = annotations[len(annotations) - len(found.masks) :]
        for annotation, rle in zip(new, found.masks, strict=True):
            annotation['segmentation'] = {**rle, 'counts': rle['counts'].decode('ascii')}
            annotation['area'] = int(coco_mask.area(rle))
        return line

    def summary(self, min_score: float) -> str:
        """How many detections are drawn at this threshold."""
        return self._detections.summary(min_score)


class ClassRecords:
    """The best classes of images as one dict: images, each with its classes and their scores."""

    def __init__(self, categories: Sequence[Category]):
        """A label that no category has is named by its number."""
        self._categories = {c.label: c for c in categories}
        self.as_dict: dict[str, list[dict[str, Any]]] = {'images': []}

    def add(self, path: str, size: tuple[int, int], found: BestClasses) -> str:
        """Adds an image and its classes, best first; returns them as a line."""
        height, width = size
        classes = []
        for score, label in zip(found.scores.tolist(), found.labels.tolist(), strict=True):
            known = self._categories.get(label, Category(label, label, str(label)))
            classes.append({'id': known.id, 'name': known.name, 'score': round(score, 6)})
        self.as_dict['images'].append(
            {'file_name': path, 'height': height, 'width': width, 'classes': classes}
        )
        return f'{path}: ' + ', '.join(f'{c["name"]} {c["score"]:.3f}' for c in classes)

    def summary(self, min_score: float) -> str:
        """Nothing: every image has its line."""
        del min_score
        return ''
