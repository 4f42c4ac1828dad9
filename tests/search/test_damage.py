"""Graph damage by hand on a small graph, and on the published ones."""

import pytest

from spinenet_jax.models.graph import GRAPHS, from_text, to_text, validate
from spinenet_jax.search.damage import (
    DAMAGES,
    cut_long_range,
    cut_short_range,
    make_sequential,
    prune,
)

# Nodes 0 and 1 are the stem.
SMALL = from_text('2B 0,1 | 3B 1,2 | 4B 0,3 | 3B 2,3 out | 4B 4,5 out', 'small')


def test_short_range():
    # Farther parents: 2 <- 0, 3 <- 1, 4 <- 0, 5 <- 2, 6 <- 4. Node 3 (level 3) feeds nothing and is
    # added to output 5; everything stays.
    cut = cut_short_range(SMALL)
    assert to_text(cut) == '2B 0 | 3B 1 | 4B 0 | 3B 2 out | 4B 4 out'
    assert cut.merges == {5: (3,)}
    validate(cut, 3, 4)


def test_long_range():
    # Nearer parents: 2 <- 1, 3 <- 2, 4 <- 3, 5 <- 3, 6 <- 5. Node 4 is added to output 6.
    cut = cut_long_range(SMALL)
    assert to_text(cut) == '2B 1 | 3B 2 | 4B 3 | 3B 3 out | 4B 5 out'
    assert cut.merges == {6: (4,)}
    validate(cut, 3, 4)


def test_sequential():
    cut = make_sequential(SMALL)
    assert to_text(cut) == '2B 1 | 3B 2 | 4B 3 | 3B 4 out | 4B 5 out'
    validate(cut, 3, 4)


def test_blocks_without_purpose_go_and_numbers_follow():
    # Node 3 is at level 5, which has no output, and feeds nothing; nor does 2, which fed it alone.
    # The second stem block fed those two.
    graph = from_text('2B 1 | 5B 1,2 | 3B 0 out | 4B 4 out')
    assert to_text(prune(graph)) == 'stem 2 | 3B 0 out | 4B 1 out'
    validate(prune(graph), 3, 4)
    assert prune(SMALL) is SMALL


def test_an_unused_block_of_another_kind_goes():
    graph = from_text('3R 0,1 | 3B 0,1 out | 4B 1,3 out')
    assert to_text(prune(graph)) == '3B 0,1 out | 4B 1,2 out'


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('name', GRAPHS)
def test_damaged_published_graphs_can_be_built(name, damage):
    graph = DAMAGES[damage](GRAPHS[name])
    validate(graph)
    assert all(len(block.parents) == 1 for block in graph.blocks)
    assert graph.outputs.keys() == GRAPHS[name].outputs.keys()
