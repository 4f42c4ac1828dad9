"""Maps in strips: what is computed on them is what is computed on whole maps."""

import jax
import numpy as np
import pytest
from jax import lax

from spinenet_jax.ops import strips

OPTIONS = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'precision': None}


def test_count_fills_eight_rows_with_strips_of_even_width():
    assert [strips.count(batch, 160) for batch in (1, 2, 3, 4, 5, 8, 128)] == [8, 4, 2, 2, 1, 1, 1]
    assert strips.count(1, 24) == 4  # 8 strips would be 3 columns wide
    assert strips.count(1, 7) == 1


def test_split_by_hand_and_join():
    x = np.arange(8).reshape(2, 1, 4, 1)
    pieces = strips.split(x, 2)
    assert pieces[:, 0, :, 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    np.testing.assert_array_equal(strips.join(pieces, 2), x)
    assert strips.split(x, 1) is x


def test_edges_by_hand():
    x = strips.split(np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 1, 4, 1), 2)
    assert strips.left_edge(x, 2, 1).ravel().tolist() == [0, 2, 0, 6]
    assert strips.right_edge(x, 2, 1, -1.0).ravel().tolist() == [3, -1, 7, -1]


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('padding', ['SAME', 'symmetric'])
def test_conv_equals_that_of_whole_maps_and_its_gradients(size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 16, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 5)).astype(np.float32)
    padding = [((size - 1) // 2,) * 2] * 2 if padding == 'symmetric' else padding
    strides = (stride, stride)

    def whole(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **OPTIONS)

    def cut(x, kernel):
        y = strips.conv(4)(strips.split(x, 4), kernel, strides, padding, **OPTIONS)
        return strips.join(y, 4)

    want, vjp_want = jax.vjp(whole, x, kernel)
    got, vjp_got = jax.vjp(cut, x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
