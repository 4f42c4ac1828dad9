"""What a person sees of a search: lines while it runs, and files in its workdir at any time.

search.md with pictures, and best.json, a graph for `--config.model.graph`.
"""

import os
import statistics
import time
from collections import Counter

from absl import logging

from spinenet_jax.files import absolute, write_atomically
from spinenet_jax.models.graph import Graph, from_text, to_json
from spinenet_jax.search.history import DUPLICATE, History, Result
from spinenet_jax.search.run import Plan, Search

RECENT = 50  # results of which the mean is shown
TOP = 10
PAGE_EVERY = 60.0  # seconds


class Progress:
    """Watches a search, see `run.Search`: logs every result, keeps best.json and search.md.

    Args:
      workdir: of the search.
      page_every: least seconds between two writings of search.md.
    """

    def __init__(self, workdir: str | os.PathLike, page_every: float = PAGE_EVERY) -> None:
        self._folder, self._page_every = absolute(workdir), page_every
        self._seen: int | None = None  # results so far; None before the first look
        self._next_page = 0.0  # when to write it again
        self._speed = _Speed()
        self._best = -1  # number in best.json

    def __call__(self, search: Search) -> None:
        history = search.history
        if self._seen is None:
            self._seen = len(history.results)
            self._speed.start(history.evaluated)
            if search.continued:
                logging.info('continuing: %s', headline(history, search.plan))
            self._keep_best(history)  # a kill may have come between the ledger and this file
        for result in history.results[self._seen :]:
            logging.info('%s', result_line(result))
        if len(history.results) > self._seen:
            self._seen = len(history.results)
            left = self._speed.left(history.evaluated, search.plan.candidates)
            facts = headline(history, search.plan)
            logging.info('%s, %d workers alive%s', facts, search.alive, left)
            self._keep_best(history)
        if time.monotonic() >= self._next_page:
            self.write_page(search)

    def write_page(self, search: Search) -> None:
        """Write search.md and its pictures as things are now."""
        from spinenet_jax.search import report

        began = time.monotonic()
        left = self._speed.left(search.history.evaluated, search.plan.candidates)
        status = f'{search.alive} workers alive{left}'
        report.write(self._folder, search.history, search.plan, status)
        now = time.monotonic()  # drawing may take a twentieth of the time at most
        self._next_page = now + max(self._page_every, 20 * (now - began))

    def finish(self, search: Search) -> None:
        """The last page, and where things are."""
        self.write_page(search)
        best = search.history.best()
        if best:
            logging.info('best: %s', result_line(best[0]))
            logging.info('%s', self._folder / 'best.json')

    def _keep_best(self, history: History) -> None:
        best = history.best()
        if best and best[0].number != self._best:
            self._best = best[0].number
            write_atomically(self._folder / 'best.json', graph_file(best[0], self._folder.name))


class _Speed:
    """Time left from the pace since this process started."""

    def __init__(self) -> None:
        self._began, self._done = time.monotonic(), 0

    def start(self, done: int) -> None:
        self._began, self._done = time.monotonic(), done

    def left(self, done: int, wanted: int) -> str:
        """', 1 h 20 min left'; '' before the first result."""
        if done <= self._done:
            return ''
        seconds = (time.monotonic() - self._began) / (done - self._done) * (wanted - done)
        return f', {duration(seconds)} left'


def headline(history: History, plan: Plan) -> str:
    """How far a search is, in one line."""
    words = [f'{history.evaluated} of {plan.candidates} candidates done']
    best = history.best()
    if best:
        words.append(f'best {best[0].reward:.4f} (candidate {best[0].number})')
    recent = [result.reward for result in history.results[-RECENT:]]
    if recent:
        words.append(f'mean of last {len(recent)} {statistics.fmean(recent):.4f}')
    statuses = Counter(result.status for result in history.results)
    words += [f'{n} {status}' for status, n in sorted(statuses.items()) if status != 'done']
    return ', '.join(words)


def result_line(result: Result) -> str:
    """A candidate that is over, in one line."""
    where = f' ({result.seconds:.0f} s on {result.worker})' if result.worker else ''
    if result.status == 'done':
        return f'candidate {result.number}: {result.reward:.4f}{where}'
    if result.status == DUPLICATE:
        return f'candidate {result.number}: {result.reward:.4f}, known as that {result.reason}'
    return f'candidate {result.number}: {result.status}, {result.reason}{where}'


def graph_file(result: Result, name: str) -> str:
    """The content of a graph file for a result: its graph, reward, metrics and cost."""
    graph = graph_of(result, f'{name}-{result.number}')
    facts = {'reward': result.reward, 'metrics': result.metrics, 'cost': result.cost}
    return to_json(graph, facts) + '\n'


def graph_of(result: Result, name: str = '') -> Graph:
    """The graph of a result."""
    return from_text(result.graph, name or f'candidate {result.number}')


def duration(seconds: float) -> str:
    """'2 d 3 h', '1 h 20 min', '5 min' or '40 s'."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f'{int(days)} d {int(hours) % 24} h'
    if hours >= 1:
        return f'{int(hours)} h {int(minutes) % 60} min'
    return f'{round(minutes)} min' if minutes >= 1 else f'{round(seconds)} s'
