"""What does a reader hand over, and what does a batch hold?

The types every reader and the pipeline agree on, and the rule that turns category ids into labels.
Reading, augmenting and batching are left to the other files.

Train batch: image uint8[B,H,W,3] RGB; content_size int32[B,2] (h, w: beyond it lies padding, which
the device zeroes after normalisation); boxes float32[B,N,4]; labels int32[B,N]; valid bool[B,N].
Eval batch: image, content_size, scale float32[B,2] (new size / old size, y and x), original_size
int32[B,2] (h, w), index int32[B] (position in the source; -1: a padding row or an image that could
not be read).
Classification: label int32[B] in place of boxes, labels and valid, in both kinds of batches; the
content fills the image.
Boxes are (ymin, xmin, ymax, xmax), far edge exclusive.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from spinenet_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Category(NamedTuple):
    """A class of objects: `label` is the model's channel (0 is background), `id` the data set's."""

    label: int
    id: int
    name: str


class Record(TypedDict):
    """One image as a reader gives it: still encoded, boxes in pixels of the original image."""

    image: str | bytes  # a path, or the encoded bytes
    image_id: int
    size: tuple[int, int] | None  # (h, w) that the boxes refer to, where the data set says so
    boxes: np.ndarray  # float32[n,4]
    labels: np.ndarray  # int32[n]
    is_crowd: np.ndarray  # bool[n]


class LabelRecord(TypedDict):
    """One image as a reader for classification gives it: still encoded, with its label."""

    image: str | bytes
    image_id: int
    size: tuple[int, int] | None
    label: int  # from 1; -1 where the data set keeps it secret


# Stands for an image that belongs to no data set.
NO_RECORD = LabelRecord(image=b'', image_id=-1, size=None, label=-1)


@dataclasses.dataclass
class Unreadable:
    """Images that turned out unreadable while running; the loop polls `count` and `summary()`.

    Filled by the thread that consumes batches only, so it holds what was consumed, not what was
    read ahead, and counts reads: an image met in three epochs counts three times.
    """

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str) -> None:
        """Counts one failed read and keeps `name` (name and reason) if it is among the first 5."""
        self.count += 1
        if len(self.first) < 5 and name not in self.first:
            self.first.append(name)

    def wants_name(self) -> bool:
        """Whether a further name would be kept."""
        return len(self.first) < 5

    def summary(self) -> str:
        """One line for the log, '' when every image was readable."""
        if not self.count:
            return ''
        return f'{self.count} images could not be read (first: {"; ".join(self.first)})'


class Source(Protocol):
    """A data set by position: what `pipeline.py` needs of a reader.

    `ground_truth` is of detection alone; a reader for classification gives `LabelRecord`s.
    """

    name: str
    categories: list[Category]
    image_ids: Sequence[int]
    report: list[str]
    unreadable: Unreadable

    @property
    def ground_truth(self) -> dict[str, Any] | None:
        """COCO JSON of what evaluation needs (boxes, areas, crowd flags); None without labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | LabelRecord: ...

    def describe(self, index: int) -> str:
        """What to call record `index` in a message: a file name, or the like."""


def assign_labels(categories: Sequence[tuple[int, str]], num_classes: int) -> list[Category]:
    """Gives every category the model's channel it is learned in.

    Label = category id where every id lies in 1..num_classes-1 (COCO's 1..90 in 91 channels, as the
    published checkpoints have it); otherwise 1..K in the order of ids. `num_classes` 0 means that
    the model takes its size from the data: always 1..K. Returned in the order of ids; K > channels
    raises UserError.
    """
    ordered = sorted(categories)
    if num_classes and all(1 <= i < num_classes for i, _ in ordered):
        return [Category(i, i, name) for i, name in ordered]
    if num_classes and len(ordered) > num_classes - 1:
        raise UserError(
            f'the data has {len(ordered)} categories but the model {num_classes} channels with '
            f'background: set --config.model.num_classes={len(ordered) + 1}, or 0 to take it from '
            'the data'
        )
    return [Category(label, i, name) for label, (i, name) in enumerate(ordered, start=1)]


def pad_boxes(boxes: np.ndarray, labels: np.ndarray, max_boxes: int) -> Batch:
    """Boxes and labels of one image in arrays of fixed length, with the mask that says which count.

    boxes float32[n,4], labels int32[n] -> boxes float32[max_boxes,4], labels int32[max_boxes],
    valid bool[max_boxes]. More than `max_boxes` boxes: the largest stay, in their order. None: all
    zeros.
    """
    if len(boxes) > max_boxes:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        keep = np.sort(np.argsort(-area, kind='stable')[:max_boxes])
        boxes, labels = boxes[keep], labels[keep]
    n = len(boxes)
    out = {
        'boxes': np.zeros((max_boxes, 4), np.float32),
        'labels': np.zeros(max_boxes, np.int32),
        'valid': np.arange(max_boxes) < n,
    }
    out['boxes'][:n], out['labels'][:n] = boxes, labels
    return out


def check_categories(trained: Sequence[Category], source: Sequence[Category]) -> None:
    """Raises UserError where a label of the model means another category in the data."""
    known = {c.label: c for c in trained}
    for category in source:
        own = known.get(category.label, category)
        if own.id != category.id:
            raise UserError(
                f'label {category.label} is category {own.id} ({own.name}) of the model but '
                f'{category.id} ({category.name}) in the data: the categories of both must agree'
            )
