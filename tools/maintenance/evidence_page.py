"""Makes docs/evidence.md from benchmarks/logs/evidence.jsonl, the log of benchmarks/evidence.py.

    python tools/maintenance/evidence_page.py

Every figure and every verdict is computed from the log. An order of the paper `holds` where the
worst seed of what should be better is above the best seed of the other; it is `reversed` where all
seeds say so; anything between is noise. With three seeds a side, chance alone separates two equal
models in one of ten comparisons, five in a hundred each way, which the page says.
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.evidence import GROUPS, SEEDS, TOLERANCE, Model, read  # noqa: E402

LOG = ROOT / 'benchmarks/logs/evidence.jsonl'
TRIALS = ROOT / 'benchmarks/logs/evidence_trials.jsonl'  # what was tried first
PAGE = ROOT / 'docs/evidence.md'
NOT_RUN = '*not run*'
Row = dict[str, Any]


class Claim(NamedTuple):
    """An order that the paper states.

    Attributes:
      better, worse: models of the group, by name and size.
      words: what the paper reports of the two.
    """

    better: tuple[str, str]
    worse: tuple[str, str]
    words: str


class Group(NamedTuple):
    """A part of the page.

    Attributes:
      title: heading.
      about: what is compared, a paragraph.
      paper: the paper's figure by model, empty where we know only the order.
      claims: orders to look for.
    """

    title: str
    about: str
    paper: dict[str, str]
    claims: tuple[Claim, ...]


def _claims(better: str, worse: Sequence[str], words: str, size: str = '1') -> tuple[Claim, ...]:
    return tuple(Claim((better, size), (name, size), words) for name in worse)


DAMAGED = [model.name for model in GROUPS['damage'][1:]]
PARTS = {
    'table3': Group(
        'Scale-permuted or scale-decreased (Table 3)',
        'The paper moves the blocks of ResNet-50 into a scale-permuted network, then lets levels '
        'and kinds of blocks change as well. Its SpineNet-49 has a tenth fewer multiply-adds than '
        'the other two; here it is made as wide as they allow.',
        {'ResNet-50-FPN': '37.8', 'R0-SP53': '40.7', 'SpineNet-49': '40.8'},
        (
            *_claims('R0-SP53', ['ResNet-50-FPN'], '2.9 AP better'),
            *_claims('SpineNet-49', ['ResNet-50-FPN'], '3.0 AP better'),
            *_claims('SpineNet-49', ['R0-SP53'], '0.1 AP better'),
        ),
    ),
    'damage': Group(
        'Connections cut (Table 9)',
        'Every block of R0-SP53 keeps only the more distant of its two parents (short-range cut), '
        'only the nearer (long-range cut), or takes the block before it instead of both '
        '(sequential). What is left is made wider until it costs as much as before, which the '
        'paper does not do. Blocks that no output depends on any more are removed. With either '
        'of the last two, all that the output of level 3 knows comes through a block of level 5, '
        'which at 96 pixels has 3 by 3 positions; and most digits, 27 pixels large in the median, '
        "are that output's. At the paper's 640 pixels there are 20 by 20.",
        {},
        (
            *_claims('R0-SP53', DAMAGED, 'better'),
            *(Claim((DAMAGED[0], '1'), (name, '1'), 'better') for name in DAMAGED[1:]),
        ),
    ),
    'orders': Group(
        'Order of the blocks (Table 8)',
        'The paper fixes the order of the blocks to that of an hourglass or a fish and learns the '
        'connections. Here the connections of these orders, and of the order of R0-SP53, are drawn '
        'at random, others for each seed, so the spread is that of connections too.',
        {},
        (
            *_claims('R0-SP53', ['Hourglass order', 'Fish order'], 'better, with learned ones'),
            *_claims(
                'R0-SP53 order', ['Hourglass order', 'Fish order'], 'better, with learned ones'
            ),
        ),
    ),
    'sizes': Group(
        'Smaller and larger',
        'Widths are 0.65, 1 and 1.5 times that of the table above; heads and endpoints stay as '
        'they are. The paper reports SpineNet above ResNet-FPN by about 3 AP at every size.',
        {},
        tuple(
            Claim(('SpineNet-49', size), ('ResNet-50-FPN', size), 'about 3 AP better')
            for size in dict.fromkeys(model.size for model in GROUPS['sizes'])
            if size != '1'  # of the first part
        ),
    ),
    'classification': Group(
        'Classification',
        'Scans of single digits, which come with scikit-learn. On iNaturalist-bbox, the paper '
        'reports 63.9% for SpineNet-49 and 59.6% for ResNet-50.',
        {'ResNet-50': '59.6', 'SpineNet-49': '63.9'},
        _claims('SpineNet-49', ['ResNet-50'], '4.3 points better'),
    ),
}


def scores(rows: list[Row], name: str, size: str, task: str) -> list[float]:
    """AP or top-1 of a model's runs, in order of seed; the last line of a seed counts."""
    metric = 'top1' if task == 'classification' else 'AP'
    found = {
        row['seed']: row[metric]
        for row in rows
        if (row['model'], row['size'], row['task']) == (name, size, task)
    }
    return [found[seed] for seed in sorted(found)]


