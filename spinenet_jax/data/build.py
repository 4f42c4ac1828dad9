"""Which reader and which batches does a config's `data` section ask for?

The only file of the package that reads that section; everything it calls takes plain arguments.
"""

from collections.abc import Iterator
from typing import Any

from spinenet_jax.data.batch import Batch, Source
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.pipeline import Augmentation, Reading, Shard, eval_iterator, train_iterator
from spinenet_jax.errors import UserError


def build_source(data_config: Any, split: str, num_classes: int) -> Source:
    """The data set of a split: 'train' and 'eval' mean the config's, anything else is a name.

    `num_classes` counts the model's channels with background, 0 for as many as the data needs.
    Writes the digits data set on first use. UserError says what is wrong with the data.
    """
    role = split
    split = {'train': data_config.train_split, 'eval': data_config.eval_split}.get(split, split)
    if data_config.source == 'coco':
        source = CocoSource(data_config.root, split, num_classes)
    elif data_config.source == 'digits':
        from spinenet_jax.data.digits import ensure_digits

        source = CocoSource(ensure_digits(data_config.root), split, num_classes)
    elif data_config.source == 'tfds':
        from spinenet_jax.data.tfds import TfdsSource

        source = TfdsSource(
            data_config.tfds_name,
            split,
            data_dir=data_config.root,
            annotations=data_config.annotations,
            num_classes=num_classes,
        )
    else:
        raise UserError(f'data.source is "{data_config.source}": want coco, tfds or digits')
    if role == 'train':
        _check_for_training(source, data_config.max_boxes)
    return source


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
    augmentation = Augmentation(
        image_size=_image_size(data_config),
        scale_min=data_config.scale_min,
        scale_max=data_config.scale_max,
        flip=data_config.flip,
        max_boxes=data_config.max_boxes,
    )
    if not 0 < augmentation.scale_min <= augmentation.scale_max:
        raise UserError(
            f'data.scale_min={augmentation.scale_min} and data.scale_max={augmentation.scale_max}: '
            'want 0 < scale_min <= scale_max'
        )
    shard = Shard(batch_size, process_index, process_count, start_step)
    return train_iterator(source, augmentation, shard, _reading(data_config), seed)


def eval_batches(
    source: Source, data_config: Any, *, batch_size: int, process_index: int, process_count: int
) -> Iterator[Batch]:
    """Every image once (see batch.py), the same number of batches on every process."""
    shard = Shard(batch_size, process_index, process_count)
    return eval_iterator(source, _image_size(data_config), shard, _reading(data_config))


def _image_size(data_config: Any) -> tuple[int, int]:
    height, width = data_config.image_size
    if min(height, width) < 1:
        raise UserError(f'data.image_size={height, width}: want two positive numbers')
    return int(height), int(width)


def _reading(data_config: Any) -> Reading:
    return Reading(data_config.num_threads, data_config.worker_count)


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
