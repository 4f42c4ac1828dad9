"""The two pmapped functions of the project: the training step and the inference step.

A task (spinenet_jax/tasks/task.py) says what forward pass, losses and predictions are. This file
owns every collective but batch norm's, so that a result does not depend on how images fall on
devices.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.runner import EvalStep
from spinenet_jax.lowering.policy import policy_of
from spinenet_jax.parallel import AXIS, Tree
from spinenet_jax.tasks.task import Batch, Scalars, Task
from spinenet_jax.training.optim import global_norm
from spinenet_jax.training.state import TrainState


class TrainStep(Protocol):
    """What `make_train_step` gives: a pmapped function, which can be lowered without arrays."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        """The state after one step, and the metrics of this step."""

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The program, for arguments that may be abstract."""


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
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    accumulate_steps: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> TrainStep:
    """One optimizer step over all devices: (state, batch) -> (state, metrics).

    The normalisers of the loss are summed over devices first; each device then differentiates its
    own share of the total loss, and one psum adds the shares. Batch-norm statistics come out equal
    on all devices because the norm itself synchronises. With accumulate_steps > 1 the device's
    batch is cut into that many micro-batches that are run one after the other; batch norm then
    sees a micro-batch of all devices at a time. Normalisers are those of the whole batch: a first
    round over the micro-batches computes them alone (see `tasks.task.Task.normalisers`).
    Random numbers depend on (seed, step, global device index, micro-batch, stream) and nothing
    else.

    Args:
      model: what `task.forward` runs.
      task: see `tasks.task`.
      optimizer: gets the summed gradient.
      schedule: only reported, as 'learning_rate'.
      seed: of all random streams.
      accumulate_steps: micro-batches a step.
      devices: all of all processes by default.

    Returns:
      A function of the state, replicated [devices, ...], whose buffers are donated (see
      `Policy.donates_state`), and a batch with leaves [devices, B, ...], B a multiple of
      accumulate_steps. Its metrics are f32[devices], equal on all: the task's losses (without
      weight decay), 'grad_norm' (of the summed gradient, without weight decay), 'learning_rate'.
      A loss that is not finite is reported there and nowhere stopped: the caller must look before
      it keeps the state.
    """

    def forward(params, batch_stats, batch, key):
        """Outputs, and the updated running statistics."""
        outputs, updated = nn.apply(task.forward, model, mutable=['batch_stats'])(
            {'params': params, 'batch_stats': batch_stats},
            batch,
            train=True,
            rngs=_stream_keys(task.streams, key),
        )
        return outputs, updated.get('batch_stats', {})

    def share(params, batch_stats, micro_batch, normalisers):
        """What a micro-batch of this device adds to the loss; with normalisers None, its own."""
        batch, targets, key = micro_batch
        outputs, batch_stats = forward(params, batch_stats, batch, key)
        if normalisers is None:
            normalisers = _total(task.normalisers(outputs, targets))
        numerators = task.numerators(outputs, targets)
        loss = task.losses(numerators, normalisers)['loss']
        return loss, (numerators, normalisers, batch_stats)

    differentiate = jax.grad(share, has_aux=True)

    def whole_batch(state, batch, targets, key):
        """(gradients, numerators) of this device, normalisers of all, running statistics."""
        micro_batch = (batch, targets, jax.random.fold_in(key, 0))
        grads, aux = differentiate(state.params, state.batch_stats, micro_batch, None)
        numerators, normalisers, batch_stats = aux
        return (grads, numerators), normalisers, batch_stats

    def micro_batches(state, batch, targets, key):
        """The same as `whole_batch`, summed over micro-batches."""

        def cut(x):
            return x.reshape(accumulate_steps, x.shape[0] // accumulate_steps, *x.shape[1:])

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(accumulate_steps))
        pieces = (*jax.tree.map(cut, (batch, targets)), keys)

        def count(batch_stats, micro_batch):
            batch, targets, key = micro_batch
            outputs, batch_stats = forward(state.params, batch_stats, batch, key)
            return task.normalisers(outputs, targets), batch_stats

        # The running statistics are handed on here as they are below, so that both rounds compute
        # the same outputs. A normaliser that no output reaches leaves nothing of the forward pass
        # in the compiled program (tests/training/test_accumulation.py).
        normalisers, _ = _sum_over(count, state.batch_stats, pieces)
        normalisers = _total(normalisers)

        def gradient(batch_stats, micro_batch):
            grads, aux = differentiate(state.params, batch_stats, micro_batch, normalisers)
            numerators, _, batch_stats = aux
            return (grads, numerators), batch_stats

        sums, batch_stats = _sum_over(gradient, state.batch_stats, pieces)
        return sums, normalisers, batch_stats

    def step(state, batch):
        targets = task.targets(batch)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        run = whole_batch if accumulate_steps == 1 else micro_batches
        (grads, numerators), normalisers, batch_stats = run(state, batch, targets, key)
        names = sorted(numerators)
        # Stacked, so that the scalars are one array of the collective.
        stacked = jnp.stack([numerators[name] for name in names])
        grads, totals = _over_devices((grads, stacked))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = task.losses(dict(zip(names, totals, strict=True)), normalisers)
        metrics |= {
            'grad_norm': global_norm(grads),
            'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
        }
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, metrics

    donated = (0,) if policy_of((devices or jax.devices())[0]).donates_state else ()
    return jax.pmap(step, axis_name=AXIS, donate_argnums=donated, devices=devices)


