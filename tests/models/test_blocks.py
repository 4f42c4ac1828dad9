"""What training drops: how much, where, and that inference drops nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.models.blocks import DropBlock, StochasticDepth


def run(module, x, train=True, seed=0):
    return module.apply({}, x, train=train, rngs={'dropout': jax.random.key(seed)})


def test_stochastic_depth_drops_images_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 2, 3))
    out = np.asarray(run(StochasticDepth(0.2), x))
    by_image = out.reshape(4000, -1)
    assert (by_image == by_image[:, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1.25])
    assert abs((by_image[:, 0] == 0).mean() - 0.2) < 0.02


def test_drop_block_drops_squares_and_keeps_the_mean():
    x = jnp.ones((64, 20, 20, 8))
    out = np.asarray(run(DropBlock(0.9, 5), x))
    share = (out == 0).mean()
    assert 0.07 < share < 0.12  # overlapping squares make it a little less than a tenth
    np.testing.assert_allclose(out.mean(), 1, rtol=1e-5)
    one = out[..., 0][(out[..., 0] == 0).any(axis=(1, 2))][0]
    rows, columns = np.nonzero(one == 0)
    assert np.ptp(rows) >= 4 and np.ptp(columns) >= 4  # whole squares, inside the map


@pytest.mark.parametrize('module', [StochasticDepth(0.5), DropBlock(0.5), DropBlock(1.0)])
def test_inference_drops_nothing(module):
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    np.testing.assert_array_equal(run(module, x, train=False), x)


def test_map_smaller_than_the_square():
    out = np.asarray(run(DropBlock(0.5, 7), jnp.ones((1000, 2, 3, 1))))
    assert np.isfinite(out).all() and (out == 0).any() and (out > 0).any()
