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

from configs import common, retinanet
from spinenet_jax.convert import coco_categories, recognition, tf_checkpoint, weights, workdir
from spinenet_jax.convert.tensor_bundle import Bundle
from spinenet_jax.convert.tf_names import SWAPPED, Architecture, tf1_names, tf2_names
from spinenet_jax.convert.weights import our_shape
from spinenet_jax.errors import UserError
from spinenet_jax.models import graph
from spinenet_jax.models.build import build_model
from spinenet_jax.models.graph import SCALING
from spinenet_jax.training.checkpoint import load_model
from tests.convert import bundles, golden
from tools.maintenance import oracle_cases as cases

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
        if '_head/predict/' in path and '/depthwise/' not in path:
            channels = value.reshape(*value.shape[:-1], 3, 3, -1)
            value = channels[..., [1, 2, 0], :].reshape(value.shape)
        result[names[path]] = value
        result[names[path] + '/Momentum'] = np.zeros(1)
    return result


def as_tf2(arrays, architecture=ARCHITECTURE, first=86, root=''):
    """(Our arrays under keys of an object graph, {key: full name}); layers count from `first`.

    Without numbers for P2 the norms are synchronised ones, as in the Garden's beta.
    """
    names, result, full_names = tf2_names(architecture), {}, {}
    for place, (path, value) in enumerate(arrays.items()):
        layer, _, rest = names[path].partition('/')
        if layer == 'head':
            key = f'{root}head/{rest}'
            full_names[key] = f'retina_net_model/{key}'
        else:
            kind, number = re.fullmatch(r'(\w+?)(?:_(\d+))?', layer).groups()
            if kind == 'batch_normalization' and not architecture.counts_p2:
                kind = f'sync_{kind}'
            if kind not in ('lateral', 'post_hoc', 'coarser', 'norm'):  # which have no count
                layer = f'{kind}_{int(number or 0) + first}'
            part = 'backbone' if 'backbone/resnet' in path else 'decoder'
            part = part if architecture.resnet_depth else 'backbone'
            key = f'{root}{part}/layer_with_weights-{place}/{rest}'
            full_names[key] = f'{layer}/{rest.split("/")[-1]}'
        result[key] = value
    return result, full_names


def read(source, tmp_path):
    """(recognised, {our path: array}) of a checkpoint that has all of ours and nothing else."""
    bundle = Bundle(tf_checkpoint.locate(str(source), tmp_path / 'scratch'))
    variables = tf_checkpoint.list_variables(bundle)
    found = recognition.recognise(variables, lambda n: bundle.entries[variables.keys[n]].shape, 'x')
    match = weights.match(variables, found.architecture)
    assert (match.missing, match.unmatched) == ([], [])
    return found, weights.read(bundle, match.names, found.flavour)


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_tf1_comes_back_as_it_was(arrays, tmp_path):
    bundles.write(tmp_path / 'model.ckpt-9', as_tf1(arrays))
    found, converted = read(tmp_path, tmp_path)
    check_equal(converted, arrays)
    assert found.settings == {
        'width': 0.125,
        'resample_alpha': 0.5,
        'block_repeats': 1,
        'endpoint_channels': 16,
        'head_channels': 16,
        'head_convs': 2,
        'num_classes': 6,
        'padding': 'symmetric',
        'pooling': 'single',
        'bn_epsilon': 1e-4,
        'bn_momentum': 0.997,
    }


@pytest.mark.parametrize('root', ['', 'model/_'])
@pytest.mark.parametrize('beta', [False, True])
def test_tf2_comes_back_as_it_was(arrays, tmp_path, root, beta):
    values, names = as_tf2(arrays, ARCHITECTURE._replace(counts_p2=not beta), root=root)
    slot = 'backbone/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/momentum'
    values |= {slot: np.zeros(3), 'optimizer/_iterations': 0.0}
    bundles.write(tmp_path / 'ckpt', values, names)
    found, converted = read(tmp_path / 'ckpt.index', tmp_path)
    check_equal(converted, arrays)
    assert found.settings['padding'] == 'same'
    assert (found.settings['bn_epsilon'], found.settings['bn_momentum']) == (1e-3, 0.99)


MOBILE_ARCHITECTURE = Architecture(
    head_convs=2, graph=graph.GRAPHS['mobile49'], separable_heads=True
)


