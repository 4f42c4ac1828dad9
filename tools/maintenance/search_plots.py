"""Makes docs/search_controllers.svg from benchmarks/logs/search_controllers.jsonl.

python tools/maintenance/search_plots.py
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LOG = ROOT / 'benchmarks/logs/search_controllers.jsonl'
PLOT = ROOT / 'docs/search_controllers.svg'
COLOURS = {'random': '#8a94a0', 'evolution': '#2a9d6f', 'ppo': '#d1495b', 'reinforce': '#3d6fb4'}


def plot(lines: list[dict]) -> bytes:
    """A panel a space, a colour a controller: the mean over seeds as a line, their range as a band.

    The last line of a space and controller counts.
    """
    import io

    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np

    latest = {(line['space'], line['controller']): line for line in lines}
    spaces = list(dict.fromkeys(space for space, _ in latest))
    with plt.rc_context({'svg.hashsalt': 'controllers', 'font.family': 'DejaVu Sans'}):
        figure, panels = plt.subplots(
            *(1, len(spaces)), figsize=(4.8 * len(spaces), 3.9), layout='constrained', squeeze=False
        )
        for axes, space in zip(panels[0], spaces, strict=True):
            for name, colour in COLOURS.items():
                if (space, name) not in latest:
                    continue
                line = latest[space, name]
                curves = np.array(line['curves'])
                samples = (np.arange(curves.shape[1]) + 0.5) * line['samples'] / curves.shape[1]
                axes.plot(samples, curves.mean(0), color=colour, label=name)
                axes.fill_between(
                    samples, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0
                )
            axes.set_title(f'{space}, {line["decisions"]} decisions', fontsize=11)
            axes.set_xlabel('samples')
            axes.set_ylabel('likeness to the hidden graph')
            axes.spines[['top', 'right']].set_visible(False)
        panels[0][0].legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None})
        plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    """Writes the plot."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PLOT.write_bytes(plot([json.loads(line) for line in LOG.read_text().splitlines()]))
    print(f'wrote {PLOT.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
