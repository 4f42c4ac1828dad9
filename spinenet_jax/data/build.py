"""Builds the data source, rows and batches that a config's `data` section asks for.

What it calls takes plain arguments.
"""

import os
from collections.abc import Collection, Iterator

from ml_collections import ConfigDict

from spinenet_jax.data.batch import SEGMENTATIONS, Batch, EvalRow, Rows, Source, TrainRow
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.digit_scans import DigitScans
from spinenet_jax.data.image_folder import ImageFolder
from spinenet_jax.data.pipeline import (
    Augmentation,
    Reading,
    Shard,
    WholeImage,
    eval_iterator,
    train_iterator,
)
from spinenet_jax.data.tfds import TfdsSource
from spinenet_jax.data.tfds_labels import TfdsLabels
from spinenet_jax.errors import UserError

SOURCES: dict[str, type[Source]] = {
    'coco': CocoSource,
    'tfds': TfdsSource,
    'digits': CocoSource,  # written on first use, then read like any other
    'image_folder': ImageFolder,
    'tfds_labels': TfdsLabels,
    'digit_scans': DigitScans,
}


def build_source(
    data_config: ConfigDict, split: str, num_classes: int, needs: Collection[str]
) -> Source:
    """The data set of a split: 'train' and 'eval' mean the config's, anything else is a name.

    Args:
      data_config: `source`, `root`, splits, and what the reader takes.
      split: of the data set.
      num_classes: the model's channels with background, 0 for as many as the data needs.
      needs: what the records must hold, as a task's `rows.needs` says; checked before anything is
        read.

    Raises:
      UserError: what is wrong with the data, or that it has not what is needed.
    """
    needs = frozenset(needs)
    _check_provides(data_config.source, needs)
    if data_config.source in ('coco', 'image_folder') and not data_config.root:
        raise UserError(
            'data.root is empty: --config.data.root=<folder of the data set> is missing'
        )
    name = split_name(data_config, split)
    source = _open(data_config, name, num_classes, with_segmentations=needs >= SEGMENTATIONS)
    if split == 'train' and 'label' in SOURCES[data_config.source].provides:
        _check_labels(source)
    if split == 'train' and isinstance(source, CocoSource):
        _check_for_training(source, data_config.max_boxes)
    if split == 'eval' and isinstance(source, TfdsSource):
        source.check_annotations()  # before training, not at its first evaluation
    return source


def split_name(data_config: ConfigDict, split: str) -> str:
    """The data set's name of a split: 'train' and 'eval' mean the config's."""
    return {'train': data_config.train_split, 'eval': data_config.eval_split}.get(split, split)


def _check_provides(name: str, needs: Collection[str]) -> None:
    """UserError where there is no such source, or its records lack what is needed."""
    if name not in SOURCES:
        raise UserError(f'data.source "{name}": choose one of {", ".join(SOURCES)}')
    missing = sorted(set(needs) - SOURCES[name].provides)
    if missing:
        fitting = [other for other, reader in SOURCES.items() if set(needs) <= reader.provides]
        advice = f'choose one of {", ".join(fitting)}' if fitting else 'no source has them'
        raise UserError(
            f'data.source "{name}" has no {", ".join(missing)}, which the task needs: {advice}'
        )


def _open(
    data_config: ConfigDict, split: str, num_classes: int, *, with_segmentations: bool
) -> Source:
    """The reader of a split that `data_config.source` names."""
    root = os.path.expanduser(data_config.root)
    if data_config.source == 'coco':
        return CocoSource(
            root,
            split,
            num_classes,
            allow_outside_root=data_config.allow_outside_root,
            with_segmentations=with_segmentations,
        )
    if data_config.source == 'digits':
        from spinenet_jax.data.digits import ensure_digits

        return CocoSource(
            ensure_digits(root), split, num_classes, with_segmentations=with_segmentations
        )
    if data_config.source == 'image_folder':
        return ImageFolder(root, split, data_config.train_split, num_classes)
    if data_config.source == 'digit_scans':
        return DigitScans(split, num_classes)
    if data_config.source == 'tfds_labels':
        return TfdsLabels(data_config.tfds_name, split, root, num_classes)
    return TfdsSource(
        data_config.tfds_name,
        split,
        data_dir=root,
        annotations=data_config.annotations,
        num_classes=num_classes,
    )


def box_rows(data_config: ConfigDict) -> Rows:
    """Whole images with their boxes, placed at random in training."""
    return _whole_images(data_config, with_masks=False)


def mask_rows(data_config: ConfigDict) -> Rows:
    """`box_rows` with the mask of each object, cut to its box."""
    return _whole_images(data_config, with_masks=True)


def label_rows(data_config: ConfigDict) -> Rows:
    """Crops of images with one label each: random in training, central in evaluation."""
    size = _image_size(data_config)
    area = data_config.crop_area_min, data_config.crop_area_max
    aspect = data_config.crop_aspect_min, data_config.crop_aspect_max
    return Rows(
        train=RandomCrop(size, area, aspect, data_config.flip),
        eval=CentralCrop(size, data_config.eval_crop),
    )


def train_batches(
    source: Source,
    row: TrainRow,
    data_config: ConfigDict,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """Endless training batches of this process, from `start_step` on.

    `batch_size` is this process's. The stream is a function of `seed` alone, and global batch s
    holds the same images in the same order for any number of processes.
    """
    shard = Shard(batch_size, process_index, process_count, start_step)
    return train_iterator(source, row, shard, _reading(data_config), seed)


def eval_batches(
    source: Source,
    row: EvalRow,
    data_config: ConfigDict,
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """Every image once, the same number of batches on every process."""
    shard = Shard(batch_size, process_index, process_count)
    return eval_iterator(source, row, shard, _reading(data_config))


def _whole_images(data_config: ConfigDict, *, with_masks: bool) -> Rows:
    size = _image_size(data_config)
    return Rows(
        train=Augmentation(
            image_size=size,
            scale_min=data_config.scale_min,
            scale_max=data_config.scale_max,
            flip=data_config.flip,
            max_boxes=data_config.max_boxes,
            with_masks=with_masks,
        ),
        eval=WholeImage(size),
    )


def _image_size(data_config: ConfigDict) -> tuple[int, int]:
    height, width = data_config.image_size
    return int(height), int(width)


def _reading(data_config: ConfigDict) -> Reading:
    return Reading(data_config.num_threads, data_config.worker_count, data_config.max_pixels)


def _check_labels(source: Source) -> None:
    """Refuses a split without labels; a few images without are left out by the pipeline."""
    some = range(min(len(source), 20))
    if all(source[index]['label'] < 0 for index in some):
        raise UserError(f'{source.name}: has no labels to train on (data.train_split)')


def _check_for_training(source: CocoSource, max_boxes: int) -> None:
    """Refuses a split without a box; counts images whose boxes do not all fit into a batch."""
    counts = source.box_counts
    if not counts.any():
        raise UserError(f'{source.name}: no annotation to train on')
    if (counts > max_boxes).any():
        source.report.append(
            f'{source.name}: {(counts > max_boxes).sum()} images have more than {max_boxes} boxes '
            f'(up to {counts.max()}); the largest are kept, see data.max_boxes'
        )
