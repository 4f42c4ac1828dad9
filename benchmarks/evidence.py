"""Trains the models of the paper's comparisons on small scenes, one after another.

    python benchmarks/evidence.py [--groups table3 damage] [--seeds=3] [--record]
    python tools/maintenance/evidence_page.py  # docs/evidence.md from the log

Groups, in the order in which they run; `--list` prints the runs, their number and what is done:
  table3          ResNet-50-FPN, R0-SP53 and SpineNet-49 (the paper's Table 3)
  damage          R0-SP53 with connections cut (Table 9)
  orders          block orders of R0-SP53, Hourglass and Fish with connections drawn at random,
                  others for each seed (Table 8; the paper learns the connections of each)
  sizes           SpineNet-49 and ResNet-50-FPN, smaller and larger
  classification  SpineNet-49 and ResNet-50 as classifiers of single scans

A run is an ordinary one in a process of its own, with a config.json that eval.py opens. All runs of
a comparison have the same settings, schedule and seeds, and, by the width of the backbone, as many
multiply-adds as SpineNet-49 within 3%; heads and endpoints are the same. Each finished run is a
JSON line on stdout and, with --record, of benchmarks/logs/evidence.jsonl; runs that the log holds
are not repeated. To start anew, for example with other settings, remove the log.

  AP, top1              in percent, on the validation split, at the end of training
  multiply_adds_m       millions for one image at inference, the whole model
  cost_ratio            multiply_adds_m over those of SpineNet-49 at this size
  seconds               of the process, compilation included unless an earlier seed had compiled it
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402
from spinenet_jax.models.graph import GRAPHS, to_text  # noqa: E402
from spinenet_jax.search.damage import DAMAGES  # noqa: E402
from spinenet_jax.search.space import SPACES, Space, draw_valid  # noqa: E402

SEEDS = 3
WIDTHS = {'detection': 0.125, 'classification': 0.25}  # of SpineNet-49 at size 1
SIZES = {'0.65': 0.65, '1': 1.0, '1.5': 1.5}  # times the width
METRICS = {
    'detection': ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'),
    'classification': ('top1', 'top5'),
}
TOLERANCE = 0.03  # of multiply-adds
# After 4 epochs, AP of one model differed by up to 8 between seeds; after 8 without clipping and
# with half an epoch of warm-up, by up to 14.
EPOCHS, WARMUP_EPOCHS, LEARNING_RATE = 8.0, 1.0, 0.1
QUICK = '--xla_backend_optimization_level=1'  # on a CPU, compiling takes longer than training
RESNET = 'resnet50'
ORDERS = {
    'R0-SP53 order': Space('r0_order', GRAPHS['r0_sp53'], order=False),
    'Hourglass order': SPACES['hourglass'],
    'Fish order': SPACES['fish'],
}


class Model(NamedTuple):
    """What is trained.

    Attributes:
      name: of the row on the page.
      graph: the graph of a seed, as text or a name; RESNET for ResNet-50 with a feature pyramid.
      size: a key of SIZES.
      task: 'detection' or 'classification'.
    """

    name: str
    graph: Callable[[int], str]
    size: str = '1'
    task: str = 'detection'


def always(graph: str) -> Callable[[int], str]:
    """One graph for all seeds."""
    return lambda seed: graph


def _drawn(space: Space) -> Callable[[int], str]:
    return lambda seed: to_text(draw_valid(space, np.random.default_rng((8, seed)))[1])


_R50, _R0 = Model('ResNet-50-FPN', always(RESNET)), Model('R0-SP53', always('r0_sp53'))
_S49 = Model('SpineNet-49', always('spinenet49'))
GROUPS: dict[str, tuple[Model, ...]] = {
    'table3': (_R50, _R0, _S49),
    'damage': (
        _R0,
        *(
            Model(f'R0-SP53, {name}', always(to_text(cut(GRAPHS['r0_sp53']))))
            for name, cut in DAMAGES.items()
        ),
    ),
    'orders': (_R0, *(Model(name, _drawn(space)) for name, space in ORDERS.items())),
    'sizes': tuple(model._replace(size=size) for size in SIZES for model in (_R50, _S49)),
    'classification': tuple(
        Model(name, graph, task='classification')
        for name, graph in (('ResNet-50', _R50.graph), ('SpineNet-49', _S49.graph))
    ),
}
Key = tuple[str, str, str, int]  # name, size, task, seed


def runs(
    groups: list[str], seeds: int, names: list[str] | None = None
) -> Iterator[tuple[Model, int]]:
    """Every run of the groups, or of models of these names, once.

    All models of a group with one seed come before the next seed, so that whatever is finished
    compares equal numbers of seeds.
    """
    seen: set[Key] = set()
    for group in groups:
        for seed in range(seeds):
            for model in GROUPS[group]:
                if names and model.name not in names:
                    continue
                key = (model.name, model.size, model.task, seed)
                if key not in seen:
                    seen.add(key)
                    yield model, seed


def key_of(row: dict[str, Any]) -> Key:
    """Which run a line of the log is."""
    return row['model'], row['size'], row['task'], row['seed']


def read(log: Path) -> list[dict[str, Any]]:
    """The lines of the log, none if there is no log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def make_config(task: str, graph: str, width: float) -> Any:
    """The config of a run but for its seed; the same for all models of a task but for the model."""
    if task == 'classification':
        from configs import classification

        config = classification.get_config('digits-49')
        config.train.eval_every_epochs = 0.0
    else:
        from configs import search

        config = search.get_config('digits').candidate
        config.data.train_split, config.data.eval_split = 'train', 'val'
        config.train.epochs, config.optim.warmup_epochs = EPOCHS, WARMUP_EPOCHS
        config.optim.learning_rate = LEARNING_RATE
    config.model.width = width
    if graph == RESNET:
        config.model.backbone, config.model.depth = 'resnet_fpn', 50
    else:
        config.model.graph = graph
    return config


