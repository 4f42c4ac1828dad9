"""Makes docs/growth.md and docs/growth.svg from benchmarks/logs/growth.jsonl.

    python tools/maintenance/growth_page.py

A straight line is fitted through the logarithms of the points of each part of
benchmarks/growth.py; its slope is the power of x that time grows with.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / 'benchmarks/logs/growth.jsonl'
PAGE, PLOT = ROOT / 'docs/growth.md', ROOT / 'docs/growth.svg'
STEEP = 1.1  # a slope above it is more than proportional


class Part(NamedTuple):
    """What a part of the log is called, what x is, and what the algorithm should cost."""

    title: str
    x: str
    reason: str


PARTS = {
    'step_pixels': Part(
        'Training step',
        'pixels of an image (2 images)',
        'Convolutions, losses and matching do the same work for every pixel; the optimizer and '
        'starting each operation do not depend on the image.',
    ),
    'step_batch': Part(
        'Training step',
        'images (256 x 256)',
        'Every image costs the same; the optimizer is paid once a step. Why an image of the '
        'largest batch takes longer was not looked into; larger images with as many pixels do so '
        'too.',
    ),
    'post_classes': Part(
        'Post-processing',
        'class channels (640 x 640)',
        'Every logit is read once, to find the best class of each anchor, and the scores of the '
        '1,000 best anchors in every class are sorted. Sorting the anchors and suppression do not '
        'depend on the classes, which shows below 30 of them.',
    ),
    'post_anchors': Part(
        'Post-processing',
        'anchors (91 class channels)',
        'Every logit is read once, and the best anchors are selected by a sort, which adds a '
        'logarithm. The outputs of the largest image are 112 MB, more than caches hold.',
    ),
    'evaluation': Part(
        'COCO scores',
        'images (100 detections each)',
        'Images are matched one by one; putting the detections of a class in order of score adds a '
        'logarithm.',
    ),
}


def read_points(lines: list[str]) -> dict[str, list[tuple[float, float]]]:
    """(x, seconds) by part, in order of x; the last line of a point counts."""
    found: dict[str, dict[float, float]] = {part: {} for part in PARTS}
    for line in lines:
        row = json.loads(line)
        found[row['part']][row['x']] = row['seconds']
    return {part: sorted(points.items()) for part, points in found.items() if points}


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(power, factor) of the curve factor * x ** power that fits best, in logarithms.

    At least two points with different x.
    """
    x, seconds = np.log(np.array(points)).T
    power, constant = np.polyfit(x, seconds, 1)
    return float(power), float(np.exp(constant))


def verdict(power: float, last: float) -> str:
    """Whether a fitted slope, and that between the two largest points, is what it should be."""
    if power > STEEP:
        return 'More than proportional.'
    over = 'Proportional, as it should be' if power >= 0.9 else 'Less than proportional'
    return f'{over}, but steeper at the upper end.' if last > STEEP else f'{over}.'


def page(lines: list[str]) -> str:
    """The Markdown page."""
    first = json.loads(lines[0])
    where = f'{first["machine"]}, {first["cores"]} cores, jax {first["jax"]}'
    text = [
        '# How cost grows',
        '',
        'Written by `tools/maintenance/growth_page.py` from `benchmarks/logs/growth.jsonl`, which',
        f'`benchmarks/growth.py` fills; do not edit. Measured on {where}.',
        'The training step is that of SpineNet-49 at a quarter of its width, float32;',
        'post-processing sees one image with as many candidates as a busy photograph. Slope 1',
        'means proportional.',
        '',
        '![Time against size, both on logarithmic axes](growth.svg)',
        '',
        '| what | against | from | to | slope | slope of the last two |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    reasons = []
    for part, points in read_points(lines).items():
        about = PARTS[part]
        power, last = slope(points)[0], slope(points[-2:])[0]
        ends = (f'{x:,}: {_seconds(s)}' for x, s in (points[0], points[-1]))
        text.append(
            f'| {about.title} | {about.x} | {" | ".join(ends)} | {power:.2f} | {last:.2f} |'
        )
        reasons += [
            '',
            f'**{about.title} against {about.x}.** {verdict(power, last)}',
            about.reason,
        ]
    return '\n'.join(text + reasons) + '\n'


def _seconds(seconds: float) -> str:
    return f'{seconds:.3g} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'


def draw(lines: list[str], path: Path) -> None:
    """One panel for each part: measured points and the fitted line."""
    import matplotlib

    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = 'growth'  # the same file from the same log
    from matplotlib import pyplot, ticker

    every: dict[str, Any] = read_points(lines)
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.4), layout='constrained')
    for panel in axes.flat[len(every) :]:
        panel.set_visible(False)
    for panel, (part, points) in zip(axes.flat, every.items(), strict=False):
        x, seconds = np.array(points).T
        power, factor = slope(points)
        panel.loglog(x, factor * x**power, color='tab:orange', label=f'slope {power:.2f}')
        panel.loglog(x, seconds, 'o', color='tab:blue', label='measured')
        panel.set_title(f'{PARTS[part].title}: slope {power:.2f}', fontsize=11)
        panel.set_xlabel(PARTS[part].x)
        panel.set_xticks(x, [f'{v:,.0f}' for v in x], fontsize=8)
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.set_ylabel('seconds')
        panel.grid(True, which='both', alpha=0.3)
    figure.savefig(path, metadata={'Date': None})


def main() -> None:
    """Writes the page and the plot."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lines = LOG.read_text().splitlines()
    PAGE.write_text(page(lines))
    draw(lines, PLOT)


if __name__ == '__main__':
    main()
