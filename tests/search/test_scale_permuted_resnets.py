"""R[N]-SP[M]: ResNet-50 with some of its blocks permuted, at the cost of ResNet-50-FPN."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.models.build import build_model
from spinenet_jax.models.graph import GRAPHS, SCALING, load, to_text, validate
from spinenet_jax.search import drawing
from spinenet_jax.search.graph_cost import graph_cost
from spinenet_jax.search.space import SPACES, draw_valid, encode
from tests.narrow import model_config

GRAPH_FILES = sorted((Path(__file__).resolve().parents[2] / 'configs' / 'graphs').glob('*.json'))
# Multiply-adds of RetinaNet at 640 pixels (tests/models/test_sizes.py), and of its heads.
RESNET_FPN = 96.9e9
HEADS = 85.3e9 - graph_cost(GRAPHS['spinenet49'], SCALING['49'], (640, 640)).multiply_adds


@pytest.mark.parametrize(
    ('name', 'least', 'most'),
    [
        ('r35_sp18', -0.06, -0.03),
        ('r23_sp30', -0.03, 0.03),
        ('r14_sp39', -0.03, 0.03),
        ('r0_sp53', -0.03, 0.03),
    ],
)
def test_cost_is_that_of_resnet_50_fpn(name, least, most):
    """Within 3%, whatever the connections; R35-SP18, with the fewest large blocks, 3 to 6% less."""
    rng = np.random.default_rng(0)
    for graph in [draw_valid(SPACES[name], rng)[1] for _ in range(20)]:
        cost = graph_cost(graph, SCALING['49'], (640, 640)).multiply_adds + HEADS
        assert least < cost / RESNET_FPN - 1 < most


@pytest.mark.parametrize('path', GRAPH_FILES, ids=lambda path: path.stem)
def test_graph_files_are_valid_and_lie_in_their_spaces(path):
    graph = load(str(path))
    validate(graph)
    assert graph.name == path.stem
    if path.stem in SPACES:
        encode(SPACES[path.stem], graph)
    assert drawing.svg(graph).startswith(b'<?xml')


@pytest.mark.slow
def test_gradients_reach_every_weight():
    graph = load(str(next(path for path in GRAPH_FILES if path.stem == 'r14_sp39')))
    model = build_model(
        model_config(graph=to_text(graph), num_classes=3), task='detection', axis_name=None
    )
    # Two images: the single position that one has at level 6 is its own mean, so that batch norm
    # gives zero there, whatever the weights are.
    images = jax.random.uniform(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    def loss(params):
        outputs, _ = model.apply(
            variables | {'params': params}, images, train=True, mutable=['batch_stats']
        )
        return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)))
                   for leaf in jax.tree.leaves(outputs))  # fmt: skip

    gradient = jax.jit(jax.grad(loss))(variables['params'])
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient['backbone'])
        if 'kernel' in jax.tree_util.keystr(path) and not np.any(np.asarray(leaf))
    ]
    assert not dead


def test_named_graphs_are_no_files():
    assert not {path.stem for path in GRAPH_FILES} & set(GRAPHS)
