"""Scores boxes and masks by COCO's rules and puts them into COCO's results format.

Collects detections image by image and scores them with pycocotools, or with faster-coco-eval
where it is installed (the same numbers, in C++). This is the only place that turns boxes from
(ymin, xmin, ymax, xmax) into COCO's (x, y, width, height), and labels into category ids.
Running the model and mapping boxes back to the original image belong to `runner` and `detection`.
"""

import contextlib
import functools
import importlib.util
import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

METRICS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl')
BACKENDS = ('auto', 'pycocotools', 'faster')
MASK_PREFIX = 'mask/'  # of the names of mask metrics; those of boxes have none


class Category(Protocol):
    """A class of objects: the model's `label`, the data set's category `id`, and its `name`."""

    label: int
    id: int
    name: str


class CocoEvaluator:
    """Collects detections, then scores them against COCO annotations.

    `detections` holds what was predicted, in full precision: that is what is scored. `rounded`
    shortens a detection for a file.

    By default only images passed to `update` are scored, so a part of a split is judged by its
    own ground truth alone; with `whole_split`, all of them, and one that was never passed has
    missed everything in it. A metric for which there is no ground truth (no large object, say;
    pycocotools says -1) is absent from the result, and without any annotation at all the result
    is empty.
    """

    def __init__(
        self,
        ground_truth: dict[str, Any] | None,
        categories: Sequence[Category],
        backend: str = 'auto',
        whole_split: bool = False,
        masks: bool = False,
    ):
        """Prepares to score against a COCO instances dict; it is read, never changed.

        Args:
          ground_truth: dict with 'images', 'annotations' (bbox xywh, area, iscrowd, image_id,
            category_id) and 'categories'; None for a split without annotations.
          categories: the classes that the model knows; their labels index `update`'s classes.
          backend: 'pycocotools', 'faster' (faster-coco-eval) or 'auto' (faster if installed).
          whole_split: score all images of the ground truth, passed to `update` or not.
          masks: score masks as well. Annotations then have `segmentation` as COCO's do; one
            without is neither to be found nor wrong to find, for masks: a crowd of its box.

        Raises:
          ValueError: for an unknown backend.
        """
        if backend not in BACKENDS:
            raise ValueError(f'unknown backend {backend!r}: choose one of {", ".join(BACKENDS)}')
        installed = importlib.util.find_spec('faster_coco_eval') is not None
        self.backend = ('faster' if installed else 'pycocotools') if backend == 'auto' else backend
        self._ground_truth = ground_truth
        self._category_ids = {c.label: c.id for c in categories}
        self._names = {c.id: c.name for c in categories}
        self._seen: set[int] = set()
        self._whole_split = whole_split
        self._kinds = {'bbox': '', 'segm': MASK_PREFIX} if masks else {'bbox': ''}
        self._scored: dict[str, tuple[np.ndarray, dict[str, float]]] = {}
        self.detections: list[dict[str, Any]] = []

    def update(
        self,
        image_ids: Sequence[int],
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        valid: np.ndarray,
        masks: Sequence[Sequence[dict[str, Any]]] | None = None,
    ) -> None:
        """Adds the detections of some images; an image that was added before is left as it is.

        Args:
          image_ids: int[B] ids in the data set.
          boxes: f32[B,D,4] (ymin, xmin, ymax, xmax) in pixels of the original image.
          scores: f32[B,D] confidences.
          classes: i32[B,D] labels; one that no category has is dropped, as the data set
            cannot name it.
          valid: bool[B,D] False for padding.
          masks: B lists of the RLE of each valid detection, `counts` in bytes as `masks.paste`
            gives them; needed where masks are scored.
        """
        if masks is None and 'segm' in self._kinds:
            raise ValueError('masks are scored, but the detections have none')
        self._scored = {}
        for row, image_id in enumerate(map(int, image_ids)):
            if image_id in self._seen:
                continue
            self._seen.add(image_id)
            keep = np.asarray(valid[row], bool)
            found = (boxes[row][keep], scores[row][keep], classes[row][keep])
            pasted = [None] * len(found[0]) if masks is None else masks[row]
            found = (np.asarray(a).tolist() for a in found)
            for box, score, label, rle in zip(*found, pasted, strict=True):
                if label in self._category_ids:
                    record = {
                        'image_id': image_id,
                        'category_id': self._category_ids[label],
                        'bbox': to_xywh(box),
                        'score': score,
                    }
                    if rle is not None:
                        record['segmentation'] = {**rle, 'counts': rle['counts'].decode('ascii')}
                    self.detections.append(record)

    def result(self) -> dict[str, float]:
        """COCO's twelve numbers by name, each in [0, 1]; those without ground truth are absent.

        Those of masks are called 'mask/AP' and so on.
        """
        if not self._annotations():
            return {}
        return {
            prefix + name: float(stat)
            for kind, prefix in self._kinds.items()
            for name, stat in zip(METRICS, self._score(kind)[0], strict=True)
            if stat > -1
        }

    def per_class(self, kind: str = 'bbox') -> dict[str, float]:
        """AP by category name, for the categories with ground truth in the scored images.

        Where several categories have a name, each one's id follows it: 'cat (7)'.

        Args:
          kind: 'bbox', or 'segm' where masks are scored.
        """
        if not self._annotations():
            return {}
        return self._score(kind)[1]

    def _image_ids(self) -> set[int]:
        """The images to score."""
        if self._whole_split and self._ground_truth:
            return {image['id'] for image in self._ground_truth['images']}
        return self._seen

    def _annotations(self) -> list[dict[str, Any]]:
        """The annotations of the scored images."""
        annotations, wanted = (self._ground_truth or {}).get('annotations', []), self._image_ids()
        return [a for a in annotations if a['image_id'] in wanted]

    def _score(self, kind: str) -> tuple[np.ndarray, dict[str, float]]:
        """Runs the scorer once for all that was added."""
        if kind not in self._scored:
            coco_class, eval_class = _scorer(self.backend)
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                scorer = eval_class(
                    self._indexed(coco_class, self._annotations(), kind),
                    self._indexed(coco_class, self.detections, kind),
                    kind,
                )
                scorer.params.imgIds = sorted(self._image_ids())
                scorer.evaluate()
                scorer.accumulate()
                scorer.summarize()
            precision = scorer.eval['precision'][:, :, :, 0, -1]  # [threshold, recall, category]
            names = {c['id']: c['name'] for c in self._ground_truth['categories']} | self._names
            times = Counter(names.values())
            names = {i: name if times[name] == 1 else f'{name} ({i})' for i, name in names.items()}
            per_class = {
                names[category_id]: float(precision[:, :, k].mean())
                for k, category_id in enumerate(scorer.params.catIds)
                if (precision[:, :, k] > -1).all()
            }
            self._scored[kind] = np.asarray(scorer.stats[: len(METRICS)]), per_class
        return self._scored[kind]

    def _indexed(
        self, coco_class: Callable[[], Any], records: list[dict[str, Any]], kind: str
    ) -> Any:
        """A COCO object over copies of the records, numbered from 1.

        Both scorers mark an unmatched box with id 0, so an annotation numbered 0 would be lost;
        loading detections from a list, as pycocotools offers, fails on an empty list.
        """
        coco, wanted = coco_class(), self._image_ids()
        coco.dataset = {
            'images': [i for i in self._ground_truth['images'] if i['id'] in wanted],
            'categories': self._ground_truth['categories'],
            'annotations': [
                {'iscrowd': 0, **_with_area(r, kind), 'id': number}
                for number, r in enumerate(records, start=1)
            ],
        }
        coco.createIndex()
        return coco


