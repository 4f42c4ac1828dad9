"""Mask R-CNN's parts: paths of parameters, crops, the transposed convolution, formulations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from spinenet_jax.errors import UserError
from spinenet_jax.lowering import operations
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.lowering.policy import CPU, PLAIN, TPU_V3
from spinenet_jax.models.build import build_model
from spinenet_jax.ops.roi_align import roi_align
from tests.narrow import model_config, random_images, random_variables

BOX_HEAD = {'conv0', 'norm0', 'hidden', 'norm_hidden', 'class', 'box'}


def shapes_of(**changes):
    """{path: shape} of the parameters of a narrow model."""
    model = build_model(model_config(**changes), task='instance_segmentation', axis_name=None)
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return {path: x.shape for path, x in flatten_dict(tree['params'], sep='/').items()}


def test_parameter_paths_are_pinned():
    shapes = shapes_of()
    parts = {tuple(path.split('/')[:2]) for path in shapes if not path.startswith('backbone')}
    assert {part for head, part in parts if head == 'box_heads_0'} == BOX_HEAD
    assert {part for head, part in parts if head == 'mask_head'} == {
        *('conv0', 'norm0', 'upsample', 'norm_upsample', 'predict')
    }
    assert {part for head, part in parts if head == 'proposal_head'} == {
        *('conv0', 'score', 'box'),
        *(f'norm0_{level}' for level in range(3, 8)),
    }
    assert shapes['box_heads_0/hidden/kernel'] == (7 * 7 * 16, 32)
    assert shapes['box_heads_0/box/kernel'] == (32, 4 * 5)
    assert shapes['mask_head/upsample/kernel'] == (2, 2, 16, 16)


def test_stages_of_a_cascade_share_boxes_among_classes():
    shapes = shapes_of(cascade=True)
    heads = {path.split('/')[0] for path in shapes if path.startswith('box_heads')}
    assert heads == {'box_heads_0', 'box_heads_1', 'box_heads_2'}
    assert shapes['box_heads_2/box/kernel'] == (32, 4)
    assert shapes['box_heads_2/class/kernel'] == (32, 5)


@pytest.mark.parametrize('policy', [PLAIN, CPU])
def test_doubling_equals_a_transposed_convolution(policy):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4, 5), (2, 2, 5, 6)))
    ours = operations.doubling_conv(FeatureMap(x, 3, policy), kernel)
    # JAX's correlates the spread map with the kernel, which TensorFlow's definition turns around.
    theirs = lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), 'VALID')
    np.testing.assert_allclose(ours.data, theirs, rtol=1e-5, atol=1e-5)
    # By hand: position (i, j) of the square below (1, 2).
    np.testing.assert_allclose(ours.data[1, 3, 4], x[1, 1, 2] @ kernel[1, 0], rtol=1e-5)
    assert ours.size == (6, 8)


@pytest.mark.parametrize('policy', [PLAIN, TPU_V3])
def test_crops_are_those_of_roi_align(policy):
    """An image's regions one after the other, whatever the formulation and the strips."""
    rng = np.random.default_rng(1)
    maps = {
        level: rng.normal(size=(2, 32 >> level, 64 >> level, 3)).astype(np.float32)
        for level in (2, 3)
    }
    regions = np.float32([[[0, 0, 32, 64], [3, 5, 9, 9]], [[1, 1, 2, 30], [0, 0, 0, 0]]])
    pyramid = {
        level: FeatureMap(x, level, dataclasses.replace(policy, deepest_strips=2)).settled()
        for level, x in maps.items()
    }
    crops = operations.crop(pyramid, regions, 4)
    want = roi_align([maps[2], maps[3]], regions, 2, 4)
    np.testing.assert_allclose(crops.whole(), want.reshape(4, 4, 4, 3), rtol=1e-5, atol=1e-5)


REGIONS = np.float32([[[0, 0, 96, 160], [3, 5, 40, 90], [8, 100, 30, 130], [0, 0, 0, 0]]] * 2)


def outputs(policy, dtype):
    """What all heads say of images that are no squares, in float32.

    By the running statistics: a level of one position an image is no more than a sign after
    normalisation by its own.
    """
    config = model_config(dtype=dtype, cascade=True)
    model = build_model(config, task='instance_segmentation', axis_name=None, policy=policy)

    def forward(model, images):
        pyramid = model.features(images, train=False)
        stages = [model.classify(pyramid, REGIONS, stage=n, train=False) for n in range(3)]
        masks = model.masks(pyramid, REGIONS, np.int32([[1, 2, 3, 4]] * 2), train=False)
        return model.propose(pyramid, train=False), stages, masks

    variables = random_variables(model, (96, 160))
    run = jax.jit(
        lambda images: model.apply(variables, images, method=forward),
        compiler_options={'xla_backend_optimization_level': 0},  # is compiled sooner
    )
    found = run(random_images((96, 160), batch=2))
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(found)]


@pytest.mark.slow
def test_the_whole_model_is_the_same_for_every_device_and_type():
    plain = outputs(PLAIN, 'float32')
    for policy in (CPU, TPU_V3):
        for want, got in zip(plain, outputs(policy, 'float32'), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4 * np.abs(want).max())
    for policy in (PLAIN, TPU_V3):
        for want, got in zip(plain, outputs(policy, 'bfloat16'), strict=True):
            assert np.abs(got - want).mean() < 0.05 * np.abs(want).mean() + 1e-3


def test_separable_heads_are_refused():
    with pytest.raises(UserError, match=r'model.separable_heads=True: must be False for masks'):
        shapes_of(separable_heads=True)
