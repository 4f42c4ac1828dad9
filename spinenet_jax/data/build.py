"""Builds the data source and the batches that a config's `data` section asks for.

What it calls takes plain arguments.
"""

from collections.abc import Iterator
from typing import Any

from spinenet_jax.data.batch import Batch, Source
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.image_folder import ImageFolder
from spinenet_jax.data.pipeline import (
    Augmentation,
    EvalRow,
    Reading,
    Shard,
    TrainRow,
    WholeImage,
    eval_iterator,
    train_iterator,
)
from spinenet_jax.errors import UserError

# data.source, and the task that it has the annotations for.
SOURCES = {
    'coco': 'detection',
    'tfds': 'detection',
    'digits': 'detection',
    'image_folder': 'classification',
    'tfds_labels': 'classification',
    'digit_scans': 'classification',
}


def check_task(data_config: Any, task: str) -> None:
    """UserError where the data has no annotations for the task; an unknown task passes."""
    if task in SOURCES.values() and _task(data_config) != task:
        fitting = ', '.join(name for name, known in SOURCES.items() if known == task)
        raise UserError(
            f'data.source "{data_config.source}" has nothing for task "{task}": want {fitting}'
        )


def build_source(data_config: Any, split: str, num_classes: int) -> Source:
    """The data set of a split: 'train' and 'eval' mean the config's, anything else is a name.

    `num_classes` counts the model's channels with background, 0 for as many as the data needs.
    Writes the digits data set on first use. UserError says what is wrong with the data.
    """
    if data_config.source in ('coco', 'image_folder') and not data_config.root:
        raise UserError(
            'data.root is empty: --config.data.root=<folder of the data set> is missing'
        )
    name = {'train': data_config.train_split, 'eval': data_config.eval_split}.get(split, split)
    if _task(data_config) == 'classification':
        source = _labels_source(data_config, name, num_classes)
        some = range(min(len(source), 20))  # a few without a label are left out by the pipeline
        if split == 'train' and all(source[index]['label'] < 0 for index in some):
            raise UserError(f'{source.name}: has no labels to train on (data.train_split)')
        return source
    source = _boxes_source(data_config, name, num_classes)
    if split == 'train':
        _check_for_training(source, data_config.max_boxes)
    return source


def _boxes_source(data_config: Any, split: str, num_classes: int) -> Source:
    """A reader for detection."""
    if data_config.source == 'coco':
        return CocoSource(
            data_config.root,
            split,
            num_classes,
            allow_outside_root=data_config.allow_outside_root,
        )
    if data_config.source == 'digits':
        from spinenet_jax.data.digits import ensure_digits

        return CocoSource(ensure_digits(data_config.root), split, num_classes)
    from spinenet_jax.data.tfds import TfdsSource

    return TfdsSource(
        data_config.tfds_name,
        split,
        data_dir=data_config.root,
        annotations=data_config.annotations,
        num_classes=num_classes,
    )


def _labels_source(data_config: Any, split: str, num_classes: int) -> Source:
    """A reader for classification."""
    if data_config.source == 'image_folder':
        return ImageFolder(data_config.root, split, data_config.train_split, num_classes)
    if data_config.source == 'digit_scans':
        from spinenet_jax.data.digit_scans import DigitScans

        return DigitScans(split, num_classes)
    from spinenet_jax.data.tfds_labels import TfdsLabels

    return TfdsLabels(data_config.tfds_name, split, data_config.root, num_classes)


def train_batches(
    source: Source,
    data_config: Any,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """Endless training batches (see batch.py) of this process, from `start_step` on.

    `batch_size` is this process's. The stream is a function of `seed` alone, and global batch s
    holds the same images in the same order for any number of processes.
    """
    shard = Shard(batch_size, process_index, process_count, start_step)
    return train_iterator(source, _train_row(data_config), shard, _reading(data_config), seed)


def eval_batches(
    source: Source, data_config: Any, *, batch_size: int, process_index: int, process_count: int
) -> Iterator[Batch]:
    """Every image once (see batch.py), the same number of batches on every process."""
    shard = Shard(batch_size, process_index, process_count)
    return eval_iterator(source, eval_row(data_config), shard, _reading(data_config))


def eval_row(data_config: Any) -> EvalRow:
    """How a decoded image becomes what the model sees in evaluation and prediction."""
    size = _image_size(data_config)
    if _task(data_config) == 'detection':
        return WholeImage(size)
    return CentralCrop(size, data_config.eval_crop)


def _train_row(data_config: Any) -> TrainRow:
    """How a decoded image becomes what the model is trained on."""
    size = _image_size(data_config)
    if _task(data_config) == 'classification':
        area = data_config.crop_area_min, data_config.crop_area_max
        aspect = data_config.crop_aspect_min, data_config.crop_aspect_max
        return RandomCrop(size, area, aspect, data_config.flip)
    return Augmentation(
        size,
        data_config.scale_min,
        data_config.scale_max,
        data_config.flip,
        data_config.max_boxes,
    )


def _task(data_config: Any) -> str:
    """The task that the data has annotations for."""
    if data_config.source not in SOURCES:
        raise UserError(f'data.source is "{data_config.source}": want {", ".join(SOURCES)}')
    return SOURCES[data_config.source]


def _image_size(data_config: Any) -> tuple[int, int]:
    height, width = data_config.image_size
    return int(height), int(width)


def _reading(data_config: Any) -> Reading:
    return Reading(data_config.num_threads, data_config.worker_count, data_config.max_pixels)


def _check_for_training(source: Source, max_boxes: int) -> None:
    """Refuses a split without a box; counts images whose boxes do not all fit into a batch."""
    counts = getattr(source, 'box_counts', None)
    if counts is None:  # TFDS: known only after reading everything
        return
    if not counts.any():
        raise UserError(f'{source.name}: no annotation to train on')
    if (counts > max_boxes).any():
        source.report.append(
            f'{source.name}: {(counts > max_boxes).sum()} images have more than {max_boxes} boxes '
            f'(up to {counts.max()}); the largest are kept, see data.max_boxes'
        )
