"""Draws a scale-permuted backbone from the table it is built from.

python tools/draw_graph.py                      # docs/spinenet49.svg and .png
python tools/draw_graph.py --graph=r0_sp53 --output=/tmp/r0_sp53
python tools/draw_graph.py --graph=runs/search/best.json --output=/tmp/best
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from spinenet_jax import launch
from spinenet_jax.models.graph import load, validate
from spinenet_jax.search import drawing

ROOT = Path(__file__).resolve().parent.parent
GRAPH = flags.DEFINE_string('graph', 'spinenet49', 'Name, text or JSON file of what to draw.')
OUTPUT = flags.DEFINE_string('output', '', 'Path without suffix; docs/<name of graph> by default.')


def main() -> None:
    """Writes the drawing as SVG and PNG."""
    graph = load(GRAPH.value)
    validate(graph)
    stem = Path(OUTPUT.value or ROOT / 'docs' / re.sub(r'\W', '_', graph.name)).expanduser()
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, draw in (('.svg', drawing.svg), ('.png', drawing.png)):
        stem.with_name(stem.name + suffix).write_bytes(draw(graph))  # 'best.v1' keeps its dot
    print(f'wrote {stem}.svg and .png')


if __name__ == '__main__':
    launch.run(main)
