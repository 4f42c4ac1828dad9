"""Writes the numbers of a run: metrics.jsonl, TensorBoard events, and what a person sees.

On a terminal there is a progress bar below the log lines; the lines are the same everywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2
from tqdm import tqdm

from spinenet_jax.errors import RunError
from spinenet_jax.files import (
    DamagedFileError,
    absolute,
    append_text,
    is_remote,
    write_atomically,
)
from spinenet_jax.parallel import unreplicate
from spinenet_jax.training.pictures import Picture

FILE = 'metrics.jsonl'
BAR = '{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}'


class NonFiniteError(RunError):
    """The loss, the gradient or the state of a step is infinite or not a number."""


class MetricsLog:
    """metrics.jsonl, one object a line: 'step', 'wall_time' (Unix seconds), then the values.

    A run that resumes at a step first drops what an earlier process wrote beyond it, so each
    (step, name) occurs once. All processes may hold one; only process 0 writes.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int) -> None:
        folder = absolute(workdir)
        self._path = folder / FILE
        self._lines = [line for line in _read_lines(self._path) if line['step'] <= start_step]
        self._board = None
        if jax.process_index() == 0:
            self._rewrite()
            self._board = _open_board(os.fspath(folder), start_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line and the same numbers as TensorBoard scalars."""
        line = {'step': step, 'wall_time': round(time.time(), 3)}
        line |= {name: _plain(value) for name, value in values.items()}
        if jax.process_index() != 0:
            return
        if is_remote(self._path):  # object stores cannot append
            self._lines.append(line)
            self._rewrite()
        else:
            append_text(self._path, json.dumps(line) + '\n')
        self._show(lambda board: board.write(step, values))

    def write_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """TensorBoard images of one evaluation, as they are in the files."""
        self._show(lambda board: board.write_pictures(step, pictures))

    def has(self, step: int, prefix: str) -> bool:
        """Whether a value whose name starts with `prefix` was written for `step` before."""
        return any(
            line['step'] == step and any(name.startswith(prefix) for name in line)
            for line in self._lines
        )

    def values(self, name: str) -> Iterator[tuple[int, float]]:
        """(step, value) of every line written before that has a number of this name."""
        for line in self._lines:
            value = line.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield line['step'], float(value)

    def close(self) -> None:
        """Ends the TensorBoard file; every line is on disk already."""
        self._show(lambda board: board.close())

    def _show(self, write: Callable[[_Board], None]) -> None:
        """Writes to TensorBoard; in a bucket, a failure ends its events and not the run."""
        if self._board is None:
            return
        try:
            write(self._board)
        except Exception as error:  # whatever the client of an object store raises
            if not is_remote(self._path):
                raise
            logging.warning('no more TensorBoard events: %s', error)
            self._board = None

    def _rewrite(self) -> None:
        write_atomically(self._path, ''.join(json.dumps(line) + '\n' for line in self._lines))


class StepMonitor:
    """Follows the steps one behind, so that the host never waits for the one just started.

    Every step's loss and gradient norm are looked at; every `log_every`-th step is written.
    """

    def __init__(
        self,
        log: MetricsLog,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        log_every: int,
    ) -> None:
        """Shows nothing before the first step is done: until then there is only compilation."""
        self._log, self._log_every, self._batch_size = log, log_every, batch_size
        self._total, self._steps_per_epoch = total_steps, steps_per_epoch
        self._pending: tuple[int, Any] | None = None
        self._clock: tuple[int, float] | None = None  # (step, time) that the speed counts from
        self._bar: tqdm | None = None
        self.last: dict[str, float] = {}

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Notes the step just started, and handles the one before; NonFiniteError for that."""
        before, self._pending = self._pending, (step, metrics)
        if before is not None:
            self._handle(*before)

    def flush(self) -> None:
        """Handles the newest step too; after it, the state is known to be finite."""
        before, self._pending = self._pending, None
        if before is not None:
            self._handle(*before)
        self._close_bar()

    def pause(self) -> None:
        """What follows until the next step (evaluation, compilation) is no training time."""
        self._clock = None

    def close(self) -> None:
        """Removes the progress bar."""
        self._close_bar()

    def _handle(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in unreplicate(dict(metrics)).items()}
        if not (math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])):
            raise NonFiniteError(
                f'step {step}: the loss is {values["loss"]:g} and the gradient norm '
                f'{values["grad_norm"]:g}'
            )
        self.last = values
        speed = self._speed(step)
        parts = sorted(name for name in values if name.endswith('_loss'))  # whatever the task
        losses = [f'{name} {values[name]:.4g}' for name in ('loss', *parts, 'learning_rate')]
        pace = self._pace(step, speed)
        self._move_bar(step, [losses[0], *pace])
        if step % self._log_every and step != self._total:
            return
        extra = {'epoch': step / self._steps_per_epoch}
        if speed:
            extra['images_per_second'] = round(speed, 2)
            self._clock = (step, time.monotonic())
        self._log.write(step, values | extra)
        if jax.process_index() == 0:
            words = [*losses, f'epoch {step / self._steps_per_epoch:.2f}', *pace]
            logging.info('step %d/%d %s', step, self._total, ', '.join(words))

    def _speed(self, step: int) -> float:
        """Images a second since the clock was last set; 0 where there is no interval yet."""
        now = time.monotonic()
        if self._clock is None:
            self._clock = (step, now)
            return 0.0
        since, then = self._clock
        return (step - since) * self._batch_size / max(now - then, 1e-9)

    def _pace(self, step: int, speed: float) -> list[str]:
        """Speed and time left in words; nothing before there is a speed."""
        if not speed:
            return []
        seconds = (self._total - step) * self._batch_size / speed
        return [f'images/s {speed:.1f}', f'{tqdm.format_interval(seconds)} left']

    def _move_bar(self, step: int, words: list[str]) -> None:
        """Opens the bar at the first step after a pause, then moves it."""
        if self._bar is None:
            self._bar = tqdm(
                total=self._total,
                initial=step - 1,
                desc='train',
                bar_format=BAR,
                dynamic_ncols=True,
                leave=False,
                disable=not sys.stderr.isatty() or jax.process_index() != 0,
            )
        self._bar.set_postfix_str(', '.join(words), refresh=False)
        self._bar.update()

    def _close_bar(self) -> None:
        """Makes room for the lines and the bar of an evaluation."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _plain(value: float) -> float | None:
    """A JSON number: NaN and infinities, which JSON has not, become null."""
    value = float(value)
    return value if math.isfinite(value) else None


def _read_lines(path) -> list[dict[str, Any]]:
    """The objects in a metrics file; lines that a kill cut off or that make no sense are dropped.

    Raises:
      DamagedFileError: a folder is in its place.
    """
    if not path.exists():
        return []
    if path.is_dir():
        raise DamagedFileError(f'{path} is a folder, where a file is expected: move it away')
    lines, damaged = [], 0
    for data in path.read_bytes().splitlines():
        try:
            line = json.loads(data.decode())
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get('step')) is int:
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        logging.warning('%s: dropped %d damaged lines', path, damaged)
    return lines


class _Board:
    """TensorBoard events, written where they are called for.

    tensorboardX's own SummaryWriter writes in a thread: on a full disk it dies with a traceback,
    and the run then waits for ever for room in its queue.
    """

    def __init__(self, folder: str, start_step: int) -> None:
        """Hides what an earlier process wrote beyond the step."""
        self._folder = folder
        self._writer = event_file_writer.EventsWriter(
            os.path.join(folder, 'events'), filename_suffix=f'.{os.getpid()}'
        )
        self._event(
            start_step + 1,
            session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one step, flushed."""
        self._write(step, [summary.scalar(name, value) for name, value in values.items()])

    def write_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Images of one step, flushed; a tag an image, so that a slider goes through the steps."""
        self._write(
            step,
            [
                summary_pb2.Summary(
                    value=[
                        summary_pb2.Summary.Value(
                            tag=f'pictures/{picture.image_id}',
                            image=summary_pb2.Summary.Image(
                                height=picture.size[0],
                                width=picture.size[1],
                                colorspace=3,  # RGB
                                encoded_image_string=picture.jpeg,
                            ),
                        )
                    ]
                )
                for picture in pictures
            ],
        )

    def _write(self, step: int, summaries: Sequence[summary_pb2.Summary]) -> None:
        try:
            for one in summaries:
                self._event(step, summary=one)
            self._writer.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._folder) from error

    def close(self) -> None:
        """Ends the file; what a full disk did not take was said before."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _event(self, step, **content):
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def _open_board(folder: str, start_step: int) -> _Board | None:
    """A TensorBoard writer; none, with a warning, for a bucket that its library cannot write."""
    if not is_remote(folder):
        return _Board(folder, start_step)
    try:
        return _Board(folder, start_step)
    except Exception as error:  # whatever the client of an object store raises
        logging.warning('no TensorBoard events: %s', error)
        return None
