"""Trains the tiny model again and again in one process, with faults and damages, for torture.py.

Reads a trial a line from standard input, {"group": "fault", "seed": 3}, and answers each with a
line of JSON: its problems, none if all went well. To be started with LD_PRELOAD set to the library
built from faults.c. A trial is a function of its seed, apart from the order in which the threads
that write a checkpoint meet the disk.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tests/training'))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from tiny import TinyModel, tiny_config, tiny_experiment

from spinenet_jax import console, launch
from spinenet_jax.errors import UserError
from spinenet_jax.files import absolute
from spinenet_jax.training import checkpoint, digest, distributed, loop
from spinenet_jax.training.preempt import PreemptionWatch

STEPS, HALF = 20, 10
SETTINGS = {'epochs': 5, 'checkpoint_every_steps': 3, 'eval_every_epochs': 1}
TIMED = ('wall_time', 'images_per_second')
KINDS = ('full', 'half', 'denied', 'broken')
SMALL = (
    'config.json', 'environment.json', 'categories.json', 'best.json', 'metrics.jsonl',
    'results.json', 'detections.json', 'train.log',
)  # fmt: skip
ITEMS = ('model', 'optimizer')


class _StopAt(PreemptionWatch):
    """Leaves after a step, as on a signal."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def reached(self, step: int) -> bool:
        return step == self._step


def train(folder: Path, stop: int = -1) -> None:
    """The run that all trials are about."""
    loop.build_experiment = lambda config: dataclasses.replace(
        tiny_experiment(config), model=TinyModel()
    )
    loop.PreemptionWatch = lambda: _StopAt(stop)
    loop.train(tiny_config(**SETTINGS), folder)


class Reference:
    """The run that nothing disturbed, all its checkpoints, and one that was stopped half way."""

    def __init__(self, folder: Path) -> None:
        self.whole, self.half = folder / 'whole', folder / 'half'
        train(self.whole)
        train(self.half, stop=HALF)
        everything = folder / 'everything'
        keep, SETTINGS['keep_checkpoints'] = SETTINGS.get('keep_checkpoints', 2), 100
        train(everything)
        SETTINGS['keep_checkpoints'] = keep
        steps = checkpoint.committed_steps(absolute(everything / 'checkpoints'))
        self.arrays = {step: read(everything, step) for step in steps}
        self.arrays[HALF] = read(self.half, HALF)

    def problems(self, folder: Path) -> list[str]:
        """How a run that came to its end differs from the undisturbed one."""
        found = []
        if not same(read(folder, STEPS), self.arrays[STEPS]):
            found.append('lost: the last state differs')
        if lines(folder) != lines(self.whole):
            found.append('lost: metrics.jsonl differs')
        for name in ('best.json', 'detections.json'):
            if (folder / name).read_text() != (self.whole / name).read_text():
                found.append(f'lost: {name} differs')
        results = [json.loads((f / 'results.json').read_text()) for f in (folder, self.whole)]
        if any(results[0][key] != results[1][key] for key in ('AP', 'step', 'images')):
            found.append('lost: results.json differs')
        best, step = checkpoint.load_model(folder, 'best')
        if step != json.loads((self.whole / 'best.json').read_text())['step']:
            found.append('lost: the best checkpoint is another one')
        if not same({'model': flat(best)}, {'model': self.arrays[step]['model']}):
            found.append('lost: the best checkpoint differs')
        return found


def read(folder: Path, step: int) -> dict[str, dict[str, np.ndarray]]:
    """All arrays of a checkpoint."""
    return digest.read_sound(absolute(folder / 'checkpoints' / str(step)), ITEMS)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {digest.array_name(path): leaf for path, leaf in leaves}


def same(a: dict[str, dict[str, np.ndarray]], b: dict[str, dict[str, np.ndarray]]) -> bool:
    """Whether all arrays are equal bit for bit."""
    return all(
        a[item].keys() == b[item].keys()
        and all(a[item][name].tobytes() == b[item][name].tobytes() for name in a[item])
        for item in a
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in found]