def in_tensorflows_order(arrays):
    """With the axes of depthwise kernels as TensorFlow has them."""
    return {p: v.swapaxes(2, 3) if SWAPPED.search(p) else v for p, v in arrays.items()}


@pytest.mark.parametrize('flavour', ['tf1', 'tf2'])
def test_a_mobile_checkpoint_comes_back_as_it_was(tmp_path, flavour):
    own = random_arrays(cases.MOBILE)
    values = in_tensorflows_order(own)
    if flavour == 'tf1':
        bundles.write(tmp_path / 'ckpt', as_tf1(values, MOBILE_ARCHITECTURE))
    else:
        bundles.write(tmp_path / 'ckpt', *as_tf2(values, MOBILE_ARCHITECTURE))
    found, converted = read(tmp_path, tmp_path)
    check_equal(converted, own)
    kept = ('graph', 'width', 'head_channels', 'num_classes', 'separable_heads')
    assert {key: found.settings[key] for key in kept} == {key: cases.MOBILE[key] for key in kept}
    gate = {'tf1': 'sigmoid', 'tf2': 'hard_sigmoid'}[flavour]
    assert found.settings['squeeze_gate'] == gate and 'pooling' not in found.settings


@pytest.mark.slow
@pytest.mark.parametrize('name', ['49XS', '49S', '49'])
def test_published_mobile_sizes_are_recognised_from_shapes(name, tmp_path):
    row = graph.MOBILE_SCALING[name]
    config = retinanet.get_config(f'mb{name}-M')
    module = build_model(config.model, task='detection', axis_name=None)
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    shapes = {p: v.shape for p, v in flatten_dict(tree, sep='/').items()}
    names = tf1_names(MOBILE_ARCHITECTURE._replace(head_convs=row.head_convs))
    variables = tf_checkpoint.Variables('tf1', {n: n for n in names.values()}, [], 0, '')
    ours = {name: path for path, name in names.items()}
    found = recognition.recognise(variables, lambda n: our_shape(ours[n], shapes[ours[n]]), 'x')
    assert (found.name, found.architecture.graph.name) == (name, 'mobile49')
    fitted = workdir.fit_config(config, found, 'x')
    assert fitted.model.to_dict() == {
        **config.model.to_dict(),
        **{k: found.settings[k] for k in ('padding', 'bn_epsilon', 'bn_momentum')},
    }
    theirs = {path: our_shape(path, shape) for path, shape in shapes.items()}
    workdir.check_shapes(fitted, found, theirs, 'x')


RESNET_ARCHITECTURE = Architecture(head_convs=2, resnet_depth=50)


@pytest.mark.parametrize('layout', ['tf1', 'tf2', 'beta'])
def test_a_resnet_fpn_comes_back_as_it_was(layout, tmp_path):
    """In the Garden's beta its layers of the pyramid are numbered after those of the ResNet."""
    own, numbered = random_arrays(cases.RESNET), RESNET_ARCHITECTURE._replace(named_fpn=False)
    if layout == 'tf1':
        bundles.write(tmp_path / 'ckpt', as_tf1(own, RESNET_ARCHITECTURE))
    else:
        architecture = numbered if layout == 'beta' else RESNET_ARCHITECTURE
        bundles.write(tmp_path / 'ckpt', *as_tf2(own, architecture))
    found, converted = read(tmp_path, tmp_path)
    check_equal(converted, own)
    for key in ('backbone', 'depth', 'width', 'endpoint_channels', 'head_convs', 'num_classes'):
        assert found.settings[key] == cases.RESNET[key]
    assert found.settings['padding'] == ('symmetric' if layout == 'tf1' else 'same')
    base = common.get_config()
    base.model.update(cases.RESNET)
    fitted = workdir.fit_config(base, found, 'x')
    shapes = {path: value.shape for path, value in own.items()}
    workdir.check_shapes(fitted, found, shapes, 'x')
    base.model.depth = 101
    with pytest.raises(UserError, match='depth=101'):
        workdir.fit_config(base, found, 'x')


def test_a_resnet_without_retinanet_is_refused(tmp_path):
    bundles.write(tmp_path / 'ckpt', {'resnet50/conv2d/kernel': np.zeros((7, 7, 3, 64))})
    with pytest.raises(UserError, match='without the heads of RetinaNet'):
        read(tmp_path, tmp_path)


