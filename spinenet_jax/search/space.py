"""Search spaces of scale-permuted backbones as data: decisions to a graph and back.

A space is a graph and what may change about it: the order of its blocks, their connections, their
levels, their kinds (paper, section 3.2). A controller sees nothing but a sequence of decisions,
each with a number of options, and which options the decisions before it leave.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import BASE_FILTERS, KINDS, Block, Graph, validate

Decisions = tuple[int, ...]
_ORDERS = ('order', 'output order')


class Decision(NamedTuple):
    """One step of the sequence.

    Attributes:
      what: 'order' or 'output order' (which of the remaining blocks comes next), 'parent', 'level'
        or 'kind'.
      block: position of the block among the permuted ones, from 0.
      options: how many there are before any is ruled out, at least 1.
    """

    what: str
    block: int
    options: int


@dataclasses.dataclass(frozen=True)
class Space:
    """What may change about a graph.

    Attributes:
      name: for messages and logs.
      base: gives the stem (at least two blocks), the blocks to place, and whatever may not change.
        Its outputs come last.
      order: whether intermediate blocks change places among themselves, and outputs too.
      connections: whether parents are chosen, two different ones a block.
      offsets: what may be added to an intermediate block's level, whole numbers in a row.
      kinds: what any block may be; empty: what the base says.
      window: from how many of the latest nodes an intermediate block chooses its parents. Outputs
        choose from all nodes before them.
      levels: (lowest, highest) output level.
    """

    name: str
    base: Graph
    order: bool = True
    connections: bool = True
    offsets: tuple[int, ...] = (0,)
    kinds: tuple[str, ...] = ()
    window: int = 5
    levels: tuple[int, int] = (3, 7)

    @functools.cached_property
    def inner(self) -> int:
        """Number of intermediate blocks."""
        return sum(not block.is_output for block in self.base.blocks)

    @functools.cached_property
    def steps(self) -> tuple[Decision, ...]:
        """The sequence of decisions: order first, then two parents a block, then adjustments."""
        blocks = range(len(self.base.blocks))
        steps = []
        if self.order:
            whats = [_ORDERS[block >= self.inner] for block in blocks]
            steps += [Decision(w, b, len(self.classes[w])) for b, w in enumerate(whats)]
        if self.connections:
            steps += [Decision('parent', b, self.candidates(b)) for b in blocks for _ in range(2)]
        if len(self.offsets) > 1:
            steps += [Decision('level', b, len(self.offsets)) for b in blocks[: self.inner]]
        if len(self.kinds) > 1:
            steps += [Decision('kind', b, len(self.kinds)) for b in blocks]
        return tuple(steps)

    @functools.cached_property
    def placed(self) -> dict[str, list[tuple[int, str]]]:
        """(level, kind) of the base's intermediate ('order') and output blocks, in its order."""
        rows = [(b.level, '' if self.kinds else b.kind) for b in self.base.blocks]
        return {'order': rows[: self.inner], 'output order': rows[self.inner :]}

    @functools.cached_property
    def classes(self) -> dict[str, list[tuple[int, str]]]:
        """The different ones among `placed`: which of two blocks that are alike is no choice."""
        return {what: sorted(set(rows)) for what, rows in self.placed.items()}

    def candidates(self, block: int) -> int:
        """How many nodes the block at a position may take as parents."""
        earlier = len(self.base.stem) + block
        return min(self.window, earlier) if block < self.inner else earlier

    def mask(self, before: Sequence[int]) -> np.ndarray:
        """bool[options] of decision number len(before): the options left, at least one.

        A block is placed as often as the base has it, a parent is not taken twice, and a level
        stays within those that blocks are defined at.
        """
        step = self.steps[len(before)]
        if step.what in _ORDERS:
            first = self.inner if step.what == 'output order' else 0
            used = np.bincount(before[first:], minlength=step.options)
            return self._counts[step.what] > used
        mask = np.ones(step.options, bool)
        if step.what == 'parent' and self._second[len(before)]:
            mask[before[-1]] = False
        elif step.what == 'level':
            row = before[step.block] if self.order else self._row_of_base[step.block]
            mask = self._legal[row].copy()
        return mask

    def masks(self, decisions: Sequence[int]) -> np.ndarray:
        """bool[steps, most options]: `mask` before each of a full sequence; False beyond."""
        result = np.zeros((len(self.steps), max(step.options for step in self.steps)), bool)
        for number, step in enumerate(self.steps):
            result[number, : step.options] = self.mask(decisions[:number])
        return result

    def allows(self, decisions: Sequence[int]) -> bool:
        """Whether every decision of a full sequence is among the options left to it."""
        pairs = enumerate(decisions)
        return all(self.mask(decisions[:number])[option] for number, option in pairs)

    @functools.cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        return {
            what: np.array([self.placed[what].count(c) for c in classes])
            for what, classes in self.classes.items()
        }

    @functools.cached_property
    def _second(self) -> list[bool]:
        """Whether a decision is about the same as the one before: the second parent."""
        return [i > 0 and step == self.steps[i - 1] for i, step in enumerate(self.steps)]

    @functools.cached_property
    def _row_of_base(self) -> list[int]:
        return [self.classes['order'].index(row) for row in self.placed['order']]

    @functools.cached_property
    def _legal(self) -> np.ndarray:
        """bool[classes, offsets]: which offsets leave a level that blocks are defined at."""
        levels = np.array([level for level, _ in self.classes['order']], int)
        return np.isin(levels[:, None] + np.array(self.offsets), list(BASE_FILTERS))


