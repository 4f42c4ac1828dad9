"""Keeps an exponential moving average of the parameters, which is what is evaluated and loaded.

The average is a part of the optimizer's state, so that it is replicated, checkpointed and resumed
as that is. In a checkpoint, parameters and average have changed places: whoever reads its `model`
(evaluation, prediction, `train.init_from`) gets the average, and a run that resumes puts them back.
Running statistics of batch norm are averages already, and are left alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spinenet_jax.training.state import TrainState


class AverageState(NamedTuple):
    """The number of updates so far, i32[], and the average, float32 like the parameters."""

    count: jax.Array
    average: optax.Params


def moving_average(decay: float) -> optax.GradientTransformation:
    """Follows the parameters, and changes no update; the last of a chain.

    The average moves by 1 - d towards the new parameters, where d after n updates is the smaller of
    `decay` and (1 + n) / (10 + n): early on, it forgets where training began (as TensorFlow's
    ExponentialMovingAverage does with a number of updates).

    Args:
      decay: in (0, 1); 0.9999 remembers 10,000 updates.
    """

    def init(params):
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, params))

    def update(updates, state, params):
        updated = optax.apply_updates(params, updates)
        count = state.count.astype(jnp.float32)
        kept = jnp.minimum(decay, (1 + count) / (10 + count))
        average = jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, state.average, updated)
        return updates, AverageState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def swapped(state: TrainState) -> TrainState:
    """The state with parameters and average in each other's place; as it is without an average.

    Twice gives the same state again.
    """
    averages = [x.average for x in _parts(state) if _is_average(x)]
    if not averages:
        return state
    return _with_average(state, state.params).replace(params=averages[0])


def restarted(state: TrainState) -> TrainState:
    """The state with an average that begins at its parameters, if it has one."""
    return _with_average(state, state.params)


def _with_average(state: TrainState, average: optax.Params) -> TrainState:
    opt_state = jax.tree.map(
        lambda x: x._replace(average=average) if _is_average(x) else x,
        state.opt_state,
        is_leaf=_is_average,
    )
    return state.replace(opt_state=opt_state)


def _parts(state: TrainState) -> list:
    return jax.tree.leaves(state.opt_state, is_leaf=_is_average)


def _is_average(x: object) -> bool:
    return isinstance(x, AverageState)
