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
