"""Max-pools as maxima of shifted maps equal XLA's, their gradient included."""

import jax
import numpy as np
import pytest

from spinenet_jax.lowering import pooling


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 6), (8, 8)])
@pytest.mark.parametrize('window, stride', [(3, 2), (5, 3)])
def test_shifted_max_pool_equals_max_pool_and_its_gradient(size, window, stride):
    # Few values, so that many windows hold their maximum more than once.
    x = np.random.default_rng(0).integers(-2, 2, (2, *size, 3)).astype(np.float32)
    want, vjp_want = jax.vjp(lambda x: pooling.plain_max_pool(x, window, stride), x)
    got, vjp_got = jax.vjp(lambda x: pooling.shifted_max_pool(x, window, stride), x)
    np.testing.assert_array_equal(got, want)
    gradient = np.random.default_rng(1).integers(1, 9, want.shape).astype(np.float32)
    np.testing.assert_array_equal(vjp_got(gradient)[0], vjp_want(gradient)[0])


def test_shifted_max_pool_keeps_what_is_not_a_number():
    x = np.zeros((1, 3, 3, 1), np.float32)
    for place in np.ndindex(3, 3):
        spoilt = x.copy()
        spoilt[0, place[0], place[1], 0] = np.nan
        got = pooling.shifted_max_pool(spoilt, 3, 3)
        assert np.isnan(got).all()
