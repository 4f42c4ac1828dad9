"""Graphs as data: what is accepted, what is refused and in which words."""

import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import GRAPHS, Block, Graph, filters, validate


@pytest.mark.parametrize('graph', GRAPHS.values(), ids=GRAPHS)
def test_named_graphs_are_valid(graph):
    validate(graph)
    assert sorted(graph.outputs) == [3, 4, 5, 6, 7]


def test_unused_block_goes_to_the_output_of_its_level():
    assert GRAPHS['spinenet49'].merges == {14: (11,)}
    assert GRAPHS['r0_sp53'].merges == {13: (11,)}


def test_filters_are_truncated():
    assert [filters(level, 0.65) for level in (2, 3, 4)] == [41, 83, 166]
    assert [filters(level, 1.3) for level in (2, 3, 4)] == [83, 166, 332]


GOOD = (
    Block(3, 'bottleneck', (0, 1), True),
    Block(4, 'residual', (1, 2), True),
)


@pytest.mark.parametrize(
    ('blocks', 'message'),
    [
        ((Block(3, 'bottleneck', (0, 5), True),), 'block 2 .level 3.: parent 5 does not come'),
        ((Block(3, 'bottleneck', (0, 2), True),), 'parent 2 does not come before it'),
        ((Block(3, 'dense', (0, 1), True),), "block 2 .*kind 'dense'"),
        ((Block(9, 'residual', (0, 1), True),), 'block 2 .level 9.: level must be one of'),
        ((Block(3, 'residual', (), True),), 'block 2 .*has 0 parents'),
        ((*GOOD, Block(3, 'residual', (0, 1), True)), 'block 4 .*level 3 has output 2'),
        (GOOD[:1], 'no output block at level 4'),
        (
            (*GOOD, Block(5, 'residual', (0, 1))),
            'block 4 .level 5.: no output depends on it',
        ),
        ((*GOOD, Block(3, 'bottleneck', (0, 1))), 'block 4 .*output of its level comes before'),
        (
            (
                Block(4, 'bottleneck', (0, 1)),
                Block(3, 'residual', (0, 1), True),
                Block(4, 'residual', (0, 1), True),
            ),
            'block 2 .*bottleneck block, it cannot be added to the residual output block 4',
        ),
    ],
)
def test_invalid_graph_is_refused_in_one_line(blocks, message):
    with pytest.raises(UserError, match=message) as error:
        validate(Graph('mine', tuple(blocks)), 3, 4)
    assert '\n' not in str(error.value)


def test_good_graph_passes():
    validate(Graph('mine', GOOD), 3, 4)
