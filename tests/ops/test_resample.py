"""Sizes of levels, and sources of nearest-neighbour resizing."""

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
