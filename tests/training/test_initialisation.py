"""The initial variables: their distributions, their form, and what they depend on."""

import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spinenet_jax.models.build import build_model
from spinenet_jax.models.heads import PRIOR_BIAS
from spinenet_jax.models.initialisers import (
    CUT,
    CUT_DEVIATION,
    FanIn,
    FanOut,
    GlorotUniform,
    Normal,
)
from spinenet_jax.training.initialisation import draw_variables
from tests.narrow import model_config

SIZE = (64, 64)


class Model(nn.Module):
    """Two equal convolutions, a batch norm, and a linear layer initialised as Flax does."""

    head: bool = True

    @nn.compact
    def __call__(self, images, *, train):
        convolution = {'use_bias': False, 'kernel_init': FanIn()}
        x = nn.Conv(3, (3, 3), name='first', **convolution)(images)
        x = nn.Conv(3, (3, 3), name='second', **convolution)(x)
        x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
        return nn.Dense(50, name='head')(x.mean((1, 2))) if self.head else x


class Stacked(nn.Module):
    """Layers that `nn.scan` repeats."""

    @nn.compact
    def __call__(self, images, *, train):
        layer = nn.scan(
            lambda module, x: (nn.Dense(3, kernel_init=FanIn(), name='layer')(x), None),
            variable_axes={'params': 0},
            split_rngs={'params': True},
            length=2,
        )
        return layer(self, images)[0]


@pytest.mark.parametrize(
    ('initialiser', 'shape', 'deviation', 'largest'),
    [
        (Normal(0.01), (40, 50, 60), 0.01, math.inf),
        (FanIn(), (3, 3, 40, 300), 1 / math.sqrt(360), CUT / CUT_DEVIATION),
        (FanIn(), (1, 1, 400, 300), 1 / 20, CUT / CUT_DEVIATION),
        (FanOut(2.0), (3, 3, 300, 40), math.sqrt(2 / 360), math.inf),
        (GlorotUniform(), (400, 300), math.sqrt(2 / 700), math.sqrt(3)),
        (GlorotUniform(), (3, 3, 1, 9000), math.sqrt(2 / (9 * 9001)), math.sqrt(3)),
    ],
)
def test_the_host_draws_what_the_initialiser_says(initialiser, shape, deviation, largest):
    """Over a hundred thousand values: moments, the cut, and quantiles beside those of JAX."""
    drawn = initialiser.sample(np.random.default_rng(0), shape)
    by_jax = np.asarray(initialiser(jax.random.key(0), shape))
    assert drawn.dtype == by_jax.dtype == np.float32 and drawn.shape == by_jax.shape == shape
    assert drawn.std() == pytest.approx(deviation, rel=0.01)
    assert abs(drawn.mean()) < 4 * deviation / math.sqrt(drawn.size)
    for values in (drawn, by_jax):
        assert np.abs(values).max() <= largest * deviation * (1 + 1e-5)
    if math.isfinite(largest):
        assert np.abs(drawn).max() > 0.99 * largest * deviation
    levels = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    difference = np.quantile(drawn, levels) - np.quantile(by_jax, levels)
    assert np.abs(difference).max() < 0.03 * deviation


def test_variables_of_a_detector():
    """Form, and the value or the deviation of each kind of variable."""
    model = build_model(model_config(), axis_name=None, task='detection')
    drawn = draw_variables(model, SIZE, seed=3)
    images = jnp.zeros((1, *SIZE, 3))
    want = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert jax.tree.structure(drawn) == jax.tree.structure(want)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(
        lambda x: (x.shape, x.dtype), want
    )
    flat = flax.traverse_util.flatten_dict(drawn)
    for path, value in flat.items():
        if path[-3:] == ('class_head', 'predict', 'bias'):
            np.testing.assert_allclose(value, PRIOR_BIAS)
        elif path[-1] != 'kernel':
            np.testing.assert_array_equal(value, float(path[-1] in ('scale', 'var')))
    for head in ('class_head', 'box_head'):
        deviation = np.std(flat['params', head, 'predict', 'kernel'])
        assert deviation == pytest.approx(1e-5, rel=0.1)
        assert np.std(flat['params', head, 'conv0', 'kernel']) == pytest.approx(0.01, rel=0.1)
    kernels = {p: v for p, v in flat.items() if p[1] == 'backbone' and p[-1] == 'kernel'}
    units = [np.ravel(v) * math.sqrt(math.prod(v.shape[:-1])) for v in kernels.values()]
    assert np.std(np.concatenate(units)) == pytest.approx(1, rel=0.01)
    assert all(np.std(unit) > 0.5 for unit in units)


def test_values_depend_on_the_seed_and_the_path_alone():
    first, again = (draw_variables(Model(), SIZE, seed=0)['params'] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [first[name]['kernel'] for name in ('first', 'second')]
    assert kernels[0].shape == kernels[1].shape
    assert not np.intersect1d(*kernels).size
    other = draw_variables(Model(), SIZE, seed=1)['params']
    assert not np.intersect1d(first['first']['kernel'], other['first']['kernel']).size
    headless = draw_variables(Model(head=False), SIZE, seed=0)['params']
    np.testing.assert_array_equal(headless['second']['kernel'], first['second']['kernel'])
    draw_variables(Model(), SIZE, seed=-1)


def test_default_initialisers_of_flax_are_drawn_too():
    head = draw_variables(Model(), SIZE, seed=0)['params']['head']
    assert np.std(head['kernel']) == pytest.approx(1 / math.sqrt(3), rel=0.2)
    np.testing.assert_array_equal(head['bias'], 0)


def test_flax_is_left_as_it_was():
    before = nn.Module.param
    draw_variables(Model(), SIZE, seed=0)
    with pytest.raises(ValueError, match=r'layer/kernel: initialised as \(3, 3\), stored as'):
        draw_variables(Stacked(), SIZE, seed=0)
    assert nn.Module.param is before
