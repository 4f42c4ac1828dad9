"""How long until something happens: train.py --help, and the first step of a run?

    python benchmarks/startup.py [--config=configs/digits.py]

Times `train.py --help`, then two starts of training up to the first finished step, the first with
an empty compilation cache and the second with what that one left behind. Every start is a process
of its own, so imports are in it. Prints a JSON line for each start, also appended to
benchmarks/logs/startup.jsonl:

  start_to_first_step_s   all of it, the sum of the next five
  imports_s data_s        Python modules; annotations, model and task (not the digits themselves)
  init_s step_compile_s   the initial weights and the training step, each traced, lowered, and
                          compiled or taken from the cache
  first_step_s            running it
  tracing_s lowering_s xla_s   the same two programs again, split by what takes the time

JAX_COMPILATION_CACHE_DIR is set for these processes only, to a folder that is removed afterwards.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_CONFIG = flags.DEFINE_string('config', 'configs/digits.py', 'configuration to start')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'calls of --help; the median counts')
_LOG = flags.DEFINE_string('log', '', 'file to append to; default benchmarks/logs/...')


def help_seconds() -> float:
    """Median seconds of `train.py --help`."""
    times = []
    for _ in range(_REPEATS.value):
        began = time.perf_counter()
        subprocess.run([sys.executable, 'train.py', '--help'], cwd=ROOT, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def start(folder: Path) -> dict[str, float]:
    """One start of training in a new workdir, with the compilation cache in `folder`."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, 'benchmarks/startup_probe.py', f'--began={time.time()}'),
            *(f'--config={_CONFIG.value}', f'--workdir={workdir}'),
        ]
        environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder)}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f'error: {" ".join(command)} exited with {done.returncode}')
    return parse(done.stdout)


def parse(output: str) -> dict[str, float]:
    """The probe's last line, to hundredths of a second."""
    return {name: round(value, 2) for name, value in json.loads(output.splitlines()[-1]).items()}


def main(argv: list[str]) -> None:
    del argv
    from benchmarks import machine

    facts = {'config': _CONFIG.value, 'help_s': round(help_seconds(), 2)}
    with tempfile.TemporaryDirectory() as cache:
        for state in ('cold', 'warm'):
            load = {'load_before': round(os.getloadavg()[0], 2)}
            machine.record(
                'startup', facts | {'cache': state} | load | start(Path(cache)), _LOG.value
            )


if __name__ == '__main__':
    app.run(main)
