"""Ends a run on Ctrl-C or SIGTERM: saves first, at a step that all its processes agree on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils

from spinenet_jax import interrupts
from spinenet_jax.errors import RunError


class PreemptionWatch:
    """Turns SIGTERM, or one Ctrl-C, into 'save at this step and leave'.

    Between `__enter__` and `__exit__` a signal is answered by `reached`, after the next step. Where
    there is nothing new to save, because no step was done yet or because the state is in a
    checkpoint while other work goes on, a script leaves at once. With jax.distributed the runtime
    listens for SIGTERM itself and makes the processes agree on a step that none has passed; Ctrl-C
    is handed to it as SIGTERM. A second Ctrl-C leaves at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._unsaved = False  # whether a step was done that no checkpoint holds
        self._interrupted = 0
        self._finish: Callable[[], str] | None = None
        self._before: dict[int, object] = {}
        self._answer_before: Callable[[int], None] | None = None
        self._distributed = False

    def __enter__(self) -> PreemptionWatch:
        self._distributed = jax.distributed.is_initialized()
        signals = [] if self._distributed else [signal.SIGTERM]
        if interrupts.installed():
            interrupts.install(*signals)
            self._answer_before = interrupts.answer_with(self._answer)
        else:  # in a notebook or a test: nothing may end the process
            for number in [signal.SIGINT, *signals]:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if interrupts.installed():
            interrupts.answer_with(self._answer_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether to save and leave after `step`; to be asked once a step, by every process."""
        self._unsaved = True
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @contextlib.contextmanager
    def saved(self, finish: Callable[[], str]) -> Iterator[None]:
        """While the state is in a checkpoint and other work goes on, a signal ends a script.

        finish: waits until the checkpoint is committed and says what to tell.
        """
        if not self._distributed:  # several processes can only leave together, at a step
            self._finish = finish
            if self._asked and interrupts.installed():
                _leave_saved(finish)
        try:
            yield
        finally:
            self._finish = None

    def _answer(self, number: int) -> None:
        """In the reading thread of `interrupts`."""
        self._interrupted += number == signal.SIGINT
        if self._interrupted > 1:
            interrupts.leave(interrupts.SECOND, 128 + number)
        if self._finish is not None:  # in a thread, as another signal must be heard meanwhile
            threading.Thread(target=_leave_saved, args=(self._finish,), daemon=True).start()
        elif not self._unsaved:
            interrupts.nothing_to_save(number)
        else:
            self._note(number)

    def _handle(self, number: int, frame: object) -> None:
        """In the main thread, where no script reads signals."""
        del frame
        self._note(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _note(self, number: int) -> None:
        self._asked = True
        if number == signal.SIGINT:
            logging.info('saving and leaving after this step; interrupt again to leave at once')
            if self._distributed:
                os.kill(os.getpid(), signal.SIGTERM)


def _leave_saved(finish: Callable[[], str]) -> None:
    """Ends the process once its checkpoint is committed."""
    try:
        line = finish()
    except RunError as error:
        interrupts.leave(f'error: {error}', 1)
    interrupts.leave(f'{interrupts.INTERRUPTED}: {line}', 0)
