"""The stem on cells: the same convolution and max-pool as on pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spinenet_jax.lowering import cells, plain, pooling, strips
from spinenet_jax.models.batch_norm import BatchNorm


def positions(x, count):
    """Output cells in strips to the map they stand for: [B,2h,2w,D]."""
    return cells.unfold(strips.join(x, count))


def as_cells(x, count):
    """The opposite of `positions`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
    return strips.split(x.reshape(batch, height // 2, width // 2, 4 * channels), count)


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('padding', ['same', 'symmetric'])
@pytest.mark.parametrize('size', [(8, 16), (4, 8), (12, 32)])
def test_conv_equals_that_of_pixels_and_its_gradient(size, padding, count):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(7, 7, 3, 5)).astype(np.float32)

    pads = plain.pads_of(size, 7, 2, padding)

    def pixels(kernel):
        return plain.conv(image, kernel, stride=2, pads=pads)

    def in_cells(kernel):
        y = cells.conv(image, kernel, strips=count, pads=pads)
        assert y.shape == (2 * count, size[0] // 4, size[1] // 4 // count, 20)
        return positions(y, count)

    want, vjp_want = jax.vjp(pixels, kernel)
    got, vjp_got = jax.vjp(in_cells, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(vjp_got(want)[0], vjp_want(want)[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize('count', [1, 2])
def test_max_pool_equals_that_of_positions_gradient_of_equal_values_included(count):
    rng = np.random.default_rng(2)
    x = rng.integers(-3, 3, (2, 8, 16, 3)).astype(np.float32)  # many are equal
    want, vjp_want = jax.vjp(lambda x: pooling.plain_max_pool(x, 3, 2), x)
    got, vjp_got = jax.vjp(lambda x: cells.max_pool(as_cells(x, count), count), x)
    np.testing.assert_array_equal(strips.join(got, count), want)
    cotangent = jnp.asarray(rng.normal(size=want.shape), jnp.float32)
    got = vjp_got(strips.split(cotangent, count))[0]
    np.testing.assert_allclose(got, vjp_want(cotangent)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('column', [0, 1, 5])
def test_max_pool_does_not_hide_what_is_not_a_number(column):
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[0, 3, column] = np.nan
    want = pooling.plain_max_pool(x, 3, 2)
    np.testing.assert_array_equal(cells.max_pool(as_cells(x, 1), 1), want)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_is_that_of_positions_and_its_gradient(train):
    rng = np.random.default_rng(3)
    x = rng.normal(1, 2, (2, 4, 8, 3)).astype(np.float32)
    options = {
        'use_running_average': not train,
        'momentum': 0.9,
        'epsilon': 1e-3,
        'dtype': jnp.float32,
        'axis_name': None,
    }
    theirs, ours = nn.BatchNorm(**options), BatchNorm(**options, positions=4)
    shapes = [
        jax.eval_shape(m.init, jax.random.key(0), v)
        for m, v in ((theirs, x), (ours, as_cells(x, 1)))
    ]
    assert shapes[0] == shapes[1]
    variables = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype('f'), shapes[0])

    def plainly(x):
        return theirs.apply(variables, x, mutable=['batch_stats'])

    def in_cells(x):
        y, updates = ours.apply(variables, as_cells(x, 1), mutable=['batch_stats'])
        return cells.unfold(y), updates

    want, vjp_want, statistics = jax.vjp(plainly, x, has_aux=True)
    got, vjp_got, new = jax.vjp(in_cells, x, has_aux=True)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, statistics)
    cotangent = rng.normal(size=want.shape).astype(np.float32)
    np.testing.assert_allclose(vjp_got(cotangent)[0], vjp_want(cotangent)[0], rtol=1e-3, atol=1e-5)
