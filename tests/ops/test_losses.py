"""Losses against figures measured on the public implementations."""

import jax
import numpy as np

from spinenet_jax.ops import losses


def test_focal_figures():
    np.testing.assert_allclose(losses.focal(np.float32(0.3), np.float32(1)), 0.0384738, 1e-5)
    np.testing.assert_allclose(losses.focal(np.float32(-2), np.float32(0)), 0.0039179, 1e-4)


def test_focal_extremes_are_finite():
    logits = np.array([-1e4, -90, 0, 90, 1e4], np.float32)
    for target in (0.0, 1.0):
        targets = np.full(5, target, np.float32)
        assert np.isfinite(losses.focal(logits, targets)).all()
        assert np.isfinite(jax.grad(lambda x, t=targets: losses.focal(x, t).sum())(logits)).all()


def test_huber_figure_and_gradient():
    errors = np.array([0.05, -0.1, 0.5, -2], np.float32)
    np.testing.assert_allclose(losses.huber(errors).mean(), 0.0615625, rtol=1e-6)
    grad = jax.grad(lambda e: losses.huber(e).sum())(errors)
    np.testing.assert_allclose(grad, [0.05, -0.1, 0.1, -0.1], rtol=1e-5)


def test_cross_entropy_by_hand():
    # Probabilities 1/2, 1/4, 1/4; target 0.7 + 0.1, 0.1, 0.1.
    logits = np.log(np.array([[2.0, 1.0, 1.0]], np.float32))
    labels = np.array([0], np.int32)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), [np.log(2)], rtol=1e-6)
    want = 0.8 * np.log(2) + 0.2 * np.log(4)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, 0.3), [want], rtol=1e-6)


def test_cross_entropy_extremes_are_finite():
    logits = np.array([[1e4, 0, -1e4]] * 3, np.float32)
    labels = np.arange(3, dtype=np.int32)
    loss = losses.cross_entropy(logits, labels, 0.1)
    assert np.isfinite(loss).all() and loss[0] < loss[1] < loss[2]
    grad = jax.grad(lambda x: losses.cross_entropy(x, labels, 0.1).sum())(logits)
    assert np.isfinite(grad).all()


def test_binary_cross_entropy_by_hand_and_extremes():
    logits = np.array([0, 2, -2, 1e4, -1e4], np.float32)
    got = losses.binary_cross_entropy(logits, np.array([0.5, 1, 0.25, 1, 0], np.float32))
    want = [np.log(2), np.log1p(np.exp(-2)), np.log1p(np.exp(-2)) + 0.5, 0, 0]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    grad = jax.grad(lambda x: losses.binary_cross_entropy(x, np.float32(0.25)).sum())(logits)
    np.testing.assert_allclose(grad, jax.nn.sigmoid(logits) - 0.25, atol=1e-6)
