"""The formulations for CPUs equal the plain convolution."""

import jax
import numpy as np
import pytest

from spinenet_jax.lowering import convolution_cpu, plain

ONE = ((1, 1), (1, 1))  # a zero on every side


def test_winograd_by_hand():
    # All ones: each cell counts the neighbours it has, 4 at a corner, 6 at a side, 9 inside.
    got = convolution_cpu._winograd(np.ones((1, 3, 4, 1)), np.ones((3, 3, 1, 1)))
    np.testing.assert_allclose(got[0, :, :, 0], [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]])


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 4), (8, 8)])
@pytest.mark.parametrize('stride, padding', [(1, 'same'), (2, 'same'), (2, 'symmetric')])
@pytest.mark.parametrize('gains', [True, False])
def test_equals_convolution_and_its_gradients(size, stride, padding, gains, monkeypatch):
    monkeypatch.setattr(convolution_cpu, '_gains', lambda x, kernel: gains)
    monkeypatch.setattr(convolution_cpu, 'LEAST_MULTIPLICATIONS', 0 if gains else 10**9)
    monkeypatch.setattr(convolution_cpu, 'LEAST_CHANNELS_BY_KERNEL', 0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 7)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 7, 5)).astype(np.float32)
    options = {'stride': stride, 'pads': plain.pads_of(size, 3, stride, padding)}
    want, vjp_want = jax.vjp(lambda x, k: plain.conv(x, k, **options), x, kernel)
    got, vjp_got = jax.vjp(lambda x, k: convolution_cpu.conv(x, k, **options), x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for a, b in zip(vjp_got(want), vjp_want(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_winograd_on_large_wide_float32_maps_only():
    def products(batch, side, channels, features, dtype='float32'):
        x = jax.ShapeDtypeStruct((batch, side, side, channels), dtype)
        kernel = jax.ShapeDtypeStruct((3, 3, channels, features), dtype)
        traced = jax.make_jaxpr(lambda x, k: convolution_cpu.conv(x, k, pads=ONE))(x, kernel)
        return str(traced).count('dot_general')

    assert products(4, 32, 128, 128) == 16
    assert products(1, 160, 64, 64) == 16
    assert products(4, 16, 256, 256) == 16
    assert products(4, 32, 128, 63) == products(4, 32, 63, 128) == 0  # narrow
    assert products(4, 16, 128, 128) == 0  # small
    assert products(16, 16, 48, 48) == 0  # the heads of configs/digits.py
    assert products(4, 32, 128, 128, 'bfloat16') == 0


def test_products_for_wide_gradients_by_the_kernel_only():
    def products(batch, side, channels, stride=2):
        x = jax.ShapeDtypeStruct((batch, side, side, channels), 'float32')
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), 'float32')

        def gradient(x, k):
            return jax.vjp(lambda k: convolution_cpu.conv(x, k, stride=stride, pads=ONE), k)[1](
                x[:, ::stride, ::stride]
            )

        return str(jax.make_jaxpr(gradient)(x, kernel)).count('dot_general')

    assert products(4, 64, 128) == 9
    assert products(4, 128, 64) == 0  # narrow
    assert products(4, 32, 128) == 0  # small
    assert products(4, 32, 128, stride=1) == 3 * 16  # both gradients, and the forward pass
    assert products(4, 64, 64, stride=1) == 2 * 16  # narrow


def test_rounding_is_that_of_a_direct_convolution():
    """Against float64, on as many channels as the heads have."""
    rng = np.random.default_rng(1)
    x = np.maximum(rng.normal(size=(1, 32, 32, 256)), 0)
    kernel = rng.normal(size=(3, 3, 256, 32)) / 48
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        padded[:, i : i + 32, j : j + 32] @ kernel[i, j] for i in range(3) for j in range(3)
    )
    small = (x.astype(np.float32), kernel.astype(np.float32))
    direct = plain.conv(*small, pads=ONE)
    errors = [np.abs(y - exact).max() for y in (direct, convolution_cpu._winograd(*small))]
    assert errors[1] < max(10 * errors[0], 1e-5 * np.std(exact))
