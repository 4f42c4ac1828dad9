"""Kills runs, breaks their disk, damages their files and feeds them bad input, and counts losses.

    python tools/maintenance/torture.py --minutes=20 --seed=0 --log=torture.jsonl
    python tools/maintenance/torture.py --repeat=kill:17

Every run is of the tiny model of the tests, on the real loop with real files. What is done to it:

- kill: SIGKILL, SIGTERM or Ctrl-C (once or twice) at a random moment, in front of a chosen file
  operation, or half way through a write; the same command is started again until it finishes, and
  what it leaves must be, bit for bit, what an undisturbed run leaves.
- fault: a file operation fails (no space, half written, no permission, a broken disk); the run must
  say so in one line, and the same command finishes once the disk is sound again.
- damage: files of a workdir are removed, cut, flipped or overwritten; training must go on from what
  is sound, and whatever reads checkpoints must give what was written or refuse.
- pair: one of two processes is killed or stopped; the other must end in time with one last line,
  and both then finish as if nothing had happened.
- coco, image, settings, tf: bad input, from tools/maintenance/fuzz.py.

Prints counts, and the command that repeats each failure. Exit status 1: there were failures.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / 'tests/training/tiny_run.py'
# Shares of the time. A kill costs seconds, bad input milliseconds.
SHARES = {
    'kill': 0.45, 'fault': 0.15, 'damage': 0.12, 'pair': 0.13,
    'coco': 0.05, 'image': 0.04, 'settings': 0.04, 'tf': 0.02,
}  # fmt: skip
FUZZED = ('coco', 'image', 'settings', 'tf')
FUZZ_BATCH = 200  # cases a process
FLAGS = ('--epochs=5', '--checkpoint_every=3', '--eval_every=1')
STEPS = 20
HANG_SECONDS = 180.0
HOST_TIMEOUT = 4.0
TIMED = ('wall_time', 'images_per_second')
# The last line of a run that ends before its last step, and the exit status that goes with it.
ENDS = (
    (0, r'.*asked to stop: step \d+ is saved, leaving'),
    (0, r'interrupted: step \d+ is saved'),
    (130, r'interrupted: there was nothing new to save'),
    (143, r'interrupted: there was nothing new to save'),
    (130, r'interrupted again: left at once'),
    (130, r'interrupted'),
)


class Trial(NamedTuple):
    """What was done in one trial, how often a process was killed in it, and what went wrong."""

    group: str
    seed: int
    kills: int
    cases: int
    said: str
    problems: list[str]

    @property
    def command(self) -> str:
        """What repeats the trial; a moment in time is only repeated as well as a clock does."""
        if self.group in FUZZED:
            return (
                f'python tools/maintenance/fuzz.py --kind={self.group} --count={self.cases} '
                f'--seed={self.seed}'
            )
        return f'python tools/maintenance/torture.py --repeat={self.group}:{self.seed}'


def build_faults(folder: Path) -> Path | None:
    """The library that makes file operations fail; None without a C compiler."""
    compiler = shutil.which('cc') or shutil.which('gcc') or shutil.which('clang')
    library = folder / 'faults.so'
    if compiler is None or sys.platform != 'linux':
        return None
    command = [compiler, '-shared', '-fPIC', '-O2', '-o', str(library)]
    subprocess.run(
        [*command, str(ROOT / 'tools/maintenance/faults.c'), '-ldl', '-lpthread'], check=True
    )
    return library


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """For a run on the CPU."""
    flags = f'--xla_force_host_platform_device_count={devices}'
    return os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | more


def start(folder: Path, *flags: str, devices: int = 1, **more: str) -> subprocess.Popen:
    """A run of the tiny model as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(RUN), f'--workdir={folder}', *FLAGS, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        env=environment(devices, **more),
    )


def ended(process: subprocess.Popen) -> tuple[int | None, str, str]:
    """(exit status, stdout, stderr) of a run; the status is None if it had to be ended here."""
    try:
        out, errors = process.communicate(timeout=HANG_SECONDS)
        return process.returncode, out, errors
    except subprocess.TimeoutExpired:
        process.kill()
        return None, *process.communicate()


def judge(status: int | None, out: str, errors: str, early: bool = False) -> list[str]:
    """What is wrong with how a run ended that was asked to end, or not disturbed at all.

    early: the signal came before the script itself could read any.
    """
    if status is None:
        return [f'hang: {errors[-1000:]}']
    if early and status in (-signal.SIGINT, -signal.SIGTERM, 1, 130):
        return []
    problems = []
    if 'Traceback' in errors:
        problems.append(f'traceback: {errors[errors.index("Traceback") :][:1500]}')
    if status == 0 and re.search(r'^(finished|stopped) \d+$', out, re.MULTILINE):
        return problems
    last = errors.strip().splitlines()[-1] if errors.strip() else ''
    if not any(status == wanted and re.fullmatch(text, last) for wanted, text in ENDS):
        problems.append(f'end: status {status}, last line {last[-500:]!r}')
    return problems


