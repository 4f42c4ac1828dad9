"""Parameters and multiply-adds of a backbone from its graph alone, in microseconds.

`analysis.cost` counts them in the traced model, which takes seconds; a search asks for every draw.
Both give the same numbers (tests/search/test_graph_cost.py).
"""

from typing import NamedTuple

from spinenet_jax.models.graph import EXPANSION, Graph, Scaling, filters

_STEM_WIDTH = 64


class GraphCost(NamedTuple):
    """Of a backbone with its endpoints, for one image; batch norm's weights count."""

    parameters: int
    multiply_adds: int


def graph_cost(graph: Graph, scaling: Scaling, image_size: tuple[int, int]) -> GraphCost:
    """The cost of a valid graph.

    Args:
      graph: see `models.graph`.
      scaling: width, resample_alpha, block_repeats and endpoint_channels are used.
      image_size: height and width in pixels, from 1.
    """
    cells = _Cells(image_size)
    tally = _Tally()
    tally.convolution(3, _STEM_WIDTH, 7, cells[1])
    for level, channels, before in _stem(graph, scaling):
        _first_of_level(tally, scaling, channels, cells[before], level, cells[level])
    levels, kinds = graph.levels, graph.kinds
    for block in graph.blocks:
        size, width = cells[block.level], _width(block.level, block.kind, scaling)
        for parent in block.parents:
            middle = int(filters(levels[parent], scaling.width) * scaling.resample_alpha)
            given = _width(levels[parent], kinds[parent], scaling)
            tally.convolution(given, middle, 1, cells[levels[parent]])
            if block.level > levels[parent]:
                tally.convolution(middle, middle, 3, cells[levels[parent] + 1])
            tally.convolution(middle, width, 1, size)
        for _ in range(scaling.block_repeats):
            _block(tally, block.kind, filters(block.level, scaling.width), size)
    for level, index in graph.outputs.items():
        width = _width(level, kinds[index], scaling)
        tally.convolution(width, scaling.endpoint_channels, 1, cells[level])
    return GraphCost(tally.parameters, tally.multiply_adds)


class _Tally:
    """Adds up convolutions, each with its norm."""

    def __init__(self) -> None:
        self.parameters = self.multiply_adds = 0

    def convolution(self, inputs: int, outputs: int, kernel: int, positions: int) -> None:
        weights = inputs * outputs * kernel**2
        self.parameters += weights + 2 * outputs
        self.multiply_adds += weights * positions


class _Cells(dict[int, int]):
    """Positions of a map by its level, sizes rounded up."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        height, width = image_size
        super().__init__({n: -(-height // 2**n) * -(-width // 2**n) for n in range(1, 8)})


def _width(level: int, kind: str, scaling: Scaling) -> int:
    return filters(level, scaling.width) * EXPANSION[kind]


def _stem(graph: Graph, scaling: Scaling):
    """(level, channels in, level in) of the stem's blocks."""
    level, channels = 2, _STEM_WIDTH
    for after in graph.stem:
        yield after, channels, level
        level, channels = after, _width(after, 'bottleneck', scaling)


def _first_of_level(
    tally: _Tally, scaling: Scaling, channels: int, before: int, level: int, size: int
) -> None:
    """A stem block, whose first copy may change the size of the map or its width."""
    width = filters(level, scaling.width)
    out = width * EXPANSION['bottleneck']
    if (before, channels) == (size, out):
        _block(tally, 'bottleneck', width, size)
    else:
        tally.convolution(channels, out, 1, size)
        tally.convolution(channels, width, 1, before)
        tally.convolution(width, width, 3, size)
        tally.convolution(width, out, 1, size)
    for _ in range(scaling.block_repeats - 1):
        _block(tally, 'bottleneck', width, size)


def _block(tally: _Tally, kind: str, width: int, size: int) -> None:
    """A block that keeps the size and width of its map."""
    if kind == 'residual':
        tally.convolution(width, width, 3, size)
        tally.convolution(width, width, 3, size)
        return
    tally.convolution(4 * width, width, 1, size)
    tally.convolution(width, width, 3, size)
    tally.convolution(width, 4 * width, 1, size)
