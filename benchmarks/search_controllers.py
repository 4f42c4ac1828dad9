"""Samples that controllers of the search need, on a made reward whose best graph is known.

    python benchmarks/search_controllers.py [--samples=3000] [--seeds=5] [--record]
    python tools/maintenance/search_plots.py  # docs/search_controllers.svg from the log

The reward is the likeness of a graph to a hidden one, the share of its blocks' levels, kinds and
parents that agree, plus noise of standard deviation 0.05 that is a function of the graph. Eight
rewards are under way at any time, as with eight workers. A line, with --record also of
benchmarks/logs/search_controllers.jsonl, is a space and a controller, over all seeds, each of which
has a hidden graph of its own; likeness is meant without the noise:

  last_mean last_range   mean likeness of the last tenth of the samples, over seeds, and its range
  best_mean              likeness of the best sample, mean over seeds
  samples_needed         until the mean likeness of 50 samples is 0.65, seed by seed; null: never
  curves                 mean likeness of each sixtieth of the samples, seed by seed
"""

import argparse
import sys
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.machine import report
from spinenet_jax.models.graph import Graph
from spinenet_jax.search.controller import Controller, Evolution, Random
from spinenet_jax.search.policy import PolicySettings, RecurrentController
from spinenet_jax.search.settings import TABLE
from spinenet_jax.search.space import SPACES, Space, decode, draw_valid, why_invalid
from tests.search.made import closeness, noisy

WINDOWS = 60  # points of a curve
ENOUGH, RECENT = 0.65, 50
WORKERS = 8
CONTROLLERS = ('random', 'evolution', 'ppo', 'reinforce')


def make(name: str, space: Space, seed: int) -> Controller:
    """A controller with the default settings of a search."""

    def accept(decisions):
        return not why_invalid(space, decode(space, decisions))

    default = {key: field.default for key, field in TABLE.items()}
    if name == 'random':
        return Random(space, accept, seed)
    if name == 'evolution':
        return Evolution(space, accept, seed, default['population'], default['tournament'])
    settings = PolicySettings(
        algorithm=name,
        hidden=default['hidden'],
        learning_rate=default['learning_rate'],
        batch=default['batch'],
        epochs=default['ppo_epochs'],
        clip=default['clip'],
        baseline_decay=default['baseline_decay'],
        entropy=default['entropy'],
        init_scale=default['init_scale'],
    )
    return RecurrentController(space, accept, seed, settings)


def run(controller: Controller, space: Space, hidden: Graph, samples: int) -> np.ndarray:
    """Likeness of every sample, f64[samples]."""
    waiting: deque = deque()
    found = []
    for number in range(samples):
        proposal = controller.ask(number)
        graph = decode(space, proposal.decisions)
        found.append(closeness(graph, hidden))
        waiting.append((proposal, noisy(graph, hidden)))
        if len(waiting) == WORKERS:
            controller.tell(*waiting.popleft())
    return np.array(found)


def main() -> None:
    """Every space and controller, a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--samples', type=int, default=3000)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--spaces', default='r35_sp18,spinenet49')
    parser.add_argument('--controllers', default=','.join(CONTROLLERS))
    parser.add_argument('--record', action='store_true')
    options = parser.parse_args()
    for space in (SPACES[name] for name in options.spaces.split(',')):
        for name in options.controllers.split(','):
            began = time.process_time()
            runs = []
            for seed in range(options.seeds):
                _, hidden = draw_valid(space, np.random.default_rng((99, seed)))
                runs.append(run(make(name, space, seed), space, hidden, options.samples))
            seconds = time.process_time() - began
            facts = {'space': space.name, 'decisions': len(space.steps), 'controller': name}
            facts |= {'seeds': options.seeds, 'samples': options.samples, **summary(runs)}
            facts['cpu_ms_a_sample'] = round(1e3 * seconds / options.samples / options.seeds, 2)
            report('search_controllers', facts, options.record)


def summary(runs: list[np.ndarray]) -> dict:
    """The fields of a line that follow from the likeness of all samples, f64[samples] a seed."""
    last = [float(found[-len(found) // 10 :].mean()) for found in runs]
    return {
        'last_mean': round(float(np.mean(last)), 3),
        'last_range': [round(min(last), 3), round(max(last), 3)],
        'best_mean': round(float(np.mean([found.max() for found in runs])), 3),
        'samples_needed': [needed(found) for found in runs],
        'curves': [[round(float(w.mean()), 4) for w in np.array_split(f, WINDOWS)] for f in runs],
    }


def needed(found: np.ndarray) -> int | None:
    """Samples until the mean of the last RECENT ones is ENOUGH."""
    means = np.convolve(found, np.full(RECENT, 1 / RECENT), 'valid')
    above = np.flatnonzero(means >= ENOUGH)
    return int(above[0]) + RECENT if len(above) else None


if __name__ == '__main__':
    main()
