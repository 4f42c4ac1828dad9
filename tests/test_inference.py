"""From a workdir back to a model: what fits, and what is refused with one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from spinenet_jax import inference
from spinenet_jax.data.batch import Category, check_categories
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_model
from spinenet_jax.training import workdir
from spinenet_jax.training.checkpoint import Checkpoints, absolute
from spinenet_jax.training.state import TrainState

CATEGORIES = [Category(1, 7, 'cat'), Category(2, 30, 'dog')]


def small_config(num_classes=3):
    config = common.get_config()
    config.model.update({'width': 0.1, 'endpoint_channels': 8, 'head_channels': 8, 'head_convs': 1})
    config.model.num_classes = num_classes
    config.data.image_size = (64, 64)
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A workdir as a run leaves it, with weights that are all one half."""
    folder = absolute(tmp_path_factory.mktemp('run'))
    config = small_config()
    model = build_model(config.model, task=config.task, axis_name=None)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    halves = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes)
    state = TrainState(
        step=np.int32(4),
        params=halves['params'],
        batch_stats=halves['batch_stats'],
        opt_state=optax.sgd(0.1).init(halves['params']),
    )
    workdir.record_config(folder, config)
    workdir.record_categories(folder, CATEGORIES)
    checkpoints = Checkpoints(folder)
    checkpoints.save(state)
    checkpoints.close()
    return folder


def test_weights_classes_and_step_come_back(run):
    trained = inference.load_trained(small_config(), run, 'best')
    assert trained.step == 4
    assert trained.categories == CATEGORIES
    assert trained.params['backbone']['stem_conv']['kernel'].shape == (7, 7, 3, 64)
    assert all((np.asarray(x) == 0.5).all() for x in jax.tree.leaves(trained.params))


def test_config_of_the_workdir_is_enough(run):
    config = inference.read_config(run)
    trained = inference.load_trained(config, run, 'latest')
    assert trained.config.model.width == 0.1
    assert tuple(trained.config.data.image_size) == (64, 64)


def test_number_of_classes_is_taken_from_the_workdir(run):
    config = small_config(num_classes=0)
    assert inference.load_trained(config, run, '4').config.model.num_classes == 3
    assert config.model.num_classes == 0, "the caller's config must not change"


def test_path_of_one_checkpoint_works_too(run):
    trained = inference.load_trained(small_config(), run / 'checkpoints' / '4', 'best')
    assert trained.categories == CATEGORIES


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'head_channels': 16}, 'another model than the config'),
        ({'num_classes': 11}, 'another model than the config'),
        ({'head_convs': 2}, 'missing there'),
    ],
)
def test_weights_of_another_model_are_refused(run, change, words):
    config = small_config()
    config.model.update(change)
    with pytest.raises(UserError, match=words):
        inference.load_trained(config, run, 'best')


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r'config\.json'):
        inference.read_config(tmp_path)
    with pytest.raises(UserError, match='no checkpoint'):
        inference.load_trained(small_config(), tmp_path, 'best')
    assert inference.read_categories(tmp_path) == []


@pytest.mark.parametrize('content', ['', '{', '\udcff', '3', '{"a": 1}', '[1]', '[{"label": "x"}]'])
def test_damaged_classes_are_one_line(tmp_path, content):
    (tmp_path / 'categories.json').write_text(content, errors='surrogateescape')
    with pytest.raises(UserError, match=r'categories\.json does not hold the classes of a run'):
        inference.read_categories(tmp_path)


def test_labels_must_mean_the_same_in_model_and_data(run):
    own = inference.read_categories(run)
    check_categories(own, CATEGORIES)
    check_categories([], CATEGORIES)
    check_categories(own, CATEGORIES[:1])
    with pytest.raises(UserError, match=r'label 1 is category 7 \(cat\)'):
        check_categories(own, [Category(1, 30, 'dog')])


def test_read_config_gives_what_was_written(run):
    written = json.loads((run / 'config.json').read_text())
    assert list(inference.read_config(run).optim.decay_epochs) == written['optim']['decay_epochs']


def older(run, folder):
    """The files of a run of a version that did not know two of today's settings."""
    saved = json.loads((run / 'config.json').read_text())
    del saved['model']['pooling'], saved['data']['max_pixels']
    saved['model']['wings'] = 2
    (folder / 'config.json').write_text(json.dumps(saved))
    (folder / 'checkpoints' / '4').mkdir(parents=True)


def test_config_of_an_older_version_is_read_over_todays_defaults(run, tmp_path, caplog):
    older(run, tmp_path)
    config = inference.read_config(tmp_path)
    assert (config.model.pooling, config.model.width) == ('chain', 0.1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "filled in model.pooling='chain'" in line and 'ignored model.wings' in line


def test_workdir_of_an_older_version_is_continued(run, tmp_path):
    older(run, tmp_path)
    workdir.record_config(absolute(tmp_path), small_config())
    config = small_config()
    config.model.pooling = 'single'
    with pytest.raises(UserError, match=r"model\.pooling: 'chain' -> 'single'"):
        workdir.record_config(absolute(tmp_path), config)


@pytest.mark.parametrize(
    'content',
    [b'', b'{"model": ', b'\xff\xfe', b'[]', b'{"model": {"width": "wide"}}', b'[' * 10**5],
)
def test_damaged_config_is_refused_in_one_line(tmp_path, content):
    (tmp_path / 'config.json').write_bytes(content)
    with pytest.raises(UserError, match=r'config\.json') as error:
        inference.read_config(tmp_path)
    assert '\n' not in str(error.value)


def test_settings_are_checked_before_anything_is_loaded(run):
    config = small_config()
    config.eval.batch_size = 0
    with pytest.raises(UserError, match=r'eval\.batch_size=0: must be a whole number from 1'):
        inference.load_trained(config, run, 'best')
