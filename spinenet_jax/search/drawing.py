"""Draws a scale-permuted backbone from its graph, with matplotlib."""

import io
from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib

matplotlib.use('Agg')  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Curve

from spinenet_jax.models.graph import Graph

INK, PAPER, GRID, EDGE = '#1c2733', '#ffffff', '#dfe5ec', '#6b7a8c'
STEM, BOTTLENECK, RESIDUAL, OUTPUT_RIM, MERGE = (
    '#c9d1da',
    '#8fb8ec',
    '#f2c14e',
    '#d1495b',
    '#2a9d6f',
)
WIDTH, HEIGHT = 0.68, 0.46  # of a block; levels and blocks are 1 apart
_STEPS = 30  # points of a curve at which its neighbourhood is looked at


def draw(graph: Graph) -> plt.Figure:
    """The graph as a figure: blocks from left to right in order, levels from fine to coarse."""
    count = len(graph.levels)
    figure, axes = plt.subplots(figsize=(0.72 * count + 1.2, 5.6), layout='constrained')
    figure.set_facecolor(PAPER)
    _draw_levels(axes, graph)
    for (_, _, merge), curve in route(graph).items():
        _draw_arrow(axes, curve, merge)
    for index in range(count):
        _draw_block(axes, graph, index)
    _draw_legend(axes, graph)
    axes.set_xlim(-1.3, count + 0.25)
    axes.set_ylim(1.35, max(graph.levels) + 0.7)
    axes.axis('off')
    return figure


def _draw_levels(axes: Axes, graph: Graph) -> None:
    """One line a level, with its name and resolution."""
    for level in range(min(graph.levels), max(graph.levels) + 1):
        axes.axhline(level, color=GRID, linewidth=1, zorder=0)
        axes.text(-1.25, level + 0.09, f'level {level}', color=INK, fontsize=10.5)
        axes.text(-1.25, level - 0.22, f'1/{2**level}', color=EDGE, fontsize=9)


