"""Trains the tiny model for thousands of steps and evaluations, and watches what the process holds.

    python tools/maintenance/flatness.py --steps=10000 --evaluations=50 --log=flatness.jsonl

Memory, open files and threads are read at every evaluation. After the first quarter, in which
caches fill, files and threads must stay as they are, and memory may grow by --megabytes at most.
Exit status 1: it grew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tests/training'))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
from tiny import TinyModel, accuracy, tiny_config, tiny_experiment

from spinenet_jax.training import loop
from spinenet_jax.training.preempt import PreemptionWatch

STEPS_AN_EPOCH = 4
SAVES_AN_EVALUATION = 2


class Held(NamedTuple):
    """What the process holds at an evaluation."""

    step: int
    megabytes: float
    files: int
    threads: int


def watch(folder: Path, steps: int, evaluations: int) -> list[Held]:
    """Trains in `folder` and reads what is held in front of every evaluation."""
    process, held = psutil.Process(), []

    def evaluate(state):
        memory = process.memory_info().rss / 2**20
        held.append(Held(int(state.step), memory, process.num_fds(), process.num_threads()))
        return accuracy(state)

    every = max(STEPS_AN_EPOCH, steps // evaluations // STEPS_AN_EPOCH * STEPS_AN_EPOCH)
    config = tiny_config(
        epochs=steps // STEPS_AN_EPOCH,
        eval_every_epochs=every // STEPS_AN_EPOCH,
        checkpoint_every_steps=max(1, every // SAVES_AN_EVALUATION),
        log_every_steps=10,
    )
    experiment = dataclasses.replace(tiny_experiment(config, evaluate=evaluate), model=TinyModel())
    loop.run(config, folder, experiment, PreemptionWatch())
    return held


def growth(held: list[Held]) -> Held:
    """What is held at least in the last quarter, over what was held at least in the second.

    The least, as a checkpoint that is just being written holds files and threads of its own; what
    is never given back raises the least as well.
    """
    quarter = max(1, len(held) // 4)
    early, late = held[quarter : 2 * quarter], held[-quarter:]
    least = [[min(column) for column in zip(*part, strict=True)] for part in (early, late)]
    return Held(*(after - before for before, after in zip(*least, strict=True)))


def main() -> int:
    """Runs, prints what was held and by how much it grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=10_000)
    parser.add_argument('--evaluations', type=int, default=50)
    parser.add_argument('--megabytes', type=float, default=30, help='that memory may grow by')
    parser.add_argument('--log', type=Path, help='file for a JSON line an evaluation')
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        held = watch(Path(folder), flags.steps, flags.evaluations)
    for row in held:
        print(f'step {row.step}: {row.megabytes:.0f} MB, {row.files} files, {row.threads} threads')
    if flags.log:
        flags.log.write_text(''.join(json.dumps(row._asdict()) + '\n' for row in held))
    grown = growth(held)
    print(f'grown by {grown.megabytes:.1f} MB, {grown.files} files, {grown.threads} threads')
    # The second quarter and the last are half of the evaluations apart, so one handle an evaluation
    # that is never given back shows as that many. Fewer come and go with background writing: the
    # least of a quarter of 20 evaluations was seen to differ by 1.
    leak = len(held) // 4
    return int(grown.megabytes > flags.megabytes or grown.files >= leak or grown.threads >= leak)


if __name__ == '__main__':
    sys.exit(main())
