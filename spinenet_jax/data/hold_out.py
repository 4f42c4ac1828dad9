"""Splits a COCO split in two, at random by image: one part to train on, one held out of it.

A search is rewarded on images that no candidate was trained on and that no result is reported on:
the paper holds 7,392 images out of train2017. Only two annotation files are written, beside that of
the whole split; the images stay where they are.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spinenet_jax.data.annotations import load_annotations
from spinenet_jax.errors import UserError


def names(split: str) -> tuple[str, str]:
    """Names of the two parts, for `data.train_split` and `data.eval_split`."""
    return f'{split}_kept', f'{split}_held_out'


def hold_out(root: str | os.PathLike, split: str, count: int, seed: int = 0) -> tuple[int, int]:
    """Write root/annotations/instances_<split>_kept.json and _held_out.json.

    Which images are held out is a function of `seed` and of the ids of the images. What training
    accepts is split; an image record that is there twice counts once and is written once.

    Args:
      root: a COCO directory.
      split: name of the split, as in instances_<split>.json.
      count: images to hold out, at least 1 and fewer than there are.
      seed: of the draw.

    Returns:
      Images kept and held out.

    Raises:
      UserError: no such split, not a file to train on, or not that many images.
    """
    folder = Path(root) / 'annotations'
    path = folder / f'instances_{split}.json'
    table = load_annotations(path)
    ids = sorted(table.image_ids.tolist())
    if not 0 < count < len(ids):
        raise UserError(f'{path}: {len(ids)} images, {count} of them cannot be held out')
    drawn = np.random.default_rng(seed).permutation(len(ids))[:count]
    held_out = {ids[i] for i in drawn.tolist()}
    whole = json.loads(path.read_text(encoding='utf-8-sig'))
    start = _start_of_names(Path(root), split, table.file_names)
    for name, wanted in zip(names(split), (set(ids) - held_out, held_out), strict=True):
        _write(folder / f'instances_{name}.json', _part(whole, wanted, start))
    return len(ids) - count, count


def ensure_held_out(root: str | os.PathLike, split: str, count: int, seed: int = 0) -> None:
    """`hold_out`, unless both files are there."""
    folder = Path(root) / 'annotations'
    if not all((folder / f'instances_{name}.json').is_file() for name in names(split)):
        hold_out(root, split, count, seed)


def _start_of_names(root: Path, split: str, file_names: list[str]) -> str:
    """Where the file names start, below the root: the folder of the split, or '' for the root.

    Where some of the files are, in the order in which `coco.CocoSource` looks; by the names
    themselves where there are none at all.
    """
    for folder in (split, ''):
        if any(os.path.exists(root / folder / name) for name in file_names):
            return folder
    return '' if file_names[0].startswith(f'{split}/') else split


def _part(whole: dict[str, Any], wanted: set[int], start: str) -> dict[str, Any]:
    """The images of those ids, their files named from the root, and their annotations."""
    images: dict[int, Any] = {}  # of one that is there twice the first counts, as in training
    for image in whole['images']:
        if image['id'] in wanted:
            images.setdefault(image['id'], image)
    annotations = whole.get('annotations') or []
    return whole | {
        'images': [
            image | {'file_name': os.path.join(start, image['file_name'])}
            for image in images.values()
        ],
        'annotations': [a for a in annotations if a['image_id'] in wanted],
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing; another process may write the same."""
    with tempfile.NamedTemporaryFile('w', dir=path.parent, suffix='.tmp', delete=False) as file:
        json.dump(content, file)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