def verdict(better: Sequence[float], worse: Sequence[float], wanted: int = SEEDS) -> str:
    """What the seeds say of an order: a sentence; both sides hold at least one score."""
    gap = f'{np.mean(better) - np.mean(worse):+.1f}'
    if min(len(better), len(worse)) < wanted:
        counts = f'{len(better)} and {len(worse)} of {wanted} seeds'
        return f'{gap}: {counts}, too few to tell'
    if min(better) > max(worse):
        return f'{gap}: **holds**, every seed of the one above every seed of the other'
    if max(better) < min(worse):
        return f'{gap}: **reversed**, every seed of the one below every seed of the other'
    return f'{gap}: **within noise**, seeds overlap'


def table(group: str, rows: list[Row]) -> list[str]:
    """The rows of a group's models, those without a run included."""
    models, part = GROUPS[group], PARTS[group]
    metric = 'top-1' if models[0].task == 'classification' else 'AP'
    paper = ['paper'] if part.paper else []
    head = ['model', *paper, f'{metric}, mean', 'standard deviation', 'seeds']
    head += ['multiply-adds (M)', 'parameters (K)', 'width']
    lines = [head, ['---'] * len(head)]
    for model in models:
        title = _title(group, model.name, model.size)
        published = [part.paper.get(model.name, '')] if part.paper else []
        lines.append([title, *published, *_cells(model, rows)])
    return [f'| {" | ".join(cells)} |' for cells in lines]


def _cells(model: Model, rows: list[Row]) -> list[str]:
    found = scores(rows, model.name, model.size, model.task)
    if not found:
        return [NOT_RUN, *[''] * 5]
    which = (model.name, model.size, model.task)
    mine = [r for r in rows if (r['model'], r['size'], r['task']) == which]
    spread = f'{np.std(found, ddof=1):.1f}' if len(found) > 1 else ''
    seeds = ', '.join(f'{score:.1f}' for score in found)
    if len(found) < SEEDS:
        seeds += f' ({len(found)} of {SEEDS} seeds)'
    facts = ('multiply_adds_m', 1, '.1f'), ('parameters', 1e3, '.0f'), ('width', 1, '.3f')
    return [f'{np.mean(found):.1f}', spread, seeds, *(_span(mine, *fact) for fact in facts)]


def _span(rows: list[Row], field: str, unit: float, form: str) -> str:
    """A value, or the least and the most where seeds differ."""
    values = sorted({format(row[field] / unit, form) for row in rows}, key=float)
    return values[0] if len(values) == 1 else f'{values[0]} to {values[-1]}'


def claims(group: str, rows: list[Row]) -> list[str]:
    """A line for each order of the paper whose two models were run."""
    task, lines = GROUPS[group][0].task, []
    for claim in PARTS[group].claims:
        better, worse = (scores(rows, *which, task) for which in (claim.better, claim.worse))
        names = [_title(group, *which) for which in (claim.better, claim.worse)]
        if better and worse:
            said = f'{names[0]} over {names[1]} (paper: {claim.words})'
            lines.append(f'- {said}: {verdict(better, worse)}.')
    return lines


def _title(group: str, name: str, size: str) -> str:
    graph, _, damage = name.partition(', ')
    words = f'{graph} ({damage}{" cut" * damage.endswith("-range")})' if damage else name
    return f'{words}, size {size}' if group == 'sizes' else words


def summary(rows: list[Row]) -> list[str]:
    """Which of the paper's orders hold, which are reversed, which are hidden by noise."""
    kinds: dict[str, list[str]] = {'holds': [], 'reversed': [], 'within noise': [], 'too few': []}
    for group, part in PARTS.items():
        task = GROUPS[group][0].task
        for claim in part.claims:
            better, worse = (scores(rows, *which, task) for which in (claim.better, claim.worse))
            names = [_title(group, *which) for which in (claim.better, claim.worse)]
            for kind, found in kinds.items():
                if better and worse and kind in verdict(better, worse):
                    found.append(f'{names[0]} over {names[1]}')
    words = {
        'holds': 'hold here',
        'reversed': 'are reversed here',
        'within noise': 'are hidden by the noise',
        'too few': 'have too few seeds to tell',
    }
    return [
        f'- {words[kind]}: {"; ".join(found) if found else "none"}.'
        for kind, found in kinds.items()
        if found or kind != 'too few'
    ]


