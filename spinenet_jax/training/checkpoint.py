"""How does a run reach the disk and come back?

Orbax's CheckpointManager, host copies of an unreplicated state, written in the background and
committed atomically. A checkpoint has two items: `model` (params, batch_stats), all that
evaluation and transfer read, and `optimizer` (opt_state, step). Neither random-number nor
data-iterator state is kept: both are functions of the step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from spinenet_jax import buckets
from spinenet_jax.errors import UserError
from spinenet_jax.training.state import TrainState

FOLDER = 'checkpoints'
BEST = 'best.json'


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path made absolute where it is local; gs:// and the like are left as they are.

    UserError where a bucket cannot be reached.
    """
    text = os.fspath(path)
    buckets.check(text)
    return epath.Path(text if '://' in text else os.path.abspath(os.path.expanduser(text)))


class Checkpoints:
    """The checkpoints of one workdir: the last few, and the best by the evaluation's metric."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 1) -> None:
        """keep: how many of the latest to hold on to, at least 1; the best comes on top."""
        self._best_file = absolute(workdir) / BEST
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(max(1, keep), self.best),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(absolute(workdir) / FOLDER, options=options)

    @property
    def latest_step(self) -> int | None:
        """The newest step on disk or being written; None without any."""
        return self._manager.latest_step()

    def best(self) -> dict[str, Any] | None:
        """{'step', 'metric', 'value'} of the best evaluation so far, or None."""
        if not self._best_file.exists():
            return None
        return json.loads(self._best_file.read_text())

    def save(self, state: TrainState) -> None:
        """Start writing an unreplicated host state under its own step; a no-op if it is there.

        Returns while writing goes on, so the caller must not change the arrays afterwards. The
        caller also makes sure that the state is finite: what is saved last is what a restart
        continues from.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = jax.tree.map(np.asarray, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(
                    {'params': arrays.params, 'batch_stats': arrays.batch_stats}
                ),
                optimizer=ocp.args.StandardSave(
                    {'opt_state': arrays.opt_state, 'step': arrays.step}
                ),
            ),
            force=True,
        )

    def note_evaluation(self, step: int, metric: str, value: float) -> bool:
        """Remember `step` as the best if it is; the checkpoint must have been saved before."""
        best = self.best()
        if best is not None and best['value'] >= value:
            return False
        if jax.process_index() == 0:
            write_atomically(
                self._best_file, json.dumps({'step': step, 'metric': metric, 'value': value})
            )
        return True

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest state as host arrays, or None if there is no checkpoint.

        like: a state of the same structure and shapes. Raises UserError if the one on disk has
        others, for example because the optimizer's settings changed.
        """
        step = self.latest_step
        if step is None:
            return None
        like = jax.tree.map(np.asarray, like)
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(
                {'params': like.params, 'batch_stats': like.batch_stats}
            ),
            optimizer=ocp.args.StandardRestore({'opt_state': like.opt_state, 'step': like.step}),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except ValueError as error:
            raise UserError(
                f'checkpoint {step} in {self._manager.directory} does not fit this configuration '
                f'({_first_lines(error)}); use another workdir, or train.init_from to start from it'
            ) from error
        return TrainState(
            step=restored.optimizer['step'],
            params=restored.model['params'],
            batch_stats=restored.model['batch_stats'],
            opt_state=restored.optimizer['opt_state'],
        )

    def close(self) -> None:
        """Wait for what is being written and release the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


class _LatestAndBest:
    """Keeps the last few checkpoints and the best one; Orbax's own best needs AP at save time."""

    def __init__(self, count, best):
        self._count, self._best = count, best

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        del context
        best = self._best()
        recent = {info.step for info in checkpoints[-self._count :]}
        return [
            info.step in recent or (best is not None and info.step == best['step'])
            for info in checkpoints
        ]


def load_model(path: str | os.PathLike, which: str = 'best') -> tuple[dict[str, Any], int]:
    """Read the weights of a run, without its optimizer.

    path: a workdir, or one checkpoint inside it (`workdir/checkpoints/1000`).
    which: of a workdir: 'best' (the latest if nothing was evaluated), 'latest', or a step number.
    Returns ({'params', 'batch_stats'} of host arrays, step).
    Raises UserError if there is no checkpoint, or none of that step.
    """
    path = absolute(path)
    if path.name.isdigit() and (path / 'model').exists():
        folder, step = path.parent, int(path.name)
    else:
        folder = path if path.name == FOLDER else path / FOLDER
        step = _choose_step(folder, which)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as m:
        restored = m.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore()))
    return dict(restored.model), step


def _choose_step(folder: epath.Path, which: str) -> int:
    """The step that `which` means in a folder of checkpoints."""
    steps = []
    if folder.exists():
        steps = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    if not steps:
        raise UserError(f'{folder}: no checkpoint here; give a workdir that train.py has saved to')
    if which == 'latest':
        return steps[-1]
    if which == 'best':
        best = folder.parent / BEST
        step = json.loads(best.read_text())['step'] if best.exists() else steps[-1]
        return step if step in steps else steps[-1]
    if not str(which).isdigit() or int(which) not in steps:
        known = ', '.join(['best', 'latest', *map(str, steps)])
        raise UserError(f"{folder}: no checkpoint '{which}'; there are {known}")
    return int(which)


def write_atomically(path: epath.Path, text: str) -> None:
    """Write a small file so that a reader, or a kill, never meets half of it."""
    temporary = path.parent / (path.name + '.tmp')
    temporary.write_text(text)
    temporary.replace(path)


def _first_lines(error: Exception) -> str:
    """An Orbax message on one line, cut to what a person reads."""
    return ' '.join(str(error).split())[:200]
