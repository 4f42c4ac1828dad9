"""Graphs as data: what is accepted, what is refused and in which words."""

import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import (
    GRAPHS,
    Block,
    Graph,
    filters,
    from_text,
    load,
    resolve,
    to_json,
    to_text,
    validate,
)


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


STEMMED = 'stem 2,2,3,4 | 3B 1,2 | 3R 3,4 out | 4B 4,5 out'


def test_text_of_a_graph_comes_back():
    for graph in GRAPHS.values():
        assert from_text(to_text(graph), graph.name) == graph
    assert to_text(from_text(STEMMED)) == STEMMED
    graph = from_text(STEMMED)
    assert graph.levels == (2, 2, 3, 4, 3, 3, 4)
    assert graph.kinds == ('bottleneck',) * 5 + ('residual', 'bottleneck')
    assert graph.outputs == {3: 5, 4: 6}
    validate(graph, 3, 4)


def test_last_block_of_a_stem_is_used_or_merged():
    graph = from_text('stem 2,3,4 | 3B 0,1 out | 4B 1,3 out')
    assert graph.merges == {4: (2,)}
    validate(graph, 3, 4)
    with pytest.raises(UserError, match=r'block 2 .level 4.: no block uses it and'):
        validate(from_text('stem 2,3,4 | 3B 0,1 out | 4R 1,3 out'), 3, 4)
    with pytest.raises(UserError, match=r'block 1 .level 2.: no output depends on it'):
        validate(from_text('3B 0 out | 4B 2 out'), 3, 4)


@pytest.mark.parametrize(
    ('stem', 'message'),
    [
        ('3,3', 'level 3 cannot follow level 2'),
        ('2,4', 'stem block 1: level 4'),
        ('2,3,2', 'block 2'),
    ],
)
def test_stem_goes_one_level_at_a_time(stem, message):
    with pytest.raises(UserError, match=message):
        validate(from_text(f'stem {stem} | 3B 0,1 out | 4B 1,2 out'), 3, 4)


def test_graph_by_name_text_and_file(tmp_path):
    graph = GRAPHS['r0_sp53']
    assert load('r0_sp53') is graph
    assert load(to_text(graph)).blocks == graph.blocks
    path = tmp_path / 'best.json'
    path.write_text(to_json(graph, {'reward': 0.5}))
    assert load(str(path)) == graph
    assert resolve('r0_sp53') == 'r0_sp53'
    assert resolve(str(path)) == to_text(graph)
    assert resolve(f' {to_text(graph)} ') == to_text(graph)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'none.json: No such file'),
        ('not json', "best.json: no JSON object with the text of a graph as 'graph'"),
        ('{"blocks": []}', "best.json: no JSON object with the text of a graph as 'graph'"),
        ('{"graph": "3Q 0,1"}', "entry '3Q 0,1' must read like"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / ('none.json' if content is None else 'best.json')
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(str(path))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('spinenet50', "model.graph='spinenet50': choose one of spinenet49, r0_sp53"),
        ('2B 0,1 | 3B 0;1', "entry '3B 0;1' must read like"),
        ('2B 0,1 |', "entry '' must read like"),
    ],
)
def test_a_source_that_is_no_graph(source, message):
    with pytest.raises(UserError, match=message):
        load(source)