def test_repeated_mobile_blocks_are_refused():
    repeated = [
        f'spinenet_mbconv/sub_policy0/scale_permuted_block_2/{name}/depthwise_kernel'
        for name in ('depthwise_conv2d', 'depthwise_conv2d_1')
    ]
    variables = tf_checkpoint.Variables('tf1', {name: name for name in repeated}, [], 0, '')
    with pytest.raises(UserError, match='mobile SpineNet of 2 copies'):
        recognition.recognise(variables, lambda _: (), 'x')


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
    check_equal(read(tmp_path, tmp_path)[1], doubled)


def test_backbone_alone(arrays, tmp_path):
    own = {path: value for path, value in arrays.items() if '/backbone/' in path}
    bundles.write(tmp_path / 'ckpt', as_tf1(own))
    found, converted = read(tmp_path, tmp_path)
    assert found.task == 'backbone'
    check_equal(converted, own)


def test_classifier(tmp_path):
    architecture = Architecture(head_convs=0, classifier=True)
    own = random_arrays(cases.model(num_classes=11), 'classification')
    bundles.write(tmp_path / 'ckpt', as_tf1(own, architecture))
    found, converted = read(tmp_path, tmp_path)
    assert (found.task, found.settings['num_classes']) == ('classification', 11)
    assert found.settings['bn_epsilon'] == 1e-5
    check_equal(converted, own)


@pytest.mark.slow
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
    found = recognition.recognise(variables, by_name.__getitem__, 'x')
    assert found.name == name
    assert {key: found.settings[key] for key in row._fields} == row._asdict()
    config = workdir.fit_config(retinanet.get_config(f'{name}-C'), found, 'x')
    assert config.model.endpoint_channels == endpoints
    assert config.model.anchor_size == (4.0 if name in ('143', '190') else 3.0)


def test_cocos_categories():
    names = {c.id: c.name for c in coco_categories.categories()}
    assert len(names) == 80
    hand = {1: 'person', 13: 'stop sign', 27: 'backpack', 44: 'bottle', 62: 'chair', 70: 'toilet'}
    hand |= {67: 'dining table', 72: 'tv', 82: 'refrigerator', 84: 'book', 90: 'toothbrush'}
    assert {i: names[i] for i in hand} == hand


@pytest.mark.parametrize(
    ('width', 'alpha'), [(0.65, 0.32), (0.0375, 0.7), (1.3, 0.999), (2 / 3, 1 / 3)]
)
def test_factors_that_truncate_are_found(width, alpha):
    """166 channels times 0.32 are 53 (not 53.12), and 166 times 53 / 166 in floats are 52."""
    levels, published = graph.BASE_FILTERS, [row.width for row in SCALING.values()]
    pairs = [(base, int(base * width)) for base in levels.values()]
    found = recognition._factor(pairs, published)
    assert [int(base * found) for base, _ in pairs] == [n for _, n in pairs]
    inner = [(n, int(n * alpha)) for _, n in pairs]
    share = recognition._factor(inner, [0.5, 1.0])
    assert [int(n * share) for n, _ in inner] == [n for _, n in inner]


def test_the_plainest_factor_is_taken():
    assert recognition._factor([(64, 41), (256, 166)], [0.65, 1.0]) == 0.65
    assert recognition._factor([(64, 19), (128, 38), (256, 76)], [0.65, 1.0]) == 0.3
    assert recognition._factor([(64, 41), (256, 83)], [0.65, 1.0]) is None
    assert recognition._factor([], [1.0]) is None


def test_a_model_of_odd_sizes_is_read(tmp_path):
    own = random_arrays(cases.model(width=0.0975, resample_alpha=0.32))
    bundles.write(tmp_path / 'ckpt', as_tf1(own))
    found, converted = read(tmp_path, tmp_path)
    check_equal(converted, own)
    config = common.get_config()
    config.model.update(found.settings)
    shapes = {path: value.shape for path, value in own.items()}
    workdir.check_shapes(workdir.fit_config(config, found, 'x'), found, shapes, 'x')


