"""Other formulations equal the convolution."""

import jax
import numpy as np
from jax import lax

from spinenet_jax.ops.convolution import pointwise_product


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


def test_pointwise_product_leaves_large_batches_to_the_convolution():
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((4, 2, 2, 3), (1, 1, 3, 5))]
    for below, primitive in ((5, 'dot_general'), (4, 'conv_general_dilated')):
        traced = jax.make_jaxpr(
            lambda x, k, below=below: pointwise_product(
                *(x, k, (1, 1), 'SAME', below), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
        )(*shapes)
        assert primitive in {e.primitive.name for e in traced.eqns}
