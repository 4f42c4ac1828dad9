"""Reads a folder of images, one subfolder a class, by position.

    root/<split>/<class>/*.jpg

Classes are the subfolders of the training split in alphabetical order, labels 1..K. Decoding is
left to the pipeline. Local directories only.
"""

import os
from pathlib import Path

import numpy as np

from spinenet_jax.data.batch import LABEL, Category, Record, Unreadable, assign_labels
from spinenet_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


class ImageFolder:
    """A split of a folder of images, see `batch.Source`.

    Reads the names of all files once. Files with other suffixes, hidden files and empty classes are
    left out and counted in `.report`.
    """

    provides = LABEL
    ground_truth = None  # there are no boxes

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        train_split: str = 'train',
        num_classes: int = 0,
    ):
        """Lists `root/split`; UserError names what is wrong and where.

        `train_split` says what the classes are, so that labels agree in all splits; where it is not
        there, the split itself does. A class that training does not know raises UserError.
        `num_classes` counts the model's outputs with background, 0 for as many as needed.
        """
        self.name = split
        folder = _existing(Path(root), split)
        trained = Path(root) / train_split
        names = _classes(trained if os.path.isdir(trained) else folder)
        self.categories: list[Category] = assign_labels(list(enumerate(names, 1)), num_classes)
        self.report: list[str] = []
        self.unreadable = Unreadable()
        self._folder, self._class_names = folder, names
        self._files, self._labels = self._list_files(folder, {c.name for c in self.categories})
        self.image_ids = range(len(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        return Record(
            image=os.path.join(self._folder, self.describe(index)),
            image_id=index,
            size=None,
            label=int(self._labels[index]),
        )

    def describe(self, index: int) -> str:
        """class/file of record `index`."""
        folder = self._class_names[self._labels[index] - 1]
        return os.path.join(folder, os.fsdecode(self._files[index]))

    def _list_files(self, folder: Path, known: set[str]) -> tuple[np.ndarray, np.ndarray]:
        """File names bytes[n] and labels int32[n], by class and then by name."""
        names, labels, other, empty = [], [], [], []
        present = _classes(folder)
        for name in present:
            if name not in known:
                raise UserError(
                    f'{folder / name}: the training split has no class "{name}" '
                    f'(it has {len(known)}; data.train_split)'
                )
        for label, name in enumerate(self._class_names, 1):
            found = _listing(folder / name) if name in present else []
            images = [f for f in found if _is_image(f)]
            other += [os.path.join(name, f) for f in found if not _is_image(f)]
            names += map(os.fsencode, images)
            labels += [label] * len(images)
            if not images:
                empty.append(name)
        if not names:
            raise UserError(f'{folder}: no images in its {len(present)} folders')
        for what, left_out in (
            ('files that are no images', other),
            ('classes without images', empty),
        ):
            if left_out:
                first = ', '.join(left_out[:5])
                self.report.append(f'{self.name}: {len(left_out)} {what} (first: {first})')
        return np.array(names), np.array(labels, np.int32)


def _existing(root: Path, split: str) -> Path:
    """The folder of a split."""
    if not os.path.isdir(root):
        raise UserError(f'{root}: no such directory (data.root)')
    if not os.path.isdir(root / split):
        raise UserError(
            f'{root / split}: no such directory; splits there: '
            f'{", ".join(_classes(root)) or "none"} (data.train_split, data.eval_split)'
        )
    return root / split


def _classes(folder: Path) -> list[str]:
    """Names of the subfolders, sorted, hidden ones left out."""
    names = (name for name in _listing(folder) if name[0] != '.')
    return [name for name in names if os.path.isdir(folder / name)]


def _is_image(name: str) -> bool:
    """Whether a file is read, by its name."""
    return name.lower().endswith(SUFFIXES) and name[0] != '.'


def _listing(folder: Path) -> list[str]:
    """Names in a folder, sorted."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f'{folder}: cannot be listed: {error.strerror}') from error
