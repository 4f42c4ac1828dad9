"""Sizes and sources of nearest-neighbour resizing and of pools."""

import jax
import numpy as np
import pytest

from spinenet_jax.ops import resample


@pytest.mark.parametrize(('old', 'new'), [(2, 4), (3, 5), (2, 7), (4, 7), (3, 2), (5, 5)])
def test_nearest_takes_floor_of_scaled_index(old, new):
    x = np.arange(old, dtype=np.float32).reshape(1, old, 1, 1) * np.ones((1, 1, 2, 1), np.float32)
    got = resample.nearest(x, (new, 2))[0, :, 0, 0]
    np.testing.assert_array_equal(got, [i * old // new for i in range(new)])


def test_level_size_is_ceil():
    assert [resample.level_size((224, 100), level) for level in (3, 5, 7)] == [
        (28, 13),
        (7, 4),
        (2, 1),
    ]


def test_single_pool_strides():
    # (old width, new width) to the width after the pool, worked from the TF1 rule.
    for old, new, want in ((80, 10, 10), (56, 28, 28), (14, 4, 4), (7, 2, 2), (14, 2, 3)):
        half = np.zeros((1, -(-old // 2), -(-old // 2), 1), np.float32)
        assert resample.single_pool(half, old, new).shape[2] == want


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 6), (8, 8)])
@pytest.mark.parametrize('window, stride', [(3, 2), (5, 3)])
def test_max_pool_of_slices_equals_max_pool_and_its_gradient(size, window, stride):
    # Few values, so that many windows hold their maximum more than once.
    x = np.random.default_rng(0).integers(-2, 2, (2, *size, 3)).astype(np.float32)
    want, vjp_want = jax.vjp(lambda x: resample.max_pool(x, window, stride), x)
    got, vjp_got = jax.vjp(lambda x: resample.max_pool(x, window, stride, slices=True), x)
    np.testing.assert_array_equal(got, want)
    gradient = np.random.default_rng(1).integers(1, 9, want.shape).astype(np.float32)
    np.testing.assert_array_equal(vjp_got(gradient)[0], vjp_want(gradient)[0])


def test_max_pool_of_slices_keeps_what_is_not_a_number():
    x = np.zeros((1, 3, 3, 1), np.float32)
    for place in np.ndindex(3, 3):
        spoilt = x.copy()
        spoilt[0, place[0], place[1], 0] = np.nan
        got = resample.max_pool(spoilt, 3, 3, slices=True)
        assert np.isnan(got).all()
