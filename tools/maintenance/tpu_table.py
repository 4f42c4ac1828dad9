"""Writes docs/tpu.md from the log of tools/compile_for_tpu.py: what fits which TPU, and how fast.

python tools/maintenance/tpu_table.py
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG, PAGE = ROOT / 'benchmarks/logs/tpu_compile.jsonl', ROOT / 'docs/tpu.md'
GIB = 2**30
HEAD = """# What the TPU compiler says

Written by `tools/maintenance/tpu_table.py` from `benchmarks/logs/tpu_compile.jsonl`; do not edit.
No TPU was used: `tools/compile_for_tpu.py` compiles the very step that `train.py` or `eval.py`
runs, for the topology in the table, with the compiler that runs on a TPU VM ({versions}).

- **memory**: the peak of one core (of one chip from v4 on): state, batch, temporaries, program.
- **state**: parameters, momentum and batch-norm statistics, of that memory.
- **step**: what the compiler expects, the sum over all operations after it has chosen tiles and
  layouts, without collectives. Nothing was run: take it as a comparison between rows.
- **of peak**: operations of the network alone (two a multiply-add, three times that to train) over
  what the cores' matrix units could do in that time. Matching, losses and whatever is computed
  twice take time and do not count.
- **bound**: the same, if every operation ran at the peak of the matrix unit or of the memory.
  Only v3's compiler says. In evaluation it takes suppression at its most turns,
  **step** at its usual ones.
- **no estimate**: operations for which the compiler gives no estimate, and which **step**
  therefore leaves out, such as gradients of max-pools, and the size of their results. Where that is
  much, as from v4 on, **step** is too short. Blank where an earlier version of the tool did not
  count them.
- **all-reduces**: number and size of all collectives in a step. Those of batch norm (most, and
  small) cannot be fewer than the layers that wait for each other.
- **compiled in**: processor time of the compilation, about 1.4 times as long as it lasts.
"""
COLUMNS = [
    'config',
    'step',
    'topology',
    'images a core',
    'memory GiB',
    'of GiB',
    'state GiB',
    'TFLOP a core',
    'traffic GB',
    'step ms',
    'images/s',
    'of peak',
    'bound',
    'no estimate',
    'all-reduces',
    'compiled in min',
]


def read(path: Path) -> list[dict[str, Any]]:
    """The last record of every (configuration, step, topology, batch), by size of the model."""
    records = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        key = [record[k] for k in ('config', 'step', 'topology', 'global_batch', 'remat')]
        records[json.dumps([key, _changes(record)])] = record
    return sorted(records.values(), key=_order)


def _order(record: dict[str, Any]) -> tuple[str, int, str, str, bool]:
    """Detectors before classifiers, small models before large ones, training before evaluation."""
    file, _, name = record['config'].partition(':')
    size = int(re.search(r'\d+', name)[0]) if re.search(r'\d+', name) else 0
    first = '' if 'retinanet' in file else file
    return first, size, name, record['topology'], record['step'] == 'eval'


def _changes(record: dict[str, Any]) -> list[str]:
    """Settings that differ from the config, without what `remat` of the record says."""
    return [change for change in record['changes'] if 'remat' not in change]


def row(record: dict[str, Any]) -> list[str]:
    """One line of the table; of a step that does not fit only memory is known."""
    name = re.sub(r'^configs/(.*)\.py', r'\1', record['config'])
    name = ' '.join([f'`{name}`', *(f'`{change}`' for change in _changes(record))])
    if record['remat']:
        more = f'{record["flops"] / record["network_flops"] - 1:+.0%} ' if record['fits'] else ''
        name += f' (recomputes: {more}operations)' if more else ' (recomputes)'
    held, peak = record['held'], record['memory'].get('peak', 0)
    limit = record['core']['memory']
    told = f', {peak / GIB:.1f}' if peak else ''
    cells = [
        name,
        record['step'],
        record['topology'],
        str(record['images_a_core']),
        f'{peak / GIB:.1f}' if record['fits'] else f'**does not fit{told}**',
        f'{limit / GIB:.0f}',
        f'{sum(v for k, v in held.items() if k != "batch") / GIB:.2f}',
    ]
    if record['fits']:
        totals = record['collectives'].values()
        cells += [
            f'{record["flops"] / 1e12:.2f}',
            f'{record["bytes"] / 1e9:.1f}',
            f'{1e3 * record["seconds"]:.1f}',
            f'{record["images_per_second"]:,.0f}',
            f'{100 * record["share_of_peak"]:.0f}%',
            f'{100 * record["bound_share_of_peak"]:.0f}%' if record['bound_seconds'] > 0 else '',
            _silent(record),
            f'{sum(t["count"] for t in totals)}, {sum(t["bytes"] for t in totals) / 2**20:.0f} MiB',
        ]
    else:
        cells += [''] * 8
    return [*cells, f'{record["compile_cpu_seconds"] / 60:.0f}']


def _silent(record: dict[str, Any]) -> str:
    """Number and size of the operations without an estimate."""
    silent = record.get('unestimated')
    return f'{silent["count"]}, {silent["bytes"] / 1e6:.0f} MB' if silent else ''


def page(records: list[dict[str, Any]]) -> str:
    """The whole page."""
    versions = sorted({f'jax {r["jax"]}, libtpu {r["libtpu"]}' for r in records})
    rows = [list(COLUMNS), ['---'] * len(COLUMNS), *map(row, records)]
    table = '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in rows)
    return f'{HEAD.format(versions="; ".join(versions))}\n{table}\n'


def main() -> None:
    """Reads the log, writes the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if not LOG.exists():
        sys.exit(f'error: {LOG}: no such file; run tools/compile_for_tpu.py first')
    PAGE.write_text(page(read(LOG)))
    print(f'wrote {PAGE}')


if __name__ == '__main__':
    main()
