"""Reads a COCO directory by position.

    root/annotations/instances_<split>.json   root/<split>/*.jpg

Finds the files, sets labels, gives records and the ground truth of evaluation. What is inside the
JSON is checked by annotations.py; decoding is left to the pipeline. Local directories only.
"""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from spinenet_jax.data.annotations import (
    AnnotationTable,
    count_line,
    first_outside,
    leaves_root,
    load_annotations,
)
from spinenet_jax.data.batch import (
    BOXES,
    SEGMENTATIONS,
    Category,
    Record,
    Unreadable,
    assign_labels,
)
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.errors import UserError


class CocoSource:
    """A split of a COCO directory, see `batch.Source`.

    Images that the JSON lists but the directory lacks are left out and counted in `.report`; they
    stay in `.ground_truth`, so that evaluation counts them as images without detections.
    """

    provides = BOXES | SEGMENTATIONS

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        num_classes: int = 0,
        *,
        allow_outside_root: bool = False,
        with_segmentations: bool = False,
    ):
        """Reads the JSON and lists the images once.

        Args:
          root: the directory.
          split: its name, see above.
          num_classes: the model's channels with background, 0 for as many as the data needs.
          allow_outside_root: follow file names that lead out of the root.
          with_segmentations: give them in records and in the ground truth; costs memory and time.

        Raises:
          UserError: what is wrong and where.
        """
        self.name = split
        path = _annotation_file(Path(root), split)
        self._table = load_annotations(path, with_segmentations)
        self.categories: list[Category] = assign_labels(self._table.categories, num_classes)
        self._label_of = {c.id: c.label for c in self.categories}
        parent = {'test-dev2017': 'test2017'}.get(split, split)
        outside = first_outside(self._table.file_names, (parent, ''))
        if outside is not None and not allow_outside_root:
            raise UserError(
                f'{path}: file name "{outside}" leads out of the data set '
                '(--config.data.allow_outside_root=True follows such names)'
            )
        self._directory, self._kept, missing = _find_images(
            Path(root), parent, self._table.file_names, allow_outside_root
        )
        self.report: list[str] = list(self._table.report)
        if missing:
            self.report.append(count_line(path, f'images not in {self._directory}', missing))
        self.image_ids: list[int] = self._table.image_ids[self._kept].tolist()
        self.unreadable = Unreadable()

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        table, image = self._table, self._kept[index]
        rows = slice(table.starts[image], table.starts[image + 1])
        rows = np.flatnonzero(table.trainable[rows]) + rows.start
        size = table.sizes[image]
        record = Record(
            image=os.path.join(self._directory, table.file_names[image]),
            image_id=int(table.image_ids[image]),
            size=(int(size[0]), int(size[1])) if size.any() else None,
            boxes=_corners(table.xywh[rows], size),
            labels=np.array([self._label_of[c] for c in table.category_ids[rows]], np.int32),
            is_crowd=table.is_crowd[rows],
        )
        if table.segmentations is not None:
            record['segmentations'] = [table.segmentations.usable_mask(n) for n in rows.tolist()]
        return record

    def describe(self, index: int) -> str:
        """The file name of record `index`."""
        return self._table.file_names[self._kept[index]]

    @property
    def box_counts(self) -> np.ndarray:
        """int64[M]: boxes to train on of every record."""
        table = self._table
        total = np.concatenate([[0], np.cumsum(table.trainable & ~table.is_crowd)])
        return (total[table.starts[1:]] - total[table.starts[:-1]])[self._kept]

    @property
    def ground_truth(self) -> dict[str, Any] | None:
        """COCO JSON for evaluation: all listed images, found or not; None without labels."""
        if self._table.segmentations is not None:
            self._find_sizes()
        return ground_truth_of(self._table)

    def _find_sizes(self) -> None:
        """Takes sizes that the JSON lacks from the images: polygons cannot be scored without."""
        for index in self._kept[~self._table.sizes[self._kept].any(1)].tolist():
            path = os.path.join(self._directory, self._table.file_names[index])
            with contextlib.suppress(BadImageError):
                self._table.sizes[index] = read_image(path).shape[:2]