@functools.cache
def cost(task: str, graph: str, width: float) -> tuple[int, int]:
    """(multiply-adds, parameters) of the whole model."""
    from spinenet_jax.analysis.cost import config_cost

    parts = config_cost(make_config(task, graph, width)).values()
    return sum(part.multiply_adds for part in parts), sum(part.parameters for part in parts)


def reference(task: str, size: str) -> tuple[float, int]:
    """Width and multiply-adds of SpineNet-49, which all models of a size are held to."""
    width = SIZES[size] * WIDTHS[task]
    return width, cost(task, 'spinenet49', width)[0]


@functools.cache
def matching_width(task: str, graph: str, size: str) -> float:
    """The width at which a model's multiply-adds are nearest to the reference's.

    Widths of layers are whole numbers, so cost goes up in steps; bisection ends at one of them.
    """
    width, wanted = reference(task, size)
    if graph == 'spinenet49':
        return width
    low, high = 0.5 * width, 2 * width
    tried = {}
    for _ in range(9):
        middle = (low + high) / 2
        tried[middle] = cost(task, graph, middle)[0]
        if tried[middle] < wanted:
            low = middle
        else:
            high = middle
    best = min(tried, key=lambda w: abs(tried[w] - wanted))
    if abs(tried[best] / wanted - 1) > TOLERANCE:
        raise ValueError(f'{graph}: no width gives {wanted} multiply-adds, {tried}')
    return best


def train(config: Any, folder: Path) -> dict[str, float]:
    """What is in results.json after a run in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(config.to_json())
    command = [sys.executable, '-m', 'spinenet_jax.search.training', f'--workdir={folder}']
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    subprocess.run(
        command,
        env={'XLA_FLAGS': QUICK, **os.environ, 'PYTHONPATH': path},
        stdout=sys.stderr,
        check=True,
    )
    return json.loads((folder / 'results.json').read_text())


def measure(model: Model, seed: int, folder: Path) -> dict[str, Any]:
    """The line of one run."""
    graph = model.graph(seed)
    width = matching_width(model.task, graph, model.size)
    multiply_adds, parameters = cost(model.task, graph, width)
    config = make_config(model.task, graph, width)
    config.seed = seed
    began = time.perf_counter()
    results = train(config, folder)
    seconds = time.perf_counter() - began
    return {
        **machine.compute(),
        'model': model.name,
        'size': model.size,
        'task': model.task,
        'seed': seed,
        **{name: round(100 * results[name], 2) for name in METRICS[model.task]},
        'multiply_adds_m': round(multiply_adds / 1e6, 2),
        'cost_ratio': round(multiply_adds / reference(model.task, model.size)[1], 4),
        'parameters': parameters,
        'width': round(width, 5),
        'graph': graph,
        'image_side': config.data.image_size[0],
        'epochs': config.train.epochs,
        'seconds': round(seconds, 1),
    }


def main() -> None:
    """Every run that the log does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--groups', nargs='+', choices=GROUPS, default=list(GROUPS))
    parser.add_argument('--models', nargs='+', help='only these of the groups, by name')
    parser.add_argument('--seeds', type=int, default=SEEDS)
    parser.add_argument('--workdirs', default='', help='where runs are kept; else they are not')
    parser.add_argument('--list', action='store_true', help='say what there is to do, do nothing')
    parser.add_argument('--record', action='store_true', help="append to the repository's log")
    given = parser.parse_args()
    done = {key_of(row) for row in read(machine.LOGS / 'evidence.jsonl')}
    for model, seed in runs(given.groups, given.seeds, given.models):
        key = (model.name, model.size, model.task, seed)
        if given.list:
            print(*key, 'done' if key in done else 'to do', sep='\t')
        elif key not in done:
            name = '-'.join(map(str, key)).replace(' ', '_').replace(',', '')
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(given.workdirs or temporary) / name
                machine.report('evidence', measure(model, seed, folder), given.record)


if __name__ == '__main__':
    main()
