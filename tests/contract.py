"""What every task must keep, whatever it is for: see spinenet_jax/tasks/task.py."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spinenet_jax.data.batch import NO_RECORD, Category

IMAGES = 2


def check_task(task, model, record, image):
    """Goes once through everything that is asked of a task.

    Args:
      task: to check.
      model: a small one, randomly initialised here.
      record: a record that the task's rows can use.
      image: its pixels, u8[h,w,3].
    """
    batches = check_rows(task, record, image)
    names = ('params', *task.streams)
    keys = dict(zip(names, jax.random.split(jax.random.key(0), len(names)), strict=True))
    images = jnp.zeros((1, *task.image_size, 3))
    variables = jax.jit(lambda k: model.init(k, images, train=False))(keys)
    check_training(task, model, variables, batches['train'], keys)
    check_inference(task, model, variables, batches['eval'], image)


def check_rows(task, record, image):
    """Rows hold what is declared; a record needs no more than what the rows say."""
    assert task.rows.eval.fields['image'].shape == (*task.image_size, 3)
    needed = {*NO_RECORD, *task.rows.needs} - {'label'} | task.rows.needs
    record = {name: value for name, value in record.items() if name in needed}
    rows = {
        'train': task.rows.train(record, image, np.random.default_rng(0)),
        'eval': task.rows.eval(record, image),
    }
    for row, fields in (
        (rows['train'], task.rows.train.fields),
        (rows['eval'], task.rows.eval.fields),
        (task.rows.eval(NO_RECORD, image), task.rows.eval.fields),
    ):
        found = {name: (np.shape(value), np.asarray(value).dtype) for name, value in row.items()}
        declared = {name: (field.shape, np.dtype(field.dtype)) for name, field in fields.items()}
        assert found == declared
    rows['eval'] |= {'index': np.int32(0)}
    assert rows['eval'].keys() == task.rows.eval_fields.keys()
    return {
        kind: {name: np.stack([value] * IMAGES) for name, value in row.items()}
        for kind, row in rows.items()
    }


def check_training(task, model, variables, batch, keys):
    """Scalars, a loss that is linear in the numerators, a finite gradient."""
    targets = jax.jit(task.targets)(batch)
    assert all(leaf.shape[0] == IMAGES for leaf in jax.tree.leaves(targets))

    def parts(params):
        apply = nn.apply(task.forward, model, mutable=['batch_stats'])
        outputs, _ = apply({**variables, 'params': params}, batch, train=True, rngs=keys)
        assert all(leaf.shape[0] == IMAGES for leaf in jax.tree.leaves(outputs))
        return task.numerators(outputs, targets), task.normalisers(outputs, targets)

    numerators, normalisers = jax.jit(parts)(variables['params'])
    for scalars in (numerators, normalisers, task.losses(numerators, normalisers)):
        assert all(x.shape == () and x.dtype == jnp.float32 for x in scalars.values())

    def loss(x):
        return float(task.losses(x, normalisers)['loss'])

    # Shares of devices add up: l(3a) = l(a) + l(2a), and of each numerator on its own.
    for factor in (2.0, 3.0):
        scaled = {name: factor * value for name, value in numerators.items()}
        np.testing.assert_allclose(loss(scaled), factor * loss(numerators), rtol=1e-5)
    alone = [
        {other: value * (other == name) for other, value in numerators.items()}
        for name in numerators
    ]
    np.testing.assert_allclose(sum(map(loss, alone)), loss(numerators), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: task.losses(parts(p)[0], normalisers)['loss']))
    leaves = jax.tree.leaves(gradient(variables['params']))
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(leaf.any() for leaf in leaves)


def check_inference(task, model, variables, batch, image):
    """Predictions lead with the images; what was found becomes JSON and perhaps a picture."""

    def predict(variables, batch):
        outputs = nn.apply(task.forward, model)(variables, batch, train=False)
        return task.predictions(outputs, batch)

    rows = {**batch, **jax.device_get(jax.jit(predict)(variables, batch))}
    assert all(len(value) == IMAGES for value in rows.values())
    found = task.found({name: value[0] for name, value in rows.items()})
    records = task.records([Category(1, 7, 'cat')])
    assert isinstance(records.add('a.jpg', image.shape[:2], found), str)
    assert isinstance(records.summary(0.5), str)
    assert records.as_dict['images'][0]['file_name'] == 'a.jpg'
    drawn = task.picture(image, found, {1: 'cat'}, min_score=0.0, side=100)
    assert drawn is None or (max(drawn.shape) == 100 and drawn.dtype == np.uint8)
    assert task.main_metric and isinstance(task.main_metric, str)