class Faults:
    """The library in front of libc."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long]
        self._library.fault_count.restype = ctypes.c_long

    def arm(self, folder: Path, kind: str, at: int) -> None:
        """From now on, operations in the folder fail as FAULT_KIND in faults.c says."""
        self._library.fault_arm(os.fsencode(folder), kind.encode(), at)

    def disarm(self) -> int:
        """The number of operations met since they were armed."""
        count = self._library.fault_count()
        self._library.fault_arm(b'', b'off', 0)
        return count


def attempt(call: Callable[[], Any]) -> tuple[str, list[str]]:
    """How a call ended, as a script would say it, and what is wrong with that."""
    problems = []
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            call()
            said = 'done'
        except Exception as error:  # judged below, as a script does
            found = launch._line_of(error, 'out of memory')
            said = f'{found[1]}: {found[0]}' if found else type(error).__name__
            if found is None:
                problems.append(f'traceback: {traceback.format_exc()[-1500:]}')
            elif '\n' in said:
                problems.append(f'not one line: {said!r}')
        finally:
            time.sleep(0.02)  # threads that report late
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        text = file.read().decode(errors='replace')
    if 'Traceback' in text:
        at = text.index('Traceback')
        problems.append(f'traceback: {text[max(0, at - 200) : at + 1500]}')
    return said, problems


class Trials:
    """What can be done to a run in this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._faults = Faults()
        self._reference = Reference(folder)
        self._operations = {}
        for start in (None, self._reference.half):
            work = self._fresh(start)
            self._faults.arm(work, 'count', 0)
            train(work)
            self._operations[start] = self._faults.disarm()

    def _fresh(self, start: Path | None) -> Path:
        """An empty workdir, or a copy of one."""
        work = self._folder / 'work'
        shutil.rmtree(work, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, work)
        return work

    def fault(self, rng: random.Random) -> tuple[str, list[str]]:
        """A file operation fails at one point of a run; the same command then finishes it."""
        start = rng.choice((None, self._reference.half))
        kind, at = rng.choice(KINDS), rng.randint(1, self._operations[start])
        work = self._fresh(start)
        self._faults.arm(work, kind, at)
        said, problems = attempt(lambda: train(work))
        self._faults.disarm()
        again, more = attempt(lambda: train(work))
        if again != 'done':
            more.append(f'lost: the same command then says {again}')
        else:
            more += self._reference.problems(work)
        return f'{kind} at operation {at}: {said}', problems + more

    def damage(self, rng: random.Random) -> tuple[str, list[str]]:
        """Files of a workdir are damaged; training goes on from what is sound, others say so."""
        work = self._fresh(rng.choice((self._reference.whole, self._reference.half)))
        steps = checkpoint.committed_steps(absolute(work / 'checkpoints'))
        spared = rng.choice(steps)  # one checkpoint stays as it is
        what = []
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            step = rng.choice([step for step in steps if step != spared])
            if rng.random() < 0.7:
                files = sorted((work / 'checkpoints' / str(step)).rglob('*'))
                path = rng.choice(files) if files else work / 'checkpoints' / str(step)
            else:
                path = work / rng.choice(SMALL)
            what.append(f'{damage(rng, path)} {path.relative_to(work)}')
        problems = []
        for which in ('latest', 'best', str(spared)):
            said, more = attempt(lambda which=which: self._load(work, which))
            problems += more
            if which == str(spared) and said != 'done':
                problems.append(f'lost: the sound checkpoint {spared} is refused: {said}')
        said, more = attempt(lambda: train(work))
        problems += more
        if said == 'done':
            problems += self._after(work)
        elif not said.startswith(('1: ', '2: ')) or 'folder' not in said:
            problems.append(f'lost: training with a sound checkpoint says {said}')
        return f'{"; ".join(what)}: {said}', problems

    def _load(self, work: Path, which: str) -> None:
        found, step = checkpoint.load_model(work, which)
        if not same({'model': flat(found)}, {'model': self._reference.arrays[step]['model']}):
            raise AssertionError(f'checkpoint {step} was loaded with other numbers')

    def _after(self, work: Path) -> list[str]:
        """The last state is the same; files that were damaged may have lost what they held."""
        if not same(read(work, STEPS), self._reference.arrays[STEPS]):
            return ['lost: the last state differs']
        for name in ('results.json', 'best.json', 'config.json'):
            json.loads((work / name).read_text())
        try:
            self._load(work, 'best')
        except UserError as error:  # never another one in silence
            if 'is damaged' not in str(error):
                raise
        return []


def damage(rng: random.Random, path: Path) -> str:
    """Does something to a file or a folder; returns what."""
    if not path.exists():
        return 'left'
    if path.is_dir():
        shutil.rmtree(path)
        if rng.random() < 0.3:
            path.mkdir()
            return 'emptied'
        return 'removed'
    kind = rng.choice(('removed', 'cut', 'flipped', 'zeroed', 'garbage', 'folder', 'text'))
    data = bytearray(path.read_bytes())
    if kind in ('removed', 'folder'):
        path.unlink()
        if kind == 'folder':
            path.mkdir()
    elif kind == 'cut':
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == 'flipped' and data:
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == 'zeroed':
        path.write_bytes(bytes(len(data)))
    elif kind == 'garbage':
        path.write_bytes(rng.randbytes(rng.choice((0, 10, len(data)))))
    elif kind == 'text':
        texts = ('null', '[]', '{}', '{"step": -1}', '[' * 5000, '{"step": 1e999}\n{"step": 3}')
        path.write_text(rng.choice(texts))
    return kind


def main() -> None:
    """Answers trials until standard input ends."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    distributed.use_compilation_cache()
    logging.getLogger().handlers.clear()  # what imports that log have made
    console.start()
    with tempfile.TemporaryDirectory(dir=os.environ.get('TORTURE_FOLDER')) as folder:
        trials = Trials(Path(folder))
        for line in sys.stdin:
            wanted = json.loads(line)
            try:
                said, problems = getattr(trials, wanted['group'])(random.Random(wanted['seed']))
            except (UserError, OSError, AssertionError, digest.DamagedCheckpointError) as error:
                said, problems = 'not judged', [f'lost: {error!r}']
            answers.write(json.dumps({'said': said, 'problems': problems}) + '\n')
            answers.flush()


if __name__ == '__main__':
    main()
