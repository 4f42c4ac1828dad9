"""The optimizer and its learning-rate schedules.

SGD with momentum as TensorFlow 1 writes it (v = mu v + g, w -= lr v), weight decay as a gradient
on kernels, and the paper's two schedules: step decay and cosine, both with linear warm-up.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

from spinenet_jax.errors import UserError
from spinenet_jax.training.averaging import moving_average


def steps_per_epoch(image_count: int, batch_size: int) -> int:
    """Steps that show every image once, the last one completed from the next epoch.

    118,287 images in batches of 256 are 463 steps, the figure behind the published boundaries.
    """
    return math.ceil(image_count / batch_size)


def learning_rate_schedule(
    optim_config: ConfigDict, batch_size: int, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
    """Linear warm-up, then steps down or a cosine to zero; a function of the optimizer step.

    The configured rates are for `learning_rate_batch` images and the whole curve, with the rate
    that warm-up starts from, is multiplied by batch_size / learning_rate_batch: with the start
    left alone a small batch would warm up from above its own rate.
    'step': the rate is multiplied by decay_factor at each of decay_epochs.
    'cosine': half a cosine whose phase counts from the end of warm-up (public implementations).

    batch_size: images in one optimizer step, over all devices.
    steps_per_epoch: what the epochs of the config are multiplied by.
    Returns step (int) -> learning rate (float32), for 0 <= step < total_steps.
    Raises UserError for an unknown schedule name.
    """
    scale = batch_size / optim_config.learning_rate_batch
    base = optim_config.learning_rate * scale
    warmup_steps = round(optim_config.warmup_epochs * steps_per_epoch)
    warmup_steps = max(warmup_steps, optim_config.min_warmup_steps)
    if optim_config.schedule == 'step':
        factors: dict[int, float] = {}
        for epoch in optim_config.decay_epochs:  # two may fall on one step: both count
            step = round(epoch * steps_per_epoch) - warmup_steps
            factors[step] = factors.get(step, 1.0) * optim_config.decay_factor
        main = optax.piecewise_constant_schedule(base, factors)
    elif optim_config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(base, max(1, total_steps - warmup_steps))
    else:
        raise UserError(
            f"optim.schedule is '{optim_config.schedule}'; it must be 'step' or 'cosine'"
        )
    if warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(optim_config.warmup_start_rate * scale, base, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def log_scaling(optim_config: ConfigDict, batch_size: int) -> None:
    """Says in the log what the learning rate is where the batch size changes it."""
    reference = optim_config.learning_rate_batch
    rate = optim_config.learning_rate
    if batch_size != reference:
        logging.info(
            'learning rate: %g for %d images is %g for this batch of %d (linear scaling)',
            rate,
            reference,
            rate * batch_size / reference,
            batch_size,
        )


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay pulls to zero: those named 'kernel'.

    Biases and the scale and bias of batch norm are left alone, as in both public implementations.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def global_norm(tree: Any) -> jax.Array:
    """The L2 norm f32[] of all leaves of a tree together.

    As optax's, but scales and biases, of which there are hundreds, are one sum.
    """
    leaves = jax.tree.leaves(tree)
    vectors = [leaf for leaf in leaves if leaf.ndim == 1]
    kernels = [leaf for leaf in leaves if leaf.ndim != 1]
    if vectors:
        kernels.append(jnp.concatenate(vectors))
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in kernels))


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Gradients of a larger norm, scaled to `largest`.

    As optax's, which divides every leaf by the norm and then chooses; one factor for all is a
    multiplication that XLA fuses into the update.
    """

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, largest / global_norm(updates))
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(
    optim_config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum (not Nesterov) and L2 on kernels.

    Adding weight_decay * w to the gradient equals a loss term weight_decay / 2 * sum(w^2), which
    is how the public implementations write it; like theirs, the decay term is part of what
    clip_norm (0 = off) bounds.
    """
    parts = [optax.add_decayed_weights(optim_config.weight_decay, mask=decay_mask)]
    if optim_config.clip_norm > 0:
        parts.append(clip_by_global_norm(optim_config.clip_norm))
    parts.append(optax.sgd(schedule, momentum=optim_config.momentum, nesterov=False))
    if optim_config.ema_decay > 0:
        parts.append(moving_average(optim_config.ema_decay))
    return optax.chain(*parts)
