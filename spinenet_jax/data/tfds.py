"""Reads a prepared TFDS detection data set by position, without TensorFlow.

`coco/2017` and any data set with its features (image, objects/bbox, objects/label), prepared as
ArrayRecord:

    tfds build coco/2017 --file_format=array_record

Preparing needs TensorFlow, reading does not. TFDS has neither masks nor exact areas, so official
numbers want the official JSON (`annotations`); without it, ground truth is made from the features.
"""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spinenet_jax.data.annotations import load_annotations
from spinenet_jax.data.batch import BOXES, Category, Record, Unreadable, assign_labels
from spinenet_jax.data.coco import ground_truth_of
from spinenet_jax.data.decode import BadImageError, stored_size
from spinenet_jax.errors import UserError

# COCO's ids of its 80 categories in the order of TFDS labels 0..79: 1..90 without these.
_COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_IDS = [i for i in range(1, 91) if i not in _COCO_UNUSED]


class TfdsSource:
    """A split of a TFDS detection data set, see `batch.Source`.

    Category ids are those of `annotations` where given (joined by name), COCO's 1..90 for `coco/*`,
    else 1..K in the order of TFDS labels. Images are numbered by their position where the data set
    has no `image/id`.
    """

    provides = BOXES

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str = '',
        annotations: str = '',
        num_classes: int = 0,
    ):
        """Opens the data set; UserError where it is not there or not readable by position.

        `data_dir` '' means $TFDS_DATA_DIR or ~/tensorflow_datasets. `annotations` is the path of
        the official COCO JSON of this split, or of the split that it is a slice of, or ''; only
        `ground_truth` wants the JSON to have the images, training takes category ids alone.
        `num_classes` as in `coco.CocoSource`.
        """
        directory = prepared_directory(name, data_dir)
        self.name = f'{name}:{split}'
        self._data, features = open_split(name, directory, split)
        names = _label_names(directory, features)
        self._annotations = annotations
        self._table = load_annotations(Path(annotations)) if annotations else None
        ids = _category_ids(name, names, self._table and self._table.categories)
        self.categories: list[Category] = assign_labels(
            list(zip(ids, names, strict=True)), num_classes
        )
        label_of = {c.id: c.label for c in self.categories}
        self._ids = np.array(ids, np.int64)
        self._labels = np.array([label_of[i] for i in ids], np.int32)
        self.report: list[str] = list(self._table.report) if self._table else []
        self.unreadable = Unreadable()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        example = self._data[index]
        size = stored_size(example['image'])
        boxes, labels, crowd = _objects(example['objects'], size)
        good = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        good &= self._known(labels)
        return Record(
            image=example['image'],
            image_id=int(example.get('image/id', index)),
            size=size,
            boxes=boxes[good],
            labels=self._labels[labels[good]],
            is_crowd=crowd[good],
        )

    def describe(self, index: int) -> str:
        """The file name of record `index` where the data set keeps it."""
        name = self._data[index].get('image/filename', index)
        return name.decode() if isinstance(name, bytes) else f'record {name}'

    @functools.cached_property
    def image_ids(self) -> list[int]:
        """Ids of all images; the first use reads the whole split."""
        return [int(e.get('image/id', i)) for i, e in enumerate(self._examples())]

    @functools.cached_property
    def ground_truth(self) -> dict[str, Any] | None:
        """COCO JSON for box evaluation, of this split's images; the first use reads the split.

        UserError where `annotations` have not all of its images.
        """
        if self._table is not None:
            self._check_annotated(self.image_ids)
            return _of_images(ground_truth_of(self._table), set(self.image_ids))
        images, rows = [], []
        for index, example in enumerate(self._examples()):
            image_id = int(example.get('image/id', index))
            try:
                h, w = stored_size(example['image'])
            except BadImageError:
                continue
            images.append({'id': image_id, 'height': h, 'width': w})
            boxes, labels, crowd = _objects(example['objects'], (h, w))
            areas = example['objects'].get('area')
            for n in np.flatnonzero(self._known(labels)).tolist():
                y, x, y2, x2 = boxes[n].tolist()
                rows.append(
                    {
                        'id': len(rows) + 1,
                        'image_id': image_id,
                        'category_id': int(self._ids[labels[n]]),
                        'bbox': [x, y, x2 - x, y2 - y],
                        'area': float((y2 - y) * (x2 - x) if areas is None else areas[n]),
                        'iscrowd': int(crowd[n]),
                    }
                )
        categories = [{'id': c.id, 'name': c.name} for c in self.categories]
        return {'images': images, 'annotations': rows, 'categories': categories}

    def check_annotations(self) -> None:
        """UserError where `annotations` are of another split, by its first image: reads no more."""
        if self._table is not None:
            self._check_annotated([int(self._data[0].get('image/id', 0))])

    def _check_annotated(self, image_ids: list[int]) -> None:
        listed = set(self._table.image_ids.tolist())
        missing = [i for i in image_ids if i not in listed]
        if missing:
            raise UserError(
                f'{self._annotations}: lacks images of {self.name} (first: id {missing[0]}): '
                'the annotations are of another split (data.annotations)'
            )

    def _known(self, labels: np.ndarray) -> np.ndarray:
        """bool[n]: whether a TFDS label names a class; TFDS writes -1 for one that is secret."""
        return (labels >= 0) & (labels < len(self._labels))

    def _examples(self) -> Iterator[dict[str, Any]]:
        """All examples in order."""
        return (self._data[i] for i in range(len(self)))


