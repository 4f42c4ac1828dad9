"""What a search knows, as a fold over the events of its ledger."""

from collections.abc import Iterable
from typing import NamedTuple

from spinenet_jax.search.controller import Controller, Proposal
from spinenet_jax.search.ledger import Event

DUPLICATE = 'duplicate'


class Result(NamedTuple):
    """A candidate that is over.

    Attributes:
      number, proposal, seed: as it was asked.
      graph: as text.
      cost: {name: number}, of the graph.
      reward: what the controller was told.
      status: 'done', 'failed', 'timeout' or 'lost' (for good), or 'duplicate' of an earlier one.
      reason: why there is no reward; for a duplicate, of which.
      metrics: what the evaluator reported.
      worker, seconds: where the last attempt ran, and how long.
      time: Unix seconds when it was told.
    """

    number: int
    proposal: Proposal
    graph: str
    seed: int
    cost: dict[str, float]
    reward: float
    status: str
    reason: str
    metrics: dict[str, float]
    worker: str
    seconds: float
    time: float


class History:
    """Candidates asked for and told.

    Attributes:
      results: all that are over, in the order of the ledger; duplicates are among them.
      pending: number: ask event, of those that are not over.
      attempts: number: how many attempts of a pending candidate were lost so far.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.results: list[Result] = []
        self.pending: dict[int, Event] = {}
        self.attempts: dict[int, int] = {}
        self.asked = 0
        self._first: dict[str, Result] = {}
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in the next event of the ledger."""
        number = event.get('number')
        if event['event'] == 'ask':
            self.pending[number] = event
            self.asked = max(self.asked, number + 1)
        elif event['event'] == 'retry':
            self.attempts[number] = event['attempts']
        elif event['event'] == 'tell':
            ask = self.pending.pop(number)  # a second result of one candidate is a KeyError
            self.attempts.pop(number, None)
            result = _result(ask, event)
            self.results.append(result)
            self._first.setdefault(result.graph, result)

    def result_of(self, graph: str) -> Result | None:
        """The first result of a graph, given as text."""
        return self._first.get(graph)

    @property
    def evaluated(self) -> int:
        """Results that an evaluation was spent on."""
        return len(self._first)

    def best(self, count: int = 1) -> list[Result]:
        """Different graphs with a reward, the best first; the earlier one of equals."""
        done = [result for result in self._first.values() if result.status == 'done']
        return sorted(done, key=lambda result: (-result.reward, result.number))[:count]

    def teach(self, controller: Controller) -> None:
        """Tell a new controller every result."""
        for result in self.results:
            controller.tell(result.proposal, result.reward)


def _result(ask: Event, tell: Event) -> Result:
    return Result(
        number=ask['number'],
        proposal=Proposal(tuple(ask['decisions']), tuple(ask['log_probabilities'])),
        graph=ask['graph'],
        seed=ask['seed'],
        cost=ask['cost'],
        reward=tell['reward'],
        status=tell['status'],
        reason=tell['reason'],
        metrics=tell['metrics'],
        worker=tell['worker'],
        seconds=tell['seconds'],
        time=tell['time'],
    )
