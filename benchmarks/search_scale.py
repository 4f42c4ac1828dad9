"""A search as large as the paper's, by simulation: 14,000 candidates by 100 workers.

    python benchmarks/search_scale.py [--candidates=14000] [--workers=100] [--record]

Everything is real but the workers: controller, ledger on disk, resuming. A simulated worker takes a
random time and its reward is the likeness to a hidden graph. A line, with --record also of
benchmarks/logs/search_scale.jsonl:

  overhead_ms_a_candidate    wall time of the whole search, divided by candidates, and of that
  ask_ms tell_ms             the controller's
  ledger_mb peak_memory_mb   the file, and the process (interpreter, JAX and all)
  resume_s                   reading the ledger and telling a new controller what is in it
"""

import argparse
import heapq
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.machine import report
from benchmarks.search_controllers import CONTROLLERS, make
from spinenet_jax.models.graph import from_text
from spinenet_jax.search.engine import Report
from spinenet_jax.search.ledger import FILE, Ledger
from spinenet_jax.search.process import Outcome
from spinenet_jax.search.run import Plan, Search
from spinenet_jax.search.space import SPACES, draw_valid
from tests.search.made import noisy


class SimulatedWorkers:
    """An engine whose jobs end at random times of a simulated clock."""

    def __init__(self, hidden) -> None:
        self._hidden, self._rng, self._now = hidden, np.random.default_rng(0), 0.0
        self._jobs: list = []

    def submit(self, job) -> None:
        """Ends 30 to 90 simulated minutes from now."""
        heapq.heappush(self._jobs, (self._now + self._rng.uniform(30, 90), job.number, job))

    def wait(self, timeout) -> Report:
        """The job that ends next."""
        began = self._now
        self._now, _, job = heapq.heappop(self._jobs)
        reward = noisy(from_text(job.graph), self._hidden)
        seconds = 60 * (self._now - began)
        outcome = Outcome(job.number, 'done', reward, {'AP': reward}, worker='simulated')
        return Report([outcome._replace(seconds=seconds)], len(self._jobs))

    def cancel(self, number) -> None:
        """Nothing runs."""


class Timed:
    """A controller, and how long its calls take."""

    def __init__(self, controller) -> None:
        self._controller, self.asking, self.telling = controller, 0.0, 0.0

    def ask(self, number):
        """See `Controller`."""
        began = time.perf_counter()
        proposal = self._controller.ask(number)
        self.asking += time.perf_counter() - began
        return proposal

    def tell(self, proposal, reward) -> None:
        """See `Controller`."""
        began = time.perf_counter()
        self._controller.tell(proposal, reward)
        self.telling += time.perf_counter() - began


def main() -> None:
    """One search, then resuming it at its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--candidates', type=int, default=14_000)
    parser.add_argument('--workers', type=int, default=100)
    parser.add_argument('--controller', default='ppo', choices=CONTROLLERS)
    parser.add_argument('--record', action='store_true')
    options = parser.parse_args()
    space = SPACES['spinenet49']
    _, hidden = draw_valid(space, np.random.default_rng((99, 0)))
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            candidates=options.candidates,
            samples=20 * options.candidates,
            workers=options.workers,
            seed=0,
            folder=folder,
            evaluator='',
            config={},
            time_limit=0.0,
            environment={},
        )

        def search(controller) -> Search:
            ledger = Ledger(folder)
            return Search(plan, space, controller, SimulatedWorkers(hidden), ledger)

        controller = Timed(make(options.controller, space, 0))
        began = time.perf_counter()
        first = search(controller)
        history = first.run()
        wall = time.perf_counter() - began
        first._ledger.close()
        again = Timed(make(options.controller, space, 0))
        began = time.perf_counter()
        resumed = search(again)
        resume = time.perf_counter() - began
        same = resumed.history.results == history.results and again.ask(10**6) == controller.ask(
            10**6
        )
        samples = len(history.results)
        result = {
            'controller': options.controller,
            'space': space.name,
            'workers': options.workers,
            'candidates': history.evaluated,
            'samples': samples,
            'overhead_ms_a_candidate': round(1e3 * wall / samples, 2),
            'ask_ms': round(1e3 * controller.asking / samples, 2),
            'tell_ms': round(1e3 * controller.telling / samples, 2),
            'ledger_mb': round((Path(folder) / FILE).stat().st_size / 1e6, 1),
            'peak_memory_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            'resume_s': round(resume, 1),
            'resumed_is_the_same': same,
        }
        report('search_scale', result, options.record)


if __name__ == '__main__':
    main()