def prepared_directory(name: str, data_dir: str) -> Path:
    """The newest prepared version of a data set."""
    base = Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
    path = base.expanduser() / name
    versions = [path, *path.glob('*.*.*')]
    versions = [v for v in versions if (v / 'dataset_info.json').is_file()]
    if not versions:
        raise UserError(
            f'{path}: no prepared data set: run `tfds build {name} --file_format=array_record` '
            '(needs TensorFlow), or set data.root to its data_dir'
        )
    return max(versions, key=lambda v: [int(p) for p in v.name.split('.') if p.isdigit()])


def open_split(name: str, directory: Path, split: str) -> tuple[Any, Any]:
    """Random access to a split with images still encoded, and the features of the data set.

    UserError where there is no such split, or it cannot be read by position.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    _check_split(directory, builder.info.splits, split)
    try:
        skip = {'image': tfds.decode.SkipDecoding()}
        return builder.as_data_source(split, decoders=skip), builder.info.features
    except NotImplementedError:
        raise UserError(
            f'{directory}: not prepared as ArrayRecord, which reading by position needs: run '
            f'`tfds build {name} --file_format=array_record --overwrite`'
        ) from None


def _check_split(directory: Path, splits: Any, split: str) -> None:
    """UserError where a part of 'a+b[:10%]' is no split or slice that TFDS knows, or is empty."""
    for part in re.split(r'\s*\+\s*', split):
        try:
            reason = '' if splits[part].num_examples else f'"{part}" is empty'
        except (KeyError, ValueError, NotImplementedError) as error:
            reason = str(error).splitlines()[-1]
        if reason:
            raise UserError(
                f'{directory}: no split "{split}"; there are {", ".join(splits)} '
                f'(data.train_split, data.eval_split): {reason}'
            )


def _label_names(directory: Path, features: Any) -> list[str]:
    """The names of the labels of a data set that has boxes."""
    try:
        _ = features['image'], features['objects']['bbox']
        return list(features['objects']['label'].names)
    except (KeyError, AttributeError, TypeError):
        raise UserError(
            f'{directory}: want the features image, objects/bbox and objects/label, as coco/2017'
        ) from None


def _of_images(truth: dict[str, Any] | None, image_ids: set[int]) -> dict[str, Any] | None:
    """What a COCO JSON object says of some images."""
    return truth and {
        **truth,
        'images': [image for image in truth['images'] if image['id'] in image_ids],
        'annotations': [a for a in truth['annotations'] if a['image_id'] in image_ids],
    }


def _category_ids(name: str, names: list[str], official: list[tuple[int, str]] | None) -> list[int]:
    """The category id of every TFDS label."""
    if official:
        id_of = {n: i for i, n in official}
        missing = [n for n in names if n not in id_of]
        if missing:
            raise UserError(f'data.annotations has no category "{missing[0]}", which {name} has')
        return [id_of[n] for n in names]
    if name.split('/')[0] == 'coco' and len(names) == len(_COCO_IDS):
        return _COCO_IDS
    return list(range(1, len(names) + 1))


def _objects(
    objects: dict[str, Any], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes float32[n,4] in pixels, TFDS labels int[n], crowd flags bool[n]."""
    boxes = np.array(objects['bbox'], np.float32).reshape(-1, 4) * np.float32((*size, *size))
    labels = np.array(objects['label'], np.int64).reshape(-1)
    crowd = np.array(objects.get('is_crowd', np.zeros(len(labels))), bool).reshape(-1)
    return boxes, labels, crowd
