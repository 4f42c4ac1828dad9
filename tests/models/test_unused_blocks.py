"""Blocks that nothing takes as a parent: our rule, and where the public code's is another.

The paper adds such a block to the output of its level. We look for edges in the whole graph. The
public code looks while it builds: at an output it adds whatever has no edge *so far*, although a
later block may still take it (docs/differences.md).
"""

import pytest

from spinenet_jax.models.graph import GRAPHS, STEM_BLOCKS, Block, Graph, validate


def public_merges(graph):
    """{output block: blocks added to it} by the public code's rule."""
    edges, merged = [0] * len(graph.levels), {}
    for index, block in enumerate(graph.blocks, STEM_BLOCKS):
        for parent in block.parents:
            edges[parent] += 1
        for other in range(index) if block.is_output else ():
            alike = (graph.levels[other], graph.kinds[other]) == (block.level, block.kind)
            if alike and not edges[other]:
                merged[index] = (*merged.get(index, ()), other)
                edges[other] += 1
    return merged


@pytest.mark.parametrize('name', GRAPHS)
def test_both_rules_agree_on_the_papers_graphs(name):
    assert GRAPHS[name].merges == public_merges(GRAPHS[name])


def test_a_block_that_is_used_after_the_output_of_its_level():
    """Block 3 has no edge yet when block 5, the output of its level, is built; block 6 takes it."""
    graph = Graph(
        'example',
        (
            Block(4, 'bottleneck', (0, 1)),  # 2: no other block takes it, neither so far nor ever
            Block(4, 'bottleneck', (0, 1)),  # 3
            Block(5, 'bottleneck', (0, 1)),  # 4
            Block(4, 'bottleneck', (1, 4), True),  # 5
            Block(3, 'bottleneck', (3, 5), True),  # 6
            Block(5, 'bottleneck', (4, 6), True),
            Block(6, 'bottleneck', (5, 7), True),
            Block(7, 'bottleneck', (7, 8), True),
        ),
    )
    validate(graph)
    assert graph.merges == {5: (2,)}
    assert public_merges(graph) == {5: (2, 3)}
