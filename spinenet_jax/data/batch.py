"""The types that readers, the pipeline and tasks agree on: records, rows, batches and sources.

A reader gives a record an image (`Record`). A task's rows (`TrainRow`, `EvalRow`) turn records and
decoded pixels into rows of a batch, and declare each entry of a row once, with shape and dtype:
pipeline, feed, compilers and benchmarks take them from there. Also here: the rule that turns
category ids into labels. Reading, augmenting and batching are in the other files.

Entries that several tasks share:
  image uint8[H,W,3] RGB; content_size int32[2] (h, w: beyond it lies padding, which the device
  zeroes after normalisation).
  boxes float32[N,4]; labels int32[N]; valid bool[N]: objects of a training image, padded.
  masks uint8[N,112,112]; has_mask bool[N]: the masks of these objects, each filling its box, 255
  inside. An object without a usable mask has zeros there; its box is trained all the same.
  label int32[]: the class of an image, in both kinds of batches.
  scale float32[2] (new size / old size, y and x); original_size int32[2] (h, w): evaluation.
  index int32[]: evaluation; position in the source, -1 for a padding row or an image that could
  not be read.
Boxes are (ymin, xmin, ymax, xmax), far edge exclusive.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np

from spinenet_jax.data.segmentations import Segmentation
from spinenet_jax.errors import UserError

Batch = dict[str, np.ndarray]  # entries by name, leading with the batch axis
Example = dict[str, np.ndarray]  # one row of a batch


class Field(NamedTuple):
    """An entry of a batch as its task declares it.

    Attributes:
      shape: of one row, without the batch axis.
      dtype: numpy's.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]


Fields = Mapping[str, Field]
LABEL_FIELDS: Fields = {'label': Field((), np.int32)}
ORIGIN_FIELDS: Fields = {'scale': Field((2,), np.float32), 'original_size': Field((2,), np.int32)}
INDEX_FIELDS: Fields = {'index': Field((), np.int32)}


def image_fields(image_size: tuple[int, int]) -> Fields:
    """The entries of an image of `image_size` (h, w) pixels, padding included."""
    return {
        'image': Field((*image_size, 3), np.uint8),
        'content_size': Field((2,), np.int32),
    }


def box_fields(max_boxes: int) -> Fields:
    """The entries of up to `max_boxes` objects."""
    return {
        'boxes': Field((max_boxes, 4), np.float32),
        'labels': Field((max_boxes,), np.int32),
        'valid': Field((max_boxes,), np.bool_),
    }


def mask_fields(max_boxes: int, size: int) -> Fields:
    """The entries of the masks of up to `max_boxes` objects, `size` pixels a side."""
    return {
        'masks': Field((max_boxes, size, size), np.uint8),
        'has_mask': Field((max_boxes,), np.bool_),
    }


def blank_row(fields: Fields) -> Example:
    """A row of zeros."""
    return {name: np.zeros(field.shape, field.dtype) for name, field in fields.items()}


class Category(NamedTuple):
    """A class of objects: `label` is the model's channel (0 is background), `id` the data set's."""

    label: int
    id: int
    name: str


class Record(TypedDict):
    """One image as a reader gives it: still encoded, boxes in pixels of the original image.

    Which of the entries that are not required its records have, a source says by `provides`.
    """

    image: str | bytes  # a path, or the encoded bytes
    image_id: int
    size: tuple[int, int] | None  # (h, w) that the boxes refer to, where the data set says so
    boxes: NotRequired[np.ndarray]  # float32[n,4]
    labels: NotRequired[np.ndarray]  # int32[n]
    is_crowd: NotRequired[np.ndarray]  # bool[n]
    segmentations: NotRequired[Sequence[Segmentation | None]]  # n; None: no usable mask
    label: NotRequired[int]  # of the whole image, from 1; -1 where the data set keeps it secret


# Entries of a record that come together: what a source provides and a row needs.
BOXES = frozenset({'boxes', 'labels', 'is_crowd'})
SEGMENTATIONS = frozenset({'segmentations'})
LABEL = frozenset({'label'})

# Stands for an image that belongs to no data set.
NO_RECORD = Record(image=b'', image_id=-1, size=None, label=-1)


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
    """A data set by position: what the pipeline and evaluators need of a reader.

    Attributes:
      provides: the entries that its records have besides those every record has.
      name: of the split.
      categories: in the order of ids.
      report: lines on what was found or left out.
      unreadable: images that could not be read so far.
    """

    provides: frozenset[str]
    name: str
    categories: list[Category]
    report: list[str]
    unreadable: Unreadable

    @property
    def image_ids(self) -> Sequence[int]:
        """Of all images, by position."""

    @property
    def ground_truth(self) -> dict[str, Any] | None:
        """COCO JSON of what evaluation of boxes needs; None without boxes or annotations.

        With `segmentation` where the source was built for a task that needs segmentations.
        """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def describe(self, index: int) -> str:
        """What to call record `index` in a message: a file name, or the like."""


class EvalRow(Protocol):
    """How a decoded image becomes a row of an evaluation batch, and what that row holds."""

    @property
    def fields(self) -> Fields:
        """Every entry of a row, `index` left out: the pipeline adds it."""

    @property
    def needs(self) -> frozenset[str]:
        """What of a record is read, of the names that `Source.provides` lists."""

    def __call__(self, record: Record, image: np.ndarray) -> Example:
        """The row for decoded pixels uint8[h,w,3]; of `NO_RECORD` for an image without a source."""


class TrainRow(Protocol):
    """How a decoded image becomes a row of a training batch, and what that row holds."""

    @property
    def fields(self) -> Fields:
        """Every entry of a row: what the training step reads."""

    @property
    def needs(self) -> frozenset[str]:
        """What of a record is read, of the names that `Source.provides` lists."""

    def __call__(self, record: Record, image: np.ndarray, rng: np.random.Generator) -> Example:
        """The row for decoded pixels uint8[h,w,3]; what is random is drawn from `rng`."""


class Rows(NamedTuple):
    """The two kinds of rows of a task."""

    train: TrainRow
    eval: EvalRow

    @property
    def needs(self) -> frozenset[str]:
        """What a data source must provide for both."""
        return self.train.needs | self.eval.needs

    @property
    def eval_fields(self) -> Fields:
        """Every entry of an evaluation batch, `index` included."""
        return {**self.eval.fields, **INDEX_FIELDS}


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


def largest_boxes(boxes: np.ndarray, most: int) -> np.ndarray:
    """int64[m]: positions of the `most` largest of boxes float32[n,4], in their order; m <= n."""
    if len(boxes) <= most:
        return np.arange(len(boxes))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-area, kind='stable')[:most])


def pad_boxes(boxes: np.ndarray, labels: np.ndarray, max_boxes: int) -> Example:
    """Boxes and labels of one image in arrays of fixed length, with the mask that says which count.

    boxes float32[n,4], labels int32[n] -> boxes float32[max_boxes,4], labels int32[max_boxes],
    valid bool[max_boxes]. More than `max_boxes` boxes: the largest stay, in their order. None: all
    zeros.
    """
    keep = largest_boxes(boxes, max_boxes)
    n = len(keep)
    out = blank_row(box_fields(max_boxes))
    out['boxes'][:n], out['labels'][:n], out['valid'][:n] = boxes[keep], labels[keep], True
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
