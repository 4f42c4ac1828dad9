"""The strided convolution with its own gradient equals XLA's."""

import jax
import numpy as np
import pytest

from spinenet_jax.lowering import plain, strided_gradient


@pytest.mark.parametrize('padding', ['same', 'symmetric'])
@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('size', [(8, 12), (2, 4), (7, 8)])
def test_equals_convolution_and_its_gradients(size, kernel_size, padding):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 3, 5)).astype(np.float32)
    pads = plain.pads_of(size, kernel_size, 2, padding)
    want, vjp_want = jax.vjp(lambda x, k: plain.conv(x, k, stride=2, pads=pads), x, kernel)
    got, vjp_got = jax.vjp(lambda x, k: strided_gradient.conv(x, k, pads=pads), x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_cotangent_is_not_spread_out_with_zeros():
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((1, 8, 8, 2), (3, 3, 2, 4))]

    def loss(x, kernel):
        return strided_gradient.conv(x, kernel, pads=((0, 1), (0, 1))).sum()

    text = jax.jit(jax.grad(loss)).lower(*shapes).as_text()
    assert 'lhs_dilate = [2, 2]' not in text and 'convolution' in text
