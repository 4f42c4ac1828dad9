"""What happens in one step on all devices?

The two pmapped functions of the project: a training step and an inference step. A task
(spinenet_jax/tasks) says what images, targets, losses and predictions are; this file owns every
collective, so that a result does not depend on how images fall on devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from spinenet_jax.errors import UserError
from spinenet_jax.training.state import AXIS, TrainState

Batch = dict[str, jax.Array]


def check_batch_size(batch_size: int, devices: int, accumulate_steps: int) -> None:
    """UserError where a training batch cannot be cut into equal parts."""
    parts = devices * max(1, accumulate_steps)
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f'train.batch_size={batch_size} cannot be shared out evenly over {devices} devices '
            f'with optim.accumulate_steps={accumulate_steps}: it must be a positive multiple of '
            f'{parts}'
        )


def make_train_step(
    model: nn.Module,
    task: Any,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    accumulate_steps: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One optimizer step over all devices: (state, batch) -> (state, metrics).

    The counts that normalise the loss are summed over devices first; each device then
    differentiates its own share of the total loss, and one psum adds the shares.
    Batch-norm statistics come out equal on all devices because the norm itself synchronises.
    With accumulate_steps > 1 the device's batch is cut into that many micro-batches that are
    run one after the other; batch norm then sees a micro-batch of all devices at a time.
    Random numbers depend on (seed, step, global device index, micro-batch) and nothing else.

    state: replicated, [devices, ...]; its buffers are donated.
    batch: leaves [devices, B, ...], B a multiple of accumulate_steps.
    metrics: f32[devices], equal on all: the task's losses (without weight decay), 'grad_norm' (of
    the summed gradient, without weight decay), 'learning_rate'. A loss that is not finite is
    reported here and nowhere stopped: the caller must look before it keeps the state.
    """

    def share(params, batch_stats, batch, targets, counts, key):
        outputs, updated = model.apply(
            {'params': params, 'batch_stats': batch_stats},
            task.images(batch),
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': key},
        )
        sums = task.sums(outputs, targets)
        return task.loss(sums, counts)['loss'], (sums, updated.get('batch_stats', {}))

    def micro_step(state, counts):
        def run(batch_stats, batch, targets, key):
            grad = jax.grad(share, has_aux=True)
            return grad(state.params, batch_stats, batch, targets, counts, key)

        return run

    def step(state, batch):
        targets = task.targets(batch)
        counts = lax.psum(task.counts(targets), AXIS)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        grads, sums, batch_stats = _accumulate(
            micro_step(state, counts), state.batch_stats, batch, targets, key, accumulate_steps
        )
        names = sorted(sums)
        grads, totals = lax.psum((grads, jnp.stack([sums[name] for name in names])), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = task.loss(dict(zip(names, totals, strict=True)), counts)
        metrics |= {
            'grad_norm': optax.global_norm(grads),
            'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
        }
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, metrics

    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,), devices=devices)


def _accumulate(run, batch_stats, batch, targets, key, micro_steps):
    """Sum (grads, sums) over micro-batches, handing batch_stats from one to the next."""
    if micro_steps == 1:
        grads, (sums, batch_stats) = run(batch_stats, batch, targets, jax.random.fold_in(key, 0))
        return grads, sums, batch_stats

    def cut(x):
        return x.reshape(micro_steps, x.shape[0] // micro_steps, *x.shape[1:])

    def body(carry, piece):
        totals, batch_stats = carry
        micro_batch, micro_targets, index = piece
        grads, (sums, batch_stats) = run(
            batch_stats, micro_batch, micro_targets, jax.random.fold_in(key, index)
        )
        return (jax.tree.map(jnp.add, totals, (grads, sums)), batch_stats), None

    pieces = (jax.tree.map(cut, batch), jax.tree.map(cut, targets), jnp.arange(micro_steps))
    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(lambda b, t: run(batch_stats, b, t, key), *first[:2])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
    ((grads, sums), batch_stats), _ = lax.scan(body, (zeros, batch_stats), pieces)
    return grads, sums, batch_stats


def make_eval_step(
    model: nn.Module, task: Any, *, devices: Sequence[jax.Device] | None = None
) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """Inference over all devices: (variables, batch) -> predictions of the global batch.

    Every device of every process returns the whole global batch, in device order, so that each
    process can score it without further communication.

    variables: {'params', 'batch_stats'}, replicated [devices, ...].
    batch: leaves [devices, B, ...].
    Returns the task's predictions and every batch entry but the image, each
    [devices, all devices * B, ...].
    """

    def step(variables, batch):
        outputs = model.apply(variables, task.images(batch), train=False)
        results = {name: value for name, value in batch.items() if name != 'image'}
        results |= task.predictions(outputs, batch)
        return lax.all_gather(results, AXIS, tiled=True)

    return jax.pmap(step, axis_name=AXIS, devices=devices)
