"""One attempt at a candidate as a child process: started, watched, killed at its time limit."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from spinenet_jax.search.candidate import Job

MODULE = 'spinenet_jax.search.candidate'
LOG = 'log.txt'
# Signals that come from a person, a scheduler or the kernel, and not from the program's own faults.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PAUSE = 0.05  # seconds between two looks at a child


class Outcome(NamedTuple):
    """How an attempt ended.

    Attributes:
      number: of the candidate.
      status: 'done'; 'failed' by itself; 'timeout'; 'lost', with its process, machine or worker.
      reward: 0 unless done.
      metrics: what else the evaluator reported.
      reason: why there is no reward, in one line.
      worker: host and process that ran it.
      seconds: how long it ran.
    """

    number: int
    status: str
    reward: float = 0.0
    metrics: dict[str, float] | None = None
    reason: str = ''
    worker: str = ''
    seconds: float = 0.0


def child_environment() -> dict[str, str]:
    """The environment, in which a child finds the modules that this process finds."""
    paths = [os.getcwd(), *sys.path]
    return os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, paths))}


class Attempt:
    """A running candidate. Everything it starts is in its process group and goes with it."""

    def __init__(self, job: Job) -> None:
        self._job, self._began = job, time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, '-m', MODULE],
            stdin=subprocess.PIPE,
            stdout=self._answer,
            stderr=self._log,
            env=child_environment() | job.environment,
            start_new_session=True,
        )
        self.worker = f'{socket.gethostname()}:{self._child.pid}'
        content = json.dumps(job._asdict() | {'parent': os.getpid()}).encode()
        # A broken pipe: the child is dead already, which `poll` will say.
        with contextlib.suppress(BrokenPipeError), self._child.stdin as pipe:
            pipe.write(content)

    @property
    def pid(self) -> int:
        """Of the child, and its process group."""
        return self._child.pid

    def poll(self) -> Outcome | None:
        """The outcome once there is one; kills what has outlived its time limit."""
        limit, seconds = self._job.time_limit, time.monotonic() - self._began
        code = self._child.poll()
        if code is None and not 0 < limit < seconds:
            return None
        self.kill()
        if code is None:
            return self._ended('timeout', reason=f'time limit of {limit:g} s')
        if code < 0:
            status = 'lost' if -code in _FROM_OUTSIDE else 'failed'
            return self._ended(status, reason=f'ended by {signal.Signals(-code).name}')
        self._answer.seek(0)
        text = self._answer.read()
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            return self._ended('failed', reason=f'exit status {code} without a result')
        if 'failed' in answer:
            return self._ended('failed', reason=answer['failed'])
        return self._ended('done', reward=answer['reward'], metrics=answer['metrics'])

    def wait(self) -> Outcome:
        """The outcome, when there is one."""
        while (outcome := self.poll()) is None:
            time.sleep(_PAUSE)
        return outcome

    def kill(self) -> None:
        """End the child and all it has started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _ended(self, status: str, **facts: Any) -> Outcome:
        """The outcome, after the log was copied to the candidate's folder."""
        self._keep_log()
        seconds = round(time.monotonic() - self._began, 2)
        return Outcome(self._job.number, status, worker=self.worker, seconds=seconds, **facts)

    def _keep_log(self) -> None:
        """The last megabyte of what the child printed, as log.txt in its folder if it has one."""
        from etils import epath

        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2**20))
        folder = epath.Path(self._job.folder)
        if folder.exists():
            (folder / LOG).write_bytes(self._log.read())
