"""Searches of equal budget on the digits, and what their best graphs are worth when trained longer.

    python benchmarks/search_digits.py --workdir=runs/searches [--controllers ppo random] [--record]

Every controller evaluates the candidates of configs/search.py:digits. The best graph of each is
then trained like the models of benchmarks/evidence.py, whose SpineNet-49 it is to be compared with:
four times longer, with three seeds, at equal multiply-adds, scored on images that no search has
seen. Two searches take hours on two cores; the same command goes on where it was stopped. Each
finished part is a JSON line on stdout and, with --record, of benchmarks/logs/search_digits.jsonl:

  controller candidates   what proposed, and how many different graphs were evaluated
  best median             reward: AP in percent on the images held out of training
  hours                   of processes of candidates, together
  AP                      of the best graph, a line a seed
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import evidence, machine  # noqa: E402
from spinenet_jax.models.graph import load, to_text  # noqa: E402
from spinenet_jax.search.history import History  # noqa: E402
from spinenet_jax.search.ledger import Ledger  # noqa: E402
from spinenet_jax.search.settings import CONTROLLERS  # noqa: E402

LOG = machine.LOGS / 'search_digits.jsonl'


def search(controller: str, workdir: Path, settings: list[str]) -> dict[str, object]:
    """The line of a finished search; starts or continues it."""
    command = [
        *(sys.executable, 'search.py', '--config=configs/search.py:digits'),
        *(f'--workdir={workdir}', f'--config.search.controller={controller}', *settings),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    ledger = Ledger(workdir)
    ledger.close()
    history = History(ledger.events)
    rewards = [100 * result.reward for result in history.best(history.evaluated)]
    if not rewards:
        sys.exit(f'error: {workdir}: no candidate has a reward')
    return {
        'controller': controller,
        'candidates': history.evaluated,
        'best': round(max(rewards), 2),
        'median': round(statistics.median(rewards), 2),
        'hours': round(sum(result.seconds for result in history.results) / 3600, 2),
        'graph': to_text(load(str(workdir / 'best.json'))),
    }


def main() -> None:
    """Searches, then trainings, that the log does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, help='where the searches are, a folder each')
    parser.add_argument('--controllers', nargs='+', choices=CONTROLLERS, default=['ppo', 'random'])
    parser.add_argument('--seeds', type=int, default=evidence.SEEDS)
    parser.add_argument('--record', action='store_true', help="append to the repository's log")
    given, settings = parser.parse_known_args()
    rows = evidence.read(LOG)
    for controller in given.controllers:
        found = next((r for r in rows if r['controller'] == controller and 'best' in r), None)
        if found is None:
            found = search(controller, Path(given.workdir).resolve() / controller, settings)
            machine.report('search_digits', found, given.record)
        done = {r['seed'] for r in rows if r['controller'] == controller and 'seed' in r}
        model = evidence.Model(f'found by {controller}', evidence.always(found['graph']))
        for seed in sorted({*range(given.seeds)} - done):
            with tempfile.TemporaryDirectory() as folder:
                facts = evidence.measure(model, seed, Path(folder) / 'run')
            machine.report('search_digits', {'controller': controller, **facts}, given.record)


if __name__ == '__main__':
    main()
