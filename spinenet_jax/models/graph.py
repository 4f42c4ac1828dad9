"""Scale-permuted architectures as data: the blocks of each graph, their wiring, their scaling.

`spinenet.py` builds the network of a graph; the weight conversion and the drawings read the same
tables.
"""

from typing import NamedTuple

from spinenet_jax.errors import UserError

STEM_BLOCKS = 2  # both at level 2, indices 0 and 1; permuted block number i has index i + 2
BASE_FILTERS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
KINDS = ('bottleneck', 'residual')
EXPANSION = {'bottleneck': 4, 'residual': 1}


class Block(NamedTuple):
    """One node: its map is 1/2**level of the input; parents are indices of earlier nodes."""

    level: int
    kind: str
    parents: tuple[int, ...]
    is_output: bool = False


class Graph(NamedTuple):
    """A scale-permuted network: its blocks in the order in which they are computed."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of all nodes, the two stem blocks first."""
        return (2,) * STEM_BLOCKS + tuple(block.level for block in self.blocks)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of all nodes, the two stem blocks first."""
        return ('bottleneck',) * STEM_BLOCKS + tuple(block.kind for block in self.blocks)

    @property
    def outputs(self) -> dict[int, int]:
        """Index of the output block of each output level, in order of level."""
        pairs = ((b.level, i) for i, b in enumerate(self.blocks, STEM_BLOCKS) if b.is_output)
        return dict(sorted(pairs))

    @property
    def merges(self) -> dict[int, tuple[int, ...]]:
        """Blocks that nothing takes as a parent, by the output block they are added to.

        The paper adds such a block, as it is, to the output block of its level (SpineNet-49:
        block 11 to block 14).
        """
        used = {parent for block in self.blocks for parent in block.parents}
        merged: dict[int, tuple[int, ...]] = {}
        for index, block in enumerate(self.blocks, STEM_BLOCKS):
            target = self.outputs.get(block.level)
            if index not in used and not block.is_output and target is not None:
                merged[target] = (*merged.get(target, ()), index)
        return merged


class Scaling(NamedTuple):
    """One row of the paper's table of the family (section 3.2 and table of RetinaNet heads)."""

    width: float
    resample_alpha: float
    block_repeats: int
    endpoint_channels: int
    head_channels: int
    head_convs: int


SCALING = {
    '49S': Scaling(0.65, 0.5, 1, 128, 128, 4),
    '49': Scaling(1.0, 0.5, 1, 256, 256, 4),
    '96': Scaling(1.0, 0.5, 2, 256, 256, 4),
    '143': Scaling(1.0, 1.0, 3, 256, 256, 4),
    '190': Scaling(1.3, 1.0, 4, 512, 512, 7),
}


def filters(level: int, width: float) -> int:
    """Width of the 3x3 convolutions at `level`; scaled widths are truncated, never rounded."""
    return int(BASE_FILTERS[level] * width)


def _blocks(text: str) -> tuple[Block, ...]:
    """Read '2B 0,1 | 3B 4,10 out | ...': level, kind by its first letter, parents, output mark."""
    kinds = {kind[0].upper(): kind for kind in KINDS}
    rows = (row.split() for row in text.split('|'))
    return tuple(
        Block(int(head[0]), kinds[head[1]], tuple(map(int, parents.split(','))), bool(out))
        for head, parents, *out in rows
    )


GRAPHS = {
    'spinenet49': Graph(
        'spinenet49',
        _blocks(
            '2B 0,1 | 4R 0,1 | 3B 2,3 | 4B 2,4 | 6R 3,5 | 4B 3,5 | 5R 6,7 | 7R 6,8 | 5B 8,9 | '
            '5B 8,10 | 4B 5,10 out | 3B 4,10 out | 5B 7,12 out | 7B 5,14 out | 6B 12,14 out'
        ),
    ),
    'r0_sp53': Graph(
        'r0_sp53',
        _blocks(
            '2B 0,1 | 3B 0,1 | 3B 2,3 | 4B 2,4 | 4B 3,5 | 3B 5,6 | 5B 4,7 | 4B 4,8 | 4B 8,9 | '
            '4B 8,10 | 3B 4,10 out | 4B 6,7 out | 5B 8,13 out | 7B 6,9 out | 6B 7,9 out'
        ),
    ),
}


def validate(graph: Graph, min_level: int = 3, max_level: int = 7) -> None:
    """Refuse a graph that cannot be built or that holds blocks no output depends on.

    Raises:
      UserError: one line that names the block (index as in `Block.parents`) and the reason.
    """
    outputs: dict[int, int] = {}
    for index, block in enumerate(graph.blocks, STEM_BLOCKS):
        where = f'graph {graph.name!r}, block {index} (level {block.level})'
        if block.kind not in KINDS:
            raise UserError(f'{where}: kind {block.kind!r} is none of {", ".join(KINDS)}')
        if block.level not in BASE_FILTERS:
            raise UserError(f'{where}: level must be one of {sorted(BASE_FILTERS)}')
        if len(block.parents) not in (1, 2):
            raise UserError(f'{where}: has {len(block.parents)} parents, it needs one or two')
        for parent in block.parents:
            if not 0 <= parent < index:
                raise UserError(f'{where}: parent {parent} does not come before it')
        if block.is_output and block.level in outputs:
            raise UserError(f'{where}: level {block.level} has output {outputs[block.level]}')
        if block.is_output:
            outputs[block.level] = index
    _validate_outputs(graph, min_level, max_level)


def _validate_outputs(graph: Graph, min_level: int, max_level: int) -> None:
    """Every wanted level has its output, and every block reaches one."""
    for level in range(min_level, max_level + 1):
        if level not in graph.outputs:
            raise UserError(f'graph {graph.name!r}: no output block at level {level}')
    reaching = {graph.outputs[level] for level in range(min_level, max_level + 1)}
    merged = {source: target for target, sources in graph.merges.items() for source in sources}
    for index in reversed(range(STEM_BLOCKS, STEM_BLOCKS + len(graph.blocks))):
        where = f'graph {graph.name!r}, block {index} (level {graph.levels[index]})'
        if index in merged:
            _validate_merge(graph, index, merged[index], where)
            reaching.add(index)
        if index not in reaching:
            raise UserError(f'{where}: no output depends on it')
        reaching.update(graph.blocks[index - STEM_BLOCKS].parents)


def _validate_merge(graph: Graph, source: int, target: int, where: str) -> None:
    """An unused block is added raw: it must come before the output block and be as wide."""
    if source > target:
        raise UserError(f'{where}: no block uses it and the output of its level comes before it')
    if graph.kinds[source] != graph.kinds[target]:
        raise UserError(
            f'{where}: no block uses it and, as a {graph.kinds[source]} block, it cannot be added '
            f'to the {graph.kinds[target]} output block {target} of its level'
        )