def _with_area(record: dict[str, Any], kind: str) -> dict[str, Any]:
    """A record with an area, a detection's own where masks are scored, and with a mask there."""
    x, y, w, h = record['bbox']
    if kind == 'bbox':
        return {'area': w * h, **record}
    if not record.get('segmentation'):
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        return {'area': w * h, **record, 'segmentation': [corners], 'iscrowd': 1}
    if 'area' in record:
        return record
    from pycocotools import mask

    return {'area': float(mask.area(record['segmentation'])), **record}


def to_xywh(box: Sequence[float]) -> list[float]:
    """COCO's (x, y, width, height) of a (ymin, xmin, ymax, xmax)."""
    ymin, xmin, ymax, xmax = box
    return [xmin, ymin, xmax - xmin, ymax - ymin]


def rounded(detection: dict[str, Any]) -> dict[str, Any]:
    """A detection as it is written: its box to 0.01 pixels, its score to 1e-6.

    Half the bytes of a file, and more digits than a detector can know. Never score this: rounded
    scores tie, and a box may fall to the other side of an overlap threshold, which has moved AP by
    5e-4 on 60 images.
    """
    return {
        **detection,
        'bbox': [round(value, 2) for value in detection['bbox']],
        'score': round(detection['score'], 6),
    }


def _scorer(backend: str) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """What indexes and what scores, imported only when something is scored; both silent."""
    if backend == 'faster':
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, functools.partial(COCOeval_faster, print_function=lambda *_: None)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval
