"""Element-wise losses; summing, masking and normalising are the task's."""

import jax
import jax.numpy as jnp


def focal(
    logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 1.5
) -> jax.Array:
    """Focal loss (Lin et al., 2017) of independent sigmoids, an element at a time.

    Cross entropy times (1 - p_t)**gamma, times alpha for positives and 1 - alpha for negatives.
    Computed from log-sigmoids, so that it and its gradient stay finite for any finite logit.

    Args:
      logits: f32[...].
      targets: f32[...] of 0 and 1.
      alpha: weight of positives, in [0, 1].
      gamma: 0 is plain weighted cross entropy; both public implementations use 1.5.
    """
    positive = targets > 0.5
    margin = jnp.where(positive, logits, -logits)  # the logit of the true answer
    # (1 - p_t)**gamma = exp(gamma * log sigmoid(-margin)).
    modulator = jnp.exp(gamma * jax.nn.log_sigmoid(-margin))
    weight = jnp.where(positive, alpha, 1.0 - alpha)
    return -weight * modulator * jax.nn.log_sigmoid(margin)


def huber(errors: jax.Array, delta: float = 0.1) -> jax.Array:
    """Huber loss of f32[...] errors: e^2 / 2 up to `delta` > 0, then delta * |e| - delta^2 / 2."""
    size = jnp.abs(errors)
    inner = jnp.minimum(size, delta)
    return inner * (size - 0.5 * inner)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of f32[...,K] logits and i32[...] labels in 0..K-1, f32[...].

    With `smoothing` s in [0, 1), the target is 1 - s on the label plus s / K on each of the K
    classes (Szegedy et al., 2016).
    """
    log_p = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return -(1.0 - smoothing) * right - smoothing * jnp.mean(log_p, axis=-1)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of independent sigmoids, f32[...] logits and targets in [0, 1], soft or hard.

    Finite, with its gradient, for any finite logit.
    """
    return jax.nn.softplus(logits) - logits * targets
