"""What does a run write down about itself before it starts, and does a workdir belong to it?

config.json, environment.json and categories.json. Left to others: metrics, checkpoints, results.
"""

from __future__ import annotations

import importlib.metadata
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
from spinenet_jax.errors import UserError
from spinenet_jax.training.checkpoint import FOLDER, absolute, write_atomically

PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'pycocotools',
    'opencv-python-headless', 'ml_collections',
)  # fmt: skip
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
    except OSError as error:
        raise UserError(
            f'--workdir={workdir}: cannot be written ({error.strerror or error})'
        ) from error
    return folder


def record_config(folder: epath.Path, config: ConfigDict) -> None:
    """Write config.json, or check that the one there is of the same model.

    A change of task or model where checkpoints exist raises UserError naming the keys; other
    changes are allowed and logged.
    """
    path = folder / 'config.json'
    new = json.loads(config.to_json())
    if path.exists():
        # Over today's defaults: a workdir from before a setting existed has its default.
        old, _ = settings.from_saved(json.loads(path.read_text()), str(path))
        changes = list(_differences(json.loads(old.to_json()), new))
        fixed = [line for key, line in changes if key.split('.')[0] in FIXED]
        if fixed and (folder / FOLDER).exists() and any((folder / FOLDER).iterdir()):
            raise UserError(
                f'{folder} holds checkpoints of another model: {"; ".join(fixed)}. Use another '
                '--workdir, or --config.train.init_from to start from these weights'
            )
        for _, line in changes:
            logging.info('changed since this workdir was started: %s', line)
    if jax.process_index() == 0:
        write_atomically(path, json.dumps(new, indent=2, sort_keys=True) + '\n')


def record_environment(folder: epath.Path) -> None:
    """Write environment.json: versions, git commit, devices and the command, of this start."""
    if jax.process_index() != 0:
        return
    devices = jax.devices()
    facts = {
        'command': sys.argv,
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': {name: _version(name) for name in PACKAGES},
        'git_commit': _git('rev-parse', 'HEAD'),
        'git_changed_files': len((_git('status', '--porcelain') or '').splitlines()),
        'devices': {'count': len(devices), 'kind': devices[0].device_kind},
        'processes': jax.process_count(),
    }
    write_atomically(folder / 'environment.json', json.dumps(facts, indent=2) + '\n')


def record_categories(folder: epath.Path, categories: Sequence[Any]) -> None:
    """Write categories.json: [{'label', 'id', 'name'}], what predict.py names its boxes from."""
    if jax.process_index() == 0:
        rows = [{'label': c.label, 'id': c.id, 'name': c.name} for c in categories]
        write_atomically(folder / 'categories.json', json.dumps(rows, indent=1) + '\n')


def _differences(old: Any, new: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
    """(dotted key, 'key: old -> new') of every leaf that differs between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            dotted = f'{prefix}.{key}' if prefix else key
            yield from _differences(old.get(key), new.get(key), dotted)
    elif old != new:
        yield prefix, f'{prefix}: {old!r} -> {new!r}'


def _version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
