"""Operations on feature maps: every policy gives the plain result, each by its own formulation."""

import jax
import numpy as np
import pytest

from spinenet_jax.lowering import (
    cells,
    convolution_cpu,
    operations,
    plain,
    pointwise,
    pooling,
    strided_gradient,
)
from spinenet_jax.lowering.feature_map import WHOLE, FeatureMap, Layout
from spinenet_jax.lowering.policy import CPU, PLAIN, TPU, TPU_V3
from spinenet_jax.ops import resample

ONE = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def formulations(policy, shape, size, stride=1, level=3, settle=False, groups=1):
    """Name of the formulation that a convolution gets, and the layout of its result."""

    def trace(data):
        x = FeatureMap(data, level, policy)
        x = x.settled() if settle else x
        chosen = operations._conv_formulation(x, size, stride, 1, groups, features=x.channels)
        function = getattr(chosen[0], 'func', chosen[0])
        found.append((function.__module__.rpartition('.')[2], chosen[1]))

    found = []
    jax.eval_shape(trace, jax.ShapeDtypeStruct(shape, np.float32))
    return found[0]


@pytest.mark.parametrize(
    ('policy', 'small', 'large', 'strided', 'threes', 'stem'),
    [
        (PLAIN, 'plain', 'plain', 'plain', 'plain', 'plain'),
        (CPU, 'pointwise', 'pointwise', 'convolution_cpu', 'convolution_cpu', 'plain'),
        (TPU_V3, 'pointwise', 'plain', 'strided_gradient', 'plain', 'cells'),
        (TPU, 'pointwise', 'plain', 'strided_gradient', 'plain', 'cells'),
    ],
)
def test_formulation_follows_the_policy(policy, small, large, strided, threes, stem):
    assert formulations(policy, (7, 6, 6, 4), 1)[0] == small
    assert formulations(policy, (8, 6, 6, 4), 1)[0] == large
    assert formulations(policy, (2, 6, 6, 4), 3, 2)[0] == strided
    assert formulations(policy, (2, 6, 6, 4), 3)[0] == threes
    assert formulations(policy, (2, 6, 6, 4), 1, 2)[0] == 'plain'
    assert formulations(policy, (2, 6, 6, 4), 3, 2, groups=2)[0] == 'plain'
    assert formulations(policy, (2, 16, 32, 3), 7, 2, level=0)[0] == stem


def test_maps_in_strips_are_convolved_as_such():
    for size, stride in ((1, 1), (3, 1), (3, 2)):
        wide = (2, 4, 16, 4)
        assert formulations(TPU, wide, size, stride, settle=True) == ('strips', Layout(4))
        assert formulations(TPU_V3, wide, size, stride, settle=True)[1] == WHOLE


def test_stem_is_on_cells_of_whole_images_only():
    assert formulations(TPU, (2, 8, 16, 3), 7, 2, level=0) == ('cells', Layout(2, 4))
    for size in ((9, 16), (8, 18)):
        assert formulations(TPU, (2, *size, 3), 7, 2, level=0) == ('strided_gradient', WHOLE)


@pytest.mark.parametrize('padding', ['same', 'symmetric'])
@pytest.mark.parametrize(
    ('size', 'stride', 'options'),
    [(1, 1, {}), (3, 1, {}), (3, 2, {}), (3, 1, {'groups': 4}), (3, 1, {'dilation': 2})],
)
def test_conv_is_the_same_for_every_policy(size, stride, options, padding):
    data, kernel = random(2, 6, 16, 4), random(size, size, 4 // options.get('groups', 1), 8, seed=1)
    pads = plain.pads_of((6, 16), size, stride, padding, options.get('dilation', 1))
    want = plain.conv(data, kernel, stride=stride, pads=pads, **options)
    for policy in (PLAIN, CPU, TPU_V3, TPU):
        x = FeatureMap(data, 3, policy).settled()
        got = operations.conv(x, kernel, stride=stride, padding=padding, **options)
        assert (got.level, got.size, got.channels) == (2 + stride, want.shape[1:3], 8)
        np.testing.assert_allclose(got.whole(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('size', [(8, 16), (9, 16)])
def test_stem_is_the_same_for_every_policy(size):
    images, kernel = random(1, *size, 3), random(7, 7, 3, 4, seed=1)
    results = []
    for policy in (PLAIN, CPU, TPU_V3, TPU):
        x = operations.conv(FeatureMap(images, 0, policy), kernel, stride=2)
        three = operations.conv(x, random(3, 3, 4, 4, seed=2))  # a stem need not go on as ours does
        y = operations.max_pool(x, 3, 2)
        assert (x.level, y.level, y.size) == (1, 2, (-(-size[0] // 4), 4))
        results.append((x.whole(), y.whole(), three.whole()))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('window', 'stride', 'level'), [(3, 2, 4), (5, 4, 5), (3, 3, 5)])
def test_max_pool_is_the_same_for_every_policy(window, stride, level):
    data = random(2, 6, 16, 3)
    want = pooling.plain_max_pool(data, window, stride)
    for policy in (PLAIN, CPU, TPU_V3, TPU):
        got = operations.max_pool(FeatureMap(data, 3, policy).settled(), window, stride)
        assert got.level == level
        np.testing.assert_array_equal(got.whole(), want)


@pytest.mark.parametrize('size', [(6, 16), (12, 32), (24, 64), (7, 20), (3, 8), (5, 30)])
def test_resize_is_the_same_for_every_policy_and_settles(size):
    data = random(2, 6, 16, 3)
    for policy in (PLAIN, CPU, TPU_V3, TPU):
        got = operations.resize(FeatureMap(data, 3, policy).settled(), size, 2)
        np.testing.assert_array_equal(got.whole(), resample.nearest(data, size))
        assert got.level == 2 and got.layout == got.settled().layout


def test_resize_by_a_whole_factor_stays_in_strips():
    x = FeatureMap(random(2, 6, 16, 3), 3, TPU).settled()
    traced = jax.make_jaxpr(lambda x: operations.resize(x, (12, 32), 2))(x)
    assert 'transpose' not in {e.primitive.name for e in traced.eqns}


@pytest.mark.parametrize(
    ('formulation', 'size', 'options'),
    [
        (pointwise.conv, 1, {'pads': NONE}),
        (strided_gradient.conv, 3, {'pads': ONE, 'stride': 2}),
        (convolution_cpu.conv, 3, {'pads': ONE}),
        (cells.conv, 7, {'pads': ((2, 3), (2, 3)), 'strips': 1}),
    ],
)
def test_formulations_refuse_what_they_cannot_do(formulation, size, options):
    x, kernel = random(2, 8, 8, 4), random(size, size, 4, 6)
    formulation(x, kernel, **options)
    wrong = [{'groups': 2}, {'pads': ((0, 3), (1, 1))}]
    wrong += [{'dilation': 2}] if size > 1 else []
    wrong += [{'stride': 3}] if formulation is not convolution_cpu.conv else []
    for change in wrong:
        with pytest.raises(ValueError):
            formulation(x, kernel, **{**options, **change})
    with pytest.raises(ValueError):
        formulation(x, random(size + 1, size + 1, 4, 6), **options)
