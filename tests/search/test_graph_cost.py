"""Cost of a graph by formula against the traced model, and a block by hand."""

import numpy as np
import pytest

from spinenet_jax.analysis.cost import model_cost
from spinenet_jax.models.build import build_layers
from spinenet_jax.models.graph import GRAPHS, SCALING, Scaling, from_text
from spinenet_jax.models.spinenet import SpineNet
from spinenet_jax.search.graph_cost import graph_cost
from spinenet_jax.search.space import SPACES, draw_valid
from tests.narrow import model_config

NARROW = Scaling(0.125, 0.5, 1, 24, 24, 1)


def traced(graph, scaling, image_size):
    layers = build_layers(model_config(), axis_name=None)
    backbone = SpineNet(
        graph,
        layers,
        width=scaling.width,
        resample_alpha=scaling.resample_alpha,
        block_repeats=scaling.block_repeats,
        endpoint_channels=scaling.endpoint_channels,
    )
    costs = model_cost(backbone, image_size).values()
    return tuple(sum(getattr(c, f) for c in costs) for f in ('parameters', 'multiply_adds'))


def test_two_blocks_by_hand():
    # 8x8 pixels: maps of 4x4, 2x2 (level 2), 1x1 (level 3). Width 1/16: 4 filters, at level 3 8.
    graph = from_text('stem 2 | 2R 0 | 3R 0,1 out')
    scaling = Scaling(1 / 16, 0.5, 1, 2, 0, 0)
    stem = 49 * 3 * 64 * 16
    block0 = (64 * 16 + 64 * 4 + 9 * 4 * 4 + 4 * 16) * 4  # projection, 1x1, 3x3, 1x1
    edge1 = (16 * 2 + 2 * 4) * 4
    block1 = 2 * 9 * 4 * 4 * 4
    edge2 = 16 * 2 * 4 + 9 * 2 * 2 * 1 + 2 * 8 * 1  # 1x1 at level 2, 3x3 of stride 2, 1x1
    edge3 = 4 * 2 * 4 + 9 * 2 * 2 * 1 + 2 * 8 * 1
    block2 = 2 * 9 * 8 * 8
    expected = stem + block0 + edge1 + block1 + edge2 + edge3 + block2 + 8 * 2
    assert graph_cost(graph, scaling, (8, 8)).multiply_adds == expected


@pytest.mark.parametrize(
    ('graph', 'scaling', 'image_size'),
    [
        (GRAPHS['spinenet49'], NARROW, (128, 128)),
        (GRAPHS['r0_sp53'], NARROW._replace(block_repeats=2, resample_alpha=1.0), (100, 224)),
        (draw_valid(SPACES['spinenet49'], np.random.default_rng(3))[1], NARROW, (64, 96)),
        (SPACES['r23_sp30'].base, NARROW._replace(block_repeats=2), (100, 64)),
    ],
    ids=['spinenet49', 'r0_sp53', 'random', 'stem of four levels'],
)
def test_formula_is_the_traced_cost(graph, scaling, image_size):
    assert graph_cost(graph, scaling, image_size) == traced(graph, scaling, image_size)


def test_published_size():
    """SpineNet-49 at its full size, whose parameters tests/models/test_sizes.py pins."""
    cost = graph_cost(GRAPHS['spinenet49'], SCALING['49'], (640, 640))
    assert cost.parameters == 21_831_488
    assert cost == traced(GRAPHS['spinenet49'], SCALING['49'], (640, 640))
