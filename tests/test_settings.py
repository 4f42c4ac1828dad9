"""The table of settings: every field refuses what it cannot mean, in one line."""

import json
import math

import pytest
from ml_collections import ConfigDict

from configs import common
from spinenet_jax import settings
from spinenet_jax.data.build import SOURCES
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import DTYPES
from spinenet_jax.models.graph import BASE_FILTERS
from spinenet_jax.models.layers import ACTIVATIONS
from spinenet_jax.models.resnet import DEPTHS, STAGE_FILTERS

FIELDS = dict(settings.fields())
NAN, INF = math.nan, math.inf
HOSTILE = [
    NAN, INF, -INF, -1, 0, -0.5, 0.5, 1, 1.0, 2, 2.5, 1e-320, 1e30, 1e308, 2**31, 2**64, 10**400,
    10**5000, True, False, None, '', 'x', 'relu', '0', '\0', '\ud800', 'a\nb', 'x' * 10_000,
    (), (1,), (64, 64), (64.0, 64.0), (-64, 64), (0, 0), (64, 64, 3), (NAN,), (-1.0, 2.0),
    (1, 10**400), ('a', 'b'), [64, 64], {}, {'a': 1}, {'AP': (NAN, 0)}, {'AP': (0.5, -1)},
    {'AP': (0.5, 0.1)}, {'AP': 0.5}, object(), b'x', 3 + 1j, ConfigDict({'a': 1}),
]  # fmt: skip


def with_value(name, value):
    """The defaults with one field set to anything, type or not."""
    config = common.get_config()
    section, _, key = name.rpartition('.')
    target = config[section] if section else config
    target._fields[key] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def is_whole(value):
    return type(value) is int


def is_number(value):
    return (type(value) is float and math.isfinite(value)) or (is_whole(value) and value < 10**300)


def may_be_accepted(default, value):
    """A second, coarse opinion on what a field of this kind of default can mean."""
    if default is None or isinstance(default, bool):
        return isinstance(value, bool) or (default is None and value is None)
    if isinstance(default, int):
        return is_whole(value) and 0 <= value < 2**31
    if isinstance(default, float):
        return is_number(value) and 0 <= value <= 1e6
    if isinstance(default, str):
        return isinstance(value, str) and '\0' not in value
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(is_number(v) and v > 0 for v in value)
    return isinstance(value, dict | ConfigDict) and value in ({}, {'AP': (0.5, 0.1)})


@pytest.mark.parametrize('name', FIELDS)
def test_every_field_refuses_hostile_values_in_one_line(name):
    for value in HOSTILE:
        config = with_value(name, value)
        try:
            settings.check(config)
        except UserError as error:
            line = str(error)
            assert name in line and '\n' not in line and len(line) < 400
        else:
            assert may_be_accepted(FIELDS[name].default, value), f'{name}={value!r} is accepted'


@pytest.mark.parametrize('name', FIELDS)
def test_every_default_is_legal_and_every_field_says_what_it_means(name):
    field = FIELDS[name]
    default = common.get_config()
    for part in name.split('.'):
        default = default[part]
    assert field.legal.allows(default)
    assert field.meaning and not field.meaning.endswith('.')


# Settings that once gave a traceback, some of them hours into a run, or were accepted in silence.
REFUSED = [
    ('eval.batch_size', 0), ('eval.max_detections', 0), ('eval.max_candidates', 0),
    ('eval.pictures', -1), ('data.image_size', (64,)), ('data.image_size', (-64, 64)),
    ('data.image_size', (64, 64, 3)), ('data.max_boxes', 0), ('data.max_boxes', -3), ('seed', -1),
    ('model.width', 0.0), ('model.width', NAN), ('model.endpoint_channels', 0),
    ('model.head_channels', -8), ('train.epochs', 0), ('train.epochs', NAN),
    ('optim.momentum', NAN), ('optim.momentum', 1.0), ('optim.decay_factor', NAN),
    ('optim.clip_norm', NAN), ('optim.clip_norm', -1.0), ('eval.score_threshold', NAN),
    ('eval.nms_iou', NAN), ('optim.learning_rate', -0.1), ('optim.learning_rate', 1e38),
    ('optim.weight_decay', -1e-4), ('model.dropblock_keep_prob', 2.0),
    ('model.dropblock_keep_prob', 0.0), ('model.stochastic_depth', 1.0), ('model.depth', 51),
    ('model.activation', 'gelu'), ('model.dtype', 'float16'), ('task', 'detect'),
    ('data.source', 'voc'), ('train.keep_checkpoints', 0), ('train.log_every_steps', 0),
    ('optim.accumulate_steps', 0), ('optim.learning_rate_batch', 0), ('optim.schedule', 'linear'),
    ('data.num_threads', -1), ('data.worker_count', -1), ('data.eval_crop', 0.0),
    ('train.label_smoothing', 1.0), ('data.train_split', ''), ('model.num_classes', 1),
    ('optim.decay_epochs', (NAN,)), ('eval.expected', {'AP': 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'value'), REFUSED, ids=str)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(UserError, match=name.replace('.', r'\.')):
        settings.check(with_value(name, value))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'model.min_level': 6, 'model.max_level': 4}, 'must not be larger'),
        ({'data.scale_min': 3.0}, r'data\.scale_min=3\.0 and data\.scale_max=2\.0'),
        ({'data.crop_area_min': 0.9, 'data.crop_area_max': 0.5}, 'crop_area_min'),
        ({'data.crop_aspect_min': 2.0}, 'crop_aspect_min'),
        ({'model.width': 0.01}, r'model\.width=0\.01'),
        ({'model.width': 0.02}, 'a resampling would have no channels'),
        ({'model.min_level': 2}, 'SpineNet has the levels 3 to 7'),
        ({'model.max_level': 8}, 'SpineNet has the levels 3 to 7'),
        ({'model.backbone': 'resnet_fpn', 'model.min_level': 6}, 'at most 5 for a ResNet'),
        ({'data.source': 'tfds', 'data.tfds_name': '..'}, 'must name a data set'),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes, words):
    config = common.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        settings.check(config)


