"""Whole models compute the same for every kind of device, and in programs written for none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from spinenet_jax.lowering.policy import CPU, PLAIN, TPU, TPU_V3
from spinenet_jax.models.build import build_model
from spinenet_jax.models.fpn import ResNetFPN
from spinenet_jax.models.graph import Block, Graph
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.resnet import ResNet
from spinenet_jax.models.resnet_sizes import DEPTHS
from spinenet_jax.models.retinanet import RetinaNet
from spinenet_jax.models.spinenet import SpineNet
from tests.narrow import model_config, random_images, random_variables

# Edges into and out of level 2, up by a fractional factor, down by three levels, and a merge.
GRAPH = Graph(
    'small',
    (
        Block(5, 'residual', (0, 1)),
        Block(2, 'residual', (2, 0)),
        Block(3, 'bottleneck', (3, 2), True),
        Block(4, 'residual', (3, 4), True),
    ),
)


def spinenet(policy):
    layers = Layers(policy=policy, padding='symmetric')
    options = {'endpoint_channels': 8, 'levels': (3, 4), 'pooling': 'single'}
    backbone = SpineNet(GRAPH, layers, 0.125, **options)
    return RetinaNet(backbone, layers, 3, anchors_per_cell=1, head_channels=8, head_convs=1)


def resnet(policy):
    layers = Layers(policy=policy, activation='swish')
    backbone = ResNetFPN(ResNet(50, layers, width=0.125), layers, channels=8, levels=(3, 6))
    return RetinaNet(backbone, layers, 3, anchors_per_cell=1, head_channels=8, head_convs=1)


@pytest.mark.parametrize(
    ('build', 'size', 'policies'),
    [(spinenet, (48, 80), (CPU, TPU_V3, TPU)), (resnet, (46, 64), (TPU,))],
)
def test_outputs_and_statistics_in_training(build, size, policies, monkeypatch):
    """Gradients follow: tests/lowering compares those of every formulation that has its own."""
    monkeypatch.setitem(DEPTHS, 50, (1, 1, 1, 1))
    images, results = random_images(size, batch=2), []
    variables = random_variables(build(PLAIN), size)
    for policy in (PLAIN, *policies):
        model = build(policy)

        def forward(variables, model=model):
            return model.apply(variables, images, train=True, mutable=['batch_stats'])

        # Not optimised, it is compiled sooner.
        run = jax.jit(forward, compiler_options={'xla_backend_optimization_level': 0})
        results.append(run(variables))
    for other in results[1:]:
        for want, got in zip(*map(jax.tree.leaves, (results[0], other)), strict=True):
            atol = 2e-4 * float(jnp.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=2e-3, atol=atol)


@pytest.mark.parametrize('task', ['detection', 'classification'])
def test_exports_with_any_number_of_images(task):
    model = build_model(model_config(), task=task, axis_name=None)
    variables = random_variables(model, (64, 64))
    (batch,) = export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct((batch, 64, 64, 3), jnp.float32)
    exported = export.export(jax.jit(lambda x: model.apply(variables, x, train=False)))(images)
    assert {str(out.shape[0]) for out in exported.out_avals} == {'batch'}
