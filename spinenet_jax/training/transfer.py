"""Starts a new run from the weights of another where path and shape agree.

Matching is by parameter path and shape; nothing is cut, padded or renamed. Reading the other
run's weights is left to checkpoint.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.files import DamagedFileError, read_json
from spinenet_jax.models import graph as graphs
from spinenet_jax.training.checkpoint import workdir_of

NAMES_SHOWN = 6


class TransferReport(NamedTuple):
    """Paths ('backbone/stem_conv/kernel') of parameters and batch statistics, sorted.

    loaded: taken over.
    mismatched: (path, shape here, shape there), kept as initialised.
    missing: needed here and not there, kept as initialised.
    extra: there and not needed here.
    """

    loaded: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    missing: list[str]
    extra: list[str]

    def lines(self) -> list[str]:
        """The report as a person reads it; a line for each kind that occurred."""
        shapes = [f'{path} {here} here, {there} there' for path, here, there in self.mismatched]
        kinds = (
            ('loaded', self.loaded, False),
            ('left as initialised, shapes differ', shapes, True),
            ('left as initialised, not in the checkpoint', self.missing, True),
            ('in the checkpoint but not in this model', self.extra, True),
        )
        return [_line(*kind) for kind in kinds if kind[1]]


def transfer(
    target: dict[str, Any], source: dict[str, Any], where: str
) -> tuple[dict[str, Any], TransferReport]:
    """Fill `target` from `source` where path and shape agree.

    target, source: {'params': tree, 'batch_stats': tree} of arrays.
    where: named in the error.
    Returns the filled tree (dtypes of target) and the report. Parameters and batch statistics of
    one layer stand or fall one by one: a head for other classes keeps its own predictor alone.
    Raises UserError if no parameter fits at all: the other run is of another architecture.
    """
    new = flax.traverse_util.flatten_dict(target, sep='/')
    old = flax.traverse_util.flatten_dict(source, sep='/')
    shared = sorted(new.keys() & old.keys())
    loaded = [path for path in shared if np.shape(new[path]) == np.shape(old[path])]
    if not any(path.startswith('params/') for path in loaded):
        raise UserError(f'train.init_from={where}: none of its parameters fits this model')
    mismatched = [
        (path, np.shape(new[path]), np.shape(old[path])) for path in shared if path not in loaded
    ]
    report = TransferReport(
        loaded, mismatched, sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    )
    taken = {path: np.asarray(old[path], np.asarray(new[path]).dtype) for path in loaded}
    filled = flax.traverse_util.unflatten_dict({**new, **taken}, sep='/')
    return {**target, **filled}, report


def other_graph(model_config: ConfigDict, where: str) -> str:
    """A line where the weights of a run are of another graph than the model's; '' if they are not.

    Paths have the numbers of blocks in them, so that a block takes the weights of the one with its
    number, which may sit at another level or have other parents.

    Args:
      model_config: of the new run.
      where: workdir of the run that the weights are from, or one of its checkpoints.
    """
    try:
        saved = (read_json(workdir_of(where) / 'config.json') or {})['model']
        if {saved['backbone'], model_config.backbone} != {'spinenet'}:
            return ''
        theirs, ours = graphs.load(saved['graph']), graphs.load(model_config.graph)
    except (DamagedFileError, KeyError, TypeError, UserError):
        return ''  # nothing is known of that run's graph
    if (theirs.stem, theirs.blocks) == (ours.stem, ours.blocks):
        return ''
    same = sum(a[:3] == b[:3] for a, b in zip(theirs.blocks, ours.blocks, strict=False))
    return (
        f'train.init_from={where} is of another graph: {len(ours.blocks) - same} of '
        f'{len(ours.blocks)} blocks have another level, kind or parents there. A block starts from '
        'the weights of the one with its number, or anew where they do not fit'
    )


def _line(what: str, names: list[str], name_them: bool) -> str:
    """'12 left as initialised, shapes differ: a, b, ... and 10 more'."""
    text = f'{len(names)} {what}'
    if not name_them:
        return text
    rest = len(names) - NAMES_SHOWN
    return f'{text}: {", ".join(names[:NAMES_SHOWN])}' + (f' and {rest} more' if rest > 0 else '')