def test_fields_that_are_unknown_or_missing_are_named():
    config = common.get_config()
    config.train.epoch = 3
    with pytest.raises(UserError, match=r'train\.epoch is no setting: did you mean train\.epochs'):
        settings.check(config)
    config = common.get_config()
    del config.optim.momentum
    with pytest.raises(UserError, match=r'optim\.momentum is missing'):
        settings.check(config)
    config = common.get_config()
    del config['model']
    with pytest.raises(UserError, match=r'model\.backbone is missing'):
        settings.check(config)
    with config.ignore_type():
        config.model = 3
    with pytest.raises(UserError, match='model=3: must be a section'):
        settings.check(config)
    with pytest.raises(UserError, match='must be a ConfigDict'):
        settings.check(None)


def test_choices_are_those_that_the_code_knows():
    config = common.get_config()
    for name, known in {
        'model.depth': DEPTHS,
        'model.dtype': DTYPES,
        'model.activation': ACTIVATIONS,
        'data.source': SOURCES,
    }.items():
        section, key = name.split('.')
        words = FIELDS[name].legal.words.removeprefix('one of ').split(', ')
        assert set(words) == set(map(str, known)), name
        assert config[section][key] in known
    assert settings.NARROWEST == min(BASE_FILTERS.values()) == STAGE_FILTERS[0]


def test_legal_settings_that_surprise_are_remarked_on():
    config = common.get_config()
    assert settings.remarks(config) == []
    config.train.epochs = 3
    first, second = settings.remarks(config)
    assert 'warmup_epochs=5 is longer than the whole training (train.epochs=3)' in first
    assert 'decay_epochs 320, 340 lie at or beyond the end of training' in second
    config.optim.schedule = 'cosine'
    config.optim.warmup_epochs = 3
    assert settings.remarks(config) == []


def test_settings_of_another_version_are_read_over_todays_defaults():
    saved = json.loads(common.get_config().to_json())
    assert settings.from_saved(saved, 'config.json')[1] == ''
    saved['model']['width'] = 0.5
    saved['train']['epochs'] = 7  # a whole number in earlier versions
    del saved['model']['pooling'], saved['seed']
    saved['model']['wings'] = 2
    saved['engine'] = {'fuel': 'tea'}
    config, line = settings.from_saved(saved, 'config.json')
    settings.check(config)
    assert (config.model.width, config.train.epochs, config.model.pooling) == (0.5, 7.0, 'chain')
    assert config.data.image_size == (640, 640) and config.optim.decay_epochs == (320.0, 340.0)
    assert line == (
        "config.json is of another version: filled in seed=0, model.pooling='chain'; "
        'ignored model.wings, engine.fuel'
    )


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda saved: [], 'not the settings of a run'),
        (lambda saved: {}, 'not the settings of a run'),
        (lambda saved: {**saved, 'train': 3}, 'train=3: must be a section'),
        (lambda saved: {**saved, 'model': {'width': 'x'}}, r"model\.width='x': must be a number"),
    ],
)
def test_saved_settings_that_are_none_are_refused_in_one_line(change, words):
    saved = json.loads(common.get_config().to_json())
    with pytest.raises(UserError, match=words) as error:
        settings.from_saved(change(saved), 'config.json')
    assert str(error.value).startswith('config.json: ')
