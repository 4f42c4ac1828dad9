"""Evaluators for the tests of engines; each runs in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from spinenet_jax.models.graph import GRAPHS
from tests.search.made import noisy


def count(candidate):
    """A reward by number; leaves a file that counts how often it ran to the end."""
    print('on stdout, which must not disturb the answer')
    print('on stderr', file=sys.stderr)
    folder = Path(candidate.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'runs.txt', 'a') as file:
        file.write(f'{candidate.number} {candidate.seed} {os.getpid()}\n')
    others = {'nothing': float('nan'), 'note': 'fast', 'missing': None, 'huge': 10**400}
    return {'reward': candidate.number / 10, 'seed': candidate.seed, **others}


def slow(candidate):
    """As `count`, but the search is killed long before it is over."""
    Path(candidate.folder).mkdir(parents=True, exist_ok=True)
    (Path(candidate.folder) / 'started').write_text(str(os.getpid()))
    time.sleep(candidate.config.get('sleep', 0.3))
    return count(candidate)


def moody(candidate):
    """Fails in as many ways as there are remainders; every fifth one is fine."""
    number = candidate.number % 5
    if number == 0:
        raise MemoryError('out of memory:\nno 12 GiB')
    if number == 1:
        return float('nan')
    if number == 2:
        os.abort()
    if number == 3:
        os._exit(3)
    return 0.5


def hangs_once(candidate):
    """Hangs on its first attempt."""
    first = Path(candidate.folder) / 'first'
    if not first.exists():
        Path(candidate.folder).mkdir(parents=True, exist_ok=True)
        first.touch()
        time.sleep(1000)
    return 1.0


def killed(candidate):
    """Is killed as a preempted machine is, as often as the config says."""
    Path(candidate.folder).mkdir(parents=True, exist_ok=True)
    tries = Path(candidate.folder) / 'tries'
    before = len(tries.read_text()) if tries.exists() else 0
    tries.write_text('x' * (before + 1))
    if before < candidate.config['times']:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def with_child(candidate):
    """Starts a process, as training is started, and waits for it."""
    Path(candidate.folder).mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])
    (Path(candidate.folder) / 'child').write_text(str(child.pid))
    return child.wait()


def close_to_base(candidate):
    """A made reward: likeness to SpineNet-49."""
    return noisy(candidate.graph, GRAPHS['spinenet49'])


NO_FUNCTION = 3
