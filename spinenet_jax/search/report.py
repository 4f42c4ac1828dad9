"""Writes search.md and its pictures: rewards, the best graphs, and what they have in common."""

import statistics
from collections import Counter
from collections.abc import Sequence

from etils import epath

from spinenet_jax.files import write_atomically
from spinenet_jax.models.graph import Graph
from spinenet_jax.search.history import DUPLICATE, History, Result
from spinenet_jax.search.progress import TOP, graph_of, headline
from spinenet_jax.search.run import Plan

PICTURES = 'pictures'


def write(folder: epath.Path, history: History, plan: Plan, status: str) -> None:
    """search.md in the folder, as things are; pictures where matplotlib is installed.

    Args:
      folder: of the search.
      history: what it knows so far.
      plan: what it is to do.
      status: of the workers, in one line.
    """
    try:
        import matplotlib  # noqa: F401

        drawn = True
    except ImportError:
        drawn = False
    top = history.best(TOP)
    if drawn:
        _draw(folder / PICTURES, history, top)
    write_atomically(folder / 'search.md', page(history, plan, status, top, drawn))


def page(history: History, plan: Plan, status: str, top: Sequence[Result], drawn: bool) -> str:
    """The Markdown text."""
    lines = ['# Architecture search', '', f'{headline(history, plan)}; {status}.', '']
    if drawn and history.results:
        lines += [f'![Reward of every sample]({PICTURES}/reward.svg)', '']
    elif not drawn:
        lines += ['No pictures: `pip install -r requirements-search.txt`.', '']
    if top:
        lines += [f'## The best {len(top)}', '', *_table(top), '']
        lines += ['## What they have in common', '', *(f'- {line}' for line in shared(top)), '']
    if drawn:
        for result in top:
            lines += [f'Candidate {result.number}, reward {result.reward:.4f}', '']
            lines += [f'![Candidate {result.number}]({_picture(result)})', '']
    lines += _failures(history)
    return '\n'.join(lines)


def shared(top: Sequence[Result]) -> list[str]:
    """Lines on what graphs have in common: places, connections, levels and kinds."""
    graphs = [graph_of(result) for result in top]
    count = len(graphs)
    lines = []
    for what, facts in (
        ('block', [_blocks_at(graph) for graph in graphs]),
        ('connection between levels', [_edges(graph) for graph in graphs]),
    ):
        common = Counter(fact for found in facts for fact in found).most_common(8)
        said = [f'{fact} ({n} of {count})' for fact, n in common if n > 1]
        if said:
            lines.append(f'Most frequent {what}: {"; ".join(said)}.')
    spans = [i - p for g in graphs for i, b in enumerate(g.blocks, len(g.stem)) for p in b.parents]
    jumps = [abs(b.level - g.levels[p]) for g in graphs for b in g.blocks for p in b.parents]
    kinds = [kind for graph in graphs for kind in graph.kinds[len(graph.stem) :]]
    levels = Counter(b.level for g in graphs for b in g.blocks)
    lines.append(
        f'A connection spans {statistics.fmean(spans):.1f} blocks and '
        f'{statistics.fmean(jumps):.2f} levels on average; {_share(j == 0 for j in jumps)} stay at '
        'their level.'
    )
    lines.append(f'{_share(kind == "residual" for kind in kinds)} of the blocks are residual.')
    each = ', '.join(f'{levels[level] / count:.1f} at level {level}' for level in sorted(levels))
    lines.append(f'Blocks a graph: {each}.')
    return lines


def _blocks_at(graph: Graph) -> set[str]:
    """'place 3: level 4' of the intermediate blocks."""
    inner = [block for block in graph.blocks if not block.is_output]
    return {f'place {place}: level {block.level}' for place, block in enumerate(inner, 1)}


def _edges(graph: Graph) -> set[str]:
    """'level 3 to output 5' or 'level 3 to 4' of all connections."""
    return {
        f'level {graph.levels[parent]} to {"output " if block.is_output else ""}{block.level}'
        for block in graph.blocks
        for parent in block.parents
    }


def _share(hits) -> str:
    return f'{statistics.fmean(map(float, hits)):.0%}'


def _table(top: Sequence[Result]) -> list[str]:
    lines = [
        '| candidate | reward | multiply-adds (M) | parameters (M) | graph |',
        '| --- | --- | --- | --- | --- |',
    ]
    for result in top:
        cost = [
            f'{result.cost[name] / 1e6:.4g}' if name in result.cost else ''
            for name in ('multiply_adds', 'parameters')
        ]
        text = result.graph.replace('|', '\\|')
        lines.append(f'| {result.number} | {result.reward:.4f} | {cost[0]} | {cost[1]} | {text} |')
    return lines


def _failures(history: History) -> list[str]:
    """How often candidates ended without a reward, by reason."""
    reasons = Counter(
        f'{result.status}: {result.reason}'
        for result in history.results
        if result.status not in ('done', DUPLICATE)
    )
    if not reasons:
        return []
    lines = [f'- {count} x {reason}' for reason, count in reasons.most_common(20)]
    return ['## Without a reward', '', *lines, '']


def _picture(result: Result) -> str:
    return f'{PICTURES}/candidate_{result.number:06d}.svg'


def _draw(folder: epath.Path, history: History, top: Sequence[Result]) -> None:
    """The curve anew, and the graphs that are not drawn yet."""
    from spinenet_jax.search import drawing

    folder.mkdir(parents=True, exist_ok=True)
    if history.results:
        rewards = [result.reward for result in history.results]
        (folder / 'reward.svg').write_bytes(drawing.rewards({'': rewards}))
    for result in top:
        path = folder.parent / _picture(result)
        if not path.exists():
            path.write_bytes(drawing.svg(graph_of(result)))
