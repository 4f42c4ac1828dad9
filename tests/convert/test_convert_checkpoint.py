"""The conversion as a user runs it: what it recognises, writes, reports and refuses."""

import json
import pathlib
import re
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from spinenet_jax.convert import coco_categories, tf_checkpoint, weights, workdir
from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.convert.tf_names import Architecture, tf1_names, tf2_names
from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_model
from spinenet_jax.models.graph import SCALING
from spinenet_jax.training.checkpoint import load_model
from tests.convert import bundles, golden
from tools import oracle_cases as cases

ROOT = pathlib.Path(__file__).resolve().parents[2]
NARROW = cases.model(activation='swish')
ARCHITECTURE = Architecture(block_repeats=1, head_convs=2)


def random_arrays(model=NARROW, task='detection'):
    """{our path: random array} of a model."""
    module = build_model(golden.model_config(model), task=task, axis_name=None)
    tree = golden.random_variables(module, (128, 128))
    return flatten_dict(tree, sep='/')


@pytest.fixture(scope='module')
def arrays():
    return random_arrays()


def as_tf1(arrays, architecture=ARCHITECTURE):
    """Our arrays under TF1's names, predictors in TF1's order of anchors, with optimizer slots."""
    names, result = tf1_names(architecture), {'global_step': 231500.0}
    for path, value in arrays.items():
        if '_head/predict/' in path:
            channels = value.reshape(*value.shape[:-1], 3, 3, -1)
            value = channels[..., [1, 2, 0], :].reshape(value.shape)
        result[names[path]] = value
        result[names[path] + '/Momentum'] = np.zeros(1)
    return result


def as_tf2(arrays, architecture=ARCHITECTURE, first=86, root=''):
    """(Our arrays under keys of an object graph, {key: full name}); layers count from `first`."""
    names, result, full_names = tf2_names(architecture), {}, {}
    for place, (path, value) in enumerate(arrays.items()):
        layer, _, rest = names[path].partition('/')
        if layer == 'head':
            key = f'{root}head/{rest}'
            full_names[key] = f'retina_net_model/{key}'
        else:
            kind, _, number = layer.rpartition('_')
            key = f'{root}backbone/layer_with_weights-{place}/{rest}'
            full_names[key] = f'{kind}_{int(number) + first}/{rest.split("/")[-1]}'
        result[key] = value
    return result, full_names


def read(source, tmp_path):
    """(recognised, converted) of a checkpoint."""
    bundle = Bundle(tf_checkpoint.locate(str(source), tmp_path / 'scratch'))
    variables = tf_checkpoint.list_variables(bundle)
    found = weights.recognise(variables, lambda n: bundle.entries[variables.keys[n]].shape, 'x')
    return found, weights.convert(bundle, variables, found.architecture)


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_tf1_comes_back_as_it_was(arrays, tmp_path):
    bundles.write(tmp_path / 'model.ckpt-9', as_tf1(arrays))
    found, converted = read(tmp_path, tmp_path)
    check_equal(converted.arrays, arrays)
    assert (converted.missing, converted.unmatched) == ([], [])
    assert found.settings == {
        'width': 0.125,
        'resample_alpha': 0.5,
        'block_repeats': 1,
        'endpoint_channels': 16,
        'head_channels': 16,
        'head_convs': 2,
        'num_classes': 6,
        'anchor_size': 3.0,
        'padding': 'symmetric',
        'pooling': 'single',
        'bn_epsilon': 1e-4,
        'bn_momentum': 0.997,
    }


@pytest.mark.parametrize('root', ['', 'model/_'])
def test_tf2_comes_back_as_it_was(arrays, tmp_path, root):
    values, names = as_tf2(arrays, root=root)
    slot = 'backbone/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/momentum'
    values |= {slot: np.zeros(3), 'optimizer/_iterations': 0.0}
    bundles.write(tmp_path / 'ckpt', values, names)
    found, converted = read(tmp_path / 'ckpt.index', tmp_path)
    check_equal(converted.arrays, arrays)
    assert (converted.missing, converted.unmatched) == ([], [])
    assert found.settings['padding'] == 'same'
    assert (found.settings['bn_epsilon'], found.settings['bn_momentum']) == (1e-3, 0.99)


@pytest.mark.parametrize('flavour', ['tf1', 'tf2'])
def test_moving_averages_are_taken(arrays, tmp_path, flavour):
    doubled = {path: 2 * value for path, value in arrays.items()}
    if flavour == 'tf1':
        values, names = as_tf1(arrays), None
        averages = {k: v for k, v in as_tf1(doubled).items() if not k.endswith('/Momentum')}
        del averages['global_step']
        values |= {f'{k}/ExponentialMovingAverage': v for k, v in averages.items()}
    else:
        (values, names), (averages, _) = as_tf2(arrays), as_tf2(doubled)
        slot = '/.OPTIMIZER_SLOT/optimizer/average'
        values |= {k + slot: v for k, v in averages.items()}
    bundles.write(tmp_path / 'ckpt', values, names)
    check_equal(read(tmp_path, tmp_path)[1].arrays, doubled)


def test_backbone_alone(arrays, tmp_path):
    own = {path: value for path, value in arrays.items() if '/backbone/' in path}
    bundles.write(tmp_path / 'ckpt', as_tf1(own))
    found, converted = read(tmp_path, tmp_path)
    assert found.task == 'backbone'
    check_equal(converted.arrays, own)


