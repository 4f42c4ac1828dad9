"""Saves and restores checkpoints.

Orbax's CheckpointManager writes host copies of an unreplicated state in the background and commits
them atomically. A checkpoint has three items: `model` (params, batch_stats), all that evaluation
and transfer read, with the moving average for params where a run keeps one (`averaging.py`);
`optimizer` (opt_state, step); and `digest` (`digest.py`), by which a restore knows that it reads
what was written. Neither random-number nor data-iterator state is kept: both are functions of the
step.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from spinenet_jax.errors import WORLD, RunError, UserError
from spinenet_jax.files import DamagedFileError, absolute, read_json, write_json
from spinenet_jax.training import distributed
from spinenet_jax.training.digest import (
    DIGEST,
    Arrays,
    DamagedCheckpointError,
    DigestHandler,
    DigestSave,
    array_name,
    drop_late_futures,
    read_sound,
)
from spinenet_jax.training.state import TrainState

FOLDER = 'checkpoints'
DAMAGED_FOLDER = 'damaged'  # where a run puts checkpoints that it cannot read
BEST = 'best.json'
READ_ATTEMPTS = 3  # of a checkpoint that training may just delete,
READ_AGAIN_SECONDS = 0.4  # with pauses, before it is called damaged


class _DeletedError(Exception):
    """A checkpoint that went away while it was read."""


class Best(NamedTuple):
    """The best evaluation so far: its step, and the metric it is judged by."""

    step: int
    metric: str
    value: float


class Checkpoints:
    """The checkpoints of one workdir: the last few, and the best by the evaluation's metric.

    All processes of a run hold one and call it alike; process 0 writes and decides.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 1) -> None:
        """keep: how many of the latest to hold on to, at least 1; the best comes on top."""
        self._workdir = absolute(workdir)
        self.folder = self._workdir / FOLDER
        self.best: Best | None = None
        self._manager = self._open(max(1, keep))

    def _open(self, keep: int) -> ocp.CheckpointManager:
        """Orbax's manager, with our digest as a third item and the best checkpoint protected."""
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(DIGEST, DigestSave, DigestHandler())
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep), _BestStep(self)]
            ),
            cleanup_tmp_directories=True,
            # Created in a thread, a folder that cannot be made is noticed by whoever waits for it
            # after ten minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with self._writing('cannot be used'):
            return ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)

    @property
    def steps(self) -> list[int]:
        """Committed steps and the one being written, in order."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest step on disk or being written; None without any."""
        return max(self.steps, default=None)

    def save(self, state: TrainState) -> None:
        """Start writing an unreplicated host state under its own step; a no-op if it is there.

        Returns while writing goes on, so the caller must not change the arrays afterwards. The
        caller also makes sure that the state is finite: what is saved last is what a restart
        continues from. Raises RunError where this one, or the one before, cannot be written.
        """
        step = int(state.step)
        if step in self.steps:
            return
        arrays = jax.tree.map(np.asarray, state)
        model = {'params': arrays.params, 'batch_stats': arrays.batch_stats}
        optimizer = {'opt_state': arrays.opt_state, 'step': arrays.step}
        with self._writing(f'could not take checkpoint {step}'):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    optimizer=ocp.args.StandardSave(optimizer),
                    digest=DigestSave({'model': model, 'optimizer': optimizer}),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Returns when what is being written is committed; RunError if it could not be."""
        with self._writing(f'could not take checkpoint {self.latest_step}'):
            self._manager.wait_until_finished()

    def note_evaluation(self, step: int, metric: str, value: float) -> bool:
        """Remember `step` as the best if it is; its checkpoint must have been committed before."""
        if not math.isfinite(value) or (self.best is not None and self.best.value >= value):
            return False
        self._set_best(Best(step, metric, value))
        return True

    def settle_best(self, evaluations: Iterable[Best]) -> None:
        """Read best.json, and put it right where it is missing, damaged or names no checkpoint.

        evaluations: what metrics.jsonl holds, from which the best is found again.
        """
        best = None
        if jax.process_index() == 0:
            steps = self.steps
            try:
                best = read_best(self._workdir)
            except DamagedFileError as error:
                logging.warning('%s: it is made anew from the evaluations so far', error)
            if best is None or best.step not in steps:
                kept = [found for found in evaluations if found.step in steps]
                best = max(kept, key=lambda found: (found.value, -found.step), default=None)
        best = distributed.from_first('best', best and list(best))
        self._set_best(best and Best(*best))

    def _set_best(self, best: Best | None) -> None:
        self.best = best
        if jax.process_index() != 0:
            return
        if best is not None:
            write_json(self._workdir / BEST, best._asdict())
        elif (self._workdir / BEST).is_file():
            (self._workdir / BEST).unlink()

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest state that is sound, as host arrays; None if there is no checkpoint.

        A damaged checkpoint is named in a warning, moved to `damaged/`, and the one before it is
        taken: the steps between are done again, with the same result.

        like: a state of the same structure and shapes.
        Raises UserError if a sound one has others, for example because the optimizer's settings
        changed, or if none is sound.
        """
        damaged = []
        for step in reversed(self.steps):
            found, problem = None, ''
            try:
                found = read_sound(self.folder / str(step), ('model', 'optimizer'))
            except DamagedCheckpointError as error:
                problem = str(error)
            problems = distributed.gather('restore', problem)
            if not any(problems):
                for _, bad in damaged:
                    self._set_aside(bad)
                return _fill(like, found, f'checkpoint {step} in {self.folder}')
            line = f'checkpoint {step} is damaged ({next(filter(None, problems))})'
            logging.warning('%s: %s, trying the one before', self.folder, line)
            damaged.append((line, step))
        if damaged:
            raise UserError(
                f'{self.folder}: no checkpoint can be read: '
                f'{"; ".join(line for line, _ in damaged)}. To start anew, use another --workdir '
                'or remove this folder'
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of the one that will be written again."""
        target = self._workdir / DAMAGED_FOLDER / str(step)
        if jax.process_index() == 0:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmtree()
            (self.folder / str(step)).rename(target)
            logging.warning('moved the damaged checkpoint %d to %s', step, target)
        distributed.from_first('set_aside', step)
        self._manager.reload()

    def close(self) -> None:
        """Wait for what is being written and release the manager's threads."""
        try:
            self.wait()
        finally:
            with self._writing('could not be closed'):
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Turns what Orbax raises when the world does not let it write into one line."""
        drop_late_futures()
        try:
            yield
        except (OSError, ValueError) as error:
            number = _os_error(error)
            if number is None:
                raise
            kept = max(committed_steps(self.folder), default=None)
            after = (
                'no checkpoint was saved before' if kept is None else f'checkpoint {kept} is kept'
            )
            raise RunError(
                f'{self.folder} {what} ({os.strerror(number)}); {after}: '
                f'{WORLD.get(number, "see to that")}, then start the same command again'
            ) from error


class _BestStep:
    """Orbax's preservation policy that keeps the best checkpoint, known after it was saved."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        del context
        best = self._checkpoints.best
        return [best is not None and info.step == best.step for info in checkpoints]


def workdir_of(path: str | os.PathLike) -> epath.Path:
    """The workdir that a path names: itself, or the one around a checkpoint in it."""
    path = absolute(path)
    return path.parent.parent if path.parent.name == FOLDER else path


def load_model(path: str | os.PathLike, which: str = 'best') -> tuple[dict[str, Any], int]:
    """Read the weights of a run, without its optimizer; the run may go on meanwhile.

    Args:
      path: a workdir, or one checkpoint inside it (`workdir/checkpoints/1000`).
      which: of a workdir: 'best' (the latest if nothing was evaluated, which a warning says),
        'latest', or a step number. A damaged 'latest' gives way to the newest sound one, with a
        warning; a damaged 'best' or step never does.

    Returns:
      {'params', 'batch_stats'} of host arrays, and the step.

    Raises:
      UserError: no checkpoint, none of that step, or it is damaged.
    """
    path = absolute(path)
    if path.name.isdigit() and (path.parent.name == FOLDER or (path / 'model').exists()):
        folder, which = path.parent, path.name
    else:
        folder = path if path.name == FOLDER else path / FOLDER
    damaged: dict[int, str] = {}
    while True:
        step, movable = _choose_step(folder, which, damaged)
        try:
            return _nested(_read_patiently(folder, step)), step
        except _DeletedError:
            logging.warning('%s: checkpoint %d was deleted while it was read', folder, step)
            if which.isdigit():
                raise UserError(
                    f'{folder}: checkpoint {step} was deleted while it was read; there are '
                    f'{_known(committed_steps(folder))}'
                ) from None
        except DamagedCheckpointError as error:
            if _choose_step(folder, which, damaged) != (step, movable):
                continue  # a new best, or a new latest, took its place
            if not movable:
                raise UserError(
                    f'{folder}: checkpoint {step} is damaged ({error}); --checkpoint=latest takes '
                    'the newest sound one'
                ) from error
            damaged[step] = str(error)
            logging.warning(
                '%s: checkpoint %d is damaged (%s), trying the one before', folder, step, error
            )


def _choose_step(folder: epath.Path, which: str, damaged: Mapping[int, str]) -> tuple[int, bool]:
    """The step that `which` means in a folder, and whether an older one may take its place."""
    steps = committed_steps(folder)
    if not steps:
        raise UserError(f'{folder}: no checkpoint here; give a workdir that train.py has saved to')
    best = None
    if which == 'best':
        best = read_best(folder.parent)
        if best is not None and best.step not in steps:
            raise UserError(
                f'{folder}: {BEST} names checkpoint {best.step}, which is not there; there are '
                f'{_known(steps)}'
            )
        if best is not None:
            return best.step, False
        logging.warning('%s: nothing was evaluated yet, so the latest is taken for best', folder)
    if which in ('best', 'latest'):
        sound = [step for step in steps if step not in damaged]
        if not sound:
            lines = '; '.join(f'{step} ({problem})' for step, problem in damaged.items())
            raise UserError(f'{folder}: no checkpoint can be read: {lines}')
        return sound[-1], True
    if not which.isdigit() or int(which) not in steps:
        raise UserError(f"{folder}: no checkpoint '{which}'; there are {_known(steps)}")
    return int(which), False


def _known(steps: Sequence[int]) -> str:
    """What --checkpoint can be, as a list to print."""
    return ', '.join(['best', 'latest', *map(str, steps)])


def committed_steps(folder: epath.Path) -> list[int]:
    """The steps in a folder of checkpoints that Orbax counts as committed, in order."""
    names = ocp.path.step.standard_name_format()
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(READ_AGAIN_SECONDS)
        try:
            return sorted(found.step for found in names.find_all(folder))
        except FileNotFoundError:  # one was deleted while it was looked at
            continue
    return []


def read_best(workdir: epath.Path) -> Best | None:
    """The contents of best.json, or None without one; DamagedFileError if it makes no sense."""
    path = workdir / BEST
    found = read_json(path)
    if found is None:
        return None
    try:
        step, metric, value = found['step'], found['metric'], found['value']
        if type(step) is not int or not isinstance(metric, str) or not math.isfinite(value):
            raise TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedFileError(f'{path} is damaged (not a step, a metric and its value)') from error
    return Best(step, metric, float(value))


def _read_patiently(folder: epath.Path, step: int) -> Arrays:
    """The model of a checkpoint that training may delete at any time.

    Raises _DeletedError or DamagedCheckpointError.
    """
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(READ_AGAIN_SECONDS)
        try:
            return read_sound(folder / str(step), ('model',))['model']
        except DamagedCheckpointError as error:
            problem = error
        if step not in committed_steps(folder):
            raise _DeletedError from problem
    raise problem


def _nested(arrays: Arrays) -> dict[str, Any]:
    """{'params', 'batch_stats'} trees from arrays by path."""
    tree: dict[str, Any] = {'params': {}, 'batch_stats': {}}
    for name, array in arrays.items():
        *folders, last = name.split('/')
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return tree


def _fill(like: TrainState, found: Mapping[str, Arrays], where: str) -> TrainState:
    """The arrays of a checkpoint in the structure of `like`; UserError where they do not fit."""
    wanted = {
        'model': {'params': like.params, 'batch_stats': like.batch_stats},
        'optimizer': {'opt_state': like.opt_state, 'step': like.step},
    }
    filled = {}
    for item, tree in wanted.items():
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        here = {array_name(path): leaf for path, leaf in leaves}
        for name in sorted(here.keys() | found[item].keys()):
            shapes = [
                tuple(np.shape(arrays[name])) if name in arrays else 'missing'
                for arrays in (found[item], here)
            ]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f'{where} does not fit this configuration ({name} is {shapes[0]} there and '
                    f'{shapes[1]} here); use another workdir, or train.init_from to start from it'
                )
        arrays = [np.asarray(found[item][name], leaf.dtype) for name, leaf in here.items()]
        filled[item] = jax.tree_util.tree_unflatten(structure, arrays)
    return TrainState(
        step=filled['optimizer']['step'],
        params=filled['model']['params'],
        batch_stats=filled['model']['batch_stats'],
        opt_state=filled['optimizer']['opt_state'],
    )


def _os_error(error: OSError | ValueError) -> int | None:
    """The number of the error of the operating system that Orbax met; None if it met none.

    tensorstore raises ValueError with that number in its text; a ValueError without one is a
    mistake of ours.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None
