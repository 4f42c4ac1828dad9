"""Losses, gradients and ten steps of SGD equal the TF2 Model Garden's, through our own step."""

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from spinenet_jax.models.build import build_model
from spinenet_jax.ops.nms import Rules
from spinenet_jax.parallel import AXIS
from spinenet_jax.settings import default_config
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.training.optim import decay_mask, make_optimizer
from spinenet_jax.training.state import TrainState
from spinenet_jax.training.step import make_train_step
from tests.convert import golden
from tools.maintenance import oracle_cases as cases

pytestmark = pytest.mark.slow  # compiling a whole training step takes a minute or two

GRADIENT_TOLERANCE, ONE_STEP_TOLERANCE, TEN_STEPS_TOLERANCE = 1e-4, 1e-4, 1e-3


def flat(tree):
    """{path: numpy array} of a tree."""
    return {k: np.asarray(v) for k, v in flatten_dict(tree, sep='/').items()}


def momentum(opt_state):
    """The momentum buffer: after one step it is the gradient, weight decay included."""
    return next(
        part.trace
        for part in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.TraceState))
        if isinstance(part, optax.TraceState)
    )


@pytest.fixture(scope='module')
def run():
    """Our ten steps."""
    return ten_steps()


def ten_steps():
    """(losses [10,3], {'gradient/...', 'change1/...', 'change10/...'}, {path: first value})."""
    model, sgd = cases.TRAINING, cases.TRAINING_SGD
    module = build_model(golden.model_config(model), task='detection', axis_name=AXIS)
    start = golden.random_variables(module, cases.TRAINING_SIZE, cases.training_weight)
    config = default_config().optim
    config.update({'weight_decay': sgd['weight_decay'], 'clip_norm': 0.0, 'momentum': 0.9})
    optimizer = make_optimizer(config, lambda step: sgd['learning_rate'])
    state = TrainState(
        step=np.int32(0),
        params=start['params'],
        batch_stats=start['batch_stats'],
        opt_state=optimizer.init(start['params']),
    )
    rules = Rules(first_class=1)
    task = DetectionTask(golden.rows(cases.TRAINING_SIZE), model['num_classes'], 3.0, (3, 7), rules)
    step = make_train_step(
        module,
        task,
        optimizer,
        lambda step: sgd['learning_rate'],
        seed=0,
        devices=jax.devices()[:1],
    )
    state = jax.tree.map(lambda x: np.asarray(x)[None], state)
    losses, arrays, before = [], {}, flat(start)
    for index in range(cases.TRAINING_STEPS):
        params = jax.tree.map(lambda x: np.asarray(x)[0], state.params)
        batch = jax.tree.map(lambda x: x[None], cases.training_batch(index))
        state, metrics = step(state, batch)
        kept = jax.tree.map(lambda x: np.asarray(x)[0], state)
        squares = jax.tree.map(lambda w, m: np.sum(w**2) * m, params, decay_mask(params))
        decay = sgd['weight_decay'] / 2 * sum(jax.tree.leaves(squares))
        names = ('loss', 'class_loss', 'box_loss')
        losses.append([float(metrics[name][0]) for name in names])
        losses[-1][0] += decay
        if index == 0:
            found = flat({'params': momentum(kept.opt_state)})
            arrays |= {f'gradient/{path}': value for path, value in found.items()}
        if index in (0, cases.TRAINING_STEPS - 1):
            after = flat({'params': kept.params, 'batch_stats': kept.batch_stats})
            for path, value in after.items():
                if index or path.startswith('batch_stats/'):
                    arrays[f'change{index + 1}/{path}'] = value - before[path]
    return np.array(losses), arrays, before


def compare(run, prefix, tolerance, slack=None, each=5.0):
    """Compare what is under `prefix`: all of it as one vector, and each array to `each` tolerances.

    Batch norms of few samples magnify rounding: changing the last bit of the weights moves single
    arrays of the Model Garden's own gradient by 1e-4.
    """
    ours, theirs = golden.part(run[1], prefix), golden.part(golden.load('training'), prefix)
    theirs = {path: cases.unpack(packed, ours[path].shape) for path, packed in theirs.items()}
    for collection in ('params', 'batch_stats'):
        keys = [key for key in theirs if key.startswith(collection)]
        if keys:
            a, b = (np.concatenate([x[key].ravel() for key in keys]) for x in (ours, theirs))
            total = float(np.linalg.norm(a - b) / np.linalg.norm(b))
            print(f'{prefix} {collection}: {total:.1e} as one vector')
            assert total <= tolerance
    golden.check(ours, theirs, each * tolerance, slack)


def test_losses_of_ten_steps_with_weight_decay(run):
    """Total, class and box loss."""
    np.testing.assert_allclose(run[0][0], golden.load('training')['losses'][0], rtol=1e-5)
    np.testing.assert_allclose(run[0], golden.load('training')['losses'], rtol=TEN_STEPS_TOLERANCE)


def test_gradient_of_every_parameter(run):
    compare(run, 'gradient', GRADIENT_TOLERANCE)


def test_one_step(run):
    """The change of batch norm's running statistics; that of parameters is the gradient."""
    compare(run, 'change1', ONE_STEP_TOLERANCE)


def test_ten_steps(run):
    """The change of everything; a step may round a weight by half a unit of its last place."""
    rounding = 0.5 * cases.TRAINING_STEPS * np.finfo(np.float32).eps
    slack = {path: rounding * float(np.max(np.abs(value))) for path, value in run[2].items()}
    compare(run, 'change10', TEN_STEPS_TOLERANCE, slack)
