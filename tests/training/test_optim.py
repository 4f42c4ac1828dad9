"""The schedules by hand, the decay mask, and one update worked out on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TinyModel

from configs import common
from spinenet_jax.errors import UserError
from spinenet_jax.training import optim
from spinenet_jax.training.state import create_state


def settings(**changes):
    config = common.get_config().optim
    config.update(
        {
            'learning_rate': 1.0,
            'learning_rate_batch': 8,
            'warmup_epochs': 2.0,
            'warmup_start_rate': 0.2,
            'decay_epochs': (6, 8),
            **changes,
        }
    )
    return config


def rates(config, batch_size=8, steps=10, total=100):
    schedule = optim.learning_rate_schedule(config, batch_size, steps, total)
    return np.array([float(schedule(step)) for step in range(total)])


def test_warm_up_is_linear_and_steps_fall():
    found = rates(settings())
    np.testing.assert_allclose(found[:21], 0.2 + 0.8 * np.arange(21) / 20, rtol=1e-6)
    np.testing.assert_allclose(found[20:60], 1.0)
    np.testing.assert_allclose(found[60:80], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found[80:], 0.01, rtol=1e-6)


def test_whole_curve_scales_with_the_batch():
    np.testing.assert_allclose(rates(settings(), batch_size=2), rates(settings()) / 4, rtol=1e-6)


def test_cosine_counts_from_the_end_of_warm_up():
    found = rates(settings(schedule='cosine'))
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(80) / 80))
    np.testing.assert_allclose(found[20:], expected, atol=1e-6)
    np.testing.assert_allclose(found[:20], 0.2 + 0.8 * np.arange(20) / 20, rtol=1e-6)


def test_no_warm_up():
    found = rates(settings(warmup_epochs=0.0))
    np.testing.assert_allclose(found[[0, 59, 60]], [1.0, 1.0, 0.1], rtol=1e-6)


def test_training_no_longer_than_its_warm_up():
    for schedule in ('step', 'cosine'):
        found = rates(settings(schedule=schedule), total=20)
        np.testing.assert_allclose(found, 0.2 + 0.8 * np.arange(20) / 20, rtol=1e-6)


def test_unknown_schedule():
    with pytest.raises(UserError, match="'linear'; it must be 'step' or 'cosine'"):
        rates(settings(schedule='linear'))


def test_two_boundaries_at_one_step_decay_twice():
    """Epochs 1 and 1.01 of ten steps are both step 10."""
    for epochs in ((1, 1.01, 2), (1, 1, 2)):
        found = rates(settings(decay_epochs=epochs, warmup_epochs=0.0), total=30)
        np.testing.assert_allclose(found[[9, 10, 20]], [1.0, 0.01, 0.001], rtol=1e-5)


def test_steps_per_epoch_counts_the_last_batch():
    assert optim.steps_per_epoch(118_287, 256) == 463
    assert optim.steps_per_epoch(16, 8) == 2
    assert optim.steps_per_epoch(3, 8) == 1


def test_only_kernels_decay():
    state = create_state(TinyModel(), optim.make_optimizer(settings(), lambda _: 1.0), (8, 8), 0)
    mask = optim.decay_mask(state.params)
    flat = {'/'.join(k.key for k in path): v for path, v in jax.tree.leaves_with_path(mask)}
    assert flat == {
        'conv/kernel': True,
        'norm/scale': False,
        'norm/bias': False,
        'head/kernel': True,
        'head/bias': False,
    }


def test_two_updates_by_hand():
    """g 1, w 2, decay 0.5, momentum 0.9, rate 0.1, then 0.01.

    v1 = 1 + 0.5*2 = 2; w1 = 2 - 0.1*2 = 1.8. v2 = 0.9*2 + 1 + 0.5*1.8 = 3.7; w2 = 1.8 - 0.037.
    The bias has no decay: v1 = 1, w1 = 1.9; v2 = 1.9, w2 = 1.881. A drop of the rate acts at once
    on all of v: TensorFlow 1's form, not Keras's.
    """
    config = settings(weight_decay=0.5)
    optimizer = optim.make_optimizer(config, lambda step: jnp.where(step == 0, 0.1, 0.01))
    params = {'layer': {'kernel': jnp.array(2.0), 'bias': jnp.array(2.0)}}
    grads = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    for expected in ((1.8, 1.9), (1.763, 1.881)):
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        layer = params['layer']
        assert (float(layer['kernel']), float(layer['bias'])) == pytest.approx(expected)


def test_global_norm_and_clipping_equal_those_of_optax():
    rng = np.random.default_rng(0)
    tree = {
        'kernel': rng.normal(size=(3, 3, 4, 5)),
        'scale': rng.normal(size=7),
        'bias': rng.normal(size=4),
        'count': rng.normal(size=()),
    }
    tree = jax.tree.map(jnp.float32, tree)
    norm = float(optax.global_norm(tree))
    assert float(optim.global_norm(tree)) == pytest.approx(norm, rel=1e-6)
    for largest in (0.5 * norm, 2.0 * norm):
        own, theirs = (
            module.clip_by_global_norm(largest).update(tree, optax.EmptyState())[0]
            for module in (optim, optax)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, theirs)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    clipped, _ = optim.clip_by_global_norm(1.0).update(zeros, optax.EmptyState())
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(clipped))
    lost = tree | {'bias': jnp.full(4, jnp.nan)}
    assert np.isnan(
        optim.clip_by_global_norm(1.0).update(lost, optax.EmptyState())[0]['scale']
    ).all()


def test_clip_bounds_the_norm_with_decay():
    """Gradient (3, 0) plus decay 0.5 * (0, 8) has norm 5; at clip 1 the update is 1/5 of it."""
    optimizer = optim.make_optimizer(settings(weight_decay=0.5, clip_norm=1.0), lambda _: 1.0)
    params = {'kernel': jnp.array([0.0, 8.0])}
    updates, _ = optimizer.update({'kernel': jnp.array([3.0, 0.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates['kernel'], [-0.6, -0.8], rtol=1e-6)
