"""The digests of a checkpoint: by them, a restore knows that it reads what was written.

A digest is the type, the shape and a checksum of every array. Digests are an item of the checkpoint
like any other, so that Orbax commits them together with the arrays.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

DIGEST = 'digest'

# What Orbax and tensorstore raise on files that are missing, cut, or hold other bytes. TypeError
# and its like come from JSON that still parses.
DAMAGE = (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError)

Arrays = dict[str, np.ndarray]  # by path: 'params/backbone/stem_conv/kernel'


class DamagedCheckpointError(Exception):
    """A checkpoint whose files cannot be read or do not hold what was written; says why."""


def read_sound(path: epath.Path, items: Sequence[str]) -> dict[str, Arrays]:
    """The arrays of some items of a checkpoint, each held to its digest.

    Read by the handler alone and without a target: Orbax's managers meet other processes at
    barriers, where a process that cannot read would leave them waiting, and a target would turn
    every difference of structure into the errors that damage gives.

    Raises:
      DamagedCheckpointError: something is missing, cut, or not what was written.
    """
    drop_late_futures()
    found = {}
    try:
        for item in items:
            handler = ocp.handlers.StandardCheckpointHandler()
            tree = handler.restore(path / item, args=ocp.args.StandardRestore())
            found[item] = _flat(tree)
        digests = _read_digest(path)
    except PermissionError:
        raise
    except DAMAGE as error:
        raise DamagedCheckpointError(_first_words(error)) from error
    for item in items if digests is not None else ():
        _compare(found[item], digests.get(item))
    return found


def _read_digest(path: epath.Path) -> dict[str, Any] | None:
    """The digests of a checkpoint by item and array; None for one written before there were any.

    Raises:
      FileNotFoundError: there should be one.
    """
    file = path / DIGEST / DigestHandler.FILE
    if file.exists():
        return dict(json.loads(file.read_text()))
    metadata = path / '_CHECKPOINT_METADATA'
    if metadata.exists() and DIGEST in json.loads(metadata.read_text()).get('item_handlers', {}):
        raise FileNotFoundError(f'{file}: no such file')
    return None


def _compare(found: Arrays, digests: Mapping[str, Any] | None) -> None:
    """Raises DamagedCheckpointError naming the first array that is not what was written."""
    written = digests or {}
    for name in sorted(found.keys() | written.keys()):
        if name not in found or name not in written:
            where = 'missing' if name not in found else 'not among its digests'
            raise DamagedCheckpointError(f'{name} is {where}')
        if _digest(found[name]) != written[name]:
            raise DamagedCheckpointError(f'{name} does not hold what was written')


def _digest(array: np.ndarray) -> list[Any]:
    """[dtype, shape, CRC-32 of the bytes] of an array, as JSON holds it."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [str(array.dtype), list(array.shape), zlib.crc32(data)]


class DigestHandler(ocp.handlers.AsyncCheckpointHandler):
    """Writes the digests of a checkpoint in the background, to be committed together with it."""

    FILE = 'digest.json'

    async def async_save(self, directory: epath.Path, args: DigestSave) -> list[ocp.future.Future]:
        """Starts the work; the arrays must not change until it is done."""
        work = self._write(directory, args)
        return [ocp.future.CommitFutureAwaitingContractedSignals(work, name=DIGEST)]

    async def _write(self, directory, args):
        if jax.process_index() == 0:
            digests = {
                item: {name: _digest(array) for name, array in _flat(tree).items()}
                for item, tree in args.items.items()
            }
            (directory / self.FILE).write_text(json.dumps(digests))

    def save(self, directory: epath.Path, args: DigestSave) -> None:
        """Orbax's interface asks for it; a CheckpointManager always calls async_save."""
        raise NotImplementedError('digests are saved by async_save')

    def restore(self, directory: epath.Path, args: DigestSave | None = None) -> Any:
        """The digests as they were written."""
        del args
        return json.loads((directory / self.FILE).read_text())


# Orbax finds a handler by the class of its arguments and needs both directions registered.
@ocp.args.register_with_handler(DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
    """The trees of host arrays to take digests of, by item."""

    items: Mapping[str, Any]


def _flat(tree: Any) -> Arrays:
    """The arrays of a tree by path; fields, keys and positions read alike: 'opt_state/1/0/trace'.

    So a tree of optax tuples and what Orbax gives back without a target have the same names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {array_name(path): np.asarray(leaf) for path, leaf in leaves}


def array_name(path: Sequence[Any]) -> str:
    """The name of a leaf from its path in a tree."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def drop_late_futures() -> None:
    """Keeps a read or a write that fails from leaving tracebacks of those beside it.

    Orbax closes its event loop at the first error; tensorstore's threads then report the others
    to a closed loop, each with a traceback that nobody can catch, and some after Orbax has
    returned. So the filter stays.
    """
    before = sys.unraisablehook
    if before is _unraisable:
        return
    _others.append(before)
    sys.unraisablehook = _unraisable


_others: list[Callable[[Any], object]] = []  # the hook that was there before


def _unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
        _others[-1](unraisable)


def _first_words(error: Exception) -> str:
    """A message on one line, cut to what a person reads."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f'{text[:200]}...'
