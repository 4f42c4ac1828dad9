"""Compares exported files with the model they came from: time an image and, with data, AP.

    python benchmarks/exported.py --workdir=runs/digits stablehlo=exported tflite=exported-tflite

Takes folders that export.py wrote, for one image of the size of the network's input
(--batch_size=1 --image_size=HxW where a format leaves them open), and needs the runtimes of their
formats. All of them and the model compute one image at a time, in turn, several rounds, in one
process, so that a machine that slows down slows all of them: what counts is the ratio. `model` is
what predict.py runs. Prints a line of JSON each; with --record they are also appended to
benchmarks/logs/exported.jsonl, or to exported_latency.jsonl with --no-ap, as for the random weights
of benchmarks/random_run.py:

  image_ms                    median of all rounds, from pixels to detections
  times_the_models            this median over the model's
  AP                          on the run's evaluation split, all images; --no-ap leaves it out
  file_mb                     of what the format wrote
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def average_precision(trained, run: Run) -> float:
    """AP of a function of images on the run's evaluation split, one image at a time."""
    from spinenet_jax.data.build import build_source, eval_batches

    config, task = trained.config, trained.task
    source = build_source(config.data, 'eval', config.model.num_classes, task.rows.needs)
    evaluator = task.evaluator(source)
    batches = eval_batches(
        source, task.rows.eval, config.data, batch_size=1, process_index=0, process_count=1
    )
    for batch in batches:
        found = {name: np.asarray(value) for name, value in run(batch['image']).items()}
        evaluator.update({**batch, **found})
    return evaluator.result()['AP']


def round_robin(runs: Mapping[str, Run], image: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of each function, called in turn; results are waited for."""
    seconds = {name: [] for name in runs}
    for turn in range(rounds + 1):  # the first compiles
        for name, run in runs.items():
            began = time.perf_counter()
            for value in run(image).values():
                np.asarray(value)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def size_mb(path: Path) -> float:
    """Of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob('*') if p.is_file()]
    return round(sum(p.stat().st_size for p in files) / 1e6, 2)


def main() -> None:
    """Loads everything, then measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, help='the run that was exported')
    parser.add_argument('--rounds', type=int, default=20, help='turns of each')
    parser.add_argument('--no-ap', action='store_true', help='do not score')
    parser.add_argument('--record', action='store_true', help="append to the repository's log")
    parser.add_argument('exports', nargs='+', metavar='NAME=FOLDER', help='made by export.py')
    given = parser.parse_args()

    import jax

    from benchmarks import machine
    from spinenet_jax import inference
    from spinenet_jax.export.detector import Request, build_function
    from spinenet_jax.export.folder import FORMATS, METADATA
    from spinenet_jax.lowering.policy import policy_of

    trained = inference.load_trained(inference.read_config(given.workdir), given.workdir, 'best')
    size = trained.task.image_size
    policy = policy_of(jax.devices()[0])
    runs = {'model': jax.jit(build_function(trained, policy, Request(1, size)))}
    facts = {'model': {}}
    for export in given.exports:
        name, _, folder = export.partition('=')
        about = json.loads((Path(folder) / METADATA).read_text())
        runs[name] = FORMATS[about['format']].load(folder)
        facts[name] = {
            'weights': about['weights'],
            'file_mb': size_mb(Path(folder) / about['file']),
            'versions': about['versions'],
        }
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    loaded = round(os.getloadavg()[0], 2)
    seconds = round_robin(runs, image, given.rounds)
    for name, run in runs.items():
        row = {'model': machine.model_name(trained.config), 'image_size': list(size)}
        row |= {'export': name}
        row |= facts[name] | {'load_before': loaded, 'image_ms': round(1e3 * seconds[name], 2)}
        row['times_the_models'] = round(seconds[name] / seconds['model'], 2)
        if not given.no_ap:
            row['AP'] = round(average_precision(trained, run), 5)
        machine.report('exported_latency' if given.no_ap else 'exported', row, given.record)


if __name__ == '__main__':
    main()
