"""Other formulations equal the convolution."""

import jax
import numpy as np
import pytest
from jax import lax

from spinenet_jax.ops.convolution import folded_conv, pointwise_product


def test_pointwise_product_equals_convolution_and_its_gradients():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 7)).astype(np.float32)
    kernel = rng.normal(size=(1, 1, 7, 4)).astype(np.float32)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    def product(x, kernel):
        return pointwise_product(x, kernel, (1, 1), 'SAME', precision=None)

    want, vjp_want = jax.vjp(plain, x, kernel)
    got, vjp_got = jax.vjp(product, x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('padding', ['SAME', [(3, 3), (3, 3)]])
@pytest.mark.parametrize('size', [(8, 12), (2, 4), (7, 8)])
def test_folded_conv_equals_convolution_and_its_gradients(padding, size):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(7, 7, 3, 5)).astype(np.float32)
    options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'precision': None}

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), padding, **options)

    def folded(x, kernel):
        return folded_conv(x, kernel, (2, 2), padding, **options)

    want, vjp_want = jax.vjp(plain, x, kernel)
    got, vjp_got = jax.vjp(folded, x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_folded_conv_of_a_3x3_kernel():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    kernel = np.ones((3, 3, 1, 1), np.float32)
    options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
    # 'SAME' pads the end only: the sum of rows 0-2 and columns 0-2 of 0..15 is 9 * 5 = 45.
    got = np.asarray(folded_conv(x, kernel, (2, 2), 'SAME', **options))[0, :, :, 0]
    np.testing.assert_array_equal(got, [[45, 39], [66, 50]])