def _stream_keys(streams: Sequence[str], key: jax.Array) -> dict[str, jax.Array]:
    """A key for each named random stream.

    'dropout' is the key itself, so that runs of tasks with this stream alone draw what they always
    drew. The others are told apart by their names, not their places: a stream more or less in a
    task leaves the draws of the rest as they are.
    """
    return {
        name: key if name == 'dropout' else jax.random.fold_in(key, zlib.crc32(name.encode()))
        for name in streams
    }


def _total(normalisers: Scalars) -> Scalars:
    """Summed over all devices, and constant to the gradient."""
    return _over_devices(lax.stop_gradient(normalisers))


def _over_devices(tree: Tree) -> Tree:
    """The sum over all devices; over one, nothing is left for the compiler to do."""
    return tree if lax.axis_size(AXIS) == 1 else lax.psum(tree, AXIS)


def _sum_over(run, batch_stats, pieces):
    """Sum what `run` gives for each piece, handing batch_stats from one to the next.

    Args:
      run: (batch_stats, piece) -> (a tree to sum, batch_stats).
      batch_stats: for the first piece.
      pieces: a tree whose leaves lead with the pieces.
    """

    def body(carry, piece):
        total, batch_stats = carry
        values, batch_stats = run(batch_stats, piece)
        return (jax.tree.map(jnp.add, total, values), batch_stats), None

    first = jax.tree.map(lambda x: x[0], pieces)
    shapes, _ = jax.eval_shape(run, batch_stats, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, batch_stats), _ = lax.scan(body, (zeros, batch_stats), pieces)
    return total, batch_stats


def make_eval_step(
    model: nn.Module, task: Task, *, devices: Sequence[jax.Device] | None = None
) -> EvalStep:
    """Inference over all devices: (variables, batch) -> predictions of the global batch.

    Every device of every process returns the whole global batch, in device order, so that each
    process can score it without further communication.

    Args:
      model: what `task.forward` runs.
      task: see `tasks.task`.
      devices: all of all processes by default.

    Returns:
      A function of {'params', 'batch_stats'}, replicated [devices, ...], and a batch with leaves
      [devices, B, ...]. It gives the task's predictions and every batch entry but the image, each
      [devices, all devices * B, ...].
    """

    def step(variables, batch):
        outputs = nn.apply(task.forward, model)(variables, batch, train=False)
        results = {name: value for name, value in batch.items() if name != 'image'}
        results |= task.predictions(outputs, batch)
        return lax.all_gather(results, AXIS, tiled=True)

    return jax.pmap(step, axis_name=AXIS, devices=devices)
