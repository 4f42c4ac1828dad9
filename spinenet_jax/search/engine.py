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
    """One process a job on this machine; no server, and nothing but the standard library."""

    def __init__(self) -> None:
        self._running: dict[int, Attempt] = {}

    def submit(self, job: Job) -> None:
        """Start the process."""
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
