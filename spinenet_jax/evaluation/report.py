"""Prints and writes the results of an evaluation.

A table to read, the files results.json and detections.json, and a comparison with numbers that a
config expects. Computing the numbers is left to the other files of this package.
"""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from etils import epath

from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.coco import rounded
from spinenet_jax.evaluation.runner import EvaluationResult
from spinenet_jax.files import DamagedFileError, absolute, read_json, write_json

LONGEST_CLASS_TABLE = 100
RESULTS, DETECTIONS = 'results.json', 'detections.json'


def table(result: EvaluationResult, main_metric: str) -> str:
    """Metrics, then classes from best to worst, as lines to print; numbers as percentages.

    main_metric: the task's, which is what `result.per_class` holds.
    """
    lines = [f'{result.images} images in {result.seconds:.1f} s']
    if result.detections is not None:
        lines[0] += f', {len(result.detections)} detections'
    if result.skipped:
        lines.append(f'{result.skipped} images could not be read and count as missed')
    if not result.metrics:
        return '\n'.join([*lines, 'no annotations in this split: no metrics'])
    lines += ['', *(f'{name:>6} {100 * value:6.2f}' for name, value in result.metrics.items())]
    classes = sorted(result.per_class.items(), key=lambda item: -item[1])[:LONGEST_CLASS_TABLE]
    if classes:
        width = max(len('class'), *(len(name) for name, _ in classes))
        digits = max(6, len(main_metric))
        lines += ['', f'{"class":<{width}} {main_metric:>{digits}}']
        lines += [f'{name:<{width}} {100 * value:{digits}.2f}' for name, value in classes]
    return '\n'.join(lines)


def write_files(folder: epath.PathLike, result: EvaluationResult, facts: Mapping[str, Any]) -> None:
    """Writes detections.json where the task has boxes, then results.json where there are metrics.

    Each appears whole or not at all, so results.json says that detections.json is there.

    Args:
      folder: made if it is missing.
      result: its metrics stand in results.json under their usual names, a metric without ground
        truth not at all; `per_class` holds the main one by class name.
      facts: further entries, such as the step and the split.
    """
    folder = absolute(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if result.detections is not None:
        write_json(folder / DETECTIONS, [*map(rounded, result.detections)])
    if result.metrics:
        counts = {'images': result.images, 'skipped': result.skipped}
        results = {**result.metrics, **facts, **counts, 'per_class': result.per_class}
        write_json(folder / RESULTS, results, indent=2)


def folder_of(workdir: str | PathLike, split: str) -> epath.Path:
    """Where an evaluation of a workdir puts its files.

    split: '' for the run's own, whose files stand in the workdir itself.
    """
    if not split:
        return absolute(workdir)
    return absolute(workdir) / f'eval-{re.sub("[^A-Za-z0-9_.+-]", "_", split)}'


def problem(folder: epath.PathLike) -> str:
    """What is missing or damaged of the files that `write_files` left in a folder, '' if nothing.

    Only for an evaluation that had metrics.
    """
    folder = epath.Path(folder)
    try:
        results = read_json(folder / RESULTS)
        if not isinstance(results, dict):
            return f'{folder / RESULTS} is missing'
        if 'AP' in results and read_json(folder / DETECTIONS) is None:
            return f'{folder / DETECTIONS} is missing'
    except DamagedFileError as error:
        return str(error)
    return ''


def mismatches(metrics: Mapping[str, float], expected: Mapping[str, Sequence[float]]) -> list[str]:
    """What differs from the expected numbers; nothing if all are within their tolerance.

    Args:
      metrics: by name.
      expected: name -> (value, tolerance), both in the metric's own unit.

    Raises:
      UserError: an entry that is not a pair of numbers.
    """
    found = []
    for name, pair in expected.items():
        try:
            value, tolerance = map(float, pair)
        except (TypeError, ValueError):
            raise UserError(f'eval.expected.{name} is {pair!r}: give (value, tolerance)') from None
        actual = metrics.get(name)
        if actual is None:
            found.append(f'{name} was not measured, expected {value:.4f} +- {tolerance:.4f}')
        elif not abs(actual - value) <= tolerance:
            found.append(f'{name} is {actual:.4f}, expected {value:.4f} +- {tolerance:.4f}')
    return found