def test_classifier(tmp_path):
    architecture = Architecture(head_convs=0, classifier=True)
    own = random_arrays(cases.model(num_classes=11), 'classification')
    bundles.write(tmp_path / 'ckpt', as_tf1(own, architecture))
    found, converted = read(tmp_path, tmp_path)
    assert (found.task, found.settings['num_classes']) == ('classification', 11)
    assert found.settings['bn_epsilon'] == 1e-5
    check_equal(converted.arrays, own)


@pytest.mark.parametrize(
    ('name', 'endpoints'),
    [('49S', 128), ('49S', 256), ('49', 256), ('96', 256), ('143', 256), ('190', 512)],
)
def test_published_sizes_are_recognised_from_shapes(name, endpoints, tmp_path):
    """49S is published with 128 and with 256 endpoint channels."""
    row = SCALING[name]._replace(endpoint_channels=endpoints)
    module = build_model(
        golden.model_config({**row._asdict(), 'num_classes': 91, 'activation': 'swish'}),
        task='detection',
        axis_name=None,
    )
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    shapes = {path: v.shape for path, v in flatten_dict(shapes, sep='/').items()}
    names = tf1_names(Architecture(row.block_repeats, row.head_convs))
    by_name = {names[path]: shape for path, shape in shapes.items()}
    variables = tf_checkpoint.Variables('tf1', {n: n for n in by_name}, [], 0, '')
    found = weights.recognise(variables, by_name.__getitem__, 'x')
    assert found.name == name
    assert {key: found.settings[key] for key in row._fields} == row._asdict()
    assert found.settings['anchor_size'] == (4.0 if name in ('143', '190') else 3.0)
    config = workdir.make_config(found, None)
    assert config.model.endpoint_channels == endpoints
    assert config.data.image_size[0] in (640, 1024, 1280)


def test_cocos_categories():
    names = {c.id: c.name for c in coco_categories.categories()}
    assert len(names) == 80
    hand = {1: 'person', 13: 'stop sign', 27: 'backpack', 44: 'bottle', 62: 'chair', 70: 'toilet'}
    hand |= {67: 'dining table', 72: 'tv', 82: 'refrigerator', 84: 'book', 90: 'toothbrush'}
    assert {i: names[i] for i in hand} == hand


def test_directories_with_several_checkpoints(arrays, tmp_path):
    for name in ('model.ckpt-1', 'model.ckpt-2'):
        bundles.write(tmp_path / name, {'a': np.zeros(1)})
    with pytest.raises(UserError, match=r'holds 2 checkpoints \(model.ckpt-1, model.ckpt-2\)'):
        tf_checkpoint.locate(str(tmp_path), tmp_path)
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "/old/place/model.ckpt-2"\n')
    assert tf_checkpoint.locate(str(tmp_path), tmp_path).name == 'model.ckpt-2'


def test_other_models_are_refused(tmp_path):
    bundles.write(tmp_path / 'ckpt', {'resnet/conv2d/kernel': np.zeros((1, 1))})
    with pytest.raises(UserError, match='not a SpineNet checkpoint'):
        read(tmp_path, tmp_path)
    bundles.write(tmp_path / 'ckpt', {'spinenet_mbconv/conv2d/kernel': np.zeros((1, 1))})
    with pytest.raises(UserError, match='mobile'):
        read(tmp_path, tmp_path)


def run_tool(*arguments):
    """Run the script; returns (exit status, standard output, standard error's last line)."""
    command = [sys.executable, str(ROOT / 'tools' / 'convert_checkpoint.py'), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd='/')
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [''])[-1]


def test_the_script_writes_a_workdir_from_an_archive(arrays, tmp_path):
    bundles.write(tmp_path / 'model.ckpt', as_tf1(arrays))
    with tarfile.open(tmp_path / 'published.tar.gz', 'w:gz') as archive:
        for path in tmp_path.glob('model.ckpt*'):
            archive.add(path, f'spinenet/{path.name}')
    status, output, last = run_tool(
        f'--source={tmp_path}/published.tar.gz', f'--workdir={tmp_path}/run', '--activation=relu'
    )
    assert status == 0, last
    assert re.search(r'TF1 SpineNet, detection, \d+ variables of ours', output)
    variables, step = load_model(tmp_path / 'run')
    assert step == 231500
    check_equal(flatten_dict(variables, sep='/'), arrays)
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert config['model']['activation'] == 'relu'
    assert config['model']['padding'] == 'symmetric'


def test_the_script_refuses_what_is_incomplete(arrays, tmp_path):
    values = as_tf1(arrays)
    values.pop('retinanet/box_net/box-1-4/gamma')
    values['retinanet/box_net/box-9-4/gamma'] = np.zeros(4)
    bundles.write(tmp_path / 'model.ckpt', values)
    flags = (f'--source={tmp_path}/model.ckpt', f'--workdir={tmp_path}/run')
    status, output, last = run_tool(*flags)
    assert status == 2
    assert '1 in the checkpoint but unknown here: retinanet/box_net/box-9-4/gamma' in output
    assert '1 variables are missing (first params/box_head/norm1_4/scale' in last
    assert not (tmp_path / 'run').exists()
    status, output, last = run_tool(*flags, '--allow_missing')
    assert status == 0, last


def test_the_script_says_where_there_is_no_checkpoint(tmp_path):
    status, _, last = run_tool(f'--source={tmp_path}', f'--workdir={tmp_path}/run')
    assert status == 2
    assert last == f'error: {tmp_path}: no TensorFlow checkpoint in it (no file ends in .index)'
