"""From a config to a search: the only file of the package that reads its `search` part.

`candidate`, the rest, is the config of every candidate's run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from spinenet_jax.analysis.cost import Cost, config_cost
from spinenet_jax.errors import UserError
from spinenet_jax.files import absolute
from spinenet_jax.models.graph import Graph, Scaling, load, to_text, validate
from spinenet_jax.search.controller import Controller, Evolution, Random
from spinenet_jax.search.engine import Engine, ProcessEngine
from spinenet_jax.search.graph_cost import graph_cost
from spinenet_jax.search.ledger import Ledger
from spinenet_jax.search.policy import PolicySettings, RecurrentController
from spinenet_jax.search.process import MODULE, child_environment
from spinenet_jax.search.run import Plan, Search
from spinenet_jax.search.space import SPACES, Decisions, Space, decode, why_invalid

ENGINES = ('local', 'ray')
PROXY = 'spinenet_jax.search.proxy:evaluate'
# What may change when a search is continued.
_CHANGEABLE = (
    *('candidates', 'samples', 'workers', 'time_limit_minutes', 'device_variable', 'environment'),
    *('cpus', 'gpus', 'tpus'),
)


def build_search(
    config: ConfigDict,
    workdir: str | os.PathLike,
    engine: Engine,
    evaluator: str = PROXY,
    watch: Callable[[Search], None] = lambda search: None,
) -> Search:
    """A search that continues what the ledger in the workdir holds.

    Args:
      config: see `configs/search.py`.
      workdir: of the search, local or a bucket.
      engine: see `build_engine`.
      evaluator: 'package.module:function' that gives a reward, see `candidate.Evaluator`.
      watch: called after every change.

    Raises:
      UserError: one line: settings that cannot be used, or a workdir of another search.
    """
    settings = config.search
    check_evaluator(evaluator)
    space = SPACES[settings.space]
    cost = CostOfGraph(config)
    folder = absolute(workdir)
    ledger = Ledger(folder)
    try:
        _write_header(ledger, config, evaluator)
        return Search(
            _plan(config, os.fspath(folder), evaluator),
            space,
            _controller(settings, space, _accept(settings, space, cost)),
            engine,
            ledger,
            cost=cost,
            score=_score(settings, cost),
            watch=watch,
        )
    except BaseException:
        ledger.close()
        raise


def build_engine(config: ConfigDict, name: str) -> Engine:
    """'local': processes on this machine; 'ray': a fleet, or a Ray on this machine."""
    if name not in ENGINES:
        raise UserError(f'--engine={name}: choose one of {", ".join(ENGINES)}')
    wanted = config.search
    if name == 'local':
        return ProcessEngine(wanted.device_variable)
    from spinenet_jax.search.ray_engine import RayEngine

    named = {'num_cpus': wanted.cpus, 'num_gpus': wanted.gpus, 'TPU': wanted.tpus}
    return RayEngine(wanted.workers, {n: amount for n, amount in named.items() if amount})


class CostOfGraph:
    """{'multiply_adds', 'parameters'} of the whole model with a graph, for one image.

    The model with the reference graph is traced once; another graph changes nothing but the
    backbone, whose cost has a formula.

    Attributes:
      reference: the cost of `search.reference`.
    """

    def __init__(self, config: ConfigDict) -> None:
        model = config.candidate.model
        self._scaling = Scaling(
            *(model.width, model.resample_alpha, model.block_repeats, model.endpoint_channels),
            *(model.head_channels, model.head_convs),
        )
        self._image_size = tuple(config.candidate.data.image_size)
        graph = load(config.search.reference)
        if graph.is_mobile:
            raise UserError(
                f'search.reference={config.search.reference}: its blocks are mobile ones'
            )
        validate(graph, model.min_level, model.max_level)
        traced = ConfigDict(config.candidate.to_dict())
        traced.model.graph = to_text(graph)
        traced.model.num_classes = max(traced.model.num_classes, 1)  # 0: known with the data
        total = sum(config_cost(traced).values(), Cost())
        backbone = graph_cost(graph, self._scaling, self._image_size)
        self._others = Cost(
            parameters=total.parameters - backbone.parameters,
            multiply_adds=total.multiply_adds - backbone.multiply_adds,
        )
        self.reference = self(graph)

    def __call__(self, graph: Graph) -> dict[str, float]:
        backbone = graph_cost(graph, self._scaling, self._image_size)
        return {
            'multiply_adds': backbone.multiply_adds + self._others.multiply_adds,
            'parameters': backbone.parameters + self._others.parameters,
        }


def check_evaluator(name: str) -> None:
    """See in a process of its own that an evaluator can be loaded, before anything is spent."""
    if name == PROXY:
        return
    done = subprocess.run(
        [sys.executable, '-m', MODULE, f'--check={name}'],
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = lines[-1] if lines else f'--evaluator={name}: exit status {done.returncode}'
        raise UserError(said.removeprefix('error: '))


def _plan(config: ConfigDict, folder: str, evaluator: str) -> Plan:
    settings = config.search
    return Plan(
        candidates=settings.candidates,
        samples=settings.samples or 20 * settings.candidates,
        workers=settings.workers,
        seed=config.candidate.seed,
        folder=folder,
        evaluator=evaluator,
        config=json.loads(config.candidate.to_json()),
        time_limit=60.0 * settings.time_limit_minutes,
        environment=dict(settings.environment),
    )


def _controller(
    settings: ConfigDict, space: Space, accept: Callable[[Decisions], bool]
) -> Controller:
    """A new controller; the search tells it what was before."""
    if settings.controller == 'random':
        return Random(space, accept, settings.seed)
    if settings.controller == 'evolution':
        size = (settings.population, settings.tournament)
        return Evolution(space, accept, settings.seed, *size)
    policy = PolicySettings(
        algorithm=settings.controller,
        hidden=settings.hidden,
        learning_rate=settings.learning_rate,
        batch=settings.batch,
        epochs=settings.ppo_epochs,
        clip=settings.clip,
        baseline_decay=settings.baseline_decay,
        entropy=settings.entropy,
        init_scale=settings.init_scale,
    )
    return RecurrentController(space, accept, settings.seed, policy)


def _accept(settings: ConfigDict, space: Space, cost: CostOfGraph) -> Callable[[Decisions], bool]:
    """Whether decisions make a valid graph within the bounds."""
    limits = {
        name: times * cost.reference[name]
        for name in ('multiply_adds', 'parameters')
        if (times := settings[f'max_{name}'])
    }

    def accept(decisions: Decisions) -> bool:
        graph = decode(space, decisions)
        if why_invalid(space, graph):
            return False
        if not limits:
            return True
        its = cost(graph)
        return all(its[name] <= limit for name, limit in limits.items())

    return accept


def _score(
    settings: ConfigDict, cost: CostOfGraph
) -> Callable[[float, Mapping[str, float]], float]:
    """The reward, times its share of the reference's multiply-adds to a power (MnasNet, eq. 2).

    A negative reward is divided by it, so that what costs more is worse there too.
    """

    def score(reward: float, its: Mapping[str, float]) -> float:
        share = its['multiply_adds'] / cost.reference['multiply_adds']
        weight = share**settings.cost_exponent
        return reward * weight if reward > 0 else reward / weight

    return score


def _write_header(ledger: Ledger, config: ConfigDict, evaluator: str) -> None:
    """Say in the ledger what the search is, or see that it is the same one."""
    search = json.loads(config.search.to_json())
    header = {
        'event': 'search',
        'evaluator': evaluator,
        'search': {name: value for name, value in search.items() if name not in _CHANGEABLE},
        'candidate': json.loads(config.candidate.to_json()),
    }
    if not ledger.events:
        ledger.append(header | {'time': round(time.time(), 3)})
        return
    before = {name: value for name, value in ledger.events[0].items() if name != 'time'}
    changes = _changes(before, header, '')
    if changes:
        raise UserError(
            f'the workdir holds another search: {"; ".join(changes[:5])}. Use another --workdir'
        )


def _changes(old: Any, new: Any, name: str) -> list[str]:
    """'key: old -> new' of the leaves that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        parts = [_changes(old.get(k), new.get(k), f'{name}.{k}'.strip('.')) for k in keys]
        return [change for part in parts for change in part]
    return [] if old == new else [f'{name}: {old!r} -> {new!r}']
