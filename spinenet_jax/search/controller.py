"""What proposes candidates: the interface of a search's controllers, and the two without weights.

A controller is a fold over results: its state follows from what it was told, in that order, and a
proposal from that state, the seed and the candidate's number. So a search that was killed continues
by telling a new controller what its ledger holds.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from spinenet_jax.errors import UserError
from spinenet_jax.search.space import Decisions, Space, draw

MOST_DRAWS = 100_000  # for one candidate, before a space or a bound counts as hopeless


class Proposal(NamedTuple):
    """A candidate's decisions, and the logarithms of their probabilities when they were made.

    A controller that has no probabilities leaves them empty.
    """

    decisions: Decisions
    log_probabilities: tuple[float, ...] = ()


class Controller(Protocol):
    """Proposes candidates and learns from their rewards."""

    def ask(self, number: int) -> Proposal:
        """The proposal for candidate `number`; changes nothing."""

    def tell(self, proposal: Proposal, reward: float) -> None:
        """Learn what a candidate was worth; rewards come in any order of candidates."""


class Random:
    """Random search: draws from the space, all equally likely (Li and Talwalkar, 2019).

    Args:
      space: what to draw from.
      accept: whether a sequence of decisions may be proposed (valid graph, within its bounds).
      seed: of the draws.
    """

    def __init__(self, space: Space, accept: Callable[[Decisions], bool], seed: int) -> None:
        self._space, self._accept, self._seed = space, accept, seed

    def ask(self, number: int) -> Proposal:
        """A fresh draw."""
        rng = np.random.default_rng((self._seed, number))
        return first_accepted(lambda: Proposal(draw(self._space, rng)), self._accept)

    def tell(self, proposal: Proposal, reward: float) -> None:
        """Nothing to learn."""


class Evolution:
    """Regularised evolution (Real et al., 2018): mutate the best of a few, drop the oldest.

    Random draws until the population is full. A mutation changes one decision: two blocks change
    places, or a parent, a level or a kind is drawn again.

    Args:
      space, accept, seed: as for `Random`.
      population: how many of the latest results are kept.
      tournament: how many of these, drawn with replacement, compete to be mutated.
    """

    def __init__(
        self,
        space: Space,
        accept: Callable[[Decisions], bool],
        seed: int,
        population: int = 100,
        tournament: int = 25,
    ) -> None:
        if not 1 <= tournament <= population:
            raise UserError(f'tournament={tournament}: want between 1 and population={population}')
        self._space, self._accept, self._seed = space, accept, seed
        self._tournament = tournament
        self._members: deque[tuple[float, Decisions]] = deque(maxlen=population)

    def ask(self, number: int) -> Proposal:
        """A mutated winner of a tournament."""
        rng = np.random.default_rng((self._seed, number))
        if len(self._members) < (self._members.maxlen or 0):
            return first_accepted(lambda: Proposal(draw(self._space, rng)), self._accept)
        drawn = rng.integers(len(self._members), size=self._tournament)
        _, parent = max((self._members[i] for i in drawn), key=lambda member: member[0])
        return first_accepted(lambda: _mutated(self._space, parent, rng), self._accept)

    def tell(self, proposal: Proposal, reward: float) -> None:
        """The result joins the population; the oldest member leaves a full one."""
        self._members.append((reward, proposal.decisions))


def first_accepted(
    propose: Callable[[], Proposal | None], accept: Callable[[Decisions], bool]
) -> Proposal:
    """The first proposal that is one and is accepted; UserError after very many that are not."""
    for _ in range(MOST_DRAWS):
        proposal = propose()
        if proposal is not None and accept(proposal.decisions):
            return proposal
    raise UserError(
        f'none of {MOST_DRAWS} proposals is a valid graph within its bounds: raise '
        'search.max_multiply_adds or search.max_parameters'
    )


def _mutated(space: Space, parent: Decisions, rng: np.random.Generator) -> Proposal | None:
    decisions = mutate(space, parent, rng)
    return None if decisions is None else Proposal(decisions)


def mutate(space: Space, parent: Sequence[int], rng: np.random.Generator) -> Decisions | None:
    """`parent` with one decision changed; None where the change is none or is ruled out.

    An order changes by two different blocks that swap places among the intermediate or the output
    blocks. All decisions are equally likely to be the one.
    """
    changed, number = list(parent), int(rng.integers(len(parent)))
    step = space.steps[number]
    if step.what in ('order', 'output order'):
        places = [i for i, other in enumerate(space.steps) if other.what == step.what]
        other = int(rng.choice(places))
        changed[number], changed[other] = changed[other], changed[number]
    else:
        changed[number] = int(rng.integers(step.options))
    if changed == list(parent) or not space.allows(changed):
        return None
    return tuple(changed)
