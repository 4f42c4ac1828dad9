"""Graphs of scale-permuted backbones as data: blocks, levels and parents, by name, text or file.

`spinenet.py` builds the network of a graph; the weight conversion and the drawings read the same
tables.
"""

import json
import os
import re
from typing import NamedTuple

from spinenet_jax.errors import UserError

BASE_FILTERS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
# Channels of inverted bottlenecks (paper, appendix); level 0 is the convolution before the first.
MOBILE_FILTERS = {0: 8, 1: 16, 2: 24, 3: 40, 4: 80, 5: 112, 6: 112, 7: 112}
KINDS = ('bottleneck', 'residual')
MOBILE = 'mbconv'  # the kind of all blocks of a mobile network, or of none
EXPANSION = {'bottleneck': 4, 'residual': 1, MOBILE: 1}
STEM = (2, 2)  # levels of the stem's blocks in SpineNet and R0-SP53: indices 0 and 1
STEM_BLOCKS = len(STEM)
MOBILE_STEM = (1, 2)


class Block(NamedTuple):
    """One node: its map is 1/2**level of the input; parents are indices of earlier nodes."""

    level: int
    kind: str
    parents: tuple[int, ...]
    is_output: bool = False


class Graph(NamedTuple):
    """A scale-permuted network: its blocks in the order in which they are computed.

    Attributes:
      name: for messages and drawings.
      blocks: the permuted blocks; number i among them is node i + len(stem).
      stem: levels of the hand-made bottleneck blocks that come first, each fed by the one before
        it, the first by the 7x7 convolution. They are nodes 0, 1, ... and candidate parents. A
        level that is one coarser than the one before halves the map, as a stage of ResNet does.
        In a mobile network they are inverted bottlenecks, the first at level 1.
    """

    name: str
    blocks: tuple[Block, ...]
    stem: tuple[int, ...] = STEM

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of all nodes, those of the stem first."""
        return self.stem + tuple(block.level for block in self.blocks)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of all nodes, those of the stem first."""
        stem_kind = MOBILE if self.is_mobile else 'bottleneck'
        return (stem_kind,) * len(self.stem) + tuple(block.kind for block in self.blocks)

    @property
    def is_mobile(self) -> bool:
        """Whether the blocks are inverted bottlenecks."""
        return bool(self.blocks) and self.blocks[0].kind == MOBILE

    @property
    def outputs(self) -> dict[int, int]:
        """Index of the output block of each output level, in order of level."""
        pairs = ((b.level, i) for i, b in enumerate(self.blocks, len(self.stem)) if b.is_output)
        return dict(sorted(pairs))

    @property
    def merges(self) -> dict[int, tuple[int, ...]]:
        """Blocks that nothing takes as a parent, by the output block they are added to.

        The paper adds such a block, as it is, to the output block of its level (SpineNet-49:
        block 11 to block 14). The last block of the stem is one of them.
        """
        used = {parent for block in self.blocks for parent in block.parents}
        used |= set(range(len(self.stem) - 1))
        outputs, levels = self.outputs, self.levels
        merged: dict[int, tuple[int, ...]] = {}
        for index, level in enumerate(levels):
            target = outputs.get(level)
            if index not in used and target is not None and index not in outputs.values():
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


# SpineNet-Mobile (paper, appendix), of the graph 'mobile49'; no convolution of a resampling has a
# width of its own.
MOBILE_SCALING = {
    '49XS': Scaling(0.6, 1.0, 1, 24, 24, 4),
    '49S': Scaling(0.65, 1.0, 1, 40, 40, 4),
    '49': Scaling(1.0, 1.0, 1, 48, 48, 4),
}


def filters(level: int, width: float, kind: str = 'bottleneck') -> int:
    """Width of a block's 3x3 convolutions; scaled widths are truncated, never rounded.

    Of an inverted bottleneck, it is the width of what goes in and comes out.
    """
    return int((MOBILE_FILTERS if kind == MOBILE else BASE_FILTERS)[level] * width)


