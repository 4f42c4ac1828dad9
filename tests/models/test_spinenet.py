"""The walker: sizes, options, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from spinenet_jax.errors import UserError
from spinenet_jax.models.build import build_backbone, build_layers, build_model
from spinenet_jax.models.graph import GRAPHS, Block, Graph
from spinenet_jax.models.heads import PRIOR_BIAS, PredictionHead
from spinenet_jax.models.norm import Layers
from spinenet_jax.models.resnet import DEPTHS
from spinenet_jax.models.spinenet import SpineNet
from spinenet_jax.ops.resample import level_size
from tests.narrow import model_config, random_images, random_variables


def backbone(**changes):
    config = model_config(**changes)
    return build_backbone(config, build_layers(config, None))


def shapes(model, size):
    """Output shapes by tracing alone."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    run = lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0]  # noqa: E731
    return jax.tree.map(lambda x: x.shape, jax.eval_shape(run, images))


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
    layers = build_layers(model_config(), None)
    out = shapes(SpineNet(graph, layers, width=0.25, endpoint_channels=8), (64, 64))
    assert out == {3: (1, 8, 8, 8), 5: (1, 2, 2, 8)}


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
        build_model(model_config(**{key: value}))


def test_parameter_paths_are_pinned():
    model = build_model(model_config(block_repeats=2), None)
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
    model = build_model(model_config(), None)
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
    head = PredictionHead(45, 16, 2, build_layers(model_config(), None), bias=PRIOR_BIAS)
    pyramid = {3: random_images((8, 8)), 4: random_images((4, 4))}
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
        y = features['bfloat16'][level]
        assert y.dtype == jnp.bfloat16
        assert np.linalg.norm(x - y) < 0.03 * np.linalg.norm(x)
    heads = build_model(model_config(dtype='bfloat16'), None)
    out = jax.eval_shape(lambda v, x: heads.apply(v, x, train=False), variables, images)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
    ('size', 'changes'),
    [
        ((64, 64), {'stochastic_depth': 0.5}),
        ((32, 80), {'dropblock_keep_prob': 0.8, 'padding': 'symmetric', 'pooling': 'single'}),
        ((64, 68), {'activation': 'swish', 'block_repeats': 2}),
    ],
)
def test_cells_and_strips_change_no_number(size, changes):
    """Into and out of level 2 by every kind of edge: outputs, statistics and gradients."""
    graph = Graph(
        'shallow',
        (
            Block(2, 'bottleneck', (0, 1)),
            Block(4, 'residual', (2, 0), True),
            Block(2, 'residual', (3, 2), True),
            Block(3, 'bottleneck', (4, 1), True),
        ),
    )
    config = model_config(**changes)
    options = {k: changes[k] for k in changes if k not in ('padding', 'activation')}
    compare_platforms(
        lambda platform: SpineNet(
            *(graph, build_layers(config, None, platform), 0.25),
            endpoint_channels=8,
            levels=(2, 4),
            **options,
        ),
        size,
    )


def test_resnet_on_strips_changes_no_number(monkeypatch):
    monkeypatch.setitem(DEPTHS, 50, (1, 1, 1, 1))
    config = model_config(backbone='resnet_fpn', max_level=6)
    compare_platforms(
        lambda platform: build_backbone(config, build_layers(config, None, platform)),
        *((64, 128), ('gpu', 'tpu')),
        floor=2e-5,  # norms make the gradients of biases zero
    )


def compare_platforms(build, size, platforms=('cpu', 'tpu_v3', 'tpu'), floor=0.0):
    """Outputs, statistics and gradients of `build(platform)` are the same on all."""
    images, results = random_images(size, batch=2), []
    for platform in platforms:
        model = build(platform)
        if not results:
            variables = random_variables(model, size)

        def loss(params, model=model, variables=variables):
            out, updates = model.apply(
                {**variables, 'params': params},
                images,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(1)},
            )
            weighted = sum(jnp.sum(jnp.sin(jnp.arange(x.size)) * x.ravel()) for x in out.values())
            return weighted, (out, updates)

        grads, rest = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
        results.append((grads, rest, model.apply(variables, images, train=False)))
    for other in results[1:]:
        for want, got in zip(*map(jax.tree.leaves, (results[0], other)), strict=True):
            close(got, want, floor)


def close(got, want, floor=0.0):
    atol = floor + 2e-4 * float(jnp.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=atol)


def test_heads_on_strips_change_no_number():
    """Levels in four strips, in two and whole, through the same kernels."""
    rng, results = np.random.default_rng(0), []
    pyramid = {
        level: jnp.asarray(rng.normal(size=(2, side, side, 16)), jnp.float32)
        for level, side in ((3, 16), (4, 12), (5, 5))
    }
    for platform in ('gpu', 'tpu'):
        head = PredictionHead(6, 16, 2, Layers(platform=platform))
        if not results:
            variables = head.init(jax.random.key(0), pyramid, train=False)
            noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), 'f'), variables)
            variables = {**noise, 'batch_stats': jax.tree.map(jnp.exp, noise['batch_stats'])}

        def total(params, head=head, variables=variables):
            changed = {**variables, 'params': params}
            maps, updates = head.apply(changed, pyramid, train=True, mutable=['batch_stats'])
            return sum(jnp.sum(jnp.sin(jnp.arange(m.size)) * m.ravel()) for m in maps), updates

        grads, updates = jax.grad(total, has_aux=True)(variables['params'])
        results.append((head.apply(variables, pyramid, train=False), grads, updates))
    assert [Layers(platform='tpu').strips_at(3, 2, side) for side in (16, 12, 5)] == [4, 2, 1]
    for want, got in zip(*map(jax.tree.leaves, results), strict=True):
        close(got, want, floor=2e-5)  # norms make the gradients of biases zero


@pytest.mark.parametrize(('size', 'batch'), [((96, 160), 1), ((100, 84), 3)])
def test_whole_detector_is_the_same_from_v4_on(size, batch):
    config, images, results = model_config(), random_images(size, batch=batch), []
    for platform in ('gpu', 'tpu'):
        model = build_model(config, None, platform=platform)
        if not results:
            variables = random_variables(model, (64, 64))
        apply = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))
        results.append(apply(variables, images))
    for want, got in zip(*map(jax.tree.leaves, results), strict=True):
        close(got, want)
