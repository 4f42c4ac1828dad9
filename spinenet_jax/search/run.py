"""The search: asks a controller, hands candidates to an engine, writes results into the ledger.

Workers never wait for each other: whoever is free gets the next proposal of the controller as it is
at that moment. Whatever is killed, the ledger says what is still to be done.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import Graph, to_text
from spinenet_jax.search.candidate import Job
from spinenet_jax.search.controller import Controller, Proposal
from spinenet_jax.search.engine import Engine
from spinenet_jax.search.history import DUPLICATE, History, Result
from spinenet_jax.search.ledger import Event, Ledger
from spinenet_jax.search.process import Outcome
from spinenet_jax.search.space import Space, decode

# How often a candidate is tried again. A machine that was lost says nothing about the candidate; a
# time limit may be due to either, so it gets one more chance.
RETRIES = {'lost': 2, 'timeout': 1}

LOOK_SECONDS = 1.0  # between two looks at whether to stop, and at the page
HOPELESS = 10  # candidates without a single reward that end a search


class Plan(NamedTuple):
    """How much to do, and how a candidate is evaluated.

    Attributes:
      candidates: how many different graphs to evaluate.
      samples: most proposals, those of graphs that are known already included.
      workers: most candidates at a time.
      seed: of the candidates' evaluation.
      folder: path of the search; candidate n has `candidates/<n>` in it.
      evaluator, config, time_limit, environment: see `candidate.Job`.
    """

    candidates: int
    samples: int
    workers: int
    seed: int
    folder: str
    evaluator: str
    config: dict[str, Any]
    time_limit: float
    environment: dict[str, str]


class Search:
    """A search in progress.

    Attributes:
      plan, history: how much to do, and what was done.
      alive: workers that were heard of last.
      continued: whether the ledger held candidates before.

    Args:
      plan: how much to do.
      space: what decisions mean.
      controller: new; it is told what the ledger holds.
      engine: evaluates.
      ledger: new, or that of the search to continue.
      cost: of a graph, {name: number}, for the ledger.
      score: (reward of the evaluator, cost) to what the controller is told.
      watch: called with this object after every change.
      clock: Unix seconds.
    """

    def __init__(
        self,
        plan: Plan,
        space: Space,
        controller: Controller,
        engine: Engine,
        ledger: Ledger,
        *,
        cost: Callable[[Graph], dict[str, float]] = lambda graph: {},
        score: Callable[[float, Mapping[str, float]], float] = lambda reward, cost: reward,
        watch: Callable[['Search'], None] = lambda search: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.plan, self.history, self.alive = plan, History(ledger.events), 0
        self.continued = self.history.asked > 0
        self._space, self._controller = space, controller
        self._engine, self._ledger = engine, ledger
        self._cost, self._score, self._watch, self._clock = cost, score, watch, clock
        self._running: dict[int, str] = {}  # number: graph, handed to the engine
        self._waiting: dict[str, list[int]] = {}  # graph being evaluated: its duplicates
        self.history.teach(controller)

    def run(self, stopped: Callable[[], bool] = lambda: False) -> History:
        """Go on until the plan is fulfilled or `stopped` says so, which is asked between steps.

        When it returns, and on any exception, candidates that still run are killed.
        """
        try:
            for number in sorted(self.history.pending):
                self._start(number)
            while not stopped():
                while self._wants_more() and not stopped():
                    self._start(self._ask())
                self._watch(self)
                if not self._running:
                    break
                report = self._engine.wait(timeout=LOOK_SECONDS)
                self.alive = report.alive
                for outcome in report.outcomes:
                    self._take(outcome)
            return self.history
        finally:
            for number in list(self._running):
                self._engine.cancel(number)

    def _wants_more(self) -> bool:
        running, history = len(self._running), self.history
        return (
            running < self.plan.workers
            and history.evaluated + running < self.plan.candidates
            and history.asked < self.plan.samples
            # A controller that proposes nothing but what is being evaluated has to wait for it.
            and len(history.pending) < 2 * self.plan.workers
        )

    def _ask(self) -> int:
        """The number of a new candidate, in the ledger."""
        number = self.history.asked
        proposal = self._controller.ask(number)
        graph = decode(self._space, proposal.decisions)
        self._write(
            event='ask',
            number=number,
            decisions=list(proposal.decisions),
            log_probabilities=list(proposal.log_probabilities),
            graph=to_text(graph),
            cost=self._cost(graph),
            seed=self.plan.seed,
        )
        return number

    def _start(self, number: int) -> None:
        """Have a pending candidate evaluated, unless its graph is known or on its way."""
        graph = self.history.pending[number]['graph']
        if self.history.result_of(graph) is not None:
            self._tell_duplicate(number)
        elif graph in self._waiting:
            self._waiting[graph].append(number)
        else:
            self._waiting[graph] = []
            self._submit(number)

    def _submit(self, number: int) -> None:
        ask, plan = self.history.pending[number], self.plan
        self._running[number] = ask['graph']
        self._engine.submit(
            Job(
                number=number,
                graph=ask['graph'],
                folder=f'{plan.folder}/candidates/{number:06d}',
                seed=ask['seed'],
                evaluator=plan.evaluator,
                config=plan.config,
                time_limit=plan.time_limit,
                environment=plan.environment,
            )
        )

    def _take(self, outcome: Outcome) -> None:
        """One more try for what was lost, else the result."""
        number = outcome.number
        graph = self._running.pop(number)
        lost = self.history.attempts.get(number, 0) + 1
        if lost <= RETRIES.get(outcome.status, 0):
            self._write(event='retry', number=number, attempts=lost, reason=outcome.reason)
            self._submit(number)
            return
        cost = self.history.pending[number]['cost']
        done = outcome.status == 'done'
        self._tell(
            number,
            reward=self._score(outcome.reward, cost) if done else self._worst(),
            status=outcome.status,
            reason=outcome.reason,
            metrics={'reward': outcome.reward, **(outcome.metrics or {})} if done else {},
            worker=outcome.worker,
            seconds=outcome.seconds,
        )
        for duplicate in self._waiting.pop(graph):
            self._tell_duplicate(duplicate)
        if not done and self.history.evaluated >= HOPELESS and not self.history.best():
            raise UserError(
                f'none of {self.history.evaluated} candidates has a reward; the last one '
                f'{outcome.status}: {outcome.reason} (its log.txt has more)'
            )

    def _worst(self) -> float:
        """The reward of a failure: 0, or less where others have less."""
        done = [result.reward for result in self.history.results if result.status == 'done']
        return min([0.0, *done])

    def _tell_duplicate(self, number: int) -> None:
        """The result of a graph that is known, for one more candidate."""
        first = self.history.result_of(self.history.pending[number]['graph'])
        reason = f'of candidate {first.number}'
        self._tell(number, reward=first.reward, status=DUPLICATE, reason=reason)

    def _tell(self, number: int, **facts: Any) -> None:
        defaults = {'reason': '', 'metrics': {}, 'worker': '', 'seconds': 0.0}
        self._write(event='tell', number=number, **(defaults | facts))
        result: Result = self.history.results[-1]
        self._controller.tell(Proposal(*result.proposal), result.reward)

    def _write(self, **event: Any) -> None:
        """To disk first, then to mind."""
        line: Event = event | {'time': round(self._clock(), 3)}
        self._ledger.append(line)
        self.history.apply(line)