_ENTRY = re.compile(r'(\d)([A-Z]) (\d+(?:,\d+)*)( out)?')
_LETTERS = {kind[0].upper(): kind for kind in (*KINDS, MOBILE)}


def from_text(text: str, name: str = 'given as text') -> Graph:
    """The graph of '2B 0,1 | 4R 0,1 | ... | 3B 4,10 out | ...'.

    An entry is a block: its level, B for bottleneck, R for residual or M for the inverted
    bottleneck of mobile networks, its parents, and 'out' where it is an output. A stem other than
    two blocks at level 2 (mobile: levels 1 and 2) comes first: 'stem 2,2,3,3 | ...'.

    Raises:
      UserError: an entry that does not read like that.
    """
    entries = [' '.join(entry.split()) for entry in text.split('|')]
    stem = None
    if re.fullmatch(r'stem \d(,\d)*', entries[0]):
        stem = tuple(map(int, entries.pop(0).removeprefix('stem ').split(',')))
    blocks = []
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None or match[2] not in _LETTERS:
            raise UserError(
                f"graph {text[:60]!r}: entry {entry!r} must read like '4R 0,1' or '3B 4,10 out'"
            )
        parents = tuple(map(int, match[3].split(',')))
        blocks.append(Block(int(match[1]), _LETTERS[match[2]], parents, bool(match[4])))
    graph = Graph(name, tuple(blocks))
    default = MOBILE_STEM if graph.is_mobile else STEM
    return graph._replace(stem=default if stem is None else stem)


def to_text(graph: Graph) -> str:
    """The text that `from_text` reads; equal for graphs that differ in nothing but their name."""
    entries = [
        f'{block.level}{block.kind[0].upper()} {",".join(map(str, block.parents))}'
        + (' out' if block.is_output else '')
        for block in graph.blocks
    ]
    if graph.stem != (MOBILE_STEM if graph.is_mobile else STEM):
        entries.insert(0, f'stem {",".join(map(str, graph.stem))}')
    return ' | '.join(entries)


GRAPHS = {
    name: from_text(text, name)
    for name, text in {
        'spinenet49': '2B 0,1 | 4R 0,1 | 3B 2,3 | 4B 2,4 | 6R 3,5 | 4B 3,5 | 5R 6,7 | 7R 6,8 | '
        '5B 8,9 | 5B 8,10 | 4B 5,10 out | 3B 4,10 out | 5B 7,12 out | 7B 5,14 out | 6B 12,14 out',
        'r0_sp53': '2B 0,1 | 3B 0,1 | 3B 2,3 | 4B 2,4 | 4B 3,5 | 3B 5,6 | 5B 4,7 | 4B 4,8 | '
        '4B 8,9 | 4B 8,10 | 3B 4,10 out | 4B 6,7 out | 5B 8,13 out | 7B 6,9 out | 6B 7,9 out',
        'mobile49': '2M 0,1 | 2M 1,2 | 4M 1,2 | 3M 3,4 | 4M 3,5 | 6M 4,6 | 4M 4,6 | 5M 7,8 | '
        '7M 7,9 | 5M 9,10 | 5M 9,11 | 4M 6,11 out | 3M 5,11 out | 5M 8,13 out | 7M 6,15 out | '
        '6M 13,15 out',
    }.items()
}


def load(source: str) -> Graph:
    """A graph by its name in `GRAPHS`, from its text, or from a JSON file (`to_json`).

    The result is not validated.

    Raises:
      UserError: no such name or file, or one that cannot be read.
    """
    if source in GRAPHS:
        return GRAPHS[source]
    if source.endswith('.json'):
        return _load_file(source)
    if '|' in source or re.match(r'\dB|\dR', source):
        return from_text(source)
    raise UserError(
        f'model.graph={source!r}: choose one of {", ".join(GRAPHS)}, a path that ends in .json, or '
        "give the blocks as text, '2B 0,1 | 4R 0,1 | ...'"
    )