def test_blocks_of_no_common_width_are_refused(arrays, tmp_path):
    changed = dict(arrays)
    changed['params/backbone/block4_0/conv1/kernel'] = np.zeros((1, 1, 64, 17))
    bundles.write(tmp_path / 'ckpt', as_tf1(changed))
    with pytest.raises(UserError, match=r'not one multiple of the base filters .*\(128, 17\)'):
        read(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'box': 12, 'class': 18}, 'a RetinaNet with 3 anchors a cell; .* with 9 '),
        ({'box': 36, 'class': 55}, '55 class outputs a cell are not those of 9 anchors'),
    ],
)
def test_other_heads_are_refused(arrays, tmp_path, change, words):
    changed = dict(arrays)
    for kind, outputs in change.items():
        changed[f'params/{kind}_head/predict/kernel'] = np.zeros((3, 3, 16, outputs))
        changed[f'params/{kind}_head/predict/bias'] = np.zeros(outputs)
    values, names = as_tf2(changed)
    bundles.write(tmp_path / 'ckpt', values, names)
    with pytest.raises(UserError, match=words):
        read(tmp_path, tmp_path)


def test_values_that_no_model_has_are_named(arrays, tmp_path):
    changed = {path: value.copy() for path, value in arrays.items()}
    changed['params/backbone/stem_conv/kernel'][0, 0, 0, 0] = np.nan
    changed['params/box_head/predict/bias'][3] = np.inf
    changed['batch_stats/backbone/stem_norm/var'][5] = -1e-3
    bundles.write(tmp_path / 'ckpt', as_tf1(changed))
    with pytest.raises(UserError) as error:
        read(tmp_path, tmp_path)
    for words in (
        'spinenet/conv2d/kernel is not finite',
        'retinanet/box_net/box-predict/bias is not finite',
        'spinenet/batch_normalization/moving_variance is negative',
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ('field', 'value', 'words'),
    [
        ('task', 'classification', "task='classification', but x holds a model of 'detection'"),
        ('model.backbone', 'resnet_fpn', "'resnet_fpn', but x holds a model of 'spinenet'"),
        ('model.graph', 'r0_sp53', "'r0_sp53', but x holds a model of 'spinenet49'"),
        ('model.max_level', 6, 'max_level=6, but x holds a model of 7'),
        ('model.block_repeats', 2, 'block_repeats=2, but x holds a model of 1'),
        ('model.width', 0.65, 'width=0.65, but x holds a model of 1.0'),
        ('model.resample_alpha', 1.0, 'alpha=1.0, but x holds a model of 0.5'),
    ],
)
def test_a_config_of_another_model_is_refused(field, value, words):
    config = retinanet.get_config('49-C')
    settings = {key: config.model[key] for key in ('width', 'resample_alpha', 'block_repeats')}
    found = recognition.Recognised('tf1', Architecture(), '49', 'detection', settings)
    assert workdir.fit_config(config, found, 'x').model.width == 1.0
    section, _, key = field.rpartition('.')
    (config[section] if section else config)[key] = value
    with pytest.raises(UserError, match=words):
        workdir.fit_config(config, found, 'x')


def test_a_workdir_with_checkpoints_is_refused(tmp_path):
    """Orbax keeps what it has of a step, so the old weights would stay."""
    config = common.get_config()
    workdir.write(tmp_path / 'run', config, {'params/a': np.zeros(2)}, 7)
    for step in (7, 8):
        with pytest.raises(UserError, match='holds checkpoint 7 already; give another folder'):
            workdir.write(tmp_path / 'run', config, {'params/a': np.ones(2)}, step)
    variables, step = load_model(tmp_path / 'run')
    assert step == 7
    np.testing.assert_array_equal(variables['params']['a'], [0, 0])


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


def test_the_script_names_damage_and_leaves_nothing(arrays, tmp_path):
    bundles.write(tmp_path / 'model.ckpt', as_tf1(arrays))
    data = tmp_path / 'model.ckpt.data-00000-of-00001'
    content = bytearray(data.read_bytes())
    content[-1] ^= 1  # of an optimizer's slot, which nothing of ours takes
    data.write_bytes(bytes(content))
    status, _, last = run_tool(f'--source={tmp_path}/model.ckpt', f'--workdir={tmp_path}/run')
    assert status == 2
    assert 'damaged, the checksum of variable ' in last
    assert not (tmp_path / 'run').exists()


def test_the_script_says_where_there_is_no_checkpoint(tmp_path):
    status, _, last = run_tool(f'--source={tmp_path}', f'--workdir={tmp_path}/run')
    assert status == 2
    assert last == f'error: {tmp_path}: no TensorFlow checkpoint in it (no file ends in .index)'
