"""1x1 convolutions as matrix products equal the convolution."""

import jax
import numpy as np

from spinenet_jax.lowering import plain, pointwise


def test_equals_convolution_and_its_gradients():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 7)).astype(np.float32)
    kernel = rng.normal(size=(1, 1, 7, 4)).astype(np.float32)
    want, vjp_want = jax.vjp(lambda x, k: plain.conv(x, k, pads=((0, 0), (0, 0))), x, kernel)
    got, vjp_got = jax.vjp(pointwise.conv, x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
