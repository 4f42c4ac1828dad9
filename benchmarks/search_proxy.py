"""The proxy task of the digits search: what a candidate costs, and whether its ranking is right.

    python benchmarks/search_proxy.py [--flags="" "--xla_backend_optimization_level=1"] [--record]
    python benchmarks/search_proxy.py --ranking=12 [--record]

A candidate is trained as the search trains it (configs/search.py:digits), with an empty compilation
cache, for each of the given XLA_FLAGS. A line, with --record also of
benchmarks/logs/search_proxy.jsonl:

  seconds cpu_seconds   of the candidate's processes, from start to reward, and processor time
  compile_s             of the training step
  steps AP              of the run, AP in percent on the scenes held out

With --ranking, that many random graphs are trained as the search does and four times longer; the
line of benchmarks/logs/search_ranking.jsonl has

  short long            AP in percent of each graph, in order
  spearman              rank correlation of the two
  interval              90% of it over bootstrap samples of the graphs
"""

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import LOGS, report  # noqa: E402
from spinenet_jax.models.graph import GRAPHS, Graph, to_text  # noqa: E402
from spinenet_jax.search.candidate import Candidate  # noqa: E402
from spinenet_jax.search.space import SPACES, draw_valid  # noqa: E402

FLAGS = ('', '--xla_backend_optimization_level=1', '--xla_backend_optimization_level=0')
LONGER = 4  # times the epochs
RESAMPLES = 10_000


def train(graph: Graph, folder: Path, longer: int = 1, seed: int = 0) -> dict[str, Any]:
    """A candidate as the search trains it, or for that many times the epochs."""
    from configs import search
    from spinenet_jax.search import proxy

    config = search.get_config('digits').candidate
    config.train.epochs *= longer
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    # Read back, as a candidate's process reads it: without tuples.
    candidate = Candidate(graph, 0, str(folder), seed, json.loads(config.to_json()))
    metrics = proxy.evaluate(candidate)
    seconds = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    log = (folder / 'train.log').read_text()
    compiled = re.search(r'compiled the training step in ([\d.]+) s', log)
    steps = re.search(r'(\d+) steps of', log)
    return {
        'epochs': config.train.epochs,
        'seconds': round(seconds, 1),
        'cpu_seconds': round(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, 1),
        'compile_s': float(compiled[1]),
        'steps': int(steps[1]),
        'AP': round(100 * metrics['reward'], 2),
    }


def time_flags(flags: list[str], record: bool) -> None:
    """SpineNet-49 as a candidate, with an empty compilation cache for each of the XLA_FLAGS."""
    for value in flags:
        with tempfile.TemporaryDirectory() as folder:
            os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/cache'
            os.environ['XLA_FLAGS'] = value
            facts = train(GRAPHS['spinenet49'], Path(folder) / 'run')
        load = round(os.getloadavg()[0], 1)
        report(
            'search_proxy',
            {'graph': 'spinenet49', 'xla_flags': value, **facts, 'load': load},
            record,
        )


def rank(count: int, record: bool) -> None:
    """Random graphs, short and long; each finished graph is kept on disk until all are."""
    rng = np.random.default_rng(12)
    graphs = [draw_valid(SPACES['spinenet49'], rng)[1] for _ in range(count)]
    done = LOGS / 'search_ranking_runs.jsonl'
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    known = {(row['graph'], row['longer']): row['AP'] for row in rows}
    for graph in graphs:
        for longer in (1, LONGER):
            key = (to_text(graph), longer)
            if key not in known:
                with tempfile.TemporaryDirectory() as folder:
                    facts = train(graph, Path(folder), longer)
                known[key] = facts['AP']
                report('search_ranking_runs', {'graph': key[0], 'longer': longer, **facts}, record)
    short, long = ([known[to_text(graph), n] for graph in graphs] for n in (1, LONGER))
    facts = {'graphs': count, 'longer': LONGER, 'short': short, 'long': long}
    report('search_ranking', facts | correlation(short, long), record)


def correlation(short: list[float], long: list[float]) -> dict[str, Any]:
    """Spearman's rank correlation, and what 90% of bootstrap samples of the pairs have."""

    def spearman(pairs: np.ndarray) -> np.ndarray:
        """Of f64[2, samples, graphs], one a sample; 0 where all of a side are equal."""
        one, other = pairs[..., :, None], pairs[..., None, :]
        first, second = ((one > other) - 0.0 - (one < other)).sum(-1)  # twice the centred ranks
        scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
        return (first * second).sum(-1) / np.where(scale > 0, scale, 1)

    pairs = np.array([short, long])
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    return {
        'spearman': round(float(spearman(pairs)), 2),
        'interval': [
            round(float(x), 2) for x in np.quantile(spearman(pairs[:, drawn]), (0.05, 0.95))
        ],
    }


def main() -> None:
    """Times, or with --ranking the correlation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--flags', nargs='*', default=list(FLAGS), help='values of XLA_FLAGS')
    parser.add_argument('--ranking', type=int, default=0, help='graphs to rank')
    parser.add_argument('--record', action='store_true', help="append to the repository's logs")
    given = parser.parse_args()
    if given.ranking:
        rank(given.ranking, given.record)
    else:
        time_flags(given.flags, given.record)


if __name__ == '__main__':
    main()
