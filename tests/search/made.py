"""A made search task whose answer is known: closeness to a hidden graph, plus noise."""

import zlib

import numpy as np

from spinenet_jax.models.graph import Graph, from_text, to_text
from spinenet_jax.search.engine import Report
from spinenet_jax.search.process import Outcome
from spinenet_jax.search.space import Space, decode, why_invalid

SMALL = Space(
    'small',
    from_text('2B 0,1 | 3B 1,2 | 4B 2,3 | 3B 3,4 out | 4B 4,5 out | 5B 5,6 out'),
    offsets=(0, 1),
    kinds=('bottleneck', 'residual'),
    levels=(3, 5),
)


def closeness(graph: Graph, hidden: Graph) -> float:
    """Share of a graph's levels, kinds and parents that are those of another, in 0..1."""
    hits = [
        hit
        for block, other in zip(graph.blocks, hidden.blocks, strict=True)
        for hit in (
            block.level == other.level,
            block.kind == other.kind,
            *(parent in other.parents for parent in block.parents),
        )
    ]
    return sum(hits) / len(hits)


def noisy(graph: Graph, hidden: Graph, noise: float = 0.05) -> float:
    """`closeness` with noise that is a function of the graph."""
    seed = zlib.crc32(to_text(graph).encode())
    return closeness(graph, hidden) + noise * np.random.default_rng(seed).standard_normal()


def accepts(space: Space):
    """Whether decisions make a valid graph of the space."""
    return lambda decisions: not why_invalid(space, decode(space, decisions))


class TableEngine:
    """Simulated workers: jobs end in a random order, rewards come from a function of the graph.

    fate: job, attempt (from 0) -> outcome to report instead of a reward, or None.
    """

    def __init__(self, reward, seed=0, fate=lambda job, attempt: None):
        self._reward, self._fate = reward, fate
        self._rng = np.random.default_rng(seed)
        self._jobs = []
        self._attempts = {}
        self.cancelled = []
        self.ran = []

    def submit(self, job):
        self._jobs.append(job)

    def wait(self, timeout):
        job = self._jobs.pop(int(self._rng.integers(len(self._jobs))))
        attempt = self._attempts.get(job.number, 0)
        self._attempts[job.number] = attempt + 1
        self.ran.append(job.number)
        outcome = self._fate(job, attempt)
        if outcome is None:
            outcome = Outcome(job.number, 'done', self._reward(from_text(job.graph)), {'x': 1.0})
        return Report([outcome], len(self._jobs))

    def cancel(self, number):
        self.cancelled.append(number)
        self._jobs = [job for job in self._jobs if job.number != number]
