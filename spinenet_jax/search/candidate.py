"""Evaluates one candidate in a process of its own: JSON in on stdin, JSON out on stdout.

`python -m spinenet_jax.search.candidate` is what every engine starts. XLA aborts past Python, a TPU
belongs to one process and a time limit is a kill, so a candidate shares its process with nothing.
This module and those it imports are light: what an evaluator needs, it imports itself.
"""

import contextlib
import ctypes
import importlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import Graph, from_text


class Candidate(NamedTuple):
    """What an evaluator is given.

    Attributes:
      graph: valid, and within the bounds of the search.
      number: from 0; one number for all attempts.
      folder: the candidate's own, may hold what an earlier attempt left; a path or a bucket.
      seed: of the candidate.
      config: the config file's `candidate` section, as JSON values.
    """

    graph: Graph
    number: int
    folder: str
    seed: int
    config: Mapping[str, Any]


# A reward, or 'reward' and whatever else is worth writing down, of which numbers are.
Evaluator = Callable[[Candidate], float | Mapping[str, Any]]


class Job(NamedTuple):
    """What a process is handed; every field is a JSON value.

    Attributes:
      number, folder, seed, config: see `Candidate`.
      graph: as text.
      evaluator: 'package.module:function'.
      time_limit: seconds until the process is killed; 0 is none.
      environment: variables to set for the process.
    """

    number: int
    graph: str
    folder: str
    seed: int
    evaluator: str
    config: dict[str, Any]
    time_limit: float
    environment: dict[str, str]


def load_evaluator(name: str) -> Evaluator:
    """The function 'package.module:function'; UserError says what is missing."""
    module_name, _, function_name = name.partition(':')
    if not function_name:
        raise UserError(f'--evaluator={name}: want package.module:function')
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f'--evaluator={name}: cannot import {module_name} ({error})') from error
    if not callable(getattr(module, function_name, None)):
        raise UserError(f'--evaluator={name}: {module_name} has no function {function_name}')
    return getattr(module, function_name)


def evaluate_candidate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the candidate of a `Job` as a mapping.

    Returns:
      {'reward': finite float, 'metrics': {name: number}}, or {'failed': reason in one line}. An
      evaluator may raise anything: it is the user's, and one bad candidate must not end a search.
      What it returns beside the reward is left out where it is no finite number.
    """
    try:
        evaluator = load_evaluator(job['evaluator'])
        fields = {name: job[name] for name in ('number', 'folder', 'seed', 'config')}
        candidate = Candidate(from_text(job['graph'], f'candidate {job["number"]}'), **fields)
        result = evaluator(candidate)
        metrics = dict(result) if isinstance(result, Mapping) else {'reward': result}
        reward = float(metrics.pop('reward'))
    except Exception as error:
        traceback.print_exc()
        line = ' '.join(str(error).split())
        return {'failed': f'{type(error).__name__}: {line}'[:500]}
    if not math.isfinite(reward):
        return {'failed': f'the reward is {reward}'}
    return {'reward': reward, 'metrics': dict(_numbers(metrics))}


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        with contextlib.suppress(Exception):  # of the user's types
            if math.isfinite(float(value)):
                yield str(name), float(value)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends; Linux only.

    Elsewhere a candidate whose search was killed runs to its end, and nobody takes its result.
    """
    if sys.platform == 'linux':
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    """Read a job, print what came of it; with --check=<evaluator>, only see that there is one."""
    die_with_parent()
    sys.path.insert(0, os.getcwd())
    if len(sys.argv) == 2 and sys.argv[1].startswith('--check='):
        try:
            load_evaluator(sys.argv[1].partition('=')[2])
        except UserError as error:
            sys.exit(f'error: {error}')
        return
    answer = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints goes to the log
    job = json.load(sys.stdin)
    if os.getppid() != job['parent']:
        return  # the parent was killed before this process asked to be killed with it
    result = evaluate_candidate(job)
    with answer:
        json.dump(result, answer)


if __name__ == '__main__':
    main()
