"""The moving average of the parameters: its values, its place in checkpoints, exact resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import StopAfter, accuracy, tiny_config, tiny_experiment

from spinenet_jax.training import averaging, loop, optim
from spinenet_jax.training.checkpoint import load_model
from spinenet_jax.training.state import TrainState


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differs(a, b):
    return any(
        (np.asarray(x) != np.asarray(y)).any()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize('decay', [0.3, 0.99])
def test_average_by_hand(decay):
    optimizer = optax.chain(optax.sgd(0.1), averaging.moving_average(decay))
    params = {'w': jnp.float32(1.0)}
    state = optimizer.init(params)
    weight, average = 1.0, 1.0
    for n in range(30):
        updates, state = optimizer.update({'w': jnp.float32(n)}, state, params)
        params = optax.apply_updates(params, updates)
        weight -= 0.1 * n
        kept = min(decay, (1 + n) / (10 + n))
        average = kept * average + (1 - kept) * weight
        assert float(params['w']) == pytest.approx(weight, abs=1e-4)  # training is left alone
        assert float(state[-1].average['w']) == pytest.approx(average, abs=1e-4)


def state_of(**optim_settings):
    config = tiny_config()
    config.optim.update(optim_settings)
    params = {'kernel': jnp.ones(3)}
    optimizer = optim.make_optimizer(config.optim, optax.constant_schedule(0.1))
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update({'kernel': jnp.ones(3)}, opt_state, params)
    return TrainState(jnp.int32(1), params, {}, opt_state)


def test_swapping_twice_is_nothing_and_without_an_average_too():
    state = state_of(ema_decay=0.9)
    other = averaging.swapped(state)
    assert differs(other.params, state.params)
    assert_equal(averaging.swapped(other), state)
    plain = state_of()
    assert averaging.swapped(plain) is plain


def test_an_average_begins_where_the_parameters_are():
    state = state_of(ema_decay=0.9).replace(params={'kernel': jnp.full(3, 7.0)})
    assert_equal(averaging.swapped(averaging.restarted(state)).params, state.params)


def go(folder, seen, stop=-1):
    config = tiny_config()
    config.optim.ema_decay = 0.9

    def evaluate(state):
        seen.append(state.params)
        return accuracy(state)

    return loop.run(config, folder, tiny_experiment(config, evaluate=evaluate), StopAfter(stop))


def test_it_is_evaluated_saved_and_resumed_exactly(tmp_path):
    seen, again = [], []
    state = go(tmp_path / 'straight', seen).state
    average = averaging.swapped(state).params
    assert differs(average, state.params)
    assert_equal(seen[-1], average)
    assert_equal(load_model(tmp_path / 'straight', 'latest')[0]['params'], average)
    assert not go(tmp_path / 'stopped', again, stop=13).finished
    resumed = go(tmp_path / 'stopped', again).state
    assert_equal(resumed, state)
    assert_equal(again, seen)
