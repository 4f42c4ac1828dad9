"""Writes pictures and predictions.json to a folder, never over a file that predict.py did not make.

Both kinds of files say who made them: a picture in a comment of its JPEG, predictions.json in its
first entry. A name that another file has is left to it.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from etils import epath
from tqdm import tqdm

from spinenet_jax import buckets
from spinenet_jax.errors import UserError
from spinenet_jax.files import absolute, remove_abandoned
from spinenet_jax.prediction import Prediction
from spinenet_jax.tasks.task import Records

RECORDS = 'predictions.json'
MADE_HERE = 'made by predict.py of spinenet_jax'
LONGEST_NAME = 255  # bytes
# Seconds between two writings of predictions.json; times what the last one took, so that a large
# file costs a twentieth of the time at most.
INTERVAL, SHARE = 10.0, 20.0
Found = TypeVar('Found')
_COMMENT = b'\xff\xfe' + (len(MADE_HERE) + 2).to_bytes(2, 'big') + MADE_HERE.encode()


class PredictionFolder:
    """The folder that predictions are written to; made if it is missing."""

    def __init__(self, folder: str | os.PathLike, images: Sequence[str]):
        """Refuses a folder that cannot be used, before anything is predicted.

        Args:
          folder: local, or in a bucket.
          images: paths that will be predicted on; none may lie in the folder.

        Raises:
          UserError: the folder cannot be written, holds one of the images, or has a
            predictions.json that something else has written.
        """
        self._folder = absolute(folder)
        self._taken: set[str] = {RECORDS}
        self._next_number: dict[str, int] = {}  # by stem; those below are not free
        self.pictures = 0
        self._next_time = 0.0
        here = os.path.realpath(self._folder)
        for path in images:
            if os.path.dirname(os.path.realpath(path)) == here:
                raise UserError(
                    f'--output={folder}: holds images to predict on ({path}): choose another folder'
                )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._folder)
            self._names = {entry.name for entry in self._folder.iterdir()}
            if RECORDS in self._names and not _is_ours(self._folder / RECORDS):
                raise UserError(
                    f'{self._folder / RECORDS}: not made by predict.py: choose another --output'
                )
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def write_all(
        self,
        predictions: Iterable[Prediction[Found]],
        count: int,
        records: Records[Found],
        draw: Callable[[np.ndarray, Found], np.ndarray | None],
    ) -> int:
        """Adds all predictions to the records and writes them, with what the task draws.

        However it ends (an interruption, a full memory), predictions.json holds what was found.

        Args:
          predictions: of the images, in order.
          count: how many there will be, for the progress bar.
          records: to be filled.
          draw: (image u8[h,w,3] RGB, what was found) -> the picture to write, or None.

        Returns:
          How many images could not be read; each has given a line on standard error.

        Raises:
          UserError: a file cannot be written.
        """
        skipped = 0
        try:
            for one in tqdm(predictions, total=count, unit='image', delay=0.1, disable=None):
                if one.image is None:
                    tqdm.write(f'skipped {one.path}: {one.problem}', file=sys.stderr)
                    skipped += 1
                    continue
                line = records.add(one.path, one.image.shape[:2], one.found)
                if line:
                    tqdm.write(line)
                drawn = draw(one.image, one.found)
                if drawn is not None:
                    self.write_picture(one.path, drawn)
                self.write_records(records.as_dict)
        finally:
            self.write_records(records.as_dict, last=True)
        return skipped

    def write_picture(self, path: str, image: np.ndarray) -> str:
        """Writes a JPEG under the name of the image that it is of, or the like.

        Args:
          path: of that image.
          image: u8[h,w,3] RGB.

        Returns:
          The name of the file.

        Raises:
          UserError: it cannot be written.
        """
        encoded = cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()
        name = self._free_name(path)
        self._write(name, encoded[:2] + _COMMENT + encoded[2:])  # after the marker of the start
        self.pictures += 1
        return name

    def write_records(self, records: Mapping[str, Any], last: bool = False) -> None:
        """Writes predictions.json, whole or not at all: now and then, and the `last` time.

        Raises:
          UserError: it cannot be written.
        """
        began = time.monotonic()
        if last or began >= self._next_time:
            marked = {'info': {'description': MADE_HERE}, **records}
            self._write(RECORDS, json.dumps(marked).encode())
            now = time.monotonic()
            self._next_time = now + max(INTERVAL, SHARE * (now - began))

    def _free_name(self, path: str) -> str:
        """A name that nothing of this run has, and no file that predict.py did not make."""
        stem = os.path.splitext(os.path.basename(path))[0]
        while True:
            number = self._next_number.get(stem, 1)
            self._next_number[stem] = number + 1
            ending = '.jpg' if number == 1 else f'_{number}.jpg'
            name = _shortened(stem, LONGEST_NAME - len(ending)) + ending
            if name not in self._taken and (
                name not in self._names or _is_ours(self._folder / name)
            ):
                self._taken.add(name)
                return name

    def _write(self, name: str, content: bytes) -> None:
        """Writes a file so that a reader, or a kill, never meets half of it."""
        path = self._folder / name
        try:
            if buckets.is_bucket(os.fspath(path)):  # an object appears when it is complete
                path.write_bytes(content)
            else:
                # Of this process alone. The picture's own name may have 255 bytes already.
                temporary = self._folder / f'.predict.{socket.gethostname()}.{os.getpid()}.tmp'
                temporary.write_bytes(content)
                temporary.replace(path)
        except OSError as error:
            raise _cannot_write(self._folder / name, error) from error


def _shortened(stem: str, longest: int) -> str:
    """The beginning of a name, in at most `longest` bytes and in whole characters."""
    while len(os.fsencode(stem)) > longest:
        stem = stem[:-1]
    return stem


def _is_ours(path: epath.Path) -> bool:
    """Whether predict.py has made a file; False for what is no file."""
    if not path.is_file():
        return False
    with path.open('rb') as file:
        start = file.read(200)
    return start[2:].startswith(_COMMENT) or start.startswith(
        json.dumps({'info': {'description': MADE_HERE}}).encode()[:-1]
    )


def _cannot_write(path: epath.Path, error: OSError) -> UserError:
    return UserError(f'{path}: cannot be written ({error.strerror or error})')
