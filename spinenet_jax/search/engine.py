"""Where candidates are evaluated: the interface of engines, and the one that needs nothing else.

An engine runs jobs and says how they ended. Which to run, what to do about one that was lost, and
what to write down is the search's.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from spinenet_jax.search.candidate import Job
from spinenet_jax.search.process import Attempt, Outcome


class Report(NamedTuple):
    """What an engine has to say.

    Attributes:
      outcomes: of attempts that have ended since the last report, each in exactly one report.
      alive: workers that evaluate something now.
    """

    outcomes: Sequence[Outcome]
    alive: int


class Engine(Protocol):
    """Evaluates candidates somewhere."""

    def submit(self, job: Job) -> None:
        """Start a job, or queue it until there is room; does not wait."""

    def wait(self, timeout: float) -> Report:
        """Wait until at least one job has ended, but not longer than `timeout` seconds."""

    def cancel(self, number: int) -> None:
        """Kill the job of a candidate; nothing more is said of it."""


class ProcessEngine:
    """One process a job on this machine; no server, and nothing but the standard library.

    Args:
      device_variable: variable in which a process finds the number of its device, the lowest that
        no other has: CUDA_VISIBLE_DEVICES on a machine with several GPUs. '' for none.
    """

    def __init__(self, device_variable: str = '') -> None:
        self._variable = device_variable
        self._running: dict[int, Attempt] = {}
        self._device: dict[int, int] = {}  # of a job's number

    def submit(self, job: Job) -> None:
        """Start the process."""
        taken = {device for number, device in self._device.items() if number in self._running}
        device = next(n for n in range(len(taken) + 1) if n not in taken)
        self._device[job.number] = device
        if self._variable:
            environment = job.environment | {self._variable: str(device)}
            job = job._replace(environment=environment)
        self._running[job.number] = Attempt(job)

    def wait(self, timeout: float) -> Report:
        """See `Engine`; looks at every child twenty times a second."""
        deadline = time.monotonic() + timeout
        while True:
            ended = {n: outcome for n, a in self._running.items() if (outcome := a.poll())}
            for number in ended:
                del self._running[number]
            if ended or time.monotonic() >= deadline:
                return Report(list(ended.values()), len(self._running))
            time.sleep(0.05)

    def cancel(self, number: int) -> None:
        """Kill the process."""
        attempt = self._running.pop(number, None)
        if attempt is not None:
            attempt.kill()
