"""The focal loss against figures measured on the public implementations, and against optax."""

import jax
import numpy as np
import optax
import pytest

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


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.5, 2.0])
@pytest.mark.parametrize('target', [0.0, 1.0])
def test_focal_equals_that_of_optax(gamma, target):
    """Values to rounding and gradients exactly, where a logit is extreme, too."""
    logits = np.concatenate([np.linspace(-20, 20, 4001), [-1e4, -200, -90, 90, 200, 1e4]])
    logits, targets = np.float32(logits), np.full(4007, target, np.float32)

    def ours(x):
        return losses.focal(x, targets, 0.25, gamma)

    def theirs(x):
        return optax.losses.sigmoid_focal_loss(x, targets, alpha=0.25, gamma=gamma)

    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-6)
    gradients = [jax.grad(lambda x, f=f: f(x).sum())(logits) for f in (ours, theirs)]
    np.testing.assert_allclose(*gradients, rtol=1e-6, atol=1e-30)
