"""Owns a workdir, and writes down in it what a run is.

The files are config.json, environment.json and categories.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from spinenet_jax import settings
from spinenet_jax.buckets import is_store_error
from spinenet_jax.errors import UserError
from spinenet_jax.files import (
    DamagedFileError,
    absolute,
    read_json,
    remove_abandoned,
    write_atomically,
    write_json,
)
from spinenet_jax.training import agreement, distributed, lock
from spinenet_jax.training.checkpoint import FOLDER, committed_steps

FIXED = ('task', 'model')  # sections that a workdir with checkpoints cannot change


def create(workdir: str | os.PathLike) -> epath.Path:
    """Make the folder and see that it can be written; UserError says why not."""
    folder = absolute(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            probe = folder / '.writable'
            probe.write_text('')
            probe.unlink()
    except Exception as error:
        if not isinstance(error, OSError) and not is_store_error(error):
            raise
        said = getattr(error, 'strerror', '') or error
        raise UserError(f'--workdir={workdir}: cannot be written ({said})') from error
    return folder


@contextlib.contextmanager
def owned(workdir: str | os.PathLike) -> Iterator[epath.Path]:
    """The folder, made where it is missing, and no other run writes to it meanwhile.

    Raises:
      UserError: it cannot be written, or another run does.
    """
    folder = create(workdir)
    if jax.process_index() != 0:
        yield folder
        return
    held = lock.acquire(folder)
    try:
        remove_abandoned(folder)
        yield folder
    finally:
        held.release()


def record_config(folder: epath.Path, config: ConfigDict) -> None:
    """Write config.json, or check that the one there is of the same model.

    A change of task or model where checkpoints exist raises UserError naming the keys; other
    changes are allowed and logged. A damaged file is named and written anew: whether checkpoints
    fit is then found when they are restored.
    """
    new = json.loads(config.to_json())
    refused = ''
    if jax.process_index() == 0:
        refused = _check_config(folder, new)
        if not refused:
            text = json.dumps(new, indent=2, sort_keys=True) + '\n'
            write_atomically(folder / 'config.json', text)
    refused = distributed.from_first('config', refused)
    if refused:
        raise UserError(refused)


def _check_config(folder: epath.Path, new: dict[str, Any]) -> str:
    """Why the config does not fit the workdir, '' if it does; logs what has changed."""
    path = folder / 'config.json'
    try:
        old = read_json(path)
    except DamagedFileError as error:
        if path.is_dir():
            raise
        logging.warning('%s: it is written anew', error)
        return ''
    if old is None:
        return ''
    if not (isinstance(old, dict) and set(FIXED) <= old.keys()):
        logging.warning('%s holds something else than settings: it is written anew', path)
        return ''
    changes = distributed.differences(_over_defaults(old), new)
    lines = [(key, f'{key}: {before!r} -> {after!r}') for key, before, after in changes]
    fixed = [line for key, line in lines if key.split('.')[0] in FIXED]
    if fixed and committed_steps(folder / FOLDER):
        return (
            f'{folder} holds checkpoints of another model: {"; ".join(fixed)}. Use another '
            '--workdir, or --config.train.init_from to start from these weights'
        )
    for _, line in lines:
        logging.info('changed since this workdir was started: %s', line)
    return ''


def _over_defaults(old: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version over today's defaults; they need not be legal any more."""
    filled = json.loads(settings.default_config().to_json())
    for name in filled.keys() & old.keys():  # what is no setting any more does not count
        if isinstance(filled[name], dict) and isinstance(old[name], dict):
            known = filled[name].keys() & old[name].keys()
            filled[name] |= {key: old[name][key] for key in known}
        else:
            filled[name] = old[name]
    return filled


def record_environment(folder: epath.Path) -> None:
    """Write environment.json: versions, git commit, devices and the command, of this start."""
    if jax.process_index() != 0:
        return
    devices = jax.devices()
    facts = {
        'command': sys.argv,
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': {name: agreement.version(name) for name in agreement.PACKAGES},
        'git_commit': _git('rev-parse', 'HEAD'),
        'git_changed_files': len((_git('status', '--porcelain') or '').splitlines()),
        'devices': {'count': len(devices), 'kind': devices[0].device_kind},
        'processes': jax.process_count(),
    }
    write_json(folder / 'environment.json', facts, indent=2)


def record_categories(folder: epath.Path, categories: Sequence[Any]) -> None:
    """Write categories.json: [{'label', 'id', 'name'}], what predict.py names its boxes from."""
    if jax.process_index() == 0:
        rows = [{'label': c.label, 'id': c.id, 'name': c.name} for c in categories]
        write_json(folder / 'categories.json', rows, indent=1)


def _git(*words: str) -> str | None:
    """Output of a git command in the source folder; None outside a repository or without git."""
    try:
        done = subprocess.run(
            ['git', *words],
            cwd=os.path.dirname(__file__),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