def _draw_block(axes: Axes, graph: Graph, index: int) -> None:
    """A rounded box with the block's number; outputs have a rim and the name of their map."""
    level, x = graph.levels[index], index
    stem = index < len(graph.stem)
    is_output = index in graph.outputs.values()
    colour = STEM if stem else BOTTLENECK if graph.kinds[index] == 'bottleneck' else RESIDUAL
    axes.add_patch(
        FancyBboxPatch(
            (x - WIDTH / 2, level - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle='round,pad=0,rounding_size=0.12',
            facecolor=colour,
            edgecolor=OUTPUT_RIM if is_output else INK,
            linewidth=2.4 if is_output else 0.9,
            zorder=3,
        )
    )
    axes.text(x, level, str(index), ha='center', va='center', color=INK, fontsize=11, zorder=4)
    if is_output:
        name = f'P{level}'
        style = {'color': OUTPUT_RIM, 'fontsize': 10.5, 'fontweight': 'bold', 'zorder': 4}
        axes.text(x + WIDTH / 2 + 0.08, level + 0.12, name, va='bottom', **style)


def route(graph: Graph) -> dict[tuple[int, int, bool], np.ndarray]:
    """A curve for every arrow (parent, child, is merge): control points f64[3,2] (x, level).

    Short arrows first, each takes the straightest of many curves that runs behind no other block
    and along no arrow drawn before.
    """
    first = len(graph.stem)
    edges = [(i, i + 1, False) for i in range(first - 1)]
    edges += [(p, c, False) for c, b in enumerate(graph.blocks, first) for p in b.parents]
    edges += [(p, c, True) for c, sources in graph.merges.items() for p in sources]
    edges.sort(key=lambda e: (abs(graph.levels[e[1]] - graph.levels[e[0]]) + e[1] - e[0], e))
    curves, drawn = {}, []
    for edge in edges:
        best = _cheapest(graph, edge, drawn)
        curves[edge] = best
        drawn.append(_points(best[None])[0])
    return curves


def _cheapest(graph: Graph, edge: tuple[int, int, bool], drawn: list[np.ndarray]) -> np.ndarray:
    """The best-looking curve for an arrow, given the points of those drawn before.

    Running along other arrows takes long to find out, and only adds to a cost: curves are looked at
    in the order of the rest of their cost, until that alone is more than the best has in all.
    """
    curves = _candidates(graph, *edge[:2])
    points = _points(curves)
    alone = _costs(graph, edge, curves, points)
    others = np.array(drawn).reshape(-1, _STEPS, 2)
    best, lowest = curves[0], np.inf
    for index in np.argsort(alone, kind='stable'):
        if alone[index] >= lowest:
            break
        near = (_distances(points[index], others) < 0.09).sum()
        if alone[index] + 0.3 * near < lowest:
            best, lowest = curves[index], alone[index] + 0.3 * near
    return best


def _distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """f64[n,30]: of each point [30,2] to the nearest of each other curve's [n,30,2], in steps."""
    x, y = (np.abs(points[:, None, axis] - others[:, None, :, axis]) for axis in (0, 1))
    return (x + y).min(-1)


def _candidates(graph: Graph, parent: int, child: int) -> np.ndarray:
    """f64[n,3,2]: curves from right, top or bottom of a block to left, top or bottom of another."""
    tail, head = (np.array([i, graph.levels[i]], float) for i in (parent, child))
    half = np.array([WIDTH, HEIGHT]) / 2
    exits = [(1, y) for y in (-0.5, 0, 0.5)] + [(x, y) for x in (0.1, 0.6) for y in (-1, 1)]
    entries = [(-1, y) for y in (-0.5, 0, 0.5)] + [(x, y) for x in (-0.6, -0.1) for y in (-1, 1)]
    curves = []
    for leave, enter, bow in product(exits, entries, np.linspace(-0.4, 0.4, 9)):
        start, end = tail + half * leave, head + half * enter
        along = end - start
        curves.append([start, (start + end) / 2 + bow * along[[1, 0]] * [1, -1], end])
    return np.array(curves)


def _points(curves: np.ndarray) -> np.ndarray:
    """Points along quadratic Bezier curves [n,3,2]: f64[n,30,2]."""
    t = np.linspace(0, 1, _STEPS)[:, None]
    start, middle, end = np.moveaxis(curves[:, :, None], 1, 0)
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def _costs(
    graph: Graph, edge: tuple[int, int, bool], curves: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """f64[n]: how bad each curve looks by itself: behind blocks or names, bent, or backwards."""
    centres = np.array(list(enumerate(graph.levels)), float)
    margin = np.full(len(centres), 0.08)
    margin[list(edge[:2])] = -0.01
    costs = 50.0 * _inside(points, centres, margin[:, None] + [WIDTH / 2, HEIGHT / 2])
    names = centres[list(graph.outputs.values())] + [WIDTH / 2 + 0.24, 0.27]
    costs += 10.0 * _inside(points, names, np.array([0.25, 0.17]))
    start, middle, end = np.moveaxis(curves, 1, 0)
    straight = np.linalg.norm(end - start, axis=-1)
    bow = np.linalg.norm(middle - (start + end) / 2, axis=-1)
    costs += 2.0 * bow / straight + straight / 4
    off_centre = np.abs(curves[:, [0, 2], 1] - centres[list(edge[:2]), 1])
    costs += 0.15 * off_centre.sum(-1)
    costs += 20.0 * (np.diff(points[..., 0]) < 0).sum(-1) / _STEPS
    return costs


def _inside(points: np.ndarray, centres: np.ndarray, half: np.ndarray) -> np.ndarray:
    """How many of a curve's points lie in boxes about the centres, a point in two counted twice."""
    away = (np.abs(points[:, :, None, axis] - centres[:, axis]) for axis in (0, 1))
    x, y = (distance < half[..., axis] for axis, distance in enumerate(away))
    return (x & y).sum((1, 2))


def _draw_arrow(axes: Axes, curve: np.ndarray, merge: bool) -> None:
    """One curve with its head; a merge is dashed and coloured."""
    axes.add_patch(
        FancyArrowPatch(
            path=Curve(curve, [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]),
            arrowstyle='-|>,head_length=4.5,head_width=2.4',
            linewidth=1.8 if merge else 1.15,
            linestyle=(0, (4, 2)) if merge else 'solid',
            color=MERGE if merge else EDGE,
            zorder=2,
        )
    )


def _draw_legend(axes: Axes, graph: Graph) -> None:
    """What colours and lines mean; only those that occur."""
    entries = [
        Patch(facecolor=STEM, edgecolor=INK, label='stem (bottleneck)'),
        Patch(facecolor=BOTTLENECK, edgecolor=INK, label='bottleneck block'),
        Patch(facecolor=RESIDUAL, edgecolor=INK, label='residual block'),
        Patch(facecolor=PAPER, edgecolor=OUTPUT_RIM, linewidth=2.2, label='output of the pyramid'),
        Line2D([], [], color=EDGE, linewidth=1.4, label='resampled parent'),
    ]
    if 'residual' not in graph.kinds:
        del entries[2]
    if graph.merges:
        label = 'unused block, added as it is'
        entries.append(Line2D([], [], color=MERGE, linewidth=1.8, linestyle='--', label=label))
    axes.legend(
        handles=entries,
        loc='upper left',
        bbox_to_anchor=(0.075, 0.99),
        fontsize=9.5,
        frameon=False,
        labelcolor=INK,
        handlelength=1.8,
    )


def svg(graph: Graph) -> bytes:
    """The drawing as an SVG file; equal graphs give equal bytes."""
    with _style(graph.name):
        return _content(draw(graph), 'svg')


def png(graph: Graph) -> bytes:
    """The drawing as a PNG file."""
    with _style(graph.name):
        return _content(draw(graph), 'png')


def rewards(curves: Mapping[str, Sequence[float]]) -> bytes:
    """An SVG file with a point a sample and the running best, a colour a curve.

    curves: name, '' for none, to rewards in the order in which they came.
    """
    with _style('rewards'):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout='constrained')
        for number, (name, values) in enumerate(curves.items()):
            values, colour = np.asarray(values, float), f'C{number}'
            samples = np.arange(1, len(values) + 1)
            axes.plot(samples, values, '.', color=colour, markersize=3, alpha=0.4)
            best = np.maximum.accumulate(values)
            axes.plot(samples, best, color=colour, label=f'{name} best so far'.strip())
        axes.set_xlabel('samples')
        axes.set_ylabel('reward')
        axes.legend(frameon=False, loc='lower right')
        axes.spines[['top', 'right']].set_visible(False)
        return _content(figure, 'svg')


def _style(salt: str):
    return plt.rc_context({'svg.hashsalt': salt, 'font.family': 'DejaVu Sans'})


def _content(figure: plt.Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {'svg': {'Date': None}, 'png': {'Software': None}}[kind]
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=160)
    plt.close(figure)
    return buffer.getvalue()