def decode(space: Space, decisions: Sequence[int]) -> Graph:
    """The graph of a full sequence of decisions; not validated.

    A parent's option counts backwards: 0 is the node just before the block.
    """
    if len(decisions) != len(space.steps):
        raise ValueError(f'{len(decisions)} decisions; {space.name} has {len(space.steps)}')
    taken: dict[tuple[str, int], list[int]] = {}
    for step, option in zip(space.steps, decisions, strict=True):
        taken.setdefault((step.what, step.block), []).append(option)
    blocks = []
    for position, base in enumerate(space.base.blocks):
        what = _ORDERS[base.is_output]
        level, kind, parents = base.level, base.kind, base.parents
        if space.order:
            level, kind = space.classes[what][taken[what, position][0]]
        if space.connections:
            index = len(space.base.stem) + position
            parents = tuple(sorted(index - 1 - back for back in taken['parent', position]))
        if not base.is_output:
            level += space.offsets[taken.get(('level', position), [0])[0]]
        if space.kinds:
            kind = space.kinds[taken.get(('kind', position), [0])[0]]
        blocks.append(Block(level, kind, parents, base.is_output))
    return Graph(space.name, tuple(blocks), space.base.stem)


def encode(space: Space, graph: Graph) -> Decisions:
    """Decisions of which `decode` makes the blocks of `graph`.

    Where levels change, several sequences stand for one graph: blocks of level 4 and 5 that both
    end at 5 can be told apart by nothing. This is the one that keeps blocks in the order of levels.

    Raises:
      UserError: the graph is not in the space; names a block and the reason.
    """
    if graph.stem != space.base.stem or len(graph.blocks) != len(space.base.blocks):
        raise UserError(f'graph {graph.name!r}: {space.name} has another stem or number of blocks')
    taken: dict[tuple[str, int], list[int]] = {}
    rows = _place(space, graph)
    for position, (block, row) in enumerate(zip(graph.blocks, rows, strict=True)):
        index = len(graph.stem) + position
        what = _ORDERS[block.is_output]
        if space.order:
            taken[what, position] = [space.classes[what].index(row)]
        backs = [index - 1 - parent for parent in sorted(block.parents, reverse=True)]
        if space.connections and (len(set(backs)) != 2 or backs[-1] >= space.candidates(position)):
            reach = f'two of the {space.candidates(position)} nodes before it'
            raise UserError(
                _not_in(graph, space, index, f'parents {block.parents} are not {reach}')
            )
        taken['parent', position] = backs
        taken['level', position] = [space.offsets.index(block.level - row[0])]
        if space.kinds and block.kind not in space.kinds:
            raise UserError(_not_in(graph, space, index, f'is a {block.kind} block'))
        if space.kinds:
            taken['kind', position] = [space.kinds.index(block.kind)]
    decisions = tuple(taken[step.what, step.block].pop(0) for step in space.steps)
    if decode(space, decisions).blocks != graph.blocks:
        raise UserError(f'graph {graph.name!r} changes what {space.name} does not')
    return decisions


def _place(space: Space, graph: Graph) -> list[tuple[int, str]]:
    """Which (level, kind) of the base stands at each position of the graph, before offsets.

    Offsets are a range of whole numbers, so if blocks can be matched at all, they can be matched in
    the order of their levels.
    """
    if [block.is_output for block in graph.blocks] != [b.is_output for b in space.base.blocks]:
        raise UserError(f'graph {graph.name!r}: the outputs of {space.name} are its last blocks')
    rows = [(b.level, '' if space.kinds else b.kind) for b in graph.blocks]
    result = list(rows)
    for what, part in zip(
        _ORDERS, (range(space.inner), range(space.inner, len(rows))), strict=True
    ):
        base = list(enumerate(space.placed[what], part.start))
        if space.order:
            base.sort(key=lambda pair: (pair[1][1], pair[1][0]))
        order = sorted(part, key=lambda i: (rows[i][1], rows[i][0])) if space.order else part
        for (_, row), position in zip(base, order, strict=True):
            offset = rows[position][0] - row[0]
            offsets = space.offsets if what == 'order' else (0,)
            if offset not in offsets or rows[position][1] != row[1]:
                where = len(graph.stem) + position
                reason = f'no {" ".join(map(str, row))} block can become it'
                raise UserError(_not_in(graph, space, where, reason))
            result[position] = row
    return result


def _not_in(graph: Graph, space: Space, index: int, reason: str) -> str:
    level = graph.levels[index]
    return f'graph {graph.name!r}, block {index} (level {level}): {reason}; not in {space.name}'


