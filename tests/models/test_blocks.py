"""What training drops: how much, where, and that inference drops nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.lowering.policy import TPU
from spinenet_jax.models.blocks import maybe_remat
from spinenet_jax.models.dropout import DropBlock, stochastic_depth
from spinenet_jax.models.layers import Layers


class StochasticDepth(nn.Module):
    """`stochastic_depth` as a block calls it."""

    rate: float

    @nn.compact
    def __call__(self, x, *, train):
        return stochastic_depth(x, self.rate, train=train)


def run(module, x, train=True, seed=0):
    """The plain array that `module` gives for a plain array."""
    rngs = {'dropout': jax.random.key(seed)}
    return module.apply({}, FeatureMap(x, level=3), train=train, rngs=rngs).whole()


def test_stochastic_depth_draws_what_it_always_drew():
    """Runs that are continued drop the same images: the mask follows from the submodule's name."""

    class Key(nn.Module):
        @nn.compact
        def __call__(self):
            return self.make_rng('dropout')

    class Parent(nn.Module):
        @nn.compact
        def __call__(self):
            return Key(name='StochasticDepth_0')()

    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.bfloat16)
    key = Parent().apply({}, rngs={'dropout': jax.random.key(0)})
    kept = jax.random.bernoulli(key, 0.7, (8, 1, 1, 1))
    want = jnp.where(kept, x / jnp.asarray(0.7, x.dtype), jnp.zeros((), x.dtype))
    assert 0 < kept.sum() < 8
    np.testing.assert_array_equal(run(StochasticDepth(0.3), x), want)


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


@pytest.mark.parametrize('module', [StochasticDepth(0.5), DropBlock(0.5, 3)])
def test_drops_the_same_from_maps_in_strips(module):
    x = FeatureMap(np.random.default_rng(0).normal(size=(4, 8, 16, 3)).astype('f'), 3, TPU)
    rngs = {'dropout': jax.random.key(0)}
    want, got = (module.apply({}, y, train=True, rngs=rngs) for y in (x, x.settled()))
    assert got.layout.strips == 2
    np.testing.assert_array_equal(got.whole(), want.data)


def test_map_smaller_than_the_square():
    out = np.asarray(run(DropBlock(0.5, 7), jnp.ones((1000, 2, 3, 1))))
    assert np.isfinite(out).all() and (out == 0).any() and (out > 0).any()


def test_remat_changes_neither_result_nor_gradient_nor_what_is_dropped():
    # One block: a whole network with batch norm over so few values would amplify rounding.
    x = FeatureMap(np.random.default_rng(0).normal(size=(4, 8, 8, 16)).astype(np.float32), level=2)
    results = []
    for remat in (False, True):
        block = maybe_remat(remat)(
            kind='bottleneck', filters=4, layers=Layers(), drop_rate=0.5, keep_prob=0.8, drop_size=3
        )
        variables = block.init(jax.random.key(0), x, False)

        def loss(params, block=block, variables=variables):
            state = {'params': params, 'batch_stats': variables['batch_stats']}
            rngs = {'dropout': jax.random.key(3)}
            out, new = block.apply(state, x, True, mutable=['batch_stats'], rngs=rngs)
            return jnp.sum(out.data**2), new

        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params']))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        # Gradients of hundreds are sums that cancel: their rounding goes by the largest.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


def sums(jaxpr):
    """Sums over devices, those of inner programs included."""
    inner = [
        getattr(value, 'jaxpr', value)
        for equation in jaxpr.eqns
        for value in equation.params.values()
        if hasattr(value, 'eqns') or hasattr(value, 'jaxpr')
    ]
    own = sum(equation.primitive.name.startswith('psum') for equation in jaxpr.eqns)
    return own + sum(map(sums, inner))


def test_remat_does_not_sum_over_devices_again():
    counts = []
    for remat in (False, True):
        kwargs = {'kind': 'bottleneck', 'filters': 4}
        x = FeatureMap(jnp.ones((2, 8, 8, 16)), level=2)
        variables = maybe_remat(remat)(layers=Layers(), **kwargs).init(jax.random.key(0), x, False)
        block = maybe_remat(remat)(layers=Layers(axis_name='batch'), **kwargs)

        def loss(params, x, block=block, stats=variables['batch_stats']):
            state = {'params': params, 'batch_stats': stats}
            out, new = block.apply(state, x, True, mutable=['batch_stats'])
            return jnp.sum(out.data**2), new

        gradient = jax.pmap(jax.grad(loss, has_aux=True), 'batch', in_axes=(None, 0))
        images = x.map(lambda data: jnp.stack([data] * jax.local_device_count()))
        counts.append(sums(jax.make_jaxpr(gradient)(variables['params'], images).jaxpr))
    assert counts[0] == counts[1] >= 6  # three norms, forward and backward
