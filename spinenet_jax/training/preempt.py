"""Was this run asked to stop, and at which step do all its processes do so?"""

from __future__ import annotations

import os
import signal

import jax
from absl import logging
from jax.experimental import multihost_utils


class PreemptionWatch:
    """Turns SIGTERM, or one Ctrl-C, into 'save at this step and leave'.

    A single process notes the signal in a handler that is in place between `__enter__` and
    `__exit__`. With jax.distributed the runtime listens for SIGTERM itself and makes the
    processes agree on a step that none has passed; Ctrl-C is handed to it as SIGTERM.
    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> PreemptionWatch:
        self._distributed = jax.distributed.is_initialized()
        signals = [signal.SIGINT] if self._distributed else [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        del frame
        self._asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            logging.info('saving and leaving after this step; interrupt again to leave at once')
            if self._distributed:
                os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to save and leave after `step`; to be asked once a step, by every process."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
