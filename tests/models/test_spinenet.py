"""Scale-permuted backbones and RetinaNet: sizes, options, parameter names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from spinenet_jax.errors import UserError
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.build import build_backbone, build_layers, build_model
from spinenet_jax.models.graph import GRAPHS, Block, Graph, from_text
from spinenet_jax.models.heads import PRIOR_BIAS, PredictionHead
from spinenet_jax.models.spinenet import SpineNet, pools
from spinenet_jax.ops.resample import level_size
from tests.narrow import model_config, random_images, random_variables


def backbone(**changes):
    config = model_config(**changes)
    return build_backbone(config, build_layers(config, axis_name=None))


def detector(**changes):
    return build_model(model_config(**changes), task='detection', axis_name=None)


def shapes(model, size):
    """Output shapes by tracing alone."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    run = lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0]  # noqa: E731
    return {level: x.data.shape for level, x in jax.eval_shape(run, images).items()}


@pytest.mark.parametrize(
    ('size', 'padding', 'pooling'),
    [
        ((224, 224), 'same', 'chain'),
        ((224, 224), 'symmetric', 'single'),
        ((320, 320), 'same', 'single'),
        ((640, 384), 'symmetric', 'chain'),
        ((100, 333), 'symmetric', 'single'),
        ((16, 16), 'same', 'chain'),
    ],
)
def test_any_size(size, padding, pooling):
    out = shapes(backbone(padding=padding, pooling=pooling), size)
    assert out == {level: (1, *level_size(size, level), 16) for level in range(3, 8)}


@pytest.mark.parametrize('graph', GRAPHS)
def test_named_graphs_build(graph):
    assert set(shapes(backbone(graph=graph), (128, 128))) == {3, 4, 5, 6, 7}


def test_hand_made_graph_builds():
    graph = Graph('mine', (Block(3, 'residual', (0,), True), Block(5, 'bottleneck', (2, 1), True)))
    layers = build_layers(model_config(), axis_name=None)
    out = shapes(SpineNet(graph, layers, width=0.25, endpoint_channels=8), (64, 64))
    assert out == {3: (1, 8, 8, 8), 5: (1, 2, 2, 8)}


@pytest.mark.parametrize(
    ('old', 'new', 'want'), [(80, 10, 10), (56, 28, 28), (14, 4, 4), (7, 2, 2), (14, 2, 3)]
)
def test_width_after_the_single_pool(old, new, want):
    """Worked from the TF1 rule: a convolution halves the width, at most one pool follows."""
    width = -(-old // 2)
    for _, stride in pools('single', 3, old, new):
        width = -(-width // stride)
    assert width == want


def test_chain_has_a_pool_for_every_halving_after_the_first():
    assert [pools('chain', halvings, 80, 10) for halvings in (1, 3)] == [[], [(3, 2), (3, 2)]]


def test_a_stem_of_several_levels_builds_as_a_resnet_does():
    graph = from_text('stem 2,3,3,4 | 3R 2,3 out | 4B 1,3 out')
    layers = build_layers(model_config(), axis_name=None)
    model = SpineNet(graph, layers, width=0.25, block_repeats=2, endpoint_channels=8, levels=(3, 4))
    assert shapes(model, (100, 64)) == {3: (1, 13, 8, 8), 4: (1, 7, 4, 8)}
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    params = variables['params']
    # First copies that change level or width project; 64 and 4 * 16 channels are the same width.
    projecting = {name for name in params if 'shortcut' in params[name]}
    assert projecting == {'stem_block0_0', 'stem_block1_0', 'stem_block3_0'}
    assert params['stem_block1_0']['shortcut']['kernel'].shape == (1, 1, 64, 128)
    assert params['stem_block3_1']['conv2']['kernel'].shape == (3, 3, 64, 64)
    assert params['resample4_1']['conv_in']['kernel'].shape[2] == 256  # from node 3
    assert params['resample5_0']['conv_in']['kernel'].shape[2] == 128  # from node 1


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_baseline_any_size(depth):
    out = shapes(backbone(backbone='resnet_fpn', depth=depth), (224, 100))
    assert out == {level: (1, *level_size((224, 100), level), 16) for level in range(3, 8)}


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('backbone', 'vgg'),
        ('graph', 'spinenet50'),
        ('pooling', 'mean'),
        ('padding', 'valid'),
        ('activation', 'gelu'),
        ('dtype', 'float16'),
    ],
)
def test_unknown_option_is_one_line(key, value):
    with pytest.raises(UserError, match=f"model.{key}='{value}': choose one of"):
        build_model(model_config(**{key: value}), task='detection', axis_name=None)


def test_parameter_paths_are_pinned():
    model = detector(block_repeats=2)
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    paths = {'/'.join(path) for path in traverse_util.flatten_dict(variables['params'])}
    assert {
        'backbone/stem_conv/kernel',
        'backbone/stem_norm/scale',
        'backbone/stem_block0_0/shortcut/kernel',
        'backbone/stem_block0_0/norm_shortcut/bias',
        'backbone/stem_block1_1/conv3/kernel',
        'backbone/resample2_0/conv_in/kernel',
        'backbone/resample3_1/conv_down/kernel',
        'backbone/resample16_1/norm_out/scale',
        'backbone/block3_1/conv2/kernel',
        'backbone/block16_0/norm3/bias',
        'backbone/endpoint3/kernel',
        'backbone/endpoint_norm7/scale',
        'class_head/conv0/bias',
        'class_head/norm0_3/scale',
        'class_head/predict/kernel',
        'box_head/predict/bias',
    } <= paths
    assert len(paths) == 559
    stats = {'/'.join(path) for path in traverse_util.flatten_dict(variables['batch_stats'])}
    assert 'backbone/norm' not in stats and 'box_head/norm0_7/mean' in stats


@pytest.fixture(scope='module')
def narrow():
    model = detector()
    return model, random_images((128, 96)), random_variables(model, (128, 96))


def test_output_shapes(narrow):
    model, images, variables = narrow
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    logits, codes = out
    assert [x.shape for x in logits] == [
        (1, *level_size((128, 96), level), 9 * 5) for level in range(3, 8)
    ]
    assert [x.shape[-1] for x in codes] == [36] * 5


def test_head_starts_at_a_probability_of_one_percent():
    head = PredictionHead(45, 16, 2, build_layers(model_config(), axis_name=None), bias=PRIOR_BIAS)
    pyramid = {
        level: FeatureMap(random_images((side, side)), level) for level, side in ((3, 8), (4, 4))
    }
    out, variables = head.init_with_output(jax.random.key(0), pyramid, train=False)
    np.testing.assert_allclose(jax.nn.sigmoid(out[0]), 0.01, rtol=0.01)
    assert np.std(variables['params']['conv0']['kernel']) == pytest.approx(0.01, rel=0.1)
    assert np.std(variables['params']['predict']['kernel']) == pytest.approx(1e-5, rel=0.1)


def test_bfloat16_is_near_float32_and_ends_in_float32(narrow):
    _, images, variables = narrow
    features = {}
    for dtype in ('float32', 'bfloat16'):
        model = backbone(dtype=dtype)
        held = jax.tree.map(lambda x: x, {k: v['backbone'] for k, v in variables.items()})
        features[dtype] = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))(held, images)
    for level, x in features['float32'].items():
        x, y = x.whole(), features['bfloat16'][level].whole()
        assert y.dtype == jnp.bfloat16
        assert np.linalg.norm(x - y) < 0.03 * np.linalg.norm(x)
    heads = detector(dtype='bfloat16')
    out = jax.eval_shape(lambda v, x: heads.apply(v, x, train=False), variables, images)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype('float32')}