def ground_truth_of(table: AnnotationTable) -> dict[str, Any] | None:
    """What pycocotools needs for evaluation, as a COCO JSON object; None without labels.

    An annotation has a segmentation where the table has one that can be drawn in its image.
    """
    if not table.has_annotations:
        return None
    owner = np.repeat(table.image_ids, np.diff(table.starts))
    crowd = table.is_crowd.astype(int)
    columns = (table.ids, owner, table.category_ids, table.xywh, table.area, crowd)
    keys = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd')
    rows = zip(*(column.tolist() for column in columns), strict=True)
    annotations = [dict(zip(keys, row, strict=True)) for row in rows]
    if table.segmentations is not None:
        for n, annotation in enumerate(annotations):
            segmentation = table.segmentations.drawable_mask(n)
            if segmentation is not None:
                annotation['segmentation'] = segmentation.coco
    images = zip(table.image_ids.tolist(), table.file_names, table.sizes.tolist(), strict=True)
    return {
        'images': [
            {'id': i, 'file_name': name, 'height': h, 'width': w} for i, name, (h, w) in images
        ],
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in table.categories],
    }


def _annotation_file(root: Path, split: str) -> Path:
    """instances_<split>.json, or the image list that COCO gives for its test splits."""
    if not os.path.isdir(root):
        raise UserError(f'{root}: no such directory (data.root)')
    folder = root / 'annotations'
    for name in (f'instances_{split}.json', f'image_info_{split}.json'):
        if os.path.exists(folder / name):
            return folder / name
    names = [os.path.splitext(name) for name in _listing(folder)]
    found = sorted(
        stem.removeprefix('instances_')
        for stem, suffix in names
        if stem.startswith('instances_') and suffix == '.json'
    )
    other = None if found else _other_format(root)
    if other:
        raise UserError(
            f'{root} looks like a data set in {other} format; COCO JSON is read here: '
            'docs/own_data.md shows how to convert it (data.root)'
        )
    raise UserError(
        f'{folder / f"instances_{split}.json"}: no such file; splits there: '
        f'{", ".join(found) or "none"} (data.train_split, data.eval_split)'
    )


def _other_format(root: Path) -> str | None:
    """The format of a data set that is not COCO's, from the files it typically has."""
    if any(root.glob('*.yaml')) or any(root.glob('labels/**/*.txt')):
        return 'YOLO'
    if any(root.glob('Annotations/*.xml')) or any(root.glob('*/Annotations/*.xml')):
        return 'Pascal VOC'
    return None


def _find_images(
    root: Path, parent: str, file_names: list[str], allow_outside_root: bool
) -> tuple[str, np.ndarray, list[str]]:
    """Directory of the images, positions of those that exist, names of those that do not."""
    for folder in (parent, ''):  # file names may already say train2017/...
        inside = [
            name for name in file_names if allow_outside_root or not leaves_root(name, folder)
        ]
        directories = {os.path.dirname(name) for name in inside}
        present = {
            os.path.join(directory, name)
            for directory in directories
            for name in _listing(root / folder / directory)
        }
        allowed = present & set(inside)
        found = np.array([name in allowed for name in file_names])
        if found.any():
            missing = [n for n, ok in zip(file_names, found, strict=True) if not ok]
            return str(root / folder), np.flatnonzero(found), missing
    raise UserError(
        f'{root / parent}: none of the {len(file_names)} images of the JSON is there '
        f'(first: {file_names[0]})'
    )


def _listing(directory: Path) -> list[str]:
    """Names in a directory; none where there is no such directory, or can be none."""
    try:
        return os.listdir(directory)
    except UnicodeEncodeError:
        return []
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return []
        raise UserError(f'{directory}: cannot be listed: {error.strerror}') from error


def _corners(xywh: np.ndarray, size: np.ndarray) -> np.ndarray:
    """COCO's boxes as ours, cut to the image where its size is known."""
    low, high = xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, 3:1:-1]
    limit = np.where(size > 0, size, np.inf)
    return np.concatenate([np.maximum(low, 0), np.minimum(high, limit)], 1).astype(np.float32)