def why_invalid(space: Space, graph: Graph) -> str:
    """Why a graph of the space cannot be built or has blocks to no purpose; '' if it is valid."""
    try:
        validate(graph, *space.levels)
    except UserError as error:
        return str(error)
    return ''


def draw(space: Space, rng: np.random.Generator) -> Decisions:
    """A sequence in which orders of blocks, pairs of parents and options are equally likely.

    Not validated. Orders are those of the base's blocks, each taken for an individual.
    """
    decisions: list[int] = []
    shuffled = {
        what: [space.classes[what].index(rows[i]) for i in rng.permutation(len(rows))]
        for what, rows in space.placed.items()
    }
    for step in space.steps:
        if step.what in _ORDERS:
            decisions.append(shuffled[step.what].pop())
        else:
            left = np.flatnonzero(space.mask(decisions))
            decisions.append(int(left[rng.integers(len(left))]))
    return tuple(decisions)


def draw_valid(
    space: Space, rng: np.random.Generator, most: int = 100_000
) -> tuple[Decisions, Graph]:
    """The first of `most` draws whose graph is valid."""
    for _ in range(most):
        decisions = draw(space, rng)
        graph = decode(space, decisions)
        if not why_invalid(space, graph):
            return decisions, graph
    raise UserError(f'{space.name}: none of {most} random draws is a valid graph')


def size(space: Space) -> int:
    """How many sequences of decisions there are, a pair of parents counted once.

    Several can stand for one graph where levels change, and not every graph is valid.
    """
    total = 1
    blocks = range(len(space.base.blocks))
    if space.order:
        for rows in space.placed.values():
            repeats = math.prod(math.factorial(n) for n in Counter(rows).values())
            total *= math.factorial(len(rows)) // repeats
    if space.connections:
        total *= math.prod(math.comb(space.candidates(block), 2) for block in blocks)
    for level, _ in space.placed['order']:
        total *= sum(level + offset in BASE_FILTERS for offset in space.offsets)
    return total * max(len(space.kinds), 1) ** len(blocks)


def paper_size(space: Space) -> int:
    """The size as the paper counts it: (N-5)! 5! orders, parents without a window, all offsets.

    Blocks of one level count as different, and levels that do not exist count as well.
    """
    count, stem = len(space.base.blocks), len(space.base.stem)
    total = 1
    if space.order:
        total *= math.factorial(space.inner) * math.factorial(count - space.inner)
    if space.connections:
        total *= math.prod(math.comb(i, 2) for i in range(stem, stem + count))
    return total * len(space.offsets) ** space.inner * max(len(space.kinds), 1) ** count


def enumerate_all(space: Space) -> Iterator[Decisions]:
    """Every sequence that the masks allow, a pair of parents once: for tiny spaces."""

    def grow(before: Decisions) -> Iterator[Decisions]:
        if len(before) == len(space.steps):
            yield before
            return
        for option in np.flatnonzero(space.mask(before)).tolist():
            if not (space._second[len(before)] and option < before[-1]):
                yield from grow((*before, option))

    yield from grow(())


def _in_a_row(
    name: str, stem: Sequence[int], inner: Sequence[int], outputs: Sequence[int]
) -> Graph:
    """Bottleneck blocks at these levels, each fed by the two nodes before it."""
    levels = (*inner, *outputs)
    blocks = tuple(
        Block(level, 'bottleneck', (i - 2, i - 1), i >= len(stem) + len(inner))
        for i, level in enumerate(levels, len(stem))
    )
    return Graph(name, blocks, tuple(stem))


_PYRAMID = (3, 4, 5, 6, 7)
_R0 = (2, 3, 3, 3, 4, 4, 4, 4, 4, 5)
_FISH = (3, 3, 4, 4, 4, 5, 4, 4, 3, 2)

# The paper's five (section 5.1), with as many blocks a level as in its table of R[N]-SP[M], and the
# two fixed orders of its ablation (section 5.4), of which only the connections are free.
SPACES = {
    space.name: space
    for space in (
        Space('r35_sp18', _in_a_row('r35', (2,) * 2 + (3,) * 3 + (4,) * 5 + (5,), (2,), _PYRAMID)),
        Space('r23_sp30', _in_a_row('r23', (2, 2, 3, 3, 4, 4, 5), (2, 3, 4, 4, 4), _PYRAMID)),
        Space('r14_sp39', _in_a_row('r14', (2, 3, 4, 5), (2, 2, 3, 3, 4, 4, 4, 4), _PYRAMID)),
        Space('r0_sp53', _in_a_row('r0', (2, 2), _R0, _PYRAMID)),
        Space(
            'spinenet49',
            _in_a_row('r0', (2, 2), _R0, _PYRAMID),
            offsets=(-1, 0, 1, 2),
            kinds=KINDS,
        ),
        Space('hourglass', _in_a_row('hourglass', (2, 2), _R0, _PYRAMID[::-1]), order=False),
        Space('fish', _in_a_row('fish', (2, 2), _FISH, _PYRAMID), order=False),
    )
}
