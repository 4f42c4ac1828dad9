"""ROIAlign against a loop in numpy, by hand, and against TF1's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.ops.roi_align import FORMULATIONS, level_of, roi_align
from tests import tf1

align = jax.jit(roi_align, static_argnames=('min_level', 'size', 'formulation'))
MIN_LEVEL = 3
IMAGE = (1024, 640)


@pytest.fixture(scope='module')
def case():
    """Maps of three levels of a tall image, and regions of all kinds."""
    rng = np.random.default_rng(0)
    shapes = [(IMAGE[0] >> level, IMAGE[1] >> level) for level in range(3, 6)]
    maps = [rng.normal(size=(2, *shape, 3)).astype(np.float32) for shape in shapes]
    corner = rng.uniform(0, 500, (2, 12, 2))
    inside = np.concatenate([corner, corner + np.exp(rng.uniform(1, 6, (2, 12, 2)))], -1)
    special = [
        (0, 0, *IMAGE),  # everything
        (100, 40, 100, 40),  # no area
        (5, 30, 5, 600),  # a line
        (IMAGE[0] - 1, IMAGE[1] - 1, *IMAGE),  # the last pixel
        (IMAGE[0] - 30, 0, IMAGE[0] + 40, IMAGE[1] + 90),  # beyond the far border
        (-40, -25, 10, 20),  # beyond the near one
    ]
    regions = np.concatenate([inside, np.tile(special, (2, 1, 1))], 1).astype(np.float32)
    return maps, regions


def reference(maps, regions, size):
    """A sample at a time, in float64."""
    out = np.zeros((*regions.shape[:2], size, size, maps[0].shape[-1]))
    for b, r in np.ndindex(*regions.shape[:2]):
        y0, x0, y1, x1 = regions[b, r].astype(float)
        side = np.sqrt((y1 - y0) * (x1 - x0))
        level = MIN_LEVEL
        while level < MIN_LEVEL + len(maps) - 1 and side >= 224 * 2.0 ** (level + 1 - 4):
            level += 1
        table = maps[level - MIN_LEVEL][b]
        for i, j in np.ndindex(size, size):
            y = (y0 + (i + 0.5) * (y1 - y0) / size) / 2**level
            x = (x0 + (j + 0.5) * (x1 - x0) / size) / 2**level
            row, column = int(max(np.floor(y), 0)), int(max(np.floor(x), 0))
            row, column = min(row, table.shape[0] - 1), min(column, table.shape[1] - 1)
            below, right = min(row + 1, table.shape[0] - 1), min(column + 1, table.shape[1] - 1)
            upper = table[row, column] + (x - column) * (table[row, right] - table[row, column])
            lower = table[below, column] + (x - column) * (
                table[below, right] - table[below, column]
            )
            out[b, r, i, j] = upper + (y - row) * (lower - upper)
    return out


@pytest.mark.parametrize('formulation', FORMULATIONS)
@pytest.mark.parametrize('size', [1, 7])
def test_equals_reference(case, size, formulation):
    maps, regions = case
    ours = align(maps, regions, min_level=MIN_LEVEL, size=size, formulation=formulation)
    np.testing.assert_allclose(ours, reference(maps, regions, size), atol=3e-4)


@pytest.mark.parametrize('formulation', FORMULATIONS)
def test_by_hand(formulation):
    # On level 3, a ramp along x: the feature at index i is i, so that a sample at pixel x gives
    # x / 8. The region 16..48 in two bins is sampled at 24 and 40 pixels: 3 and 5. Rows alike.
    ramp = np.broadcast_to(np.arange(10.0)[None, None, :, None], (1, 10, 10, 1))
    maps = [np.concatenate([ramp, ramp.swapaxes(1, 2)], -1).astype(np.float32)]
    region = np.array([[[0, 16, 8, 48]]], np.float32)
    out = align(maps, region, min_level=3, size=2, formulation=formulation)[0, 0]
    np.testing.assert_allclose(out[..., 0], [[3, 5], [3, 5]], atol=1e-6)
    np.testing.assert_allclose(out[..., 1], [[0.25, 0.25], [0.75, 0.75]], atol=1e-6)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('formulation', FORMULATIONS)
def test_equals_tf1(size, formulation):
    stored = tf1.arrays('ops')
    maps = [x.astype(np.float32) for x in tf1.levels(stored, 'roi_features_in')]
    regions = stored['roi_boxes']
    np.testing.assert_array_equal(level_of(regions[0], 3, 7), stored['roi_levels'])
    ours = align(maps, regions, min_level=3, size=size, formulation=formulation)
    np.testing.assert_allclose(ours, stored[f'roi_align_{size}'], atol=2e-4)


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade'])
def test_equals_tf1_network(name):
    stored = tf1.arrays(name)
    maps = tf1.levels(stored, 'features')
    rois = stored['rpn_rois' if name == 'mask_rcnn' else 'stage_rois/0']
    batch, count = stored['roi_features'].shape[:2]
    ours = align([m[:batch] for m in maps], rois[:batch, :count], min_level=3, size=7)
    np.testing.assert_allclose(ours, stored['roi_features'], atol=2e-5)
    ours = align(maps, stored['detection_boxes'][:, :2], min_level=3, size=14)
    np.testing.assert_allclose(ours, stored['mask_roi_features'], atol=2e-5)


def test_gradients_of_both_formulations(case):
    maps, regions = case

    def loss(maps, regions, formulation):
        out = roi_align(maps, regions, MIN_LEVEL, 3, formulation)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    grads = [
        jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(maps, regions, f) for f in FORMULATIONS
    ]
    for a, b in zip(*(g[0] for g in grads), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, atol=2e-4)
    assert not grads[0][1].any() and not grads[1][1].any()


@pytest.mark.parametrize('formulation', FORMULATIONS)
def test_bfloat16_is_near(case, formulation):
    maps, regions = case
    low = [jnp.asarray(m, jnp.bfloat16) for m in maps]
    ours = align(low, regions[:, :12], min_level=MIN_LEVEL, size=3, formulation=formulation)
    assert ours.dtype == jnp.bfloat16
    want = align(maps, regions[:, :12], min_level=MIN_LEVEL, size=3)
    np.testing.assert_allclose(ours.astype(np.float32), want, atol=0.06)
