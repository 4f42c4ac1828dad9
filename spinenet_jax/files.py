"""Writes small files whole or not at all, and reads JSON that may be damaged.

A local path or a bucket (`gs://...`), as `etils.epath` takes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from etils import epath

from spinenet_jax import buckets
from spinenet_jax.errors import UserError

TEMPORARY = '.tmp'  # suffix of a file that is being written
ABANDONED_AFTER = 600.0  # seconds after which a temporary file belongs to a process that died


class DamagedFileError(UserError):
    """A file that is there and cannot be read as what it should be; names it and says why."""


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path made absolute where it is local; gs:// and the like are left as they are.

    Raises:
      UserError: a bucket that cannot be reached from here.
    """
    text = os.fspath(path)
    buckets.check(text)
    return epath.Path(text if is_remote(text) else os.path.abspath(os.path.expanduser(text)))


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names an object store: no locks, no appending, no cheap renames."""
    return buckets.is_bucket(os.fspath(path))


def write_atomically(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a file so that a reader, a kill or a power cut never meets half of it.

    The data go to a temporary file beside it, which then takes its place; a write that fails
    leaves the old file as it was and no temporary one.

    Raises:
      OSError: naming the file that was to be written, not the temporary one.
    """
    path = epath.Path(path)
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):  # an object appears when its upload is complete
        path.write_bytes(data)
        return
    temporary = f'{path}.{os.getpid()}{TEMPORARY}'
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_json(path: str | os.PathLike, value: Any, indent: int | None = None) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=indent) + '\n')


def append_text(path: str | os.PathLike, text: str) -> None:
    """Appends to a local file; an OSError names the file, and may leave a part of the text."""
    try:
        with open(path, 'a') as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file; None where there is no file.

    Raises:
      DamagedFileError: not a file, not UTF-8, or not JSON.
    """
    path = epath.Path(path)
    if not path.exists():
        return None
    if path.is_dir():
        raise DamagedFileError(f'{path} is a folder, where a file is expected: move it away')
    try:
        return json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DamagedFileError(f'{path} is damaged ({_reason(error)})') from error


def remove_abandoned(folder: epath.Path) -> None:
    """Removes the temporary files of writers that were killed long ago, in one local folder."""
    if is_remote(folder):
        return
    for entry in os.scandir(folder):
        if entry.name.endswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > ABANDONED_AFTER:
                    os.unlink(entry.path)


def _reason(error: Exception) -> str:
    """Why a text is not JSON, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return 'not UTF-8'
    return ' '.join(str(error).split())[:100]