def trials(rows: list[Row]) -> str:
    """What came of the schedules that were tried first, in sentences."""
    sentences = []
    for epochs in sorted({row['epochs'] for row in rows}):
        found: dict[str, list[float]] = {}
        for row in rows:
            if row['epochs'] == epochs:
                found.setdefault(row['model'], []).append(row['AP'])
        widest = max(max(values) - min(values) for values in found.values())
        each = '; '.join(
            f'{name} {", ".join(f"{v:.1f}" for v in vs)}' for name, vs in found.items()
        )
        sentences.append(
            f'{epochs:g} epochs ({each}; the seeds of one model up to {widest:.1f} AP apart)'
        )
    return (
        f'Tried first were {" and ".join(sentences)}, without clipping of gradients and with half '
        'an epoch of warm-up. The outcome then depended on the first hundred steps, so all models '
        'are trained again with gradients clipped to a norm of 1 and an epoch of warm-up.'
    )


def page(rows: list[Row]) -> str:
    """The Markdown page."""
    detection = next(row for row in rows if row['task'] == 'detection')
    hours = sum(row['seconds'] for row in rows) / 3600
    largest = max(abs(row['cost_ratio'] - 1) for row in rows)
    text = [
        "# The paper's comparisons, small",
        '',
        _filled(
            'Written by `tools/maintenance/evidence_page.py` from '
            '`benchmarks/logs/evidence.jsonl`, which `benchmarks/evidence.py` fills; do not edit.'
        ),
        '',
        _filled(
            'Does a scale-permuted backbone beat a scale-decreased one of the same cost, and do '
            'its connections matter? The paper says so of photographs, at full size and after '
            'hundreds of epochs. Here the same graphs are trained on synthetic scenes of '
            f'handwritten digits, {detection["image_side"]} pixels a side, for '
            f'{detection["epochs"]:g} epochs and at about an eighth of the width, with the '
            'settings of `configs/search.py:digits` but for the learning rate (0.1), the warm-up '
            '(one epoch), the length and the splits (`train` and `val`). That is a '
            'very short training of very small '
            "networks on an easy task: it shows which of the paper's orders can be seen at this "
            'scale, and neither proves nor disproves any of them.'
        ),
        '',
        _filled(
            'All models of a comparison have the same settings, schedule, data and seeds. Their '
            'widths differ so that the multiply-adds of the whole model do not: they are within '
            f"{math.ceil(1000 * largest) / 10:g}% of SpineNet-49's ({100 * TOLERANCE:g}% are "
            'allowed). No seed was left out, and no setting was tuned for one side. '
            f'{trials(read(TRIALS))} The '
            f'{len(rows)} runs took {hours:.1f} hours on one core, which other jobs shared, of a '
            f'machine with {detection["cores"]} cores ({detection["machine"]}, jax '
            f'{detection["jax"]}). The same command goes on where it was stopped:'
        ),
        '',
        '```',
        'python benchmarks/evidence.py --record                    # all, hours',
        'python benchmarks/evidence.py --groups table3 --seeds=1   # a part, up to an hour',
        '```',
        '',
        _filled(
            'An order *holds* where every seed of the better model is above every seed of the '
            'worse, and is *reversed* where it is the other way round; otherwise it is *within '
            'noise*. Two equal models with three seeds each are told apart by chance in one of '
            "ten such comparisons. Of the paper's orders that were looked at,"
        ),
        '',
        *summary(rows),
    ]
    seen: set[tuple[str, str]] = set()
    for group, part in PARTS.items():
        text += ['', f'## {part.title}', '', _filled(part.about), '']
        own = {(model.name, model.size) for model in GROUPS[group]} - seen
        seen |= own
        if any(scores(rows, *which, GROUPS[group][0].task) for which in own):
            text += table(group, rows)
            lines = claims(group, rows)
            text += ['', *lines] if lines else []
        else:
            text += [f'{NOT_RUN}: `python benchmarks/evidence.py --groups {group} --record`']
    return '\n'.join(text) + '\n'


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(page(read(LOG)))


if __name__ == '__main__':
    main()
