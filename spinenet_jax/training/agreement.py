"""Makes sure that all processes of a run were started alike: settings, software, data, workdir.

Whatever differs would train replicas apart in silence, or leave the others waiting in a collective
that one process never enters. Nothing to do for a single process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import time
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

import spinenet_jax
from spinenet_jax.errors import UserError
from spinenet_jax.training import distributed
from spinenet_jax.training.state import TrainState

PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'pycocotools',
    'opencv-python-headless', 'ml_collections',
)  # fmt: skip
# Settings that a host may have of its own: where its files are, and how it reads them.
OF_A_HOST = ('data.root', 'data.num_threads', 'data.worker_count', 'train.init_from')
RECORDS_COMPARED = 200
SHARED_SECONDS = 5.0  # a network file system may show a new file late


def compare_start(config: ConfigDict) -> None:
    """Compare what a command line and an installation decide; UserError names what differs."""
    if jax.process_count() == 1:
        return
    distributed.compare('software', software())
    settings = json.loads(config.to_json())
    for dotted in OF_A_HOST:
        section, _, key = dotted.partition('.')
        settings.get(section, {}).pop(key, None)
    distributed.compare('settings', settings)


def compare_data(images: int, sources: Sequence[Any], categories: Sequence[Any]) -> None:
    """Compare what the processes found in their data; UserError names what differs.

    Args:
      images: in an epoch.
      sources: of the records that are read, as `data.batch.Source`.
      categories: the classes that are learned.
    """
    if jax.process_count() == 1:
        return
    facts: dict[str, Any] = {'images': images, 'classes': [tuple(c) for c in categories][:100]}
    for source in sources:
        facts[f'images of {source.name}'] = len(source)
        facts[f'checksum of {source.name}'] = _checksum(source)
    distributed.compare('data', json.loads(json.dumps(facts)))


def compare_state(state: TrainState) -> None:
    """Compare the weights that training starts from; UserError names what differs."""
    if jax.process_count() == 1:
        return
    checksum = 0
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), checksum)
    distributed.compare('weights', {'step': int(state.step), 'checksum': checksum})


def check_shared(folder: epath.Path) -> None:
    """UserError on all processes if one does not see what process 0 writes into the workdir."""
    if jax.process_count() == 1:
        return
    name = distributed.from_first('shared', f'.shared-{uuid.uuid4().hex}')
    if jax.process_index() == 0:
        (folder / name).write_text('')
    distributed.from_first('written', True)
    seen = _appears(folder / name)
    blind = [index for index, sees in enumerate(distributed.gather('seen', seen)) if not sees]
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if blind:
        raise UserError(
            f'--workdir={folder} is not the same folder on all hosts: process {blind[0]} does not '
            'see what process 0 writes there. Use a folder that all share, or a bucket'
        )


def software() -> dict[str, Any]:
    """Versions of what computes, and a digest of this package's sources."""
    sources = hashlib.sha256()
    root = Path(spinenet_jax.__file__).parent
    for path in sorted(root.rglob('*.py')):
        sources.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {
        'python': '.'.join(platform.python_version_tuple()[:2]),
        'spinenet_jax': sources.hexdigest()[:12],
        **{name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _appears(path: epath.Path) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _checksum(source: Any) -> int:
    """CRC-32 of names and annotations of records spread over a source, in their order."""
    checksum = 0
    count = min(RECORDS_COMPARED, len(source))
    for position in np.linspace(0, len(source), count, endpoint=False).astype(int).tolist():
        record = source[position]
        checksum = zlib.crc32(source.describe(position).encode('utf-8', 'replace'), checksum)
        for name in sorted(record.keys() - {'image'}):
            checksum = zlib.crc32(f'{name} {np.asarray(record[name]).tolist()}'.encode(), checksum)
    return checksum