class Straight:
    """What an undisturbed run leaves, and how long and how many file operations it takes."""

    def __init__(self, folder: Path, library: Path | None) -> None:
        self.folder = folder / 'straight'
        log = folder / 'operations'
        ended(start(self.folder))  # fills the compilation cache
        shutil.rmtree(self.folder)
        began = time.monotonic()
        more = faults(library, self.folder, 'count', 0) | {'FAULT_LOG': str(log)}
        status, _, errors = ended(start(self.folder, **more))
        if status != 0:
            sys.exit(f'the undisturbed run ended with status {status}: {errors[-3000:]}')
        self.seconds = time.monotonic() - began
        self.operations = log.read_text().splitlines() if log.exists() else []

    def moments(self) -> dict[str, list[int]]:
        """Numbers of file operations by what they belong to."""
        found = collections.defaultdict(list)
        for number, line in enumerate(self.operations, 1):
            name = line.rpartition(f'{self.folder}/')[2].partition('/')[0]
            found['checkpoint' if name == 'checkpoints' else name.split('.')[0]].append(number)
        found['last'] = [*range(max(1, len(self.operations) - 20), len(self.operations) + 1)]
        return dict(found)


def faults(library: Path | None, folder: Path, kind: str, at: int) -> dict[str, str]:
    """Variables that put the library in front of libc; none without one."""
    if library is None:
        return {}
    return {
        'LD_PRELOAD': str(library),
        'FAULT_PREFIX': str(folder),
        'FAULT_KIND': kind,
        'FAULT_AT': str(at),
    }


