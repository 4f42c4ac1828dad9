"""The input pipeline: streams of batches from a data source, shuffled and augmented.

Grain reads, shuffles and runs the threads; this file says what one element is and how elements
become batches. Everything is a function of the position in one global stream of images, so that a
run resumes exactly from its step and a global batch does not depend on the number of processes.
"""

import atexit
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import grain
import numpy as np
from absl import flags

from spinenet_jax.data import transforms
from spinenet_jax.data.batch import (
    BOXES,
    INDEX_FIELDS,
    ORIGIN_FIELDS,
    SEGMENTATIONS,
    Batch,
    EvalRow,
    Example,
    Fields,
    Record,
    Source,
    TrainRow,
    blank_row,
    box_fields,
    image_fields,
    largest_boxes,
    mask_fields,
    pad_boxes,
)
from spinenet_jax.data.cores import core_count
from spinenet_jax.data.decode import MAX_PIXELS, BadImageError, read_image
from spinenet_jax.data.masks import CROP_SIZE, crop_masks, original_boxes
from spinenet_jax.errors import UserError

_MAX_REPLACEMENTS = 100
_MOST_THREADS = 16
_FAILED = 'unreadable'  # column that tells the consumer which record could not be read, -1: none


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are placed, their boxes with them, and masks where wanted.

    Sizes are (h, w) in pixels, scales relative to `image_size`.
    """

    image_size: tuple[int, int]
    scale_min: float
    scale_max: float
    flip: bool
    max_boxes: int
    with_masks: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """See `batch.TrainRow`."""
        return BOXES | SEGMENTATIONS if self.with_masks else BOXES

    @property
    def fields(self) -> Fields:
        """See `batch.TrainRow`."""
        masks = mask_fields(self.max_boxes, CROP_SIZE) if self.with_masks else {}
        return {**image_fields(self.image_size), **box_fields(self.max_boxes), **masks}

    def __call__(self, record: Record, image: np.ndarray, rng: np.random.Generator) -> Example:
        """One row of a train batch from decoded pixels uint8[h,w,3]."""
        draws = transforms.sample_draws(rng, self.scale_min, self.scale_max, self.flip)
        return train_example(record, image, self, draws)


@dataclasses.dataclass(frozen=True)
class WholeImage:
    """How evaluation images are placed: as large as fits into `image_size` (h, w), aspect kept."""

    image_size: tuple[int, int]

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def fields(self) -> Fields:
        """See `batch.EvalRow`."""
        return {**image_fields(self.image_size), **ORIGIN_FIELDS}

    def __call__(self, record: Record, image: np.ndarray) -> Example:
        """One row of an eval batch, without `index`, from decoded pixels uint8[h,w,3]."""
        del record
        placement = transforms.place(image.shape[:2], self.image_size, transforms.Draws())
        return {
            'image': transforms.place_image(image, placement, self.image_size),
            'content_size': np.int32(placement.content_size),
            'scale': placement.scale,
            'original_size': np.int32(image.shape[:2]),
        }


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of the global stream this process reads: `batch_size` images a process."""

    batch_size: int
    process_index: int = 0
    process_count: int = 1
    start_step: int = 0

    def position(self, k: int) -> int:
        """Global position of this process's k-th image: global batch s is one run of positions."""
        step, row = divmod(k, self.batch_size)
        block = (self.start_step + step) * self.process_count + self.process_index
        return block * self.batch_size + row


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
      num_threads: of each process that reads; 0 means one a core, and 16 at most: more would wait
        for Python's lock.
      worker_count: processes that read; 0 means none but this.
      max_pixels: larger images count as unreadable.
    """

    num_threads: int = 0
    worker_count: int = 0
    max_pixels: int = MAX_PIXELS

    @property
    def threads(self) -> int:
        """How many threads a process reads with, at least 1."""
        return self.num_threads or min(core_count(), _MOST_THREADS)


def train_iterator(
    source: Source, to_row: TrainRow, shard: Shard, reading: Reading, seed: int
) -> Iterator[Batch]:
    """Endless training batches of this process from `shard.start_step` on.

    Every epoch is another permutation, every visit another draw. An image that cannot be read is
    replaced by the next readable record of the source and counted in `source.unreadable`; a
    hundred in a row raise UserError.
    """
    load = _TrainImage(source, to_row, shard, seed, reading.max_pixels)
    stream = grain.MapDataset.range(2**40).map(load)
    return _consume(source, _batches(stream, shard.batch_size, reading), reading)


def eval_iterator(
    source: Source, to_row: EvalRow, shard: Shard, reading: Reading
) -> Iterator[Batch]:
    """Every image once, in order; the last batches are filled with rows index -1.

    The number of batches is the same on every process. An image that cannot be read is a row with
    index -1 as well, counted in `source.unreadable`.
    """
    global_batch = shard.batch_size * shard.process_count
    steps = -(-len(source) // global_batch)
    stream = grain.MapDataset.range(steps * shard.batch_size)
    stream = stream.map(_EvalImage(source, to_row, shard, reading.max_pixels))
    return _consume(source, _batches(stream, shard.batch_size, reading), reading)


@dataclasses.dataclass(frozen=True)
class _TrainImage:
    """k -> the k-th training image of this process."""

    source: Source
    to_row: TrainRow
    shard: Shard
    seed: int
    max_pixels: int

    def __call__(self, k: int) -> Example:
        position = self.shard.position(k)
        wanted = shuffled(position, len(self.source), self.seed)
        index, record, image = _first_readable(self.source, wanted, self.max_pixels)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
        example = self.to_row(record, image, rng)
        example[_FAILED] = np.int32(-1 if index == wanted else wanted)
        return example


@dataclasses.dataclass(frozen=True)
class _EvalImage:
    """k -> the k-th evaluation row of this process."""

    source: Source
    to_row: EvalRow
    shard: Shard
    max_pixels: int

    def __call__(self, k: int) -> Example:
        index = self.shard.position(k)
        if index >= len(self.source):
            return {**_empty_row(self.to_row), _FAILED: np.int32(-1)}
        try:
            record = self.source[index]
            image = read_image(record['image'], record['size'], self.max_pixels)
        except BadImageError:
            return {**_empty_row(self.to_row), _FAILED: np.int32(index)}
        row = self.to_row(record, image)
        return {**row, 'index': np.int32(index), _FAILED: np.int32(-1)}


def shuffled(position: int, count: int, seed: int) -> int:
    """Which of `count` records stands at a position of the endless shuffled stream.

    Every run of `count` positions is a permutation of its own; no table is kept.
    """
    epoch, place = divmod(position, count)
    key = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]
    return grain.experimental.index_shuffle(place, max_index=count - 1, seed=int(key), rounds=4)


def train_example(
    record: Record, image: np.ndarray, augmentation: Augmentation, draws: transforms.Draws
) -> Example:
    """One row of a train batch from decoded pixels uint8[h,w,3]; crowd boxes are dropped."""
    size = augmentation.image_size
    placement = transforms.place(image.shape[:2], size, draws)
    boxes, seen = transforms.place_boxes(record['boxes'], placement, image.shape[1], draws.flip)
    keep = np.flatnonzero(seen & ~record['is_crowd'])
    keep = keep[largest_boxes(boxes[keep], augmentation.max_boxes)]
    row = {
        'image': transforms.place_image(image, placement, size, draws.flip),
        'content_size': np.int32(placement.content_size),
        **pad_boxes(boxes[keep], record['labels'][keep], augmentation.max_boxes),
    }
    if augmentation.with_masks:
        seen_boxes = original_boxes(boxes[keep], placement, image.shape[1], draws.flip)
        row |= _masks(record, keep, seen_boxes, image.shape[:2], augmentation.max_boxes, draws.flip)
    return row


def _masks(
    record: Record,
    keep: np.ndarray,
    boxes: np.ndarray,
    image_size: tuple[int, int],
    max_boxes: int,
    flip: bool,
) -> Example:
    """The entries of masks: of the objects `keep` int[n], which fill `boxes` of the image."""
    row = blank_row(mask_fields(max_boxes, CROP_SIZE))
    segmentations = [record['segmentations'][n] for n in keep.tolist()]
    masks, has_mask = crop_masks(segmentations, boxes, image_size, flip)
    row['masks'][: len(keep)], row['has_mask'][: len(keep)] = masks, has_mask
    return row


def _empty_row(to_row: EvalRow) -> Example:
    """A row that stands for no image: zeros, and a scale that nothing is divided by zero with."""
    row = blank_row({**to_row.fields, **INDEX_FIELDS})
    return {**row, 'scale': np.ones(2, np.float32), 'index': np.int32(-1)}


def _first_readable(source: Source, wanted: int, max_pixels: int) -> tuple[int, Record, np.ndarray]:
    """The wanted record, or the next one after it that can be trained on."""
    for step in range(min(_MAX_REPLACEMENTS, len(source))):
        index = (wanted + step) % len(source)
        try:
            record = _labelled(source[index])
            return index, record, read_image(record['image'], record['size'], max_pixels)
        except BadImageError as error:
            reason = f'{source.describe(index)}: {error}'
    raise UserError(f'{source.name}: {step + 1} images in a row cannot be used, last {reason}')


def _labelled(record: Record) -> Record:
    """The record; BadImageError where its label is kept secret, so that nothing can be learnt."""
    if record.get('label', 0) < 0:
        raise BadImageError('it has no label')
    return record


def _batches(stream: grain.MapDataset, batch_size: int, reading: Reading) -> Iterator[Batch]:
    """Runs the threads (or workers) and stacks; both ways give the same batches in order.

    In one process only single images are read ahead, so that memory does not grow with threads
    times batch size; workers hand over whole batches.
    """
    threads = reading.threads
    if reading.worker_count:
        if not flags.FLAGS.is_parsed():  # in a notebook; Grain's workers read flags of their own
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = stream.batch(batch_size).to_iter_dataset(options)
        workers = grain.MultiprocessingOptions(num_workers=reading.worker_count)
        return iter(batches.mp_prefetch(workers))
    ahead = max(2 * threads, min(batch_size, 32))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    images = stream.to_iter_dataset(options)
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            images.batch(batch_size), prefetch_buffer_size=1
        )
    )


def _consume(source: Source, batches: Iterator[Batch], reading: Reading) -> Iterator[Batch]:
    """Takes the column of failures out of the batches and into `source.unreadable`.

    The reading threads stop when the consumer is done, at the latest before the interpreter goes.
    """
    atexit.register(batches.close)
    try:
        for batch in batches:
            for index in batch.pop(_FAILED).tolist():
                if index >= 0:
                    source.unreadable.add(_failure(source, index, reading.max_pixels))
            yield batch
    finally:
        atexit.unregister(batches.close)
        batches.close()


def _failure(source: Source, index: int, max_pixels: int) -> str:
    """Name and reason of an unusable image; read again for it only while names are kept."""
    if not source.unreadable.wants_name():
        return source.describe(index)
    try:
        record = source[index]
        read_image(record['image'], record['size'], max_pixels)
        _labelled(record)
    except BadImageError as error:
        return f'{source.describe(index)}: {error}'
    return f'{source.describe(index)}: failed once'
