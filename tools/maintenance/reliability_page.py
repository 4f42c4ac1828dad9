"""Makes docs/reliability.md from the logs of torture.py and flatness.py.

python tools/maintenance/reliability_page.py
"""

import argparse
import collections
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / 'benchmarks/logs/torture.jsonl'
FLATNESS = ROOT / 'benchmarks/logs/flatness.jsonl'
PAGE = ROOT / 'docs/reliability.md'
WANTED_KILLS, WANTED_INPUTS = 200, 3000
GROUPS = {
    'kill': 'killed or interrupted, then started again until finished',
    'fault': 'a file operation fails',
    'damage': 'files of a workdir damaged',
    'pair': 'one of two processes lost',
    'coco': 'damaged annotations',
    'image': 'damaged images',
    'settings': 'hostile settings',
    'tf': 'damaged TensorFlow checkpoints',
}
HEAD = """# What happens on a bad day

Made by `python tools/maintenance/reliability_page.py` from `benchmarks/logs/torture.jsonl`, the log
of `python tools/maintenance/torture.py`, whose docstring says what each kind of trial does. Every
failure is printed there with the command that repeats it.

"""
TABLE = """| what was done | trials | kills | bad inputs | lost | tracebacks | hangs | other |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
KINDS = ('lost', 'traceback', 'hang')


def page(trials: list[dict], held: list[dict]) -> str:
    """The page as text.

    Args:
      trials: of tools/maintenance/torture.py.
      held: what a long run of tools/maintenance/flatness.py held at each of its evaluations.
    """
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for trial in trials:
        count = counts[trial['group']]
        count.update(trials=1, kills=trial['kills'], inputs=trial['cases'])
        for problem in trial['problems']:
            kind = problem.partition(':')[0]
            count[kind if kind in KINDS else 'other'] += 1
    columns = ('trials', 'kills', 'inputs', *KINDS, 'other')
    rows = [
        f'| {words} | ' + ' | '.join(str(counts[group][name]) for name in columns) + ' |'
        for group, words in GROUPS.items()
        if group in counts
    ]
    missing = [words for group, words in GROUPS.items() if group not in counts]
    kills = sum(count['kills'] for count in counts.values())
    inputs = sum(count['inputs'] for count in counts.values())
    text = HEAD + TABLE + '\n'.join(rows) + '\n'
    if missing:
        text += f'\n*Not run* in this log: {"; ".join(missing)}.\n'
    if kills < WANTED_KILLS or inputs < WANTED_INPUTS:
        text += (
            f'\nThis is a short campaign of {kills} kills and {inputs} bad inputs. The long one, '
            f'of at least {WANTED_KILLS} kills and {WANTED_INPUTS:,} bad inputs, was *not run*.\n'
        )
    return text + _flatness(held)


def _flatness(held: list[dict]) -> str:
    """What a process holds, after the first quarter of a run, in which caches fill."""
    settled = held[len(held) // 4 :]

    def span(name: str) -> str:
        values = [row[name] for row in settled]
        return f'{min(values):.0f} to {max(values):.0f}'

    return (
        f'\n## What a long run holds\n\n`python tools/maintenance/flatness.py`: '
        f'{held[-1]["step"]:,} steps of the tiny model of the tests with {len(held)} evaluations '
        f'and twice as many checkpoints. From step {settled[0]["step"]:,} on the process held '
        f'{span("megabytes")} MB, {span("files")} open files and {span("threads")} threads.\n'
    )


def read(log: Path) -> list[dict]:
    """The lines of a log."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(page(read(LOG), read(FLATNESS)))


if __name__ == '__main__':
    main()