class Kills:
    """Runs that are killed and started again."""

    def __init__(self, folder: Path, library: Path | None) -> None:
        self._folder, self._library = folder, library
        self._straight = Straight(folder, library)

    def trial(self, seed: int) -> Trial:
        """Kills a run one to six times, then lets it finish."""
        rng = random.Random(seed)
        work = self._folder / f'kill-{seed}'
        said, problems, kills = [], [], 0
        for _ in range(rng.choice((1, 2, 4, 6))):
            way, found = self._kill(rng, work)
            said.append(way)
            problems += found
            kills += 1
        status, out, errors = ended(start(work))
        problems += judge(status, out, errors)
        if not problems:
            problems += compare(work, self._straight.folder)
        if not problems:
            shutil.rmtree(work)
        return Trial('kill', seed, kills, 0, ', '.join(said), problems)

    def _kill(self, rng: random.Random, work: Path) -> tuple[str, list[str]]:
        """Starts a run and kills it; returns how, and what is wrong with how it ended."""
        way = rng.choice(('operation', 'operation', 'torn', 'time', 'time', 'compile', 'evaluate'))
        if way in ('operation', 'torn') and self._straight.operations:
            moment, numbers = rng.choice(sorted(self._straight.moments().items()))
            at = rng.choice(numbers)
            kind = 'kill' if way == 'operation' else 'torn'
            status, out, errors = ended(start(work, **faults(self._library, work, kind, at)))
            way = f'{kind} at operation {at} ({moment})'
            return way, [] if status == -signal.SIGKILL else judge(status, out, errors)
        number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        twice = number == signal.SIGINT and rng.random() < 0.4
        flags = ('--pause=0.02', '--eval_pause=0.3')
        process = start(work, *flags)
        seconds = rng.uniform(0, 1.3 * self._straight.seconds)
        if way == 'compile':
            wait_for(process, lambda: (work / 'checkpoints').exists())
            seconds = rng.uniform(0, 0.3 * self._straight.seconds)
        elif way == 'evaluate':
            step = rng.choice((4, 8, 12, 16, 20))
            wait_for(process, lambda: reached(work, step))
            seconds = rng.uniform(0, 0.5)
        time.sleep(seconds)
        early = not reads_signals(process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
            if twice:
                time.sleep(rng.uniform(0, 0.3))
                process.send_signal(signal.SIGINT)
        status, out, errors = ended(process)
        name = signal.Signals(number).name + (' twice' if twice else '')
        said = f'{name} {way} + {seconds:.2f} s'
        if number == signal.SIGKILL and status == -signal.SIGKILL:
            return said, []
        # SIGTERM ends a process at once as long as there is nothing to save.
        if number == signal.SIGTERM and status == -signal.SIGTERM:
            return said, []
        return said, judge(status, out, errors, early)


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Until something is so, or the run has ended."""
    deadline = time.monotonic() + HANG_SECONDS
    while process.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def reached(folder: Path, step: int) -> bool:
    """Whether metrics.jsonl has a line of that step."""
    try:
        return f'"step": {step},' in (folder / 'metrics.jsonl').read_text()
    except OSError:
        return False


def reads_signals(pid: int) -> bool:
    """Whether the thread that reads signals was started; before, Python imports the script."""
    try:
        return len(os.listdir(f'/proc/{pid}/task')) > 1
    except OSError:
        return True


def compare(folder: Path, straight: Path) -> list[str]:
    """How what a run left differs from what an undisturbed one left."""
    problems = []
    if lines(folder) != lines(straight):
        problems.append('lost: metrics.jsonl differs')
    for name in ('best.json', 'detections.json', 'categories.json'):
        if (folder / name).read_bytes() != (straight / name).read_bytes():
            problems.append(f'lost: {name} differs')
    results = [json.loads((f / 'results.json').read_text()) for f in (folder, straight)]
    if any(results[0][key] != results[1][key] for key in ('AP', 'step', 'images')):
        problems.append('lost: results.json differs')
    # Digests stand for the arrays; whether they are true is for `damage` and the tests.
    best = json.loads((straight / 'best.json').read_text())['step']
    for step in {STEPS, best}:
        name = f'checkpoints/{step}/digest/digest.json'
        if (folder / name).read_bytes() != (straight / name).read_bytes():
            problems.append(f'lost: checkpoint {step} differs')
    left = [p.name for p in (folder / 'checkpoints').iterdir() if not p.name.isdigit()]
    left += [p.name for p in folder.iterdir() if p.name == 'damaged']
    if left:
        problems.append(f'left behind: {left}')
    return problems


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in found]


class Pairs:
    """Two processes as one run, one of which is lost."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._straight = folder, folder / 'pair'
        for process in self._start(self._straight):
            status, _, errors = ended(process)
            if status != 0:
                sys.exit(f'two undisturbed processes ended with status {status}: {errors[-3000:]}')

    def _start(self, work: Path, *flags: str) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{free.getsockname()[1]}'
        joint = (f'--address={address}', '--processes=2', f'--host_timeout={HOST_TIMEOUT}')
        return [start(work, *joint, f'--process={index}', *flags) for index in (0, 1)]

    def trial(self, seed: int) -> Trial:
        """Loses one of the two at a random moment, then starts both again."""
        rng = random.Random(seed)
        work = self._folder / f'pair-{seed}'
        victim, number = rng.randrange(2), rng.choice((signal.SIGKILL, signal.SIGSTOP))
        processes = self._start(work, '--pause=0.1', '--eval_pause=0.2')
        wait_for(processes[0], lambda: (work / 'checkpoints').exists())
        seconds = rng.uniform(0, 5)
        time.sleep(seconds)
        processes[victim].send_signal(number)
        status, _, errors = ended(processes[1 - victim])
        processes[victim].kill()
        processes[victim].communicate()
        said = f'{signal.Signals(number).name} to process {victim} after {seconds:.2f} s'
        problems = []
        last = errors.strip().splitlines()[-1] if errors.strip() else ''
        if status is None:
            problems.append(f'hang: {errors[-1000:]}')
        elif 'Traceback' in errors:
            problems.append(f'traceback: {errors[errors.index("Traceback") :][:1500]}')
        elif not re.search(r'error: process \d.*start the same command again', last) and status:
            problems.append(f'end: status {status}, last line {last[-500:]!r}')
        for process in self._start(work):
            problems += judge(*ended(process))
        if not problems:
            problems += compare(work, self._straight)
        if not problems:
            shutil.rmtree(work)
        return Trial('pair', seed, 1, 0, said, problems)


class Worker:
    """The process that takes faults and damages; a new one after a while, and after a hang."""

    TRIALS = 150

    def __init__(self, group: str, folder: Path, library: Path) -> None:
        self._group, self._folder, self._library = group, folder, library
        self._process, self._left = None, 0

    def trial(self, seed: int) -> Trial:
        """Hands one trial to the worker and waits for the answer."""
        if self._left == 0:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / 'tools/maintenance/torture_worker.py')],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment(LD_PRELOAD=str(self._library), TORTURE_FOLDER=str(self._folder)),
            )
            self._left = self.TRIALS
        self._left -= 1
        self._process.stdin.write(json.dumps({'group': self._group, 'seed': seed}) + '\n')
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], HANG_SECONDS)
        text = self._process.stdout.readline() if ready else ''
        if not text:
            self._process.kill()
            self._left = 0
            kind = 'hang: no answer' if not ready else 'crash: the process ended'
            return Trial(self._group, seed, 0, 1, '', [kind])
        answer = json.loads(text)
        return Trial(self._group, seed, 0, 1, answer['said'], answer['problems'])

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