def resolve(source: str) -> str:
    """What stands for `load(source)` without the file it came from: a name, or the text."""
    return source if source in GRAPHS else to_text(load(source))


def _load_file(path: str) -> Graph:
    from etils import epath

    try:
        content = json.loads(epath.Path(path).expanduser().read_text())
        text = content['graph']
    except OSError as error:
        raise UserError(f'graph {path}: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no JSON object with the text of a graph as 'graph'") from error
    return from_text(text, content.get('name') or os.path.basename(path).removesuffix('.json'))


def to_json(graph: Graph, facts: dict[str, object] | None = None) -> str:
    """The content of a graph file: its name, its text, and any other facts about it."""
    return json.dumps({'name': graph.name, 'graph': to_text(graph), **(facts or {})}, indent=1)


def validate(graph: Graph, min_level: int = 3, max_level: int = 7) -> None:
    """Refuse a graph that cannot be built or that holds blocks no output depends on.

    Raises:
      UserError: one line that names the block (index as in `Block.parents`) and the reason.
    """
    _validate_stem(graph)
    outputs: dict[int, int] = {}
    for index, block in enumerate(graph.blocks, len(graph.stem)):
        where = f'graph {graph.name!r}, block {index} (level {block.level})'
        if block.kind not in EXPANSION:
            raise UserError(f'{where}: kind {block.kind!r} is none of {", ".join(EXPANSION)}')
        if (block.kind == MOBILE) != graph.is_mobile:
            raise UserError(f'{where}: {MOBILE} blocks (M) and others do not mix')
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


def _validate_stem(graph: Graph) -> None:
    """The stem begins at level 2 and is never finer, nor two levels coarser, than before.

    That of a mobile network begins at level 1.
    """
    first = before = MOBILE_STEM[0] if graph.is_mobile else STEM[0]
    known = MOBILE_FILTERS if graph.is_mobile else BASE_FILTERS
    for index, level in enumerate(graph.stem):
        if level not in (before, before + (index > 0)) or level not in known:
            raise UserError(
                f'graph {graph.name!r}, stem block {index}: level {level} cannot follow level '
                f'{before}; this stem begins at level {first} and goes one level at a time'
            )
        before = level
    if not graph.stem:
        raise UserError(
            f'graph {graph.name!r}: the stem is empty, it needs a block at level {first}'
        )


def _validate_outputs(graph: Graph, min_level: int, max_level: int) -> None:
    """Every wanted level has its output, and every block reaches one."""
    outputs, levels = graph.outputs, graph.levels
    for level in range(min_level, max_level + 1):
        if level not in outputs:
            raise UserError(f'graph {graph.name!r}: no output block at level {level}')
    reaching = {outputs[level] for level in range(min_level, max_level + 1)}
    merged = {source: target for target, sources in graph.merges.items() for source in sources}
    for index in reversed(range(len(graph.stem) - 1, len(levels))):
        where = f'graph {graph.name!r}, block {index} (level {levels[index]})'
        if index in merged:
            _validate_merge(graph, index, merged[index], where)
            reaching.add(index)
        if index not in reaching:
            raise UserError(f'{where}: no output depends on it')
        if index >= len(graph.stem):
            reaching.update(graph.blocks[index - len(graph.stem)].parents)


def _validate_merge(graph: Graph, source: int, target: int, where: str) -> None:
    """An unused block is added raw: it must come before the output block and be as wide."""
    if source > target:
        raise UserError(f'{where}: no block uses it and the output of its level comes before it')
    if graph.kinds[source] != graph.kinds[target]:
        raise UserError(
            f'{where}: no block uses it and, as a {graph.kinds[source]} block, it cannot be added '
            f'to the {graph.kinds[target]} output block {target} of its level'
        )
