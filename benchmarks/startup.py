"""Times `train.py --help` and the way from the start of a run to its first finished step.

    python benchmarks/startup.py [--config=configs/digits.py] [--config.train.batch_size=4 ...]

Starts training twice, first with an empty compilation cache and then with what that left behind.
Every start is a process of its own, so imports are in it. Prints a JSON line for each start; with
--record it is also appended to benchmarks/logs/startup.jsonl:

  start_to_first_step_s   all of it, the sum of the next five
  imports_s data_s        Python modules; annotations, model and task (not the digits themselves)
  init_s step_compile_s   the initial weights and the training step, each traced, lowered, and
                          compiled or taken from the cache
  first_step_s            running it
  tracing_s lowering_s xla_s   the same two programs again, split by what takes the time

JAX_COMPILATION_CACHE_DIR is set for these processes only, to a folder that is removed afterwards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def help_seconds(repeats: int) -> float:
    """Median seconds of `train.py --help`."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, 'train.py', '--help'], cwd=ROOT, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def start(config: str, settings: list[str], folder: Path) -> dict[str, float]:
    """One start of training in a new workdir, with the compilation cache in `folder`."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, 'benchmarks/startup_probe.py', f'--began={time.time()}'),
            *(f'--config={config}', f'--workdir={workdir}', *settings),
        ]
        environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder)}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f'error: {" ".join(command)} exited with {done.returncode}')
    return parse(done.stdout)


def parse(output: str) -> dict[str, float]:
    """The probe's last line, to hundredths of a second."""
    return {name: round(value, 2) for name, value in json.loads(output.splitlines()[-1]).items()}


def main() -> None:
    """Both starts, as two lines."""
    from benchmarks import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='configs/digits.py', help='configuration to start')
    parser.add_argument('--repeats', type=int, default=5, help='of --help; the median counts')
    parser.add_argument('--record', action='store_true', help="append to the repository's log")
    given, settings = parser.parse_known_args()
    words = ' '.join(word.removeprefix('--config.') for word in settings)
    facts = {
        'config': given.config,
        'settings': words,
        'help_s': round(help_seconds(given.repeats), 2),
    }
    with tempfile.TemporaryDirectory() as cache:
        for state in ('cold', 'warm'):
            facts |= {'cache': state, 'load_before': round(os.getloadavg()[0], 2)}
            times = start(given.config, settings, Path(cache))
            machine.report('startup', facts | times, given.record)


if __name__ == '__main__':
    main()
