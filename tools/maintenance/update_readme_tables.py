"""Fills the generated parts of README.md and pages of docs/ from logs and from the models.

    python tools/maintenance/update_readme_tables.py

A generated part stands between two comments, the first of which says where it comes from:

    <!-- begin models -->                                   sizes of all models, traced
    <!-- begin table benchmarks/logs/x.jsonl: a, b -->      fields a and b of each line of a log
    <!-- begin text benchmarks/logs/x.txt -->               a log as it is
    <!-- end -->

A log that does not exist reads "not run". tools/maintenance/check_generated_pages.py only compares.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from spinenet_jax import launch

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    'README.md',
    'docs/benchmarks.md',
    'docs/export.md',
    'docs/instance_segmentation.md',
    'docs/search.md',
)
PART = re.compile(r'(<!-- begin (\w+)(?: ([^\n]+?))? -->\n)(.*?)(<!-- end -->)', re.DOTALL)
NOT_RUN = '*not run*\n'


def fill(text: str, root: Path) -> str:
    """`text` with every generated part made anew; sources are relative to `root`."""
    return PART.sub(lambda m: m[1] + _generate(m[2], m[3] or '', root) + m[5], text)


def table_of_log(lines: list[str], fields: list[str]) -> str:
    """A Markdown table with a row for each JSON line; a field that is missing is left blank."""
    rows = [json.loads(line) for line in lines if line.strip()]
    table = _markdown(fields, [[_show(row.get(field)) for field in fields] for row in rows])
    return table + _not_run_on(rows)


def _not_run_on(rows: list[dict]) -> str:
    """A line under a table of what JAX computed, if all of it was computed on a CPU."""
    places = [str(row.get('device', row.get('on', ''))) for row in rows]
    cpu_only = any(places) and all(place.endswith('cpu') for place in places if place)
    return '\n*not run on a GPU*\n' if cpu_only else ''


def models_table() -> str:
    """Sizes of every model in configs/retinanet.py at its input size."""
    from configs import retinanet
    from spinenet_jax.analysis.cost import config_cost

    rows = []
    for name in retinanet.MODELS:
        config = retinanet.get_config(f'{name}-B')
        parts = config_cost(config).values()
        parameters = sum(part.parameters for part in parts) / 1e6
        multiply_adds = sum(part.multiply_adds for part in parts) / 1e9
        side = config.data.image_size[0]
        rows.append([name, str(side), f'{parameters:.2f}', f'{multiply_adds:.1f}'])
    return _markdown(['model', 'input', 'parameters (M)', 'multiply-adds (B)'], rows)


def _generate(kind: str, source: str, root: Path) -> str:
    """The content of one part."""
    if kind == 'models':
        return models_table()
    path, _, fields = source.partition(':')
    if not (root / path).exists():
        return NOT_RUN
    text = (root / path).read_text()
    if kind == 'text':
        return f'```\n{text.rstrip()}\n```\n'
    if kind == 'table':
        return table_of_log(text.splitlines(), [field.strip() for field in fields.split(',')])
    raise ValueError(f'unknown part {kind!r}')


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _show(value: object) -> str:
    """A cell: numbers to four digits."""
    if value is None:
        return ''
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def main() -> None:
    """Rewrites the pages."""
    for name in PAGES:
        path = ROOT / name
        path.write_text(fill(path.read_text(), ROOT))


if __name__ == '__main__':
    launch.run(main)
