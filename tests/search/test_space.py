"""Search spaces: decisions to graphs and back, sizes against enumeration, what is ruled out."""

import math

import numpy as np
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.models.graph import GRAPHS, from_text, to_text
from spinenet_jax.search.space import (
    SPACES,
    Space,
    decode,
    draw,
    draw_valid,
    encode,
    enumerate_all,
    paper_size,
    size,
    why_invalid,
)

BASE = from_text('2B 0,1 | 3B 1,2 | 3B 2,3 | 3B 3,4 out | 4B 4,5 out', 'base')
TINY = {
    'order': Space('order', BASE, connections=False, levels=(3, 4)),
    'connections': Space('connections', BASE, order=False, window=3, levels=(3, 4)),
    'levels': Space('levels', BASE, connections=False, offsets=(-1, 0, 1, 2), levels=(3, 4)),
    'kinds': Space('kinds', BASE, order=False, connections=False, kinds=('residual', 'bottleneck')),
    'all': Space(
        'all',
        from_text('2B 0,1 | 3B 1,2 | 3B 2,3 out | 4B 3,4 out'),
        offsets=(0, 1),
        kinds=('bottleneck', 'residual'),
        levels=(3, 4),
    ),
}
# By hand. Orders: three of {2, 3, 3} in 3 ways, outputs in 2. Parents: of 2, 3, 3 (window), 5 and 6
# nodes. Levels: three offsets from 2, four from each 3. All: orders 2 * 2; parents of 2, 3, 4 and 5
# nodes (1, 3, 6, 10 pairs); offsets 2 * 2; kinds 2**4.
SIZES = {
    'order': 3 * 2,
    'connections': 1 * 3 * 3 * 10 * 15,
    'levels': 3 * 2 * 3 * 4 * 4,
    'kinds': 2**5,
    'all': 4 * 180 * 4 * 16,
}


@pytest.mark.parametrize('name', TINY)
def test_size_is_the_number_of_sequences(name):
    space = TINY[name]
    every = list(enumerate_all(space))
    assert len(set(every)) == len(every) == size(space) == SIZES[name]


@pytest.mark.parametrize('name', TINY)
def test_graphs_of_a_tiny_space_comes_back(name):
    space = TINY[name]
    graphs = {decode(space, decisions) for decisions in list(enumerate_all(space))[::7]}
    for graph in graphs:
        assert decode(space, encode(space, graph)) == graph


