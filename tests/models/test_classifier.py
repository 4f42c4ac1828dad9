"""The classifier: sizes of every model, the TF1 original's arithmetic, transfer of the backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.analysis.cost import Cost, model_cost
from spinenet_jax.models.build import build_model
from spinenet_jax.models.classifier import aggregate
from spinenet_jax.models.graph import SCALING
from spinenet_jax.models.resnet_sizes import DEPTHS
from spinenet_jax.training.transfer import transfer
from tests.narrow import model_config, random_images, random_variables

# Trainable parameters with 1,001 outputs, of which the head, and billions of multiply-adds at 224.
# SpineNet: the TF1 release, measured; ResNet: He et al. (2016) with 1,000 outputs have 25,557,032,
# 44,549,160 and 60,192,808, and one more output 2,049; multiply-adds from the TF1 model zoo.
# TensorFlow's profiler, which measured SpineNet, counts the weight-decay term as well: three
# operations a parameter, so one and a half multiply-adds. The zoo's 3.5, 5.7, 9.1 and 19.1 have
# none of it.
PROFILED_DECAY = 1.5
SIZES = {
    '49S': (9_218_344, 129 * 1001, 1.54),
    '49': (22_088_745, 257 * 1001, 3.52),
    '96': (36_520_233, 257 * 1001, 5.78),
    '143': (60_504_873, 257 * 1001, 9.18),
    '190': (127_101_177, 513 * 1001, 19.29),
    50: (25_559_081, 2049 * 1001, 4.1),
    101: (44_551_209, 2049 * 1001, 7.8),
    152: (60_194_857, 2049 * 1001, 11.5),
}


def classifier(**changes):
    return build_model(model_config(**changes), task='classification', axis_name=None)


def variable_shapes(model, size=(64, 64)):
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


SMALL = ('49S', '49', 50)  # the others take seconds each to trace


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[] if n in SMALL else pytest.mark.slow) for n in SIZES]
)
def test_size(name):
    resnet = {'backbone': 'resnet_fpn', 'depth': name}
    changes = SCALING[name]._asdict() if name in SCALING else {**resnet, 'width': 1.0}
    costs = model_cost(classifier(**changes, num_classes=1001), (224, 224))
    total = sum(costs.values(), Cost())
    everything, head, billions = SIZES[name]
    assert total.parameters == everything
    assert costs['head'].parameters == head
    counted = total.multiply_adds + (PROFILED_DECAY * everything if name in SCALING else 0)
    assert counted / 1e9 == pytest.approx(billions, rel=0.01)
    assert set(costs) == {'backbone', 'head'}


def test_no_model_is_missing():
    assert set(SIZES) == {*SCALING, *DEPTHS}


def nearest(x, size):
    """Plain loops: pixel (i, j) is old pixel (floor(i * old / new), ...)."""
    out = np.empty((len(x), *size, x.shape[-1]), x.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            out[:, i, j] = x[:, i * x.shape[1] // size[0], j * x.shape[2] // size[1]]
    return out


def test_levels_are_added_from_the_top_down():
    rng = np.random.default_rng(0)
    sides = {3: (28, 13), 4: (14, 7), 5: (7, 4), 6: (4, 2), 7: (2, 1)}
    pyramid = {level: rng.normal(size=(2, *side, 3)) for level, side in sides.items()}
    want = pyramid[7]
    for level in (6, 5, 4, 3):
        want = nearest(want, sides[level]) + pyramid[level]
    got = aggregate({level: jnp.asarray(x, jnp.float32) for level, x in pyramid.items()})
    np.testing.assert_allclose(got, want / 5, rtol=1e-5, atol=1e-6)


def test_levels_by_hand():
    # 4 to 7 takes old pixels 0 0 1 1 2 2 3; with ones added and halved, 1.5 for a 2.
    top = jnp.arange(4.0).reshape(1, 1, 4, 1)
    out = aggregate({5: jnp.ones((1, 1, 7, 1)), 6: top})
    assert out.ravel().tolist() == [0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0]
    assert aggregate({5: top}).ravel().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_head_starts_small_and_ends_in_float32():
    model = classifier(dtype='bfloat16', num_classes=1001)
    images = jax.ShapeDtypeStruct((2, 224, 160, 3), jnp.float32)
    run = lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0]  # noqa: E731
    out = jax.eval_shape(run, images)
    assert (out.shape, out.dtype) == ((2, 1001), jnp.float32)


@pytest.mark.parametrize('backbone', ['spinenet', 'resnet_fpn'])
def test_backbone_moves_to_a_detector_and_back(backbone):
    config = model_config(backbone=backbone)
    models = [
        build_model(config, task=task, axis_name=None) for task in ('classification', 'detection')
    ]
    trees = [
        jax.tree.map(lambda s, v=value: np.full(s.shape, v, s.dtype), variable_shapes(model))
        for value, model in enumerate(models)
    ]
    for source, target in (trees, trees[::-1]):
        filled, report = transfer(target, source, 'there')
        part = 'backbone' if backbone == 'spinenet' else 'backbone/resnet'
        wanted = [p for p in [*report.loaded, *report.missing] if f'/{part}/' in p]
        assert wanted and set(report.loaded) == set(wanted)
        assert not report.mismatched
        moved, old = filled['params']['backbone'], source['params']['backbone']
        if backbone == 'resnet_fpn':
            moved, old = moved['resnet'], old['resnet']
        jax.tree.map(np.testing.assert_array_equal, moved, old)


# --- An independent reference of the whole forward pass, in numpy, as the TF1 release has it ---

# (level, kind, parents), the stem's two blocks being 0 and 1; the last five are outputs.
BLOCKS = [
    (2, 'B', 0, 1), (4, 'R', 0, 1), (3, 'B', 2, 3), (4, 'B', 2, 4), (6, 'R', 3, 5),
    (4, 'B', 3, 5), (5, 'R', 6, 7), (7, 'R', 6, 8), (5, 'B', 8, 9), (5, 'B', 8, 10),
    (4, 'B', 5, 10), (3, 'B', 4, 10), (5, 'B', 7, 12), (7, 'B', 5, 14), (6, 'B', 12, 14),
]  # fmt: skip
OUTPUTS = {4: 12, 3: 13, 5: 14, 7: 15, 6: 16}


class Reference:
    """float64 numpy, one image at a time, weights taken by path."""

    def __init__(self, variables):
        self.params, self.stats = variables['params'], variables['batch_stats']['backbone']

    def conv(self, x, name, stride=1):
        """Stride 1 pads 'same'; stride 2 pads (k - 1) / 2 on both sides."""
        kernel = self.at(name)['kernel'].astype(np.float64)
        size = kernel.shape[0]
        x = np.pad(x, [((size - 1) // 2,) * 2] * 2 + [(0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))
        return np.tensordot(windows[::stride, ::stride], kernel, ([3, 4, 2], [0, 1, 2]))

    def norm(self, x, name):
        p, stats = self.at(name), self.at(name, self.stats)
        return (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * p['scale'] + p['bias']

    def at(self, name, tree=None):
        tree = self.params['backbone'] if tree is None else tree
        for part in name.split('/'):
            tree = tree[part]
        return tree

    @staticmethod
    def relu(x):
        return np.maximum(x, 0)

    @staticmethod
    def pool(x, size, stride):
        """TensorFlow's SAME: the odd padding pixel comes last."""
        pads = []
        for n in x.shape[:2]:
            need = max((-(-n // stride) - 1) * stride + size - n, 0)
            pads.append((need // 2, need - need // 2))
        x = np.pad(x, [*pads, (0, 0)], constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))
        return windows[::stride, ::stride].max((3, 4))

    def block(self, x, name, kind):
        shortcut = x
        if name == 'stem_block0_0':
            shortcut = self.norm(self.conv(x, f'{name}/shortcut'), f'{name}/norm_shortcut')
        count = 3 if kind == 'B' else 2
        for i in range(1, count + 1):
            x = self.norm(self.conv(x, f'{name}/conv{i}'), f'{name}/norm{i}')
            x = self.relu(x) if i < count else x
        return self.relu(x + shortcut)

    def edge(self, x, name, target):
        """1x1, then up by repetition or down by a convolution and at most one pool, then 1x1."""
        width = x.shape[1]
        x = self.relu(self.norm(self.conv(x, f'{name}/conv_in'), f'{name}/norm_in'))
        if width > target:
            x = self.conv(x, f'{name}/conv_down', 2)
            x = self.relu(self.norm(x, f'{name}/norm_down'))
            if width // target > 2:
                stride = width // target // 2 if width % target == 0 else 2
                x = self.pool(x, 3 if width / target <= 4 else 5, stride)
        if x.shape[1] != target:
            x = nearest(x[None], (target, target))[0]
        return self.norm(self.conv(x, f'{name}/conv_out'), f'{name}/norm_out')

    def __call__(self, image):
        x = self.relu(self.norm(self.conv(image, 'stem_conv', 2), 'stem_norm'))
        nodes = [self.block(self.pool(x, 3, 2), 'stem_block0_0', 'B')]
        nodes.append(self.block(nodes[0], 'stem_block1_0', 'B'))
        for index, (level, kind, *parents) in enumerate(BLOCKS, 2):
            side = -(-len(image) // 2**level)
            x = sum(
                self.edge(nodes[parent], f'resample{index}_{position}', side)
                for position, parent in enumerate(parents)
            )
            if index == 14:  # block 11, which nothing else uses
                x = x + nodes[11]
            nodes.append(self.block(self.relu(x), f'block{index}_0', kind))
        total = 0.0
        for level in (7, 6, 5, 4, 3):
            x = self.conv(nodes[OUTPUTS[level]], f'endpoint{level}')
            x = self.relu(self.norm(x, f'endpoint_norm{level}'))
            total = x + (nearest(total[None], x.shape[:2])[0] if level < 7 else 0.0)
        head = self.params['head']
        return (total / 5).mean((0, 1)) @ head['kernel'] + head['bias']


def test_forward_pass_is_tf1s():
    """At 224: maps of 56, 28, 14, 7, 4 and 2; two edges and one level have factors like 7/4."""
    model = classifier(padding='symmetric', pooling='single', bn_epsilon=1e-5, num_classes=11)
    images, variables = random_images((224, 224)), random_variables(model, (224, 224))
    got = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    want = Reference(variables)(images[0].astype(np.float64))
    assert np.std(want) > 0.01
    np.testing.assert_allclose(got[0], want, rtol=2e-4, atol=2e-4 * np.abs(want).max())