def fuzz(kind: str, seed: int) -> Trial:
    """A batch of bad input; seeds of batches do not overlap."""
    first = seed * FUZZ_BATCH
    command = [sys.executable, str(ROOT / 'tools/maintenance/fuzz.py'), f'--kind={kind}']
    try:
        done = subprocess.run(
            [*command, f'--count={FUZZ_BATCH}', f'--seed={first}'],
            capture_output=True, text=True, errors='replace', env=environment(), cwd=ROOT,
            timeout=10 * HANG_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Trial(kind, first, 0, FUZZ_BATCH, '', ['hang: the batch did not end'])
    said = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ''
    problems = [] if done.returncode == 0 else [f'{(done.stdout + done.stderr)[-3000:]}']
    return Trial(kind, first, 0, FUZZ_BATCH, said, problems)


def campaign(
    groups: dict[str, Callable[[int], Trial]], minutes: float, seed: int
) -> Iterator[Trial]:
    """Trials in turn, the group first that is furthest behind its share of the time."""
    began, spent, counts = time.monotonic(), collections.Counter(), collections.Counter()
    while time.monotonic() - began < 60 * minutes:
        group = min(groups, key=lambda name: (spent[name] / SHARES[name], -SHARES[name]))
        then = time.monotonic()
        yield groups[group](1000 * seed + counts[group])
        counts[group] += 1
        spent[group] += time.monotonic() - then


def main() -> int:
    """Runs the trials that the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=20, help='how long to go on')
    parser.add_argument('--seed', type=int, default=0, help='another campaign')
    parser.add_argument('--only', default='', help='groups, separated by commas')
    parser.add_argument('--repeat', default='', help='one trial: group:seed')
    parser.add_argument('--log', default='', help='file for a line of JSON about each trial')
    flags = parser.parse_args()
    wanted = [flags.repeat.partition(':')[0]] if flags.repeat else flags.only.split(',')
    wanted = [name for name in SHARES if name in wanted or wanted == ['']]
    fast = '/dev/shm' if os.path.isdir('/dev/shm') else None
    with tempfile.TemporaryDirectory(prefix='torture-', dir=fast) as name:
        folder = Path(name)
        library = build_faults(folder)
        made: dict[str, Callable[[int], Trial]] = {}
        for group in wanted:
            if group == 'kill':
                made[group] = Kills(folder, library).trial
            elif group == 'pair':
                made[group] = Pairs(folder).trial
            elif group in FUZZED:
                made[group] = lambda seed, kind=group: fuzz(kind, seed)
            elif library is not None:
                made[group] = Worker(group, folder, library).trial
            else:
                print(f'{group}: left out, there is no C compiler')
        if flags.repeat:
            trials = iter([made[wanted[0]](int(flags.repeat.partition(':')[2]))])
        else:
            trials = campaign(made, flags.minutes, flags.seed)
        return report(trials, flags.log)


def report(trials: Iterator[Trial], log: str) -> int:
    """Prints failures as they come and counts at the end; returns the exit status."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    began = time.monotonic()
    with open(log or os.devnull, 'a') as file:
        for trial in trials:
            count = counts[trial.group]
            count.update(
                trials=1, kills=trial.kills, cases=trial.cases, failed=int(bool(trial.problems))
            )
            count['seconds'] = 0
            # Names of files from the trial's folder on: where that was tells nothing.
            line = re.sub(r'/[^\s"]*/torture-[^/\s]+/[^/\s]+/', '', json.dumps(trial._asdict()))
            file.write(line + '\n')
            file.flush()
            if trial.problems:
                print(f'FAILED {trial.group}:{trial.seed} {trial.said}', flush=True)
                for problem in trial.problems:
                    print(f'  {problem}')
                print(f'  {trial.command}', flush=True)
    for group, count in counts.items():
        print(
            f'{group}: {count["trials"]} trials, {count["kills"]} kills, {count["cases"]} inputs, '
            f'{count["failed"]} failed'
        )
    print(f'{time.monotonic() - began:.0f} seconds')
    return 1 if any(count['failed'] for count in counts.values()) else 0


if __name__ == '__main__':
    sys.exit(main())
