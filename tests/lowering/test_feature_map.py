"""Layouts of feature maps: round trips, sizes, sums, and what each level wants."""

import jax
import numpy as np
import pytest

from spinenet_jax.lowering.feature_map import WHOLE, FeatureMap, Layout
from spinenet_jax.lowering.policy import CPU, PLAIN, TPU, TPU_V3

DATA = np.random.default_rng(0).normal(size=(2, 3, 8, 5)).astype(np.float32)


@pytest.mark.parametrize('strips', [1, 2, 4])
def test_strips_keep_the_map(strips):
    x = FeatureMap(DATA, level=3).to(Layout(strips))
    assert x.data.shape == (2 * strips, 3, 8 // strips, 5)
    assert (x.images, x.size, x.channels) == (2, (3, 8), 5)
    np.testing.assert_array_equal(x.whole(), DATA)
    np.testing.assert_array_equal(x.to(Layout(2)).to(WHOLE).data, DATA)


def test_cells_keep_the_map():
    """An output cell's channels are column, row, channel; strips hold cells of columns."""
    positions = np.arange(16).reshape(1, 2, 8, 1)  # rows 0..7 and 8..15
    data = np.array([[[0, 8, 1, 9], [2, 10, 3, 11]], [[4, 12, 5, 13], [6, 14, 7, 15]]])
    x = FeatureMap(data.reshape(2, 1, 2, 4), level=1, layout=Layout(strips=2, positions=4))
    assert (x.images, x.size, x.channels) == (1, (2, 8), 1)
    np.testing.assert_array_equal(x.whole(), positions)
    np.testing.assert_array_equal(x.to(WHOLE).data, positions)
    with pytest.raises(ValueError, match='only the stem'):
        x.to(WHOLE).to(x.layout)


def test_map_and_with_whole_keep_the_layout():
    x = FeatureMap(DATA, level=3).to(Layout(2))
    np.testing.assert_array_equal(x.map(lambda data: -data).whole(), -DATA)
    y = x.with_whole(DATA[..., :1])
    assert (y.layout, y.channels) == (x.layout, 1)
    np.testing.assert_array_equal(y.whole(), DATA[..., :1])


def test_sum_insists_on_equal_layouts_and_levels():
    x = FeatureMap(DATA, level=3)
    np.testing.assert_array_equal((x + x).data, 2 * DATA)
    for other in (x.to(Layout(2)), FeatureMap(DATA, level=4)):
        with pytest.raises(ValueError, match='do not lie alike'):
            x + other


def test_settled_is_what_the_policy_wants_of_the_level():
    def strips(policy, level, batch=2, width=16):
        data = jax.ShapeDtypeStruct((batch, 4, width, 1), np.float32)
        return jax.eval_shape(lambda d: FeatureMap(d, level, policy).settled(), data).layout.strips

    assert [strips(TPU, level) for level in (2, 3, 7)] == [4, 4, 4]
    assert [strips(TPU_V3, level) for level in (2, 3, 7)] == [4, 1, 1]
    assert [strips(policy, level) for policy in (PLAIN, CPU) for level in (0, 2)] == [1] * 4
    assert [strips(TPU, 3, width=width) for width in (16, 12, 5)] == [4, 2, 1]
    assert [strips(TPU, 3, batch=batch) for batch in (1, 4, 8)] == [8, 2, 1]


def test_passes_through_transformations_as_a_pytree():
    x = FeatureMap(DATA, level=3, policy=TPU).to(Layout(2))
    y = jax.jit(lambda x: x.map(lambda data: 2 * data))(x)
    assert (y.level, y.policy, y.layout) == (3, TPU, Layout(2))
    gradient = jax.grad(lambda x: (x + x).whole().sum())(x)
    np.testing.assert_array_equal(gradient.whole(), np.full_like(DATA, 2))