def test_paper_size_of_the_full_space():
    # N = 15 blocks, m = 2 in the stem: 10! 5! orders, pairs of 2 .. 16 nodes, 4^10 and 2^15.
    pairs = math.prod(i * (i - 1) // 2 for i in range(2, 17))
    expected = math.factorial(10) * math.factorial(5) * pairs * 4**10 * 2**15
    assert paper_size(SPACES['spinenet49']) == expected
    assert size(SPACES['spinenet49']) < expected


@pytest.mark.parametrize('name', SPACES)
def test_blocks_a_level_are_those_of_the_paper(name):
    stem, permuted = {
        'r35_sp18': ((2, 3, 5, 1), (1, 1, 1, 1, 1, 1)),
        'r23_sp30': ((2, 2, 2, 1), (1, 2, 4, 1, 1, 1)),
        'r14_sp39': ((1, 1, 1, 1), (2, 3, 5, 1, 1, 1)),
        'hourglass': ((2, 0, 0, 0), (1, 4, 6, 2, 1, 1)),
        'fish': ((2, 0, 0, 0), (1, 4, 6, 2, 1, 1)),
    }.get(name, ((2, 0, 0, 0), (1, 4, 6, 2, 1, 1)))
    base = SPACES[name].base
    assert tuple(base.stem.count(level) for level in (2, 3, 4, 5)) == stem
    levels = [block.level for block in base.blocks]
    assert tuple(levels.count(level) for level in range(2, 8)) == permuted
    assert not why_invalid(SPACES[name], base)


@pytest.mark.parametrize('name', SPACES)
def test_random_graphs_come_back(name):
    space, rng = SPACES[name], np.random.default_rng(0)
    for _ in range(50):
        decisions = draw(space, rng)
        graph = decode(space, decisions)
        again = decode(space, encode(space, graph))
        assert again == graph
        masks = space.masks(decisions)
        assert masks[np.arange(len(decisions)), decisions].all(), 'a draw uses a masked option'


@pytest.mark.parametrize('name', ['spinenet49', 'r0_sp53'])
def test_published_graphs_lie_in_their_spaces(name):
    graph = GRAPHS[name]
    assert decode(SPACES[name], encode(SPACES[name], graph)).blocks == graph.blocks


def test_r0_sp53_lies_in_the_larger_space_and_spinenet49_not_in_the_smaller():
    encode(SPACES['spinenet49'], GRAPHS['r0_sp53'])
    with pytest.raises(UserError, match='not in r0_sp53'):
        encode(SPACES['r0_sp53'], GRAPHS['spinenet49'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('stem 2 | 2B 0 | 3B 0,1 out | 4B 1,2 out', 'another stem or number'),
        ('2B 0,1 | 3B 1,2 | 3B 2,3 | 3B 3,4 | 4B 4,5 out', 'outputs of .* are its last'),
        ('2B 0,1 | 3B 1,2 | 3B 0,1 | 3B 3,4 out | 4B 4,5 out', 'block 4 .*parents .0, 1. are not'),
        ('2B 0,1 | 3B 1,2 | 3B 2 | 3B 3,4 out | 4B 4,5 out', 'block 4 .*are not two of the 3'),
        ('2B 0,1 | 3B 1,2 | 4B 2,3 | 3B 3,4 out | 4B 4,5 out', 'block 4 .*no 3 bottleneck block'),
        ('2B 0,1 | 3R 1,2 | 3B 2,3 | 3B 3,4 out | 4B 4,5 out', 'can become it; not in connections'),
    ],
)
def test_a_graph_outside_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        encode(TINY['connections'], from_text(text))
    assert '\n' not in str(error.value)


def test_what_does_not_change_must_equal_the_base():
    other = from_text('2B 0,1 | 3B 0,1 | 3B 2,3 | 3B 3,4 out | 4B 4,5 out')
    with pytest.raises(UserError, match='changes what kinds does not'):
        encode(TINY['kinds'], other)


def test_random_draws_are_uniform():
    # 'all' places 2B and 3B in either order: 4 orders, each a quarter of the draws.
    space, rng = TINY['all'], np.random.default_rng(0)
    draws = [draw(space, rng) for _ in range(2000)]
    for order in {d[:4] for d in draws}:
        assert abs(sum(d[:4] == order for d in draws) / 2000 - 0.25) < 0.04
    pairs = [tuple(sorted(d[6:8])) for d in draws]  # second block: two of three nodes
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert abs(pairs.count(pair) / 2000 - 1 / 3) < 0.04


@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [('r0_sp53', 0.80, 0.95), ('spinenet49', 0.36, 0.56), ('hourglass', 0.94, 1.0)],
)
def test_share_of_valid_draws(name, low, high):
    """docs/search.md states these shares, from thousands of draws: 0.88, 0.46, 0.98."""
    space, rng = SPACES[name], np.random.default_rng(1)
    valid = [not why_invalid(space, decode(space, draw(space, rng))) for _ in range(200)]
    assert low <= np.mean(valid) <= high


def test_valid_draws_are_valid_and_hopeless_spaces_say_so():
    space = SPACES['fish']
    for seed in range(20):
        decisions, graph = draw_valid(space, np.random.default_rng(seed))
        assert graph == decode(space, decisions)
        assert why_invalid(space, graph) == ''
    with pytest.raises(UserError, match='none of 10 random draws'):
        draw_valid(TINY['kinds'], np.random.default_rng(0), most=10)


def test_levels_that_do_not_exist_are_masked():
    space = TINY['levels']
    assert space.mask((0, 1, 1, 0, 1)).tolist() == [False, True, True, True]  # level 2
    assert space.mask((0, 1, 1, 0, 1, 1)).tolist() == [True] * 4  # level 3


def test_decoding_wants_a_full_sequence():
    with pytest.raises(ValueError, match='3 decisions; order has 5'):
        decode(TINY['order'], (0, 0, 0))


def test_unused_blocks_keep_their_rule():
    """Block 4 (level 3) feeds nothing: it is added to output 5, as docs/differences.md says."""
    space = TINY['connections']
    graph = from_text('2B 0,1 | 3B 1,2 | 3B 2,3 | 3B 2,3 out | 4B 3,5 out')
    assert graph.merges == {5: (4,)}
    assert why_invalid(space, graph) == ''
    assert to_text(decode(space, encode(space, graph))) == to_text(graph)
