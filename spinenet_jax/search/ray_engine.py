"""Evaluates candidates on a fleet with Ray core (requirements-search.txt).

A candidate is a Ray task that starts the same process as the local engine does, on a machine with
the resources asked for. Retries are the search's, so Ray makes none.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from spinenet_jax.errors import UserError
from spinenet_jax.search.candidate import Job
from spinenet_jax.search.engine import Report
from spinenet_jax.search.process import Attempt, Outcome, child_environment

LATE = 120.0  # seconds after its time limit that a silent worker counts as hung
# What of the repository a worker does not need; Ray sends the rest to machines that lack it.
_EXCLUDES = ['.git', 'runs', 'tests', 'docs', 'benchmarks', '*.pyc', '.pytest_cache']


class RayEngine:
    """See `engine.Engine`.

    Joins the cluster that RAY_ADDRESS names, or starts one on this machine.

    Args:
      workers: tasks at a time, for a cluster started here.
      resources: what a task takes, as `num_cpus`, `num_gpus`, and others by name ({'TPU': 4}).
    """

    def __init__(self, workers: int, resources: Mapping[str, float]) -> None:
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        try:
            import ray
        except ImportError as error:
            raise UserError('--engine=ray: pip install -r requirements-search.txt') from error
        self._ray = ray
        named = dict(resources)
        options: dict[str, Any] = {n: named.pop(n) for n in ('num_cpus', 'num_gpus') if n in named}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if 'RAY_ADDRESS' in os.environ:
            self._join()
        else:
            ray.init(
                address='local',
                num_cpus=max(1, round(workers * options.get('num_cpus', 1))),
                runtime_env={'env_vars': {'PYTHONPATH': child_environment()['PYTHONPATH']}},
                include_dashboard=False,
                log_to_driver=False,
            )
        signal.signal(signal.SIGTERM, on_sigterm)  # not Ray's, which leaves at once
        self._remote = ray.remote(max_retries=0, resources=named, **options)(_evaluate)
        self._jobs: dict[int, Job] = {}
        self._tasks: dict[int, Any] = {}  # number: stream of a task's messages
        self._started: dict[int, tuple[str, float]] = {}  # number: worker, when it was heard of

    def _join(self) -> None:
        """Joins the cluster of RAY_ADDRESS."""
        # The checkout, which the command is started in, is sent to every machine, unless
        # `ray job submit --working-dir` has done so.
        job = json.loads(os.environ.get('RAY_JOB_CONFIG_JSON_ENV_VAR', '{}'))
        sent = 'working_dir' in (job.get('runtime_env') or {})
        runtime = None if sent else {'working_dir': os.getcwd(), 'excludes': _EXCLUDES}
        try:
            self._ray.init(runtime_env=runtime, log_to_driver=False)
        except ConnectionError as error:
            words = ' '.join(str(error).split())[:200]
            raise UserError(f'RAY_ADDRESS={os.environ["RAY_ADDRESS"]}: {words}') from error

    def submit(self, job: Job) -> None:
        """Queue a task."""
        self._jobs[job.number] = job
        self._tasks[job.number] = self._remote.remote(job)

    def wait(self, timeout: float) -> Report:
        """See `Engine`."""
        deadline = time.monotonic() + timeout
        while True:
            outcomes = [o for number in list(self._tasks) if (o := self._look(number))]
            left = deadline - time.monotonic()
            if outcomes or left <= 0 or not self._tasks:
                return Report(outcomes, len(self._started))
            self._ray.wait(list(self._tasks.values()), num_returns=1, timeout=min(left, 1.0))

    def cancel(self, number: int) -> None:
        """Kill the task's worker process, and with it what it started."""
        self._started.pop(number, None)
        del self._jobs[number]
        self._ray.cancel(self._tasks.pop(number), force=True)

    def _look(self, number: int) -> Outcome | None:
        """How a task ended, if it has."""
        task = self._tasks[number]
        while self._ray.wait([task], timeout=0)[0]:
            try:
                message = self._ray.get(next(task))
            except (self._ray.exceptions.RayError, StopIteration) as error:
                return self._lost(number, f'{type(error).__name__}')
            if isinstance(message, Outcome):
                self._forget(number)
                return message
            self._started[number] = (message, time.monotonic())
        limit = self._jobs[number].time_limit
        if limit and number in self._started:
            worker, since = self._started[number]
            if time.monotonic() - since > limit + LATE:
                self._ray.cancel(task, force=True)
                self._forget(number)
                reason = f'silent {LATE:g} s after its time limit'
                return Outcome(number, 'lost', reason=reason, worker=worker)
        return None

    def _lost(self, number: int, reason: str) -> Outcome:
        worker, since = self._started.get(number, ('', time.monotonic()))
        seconds = round(time.monotonic() - since, 2)
        self._forget(number)
        return Outcome(number, 'lost', reason=reason, worker=worker, seconds=seconds)

    def _forget(self, number: int) -> None:
        self._started.pop(number, None)
        del self._jobs[number], self._tasks[number]


def _evaluate(job: Job):
    """On the worker: says who evaluates the job, then how it ended."""
    attempt = Attempt(job)
    yield attempt.worker
    yield attempt.wait()
