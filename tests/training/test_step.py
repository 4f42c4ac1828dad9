"""One step: any number of devices, micro-batches, what is reduced and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TinyModel, TinyTask, batch_at, run_forward

from spinenet_jax.parallel import replicate, split, unreplicate
from spinenet_jax.training.state import create_state
from spinenet_jax.training.step import make_eval_step, make_train_step

TASK = TinyTask()
SGD = optax.sgd(0.1, momentum=0.9)


def run(model, device_count, steps=3, accumulate_steps=1, batches=batch_at):
    devices = jax.devices()[:device_count]
    step = make_train_step(
        model,
        TASK,
        SGD,
        lambda step: 0.1,
        seed=0,
        accumulate_steps=accumulate_steps,
        devices=devices,
    )
    state = replicate(create_state(model, SGD, TASK.image_size, seed=0), devices)
    history = []
    for position in range(steps):
        state, metrics = step(state, split(batches(position, 16), device_count))
        history.append({k: np.asarray(v) for k, v in metrics.items()})
    return state, history


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def test_one_device_equals_four():
    one, metrics_one = run(TinyModel(), 1)
    four, metrics_four = run(TinyModel(), 4)
    assert_close(unreplicate(one), unreplicate(four))
    for a, b in zip(metrics_one, metrics_four, strict=True):
        assert_close({k: v[0] for k, v in a.items()}, {k: v[0] for k, v in b.items()})


def test_devices_stay_identical():
    state, history = run(TinyModel(), 4)
    for leaf in [*jax.tree.leaves(state), *jax.tree.leaves(history)]:
        leaf = np.asarray(leaf)
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_gradient_equals_plain_autodiff_of_the_whole_batch():
    model = TinyModel(axis_name=None)
    state = create_state(model, SGD, TASK.image_size, seed=0)
    batch = batch_at(0, 16)

    def loss(params):
        variables = {'params': params, 'batch_stats': state.batch_stats}
        outputs, targets = run_forward(TASK, model, variables, batch, True), TASK.targets(batch)
        numerators = TASK.numerators(outputs, targets)
        return TASK.losses(numerators, TASK.normalisers(outputs, targets))['loss']

    value, grads = jax.value_and_grad(loss)(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    trained, history = run(TinyModel(), 4, steps=1)
    assert_close(unreplicate(trained).params, expected)
    assert history[0]['loss'][0] == pytest.approx(float(value), rel=1e-5)
    assert history[0]['grad_norm'][0] == pytest.approx(float(optax.global_norm(grads)), rel=1e-4)


def test_accumulation_of_repeated_images_equals_one_pass():
    """Four micro-batches of the same four images have one batch's statistics and gradient."""

    def repeated(position, size):
        part = batch_at(position, size // 4)
        return {k: np.concatenate([v] * 4) for k, v in part.items()}

    whole, metrics_whole = run(TinyModel(), 1, batches=repeated)
    parts, metrics_parts = run(TinyModel(), 1, accumulate_steps=4, batches=repeated)
    assert_close(unreplicate(whole).params, unreplicate(parts).params)
    assert_close(metrics_whole[-1], metrics_parts[-1])


def test_accumulation_weighs_micro_batches_by_their_counts():
    """Uneven padding: the sum over micro-batches uses the counts of the whole batch."""
    _, metrics = run(TinyModel(width=2), 2, steps=1, accumulate_steps=2)
    assert np.isfinite(metrics[0]['loss']).all()
    model = TinyModel(width=2, axis_name=None)
    state = create_state(model, SGD, TASK.image_size, seed=0)
    batch, total = batch_at(0, 16), 0.0
    rows = np.arange(16).reshape(2, 2, 4)  # device, micro-batch, row
    for micro in range(2):
        piece = {k: v[rows[:, micro].ravel()] for k, v in batch.items()}
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        outputs = run_forward(TASK, model, variables, piece, True)
        numerators = TASK.numerators(outputs, TASK.targets(piece))
        normalisers = TASK.normalisers(outputs, TASK.targets(batch))
        total += TASK.losses(numerators, normalisers)['loss']
    assert metrics[0]['loss'][0] == pytest.approx(float(total), rel=1e-5)


def test_dropout_differs_by_device_and_step_and_repeats():
    def same(position, size):
        part = batch_at(0, 4)
        return {k: np.concatenate([v] * (size // 4)) for k, v in part.items()}

    model = TinyModel(dropout=0.5)
    first, a = run(model, 4, batches=same)
    second, b = run(model, 4, batches=same)
    jax.tree.map(np.testing.assert_array_equal, unreplicate(first), unreplicate(second))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a[0]['loss'][0] != a[1]['loss'][0]


def test_every_number_is_reduced_once():
    """What is psum'd: one count, two loss sums and each parameter's gradient; nothing twice."""
    model = TinyModel(axis_name=None)  # batch norm reduces too, but not here
    devices = jax.devices()[:2]
    step = make_train_step(model, TASK, SGD, lambda step: 0.1, seed=0, devices=devices)
    state = create_state(model, SGD, TASK.image_size, seed=0)
    jaxpr = jax.make_jaxpr(step)(replicate(state, devices), split(batch_at(0, 4), 2))
    reduced = [
        variable.aval.size
        for equation in all_equations(jaxpr.jaxpr)
        if equation.primitive.name.startswith('psum')
        for variable in equation.invars
    ]
    assert sum(reduced) == 1 + 2 + sum(x.size for x in jax.tree.leaves(state.params))


def test_one_device_sums_over_nothing_and_a_cpu_keeps_the_state_it_was_given():
    model, devices = TinyModel(axis_name=None), jax.devices()[:1]
    step = make_train_step(model, TASK, SGD, lambda step: 0.1, seed=0, devices=devices)
    state = replicate(create_state(model, SGD, TASK.image_size, seed=0), devices)
    batch = split(batch_at(0, 4), 1)
    names = {e.primitive.name for e in all_equations(jax.make_jaxpr(step)(state, batch).jaxpr)}
    assert not any(name.startswith('psum') for name in names)
    step(state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def all_equations(jaxpr):
    """The equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from all_equations(inner)


def test_bad_loss_is_reported():
    def broken(position, size):
        batch = batch_at(position, size)
        return batch | {'image': batch['image'].astype(np.float32) * np.nan}

    _, metrics = run(TinyModel(), 2, steps=1, batches=broken)
    assert not np.isfinite(metrics[0]['loss']).any()


def test_eval_step_gathers_the_global_batch_in_order():
    model = TinyModel()
    state = create_state(model, SGD, TASK.image_size, seed=0)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    batch = batch_at(0, 8) | {'index': np.arange(8, dtype=np.int32)}
    results = make_eval_step(model, TASK)(replicate(variables), split(batch, 4))
    assert 'image' not in results
    np.testing.assert_array_equal(results['index'][0], np.arange(8))
    np.testing.assert_array_equal(results['index'][3], np.arange(8))
    direct = TASK.predictions(run_forward(TASK, model, variables, batch), batch)
    np.testing.assert_array_equal(results['classes'][0], direct['classes'])
    assert jnp.asarray(results['scores']).shape == (4, 8)
