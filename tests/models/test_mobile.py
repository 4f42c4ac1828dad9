"""SpineNet-Mobile at a narrow width: shapes, names, squeeze-and-excite by hand, a training step."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.lowering.policy import CPU, PLAIN, TPU_V3
from spinenet_jax.models import graph
from spinenet_jax.models.build import build_model
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.mobile import InvertedBottleneck
from tests.narrow import model_config, random_images, random_variables

MOBILE = {
    'graph': 'mobile49',
    'width': 0.25,
    'endpoint_channels': 8,
    'head_channels': 8,
    'activation': 'swish',
    'separable_heads': True,
}


def model_of(policy=PLAIN, **changes):
    config = model_config(**{**MOBILE, **changes})
    return build_model(config, task='detection', axis_name=None, policy=policy)


# Two blocks: edges that halve once, four times and not at all, and one that doubles twice.
SHORT = {'graph': '5M 0,1 | 3M 1,2 out', 'min_level': 3, 'max_level': 3}


@pytest.fixture(scope='module')
def variables():
    return random_variables(model_of(**SHORT), (64, 64))


def test_names_are_pinned():
    variables = random_variables(model_of())
    names = {'/'.join(path[:-1]) for path in flax.traverse_util.flatten_dict(variables['params'])}
    backbone = {n.removeprefix('backbone/') for n in names if n.startswith('backbone/')}
    block = {n for n in backbone if n.startswith('block9_0/')}
    assert block == {
        f'block9_0/{n}'
        for n in (
            'expand', 'norm_expand', 'depthwise', 'norm_depthwise', 'squeeze', 'excite',
            'project', 'norm_project',
        )
    }  # fmt: skip
    edge = {n for n in backbone if n.startswith('resample16_0/')}  # level 4 to level 7
    assert edge == {
        f'resample16_0/{n}'
        for n in (
            *(f'{k}{i}' for k in ('down', 'norm_down') for i in range(3)),
            'conv_out',
            'norm_out',
        )
    }
    assert {'stem_conv', 'stem_norm', 'stem_block0_0/expand', 'endpoint3'} <= backbone
    assert {n for n in names if n.startswith('box_head/conv0')} == {
        'box_head/conv0/depthwise', 'box_head/conv0/pointwise'
    }  # fmt: skip


@pytest.mark.parametrize(('policy', 'padding'), [(CPU, 'symmetric'), (TPU_V3, 'same')])
def test_devices_agree(variables, policy, padding):
    images = random_images((64, 64))

    def outputs(policy):
        model = model_of(policy, padding=padding, **SHORT)
        return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)

    expected, found = outputs(PLAIN), outputs(policy)
    assert [x.shape for x in expected[0]] == [(1, 8, 8, 45)]
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3)


def test_every_parameter_gets_a_gradient(variables):
    model = model_of(CPU, **SHORT)

    def loss(params, images):
        outputs, _ = model.apply(
            {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
        )
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(outputs))

    gradients = jax.jit(jax.grad(loss))(variables['params'], random_images((64, 64), batch=2))
    for path, value in flax.traverse_util.flatten_dict(gradients).items():
        assert np.isfinite(value).all(), path
        assert np.abs(value).max() > 0, path


@pytest.mark.parametrize('gate', ['sigmoid', 'hard_sigmoid'])
def test_squeeze_and_excite_by_hand(gate):
    """One channel in, six expanded, one squeezed; all of them are the same number at 1x1 pixels."""
    layers = Layers(activation='relu', squeeze_gate=gate, epsilon=0.0)
    block = InvertedBottleneck(1, layers)
    x = layers.feature_map(jnp.full((1, 1, 1, 1), 2.0), 3)
    variables = block.init(jax.random.key(0), x, train=False)
    ones = jax.tree.map(jnp.ones_like, variables['params'])
    for name in ('norm_expand', 'norm_depthwise', 'norm_project'):
        ones[name]['bias'] = jnp.zeros_like(ones[name]['bias'])
    ones['excite']['bias'] = jnp.full(6, -13.0)
    y = block.apply({**variables, 'params': ones}, x, train=False).data
    # Expanded: 2; depthwise at a single pixel: 2; squeezed: 6 * 2 + 1 = 13; excited: about 13 - 13.
    inner = 13.0 / (1 + np.exp(-13.0)) if gate == 'sigmoid' else 13.0
    factor = 1 / (1 + np.exp(13.0 - inner)) if gate == 'sigmoid' else (inner - 13 + 3) / 6
    np.testing.assert_allclose(float(y[0, 0, 0, 0]), 6 * 2 * factor + 2, rtol=1e-4)


def test_text_of_a_mobile_graph_and_what_does_not_mix():
    own = graph.GRAPHS['mobile49']
    assert graph.from_text(graph.to_text(own), own.name) == own
    assert own.stem == (1, 2) and own.kinds[0] == graph.MOBILE and own.merges == {15: (12,)}
    graph.validate(own)
    mixed = graph.from_text(graph.to_text(own).replace('6M 13', '6B 13'))
    with pytest.raises(UserError, match='do not mix'):
        graph.validate(mixed)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'width': 0.1}, r'model.width=0.1: must be at least 1/8 for a mobile graph'),
        ({'dropblock_keep_prob': 0.9}, r'model.dropblock_keep_prob=0.9: must be 1 for a mobile'),
    ],
)
def test_what_a_mobile_graph_cannot_do_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_model(model_config(graph='mobile49', **changes), task='detection', axis_name=None)
