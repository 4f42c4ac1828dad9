"""Depthwise convolutions as sums of shifted maps against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.lowering import depthwise, plain

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('padding', ['same', 'symmetric'])
@pytest.mark.parametrize(('size', 'stride', 'dilation'), [
    ((6, 8), 1, 1), ((6, 8), 2, 1), ((5, 7), 2, 1), ((1, 1), 2, 1), ((9, 6), 1, 2),
])  # fmt: skip
def test_equals_a_grouped_convolution_and_its_gradients(padding, size, stride, dilation):
    x = jnp.asarray(RNG.normal(size=(2, *size, 5)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 1, 5)), jnp.float32)
    options = {
        'stride': stride,
        'pads': plain.pads_of(size, 3, stride, padding, dilation),
        'dilation': dilation,
        'groups': 5,
    }

    def both(x, kernel, conv):
        y = conv(x, kernel, **options)
        return jnp.sum(jnp.sin(y)), y

    gradients = jax.grad(both, (0, 1), has_aux=True)
    for a, b in zip(
        jax.tree.leaves(gradients(x, kernel, depthwise.conv)),
        jax.tree.leaves(gradients(x, kernel, plain.conv)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_by_hand():
    # A kernel with 1 in the middle and 10 to its right: each value plus ten times its neighbour.
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0).at[1, 2].set(10.0)
    x = jnp.asarray([[1.0, 2.0, 3.0]]).reshape(1, 1, 3, 1)
    y = depthwise.conv(x, kernel, pads=((1, 1), (1, 1)), groups=1)
    assert y.ravel().tolist() == [21.0, 32.0, 3.0]


def test_a_kernel_that_joins_channels_is_refused():
    with pytest.raises(ValueError, match='joins channels'):
        depthwise.conv(
            jnp.zeros((1, 4, 4, 4)), jnp.zeros((3, 3, 2, 4)), pads=((1, 1),) * 2, groups=2
        )
