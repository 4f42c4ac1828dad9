"""Samples that controllers of the search need, on a made reward whose best graph is known.

    python benchmarks/search_controllers.py [--samples=3000] [--seeds=5] [--record]

The reward is the likeness of a graph to a hidden one, the share of its blocks' levels, kinds and
parents that agree, plus noise of standard deviation 0.05 that is a function of the graph. Eight
rewards are under way at any time, as with eight workers. A line, with --record also of
benchmarks/logs/search_controllers.jsonl has the likeness without noise: its mean over windows of
samples, and the best so far, for one space, controller and seed.
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
    """Every space, controller and seed, a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--samples', type=int, default=3000)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--spaces', default='r35_sp18,spinenet49')
    parser.add_argument('--controllers', default=','.join(CONTROLLERS))
    parser.add_argument('--record', action='store_true')
    options = parser.parse_args()
    for space in (SPACES[name] for name in options.spaces.split(',')):
        for seed in range(options.seeds):
            _, hidden = draw_valid(space, np.random.default_rng((99, seed)))
            for name in options.controllers.split(','):
                began = time.perf_counter()
                found = run(make(name, space, seed), space, hidden, options.samples)
                windows = np.array_split(found, WINDOWS)
                best = np.maximum.accumulate(found)
                result = {
                    'space': space.name,
                    'decisions': len(space.steps),
                    'controller': name,
                    'seed': seed,
                    'samples': options.samples,
                    'mean': [round(float(window.mean()), 4) for window in windows],
                    'best': [round(float(part[-1]), 4) for part in np.array_split(best, WINDOWS)],
                    'ms_a_sample': round(1e3 * (time.perf_counter() - began) / len(found), 2),
                }
                report('search_controllers', result, options.record)


if __name__ == '__main__':
    main()
