"""Anchors against figures measured on the public implementation."""

import numpy as np
import pytest

from spinenet_jax.ops.anchors import pyramid_anchors


@pytest.mark.parametrize(
    ('size', 'count'), [((640, 640), 76725), ((224, 224), 9 * (784 + 196 + 49 + 16 + 4))]
)
def test_count(size, count):
    assert pyramid_anchors(size, 3.0).shape == (count, 4)


def test_first_cell():
    first = pyramid_anchors((640, 640), 3.0)[:9]
    np.testing.assert_allclose(first[0], (-12.9706, -4.4853, 20.9706, 12.4853), atol=1e-4)
    np.testing.assert_allclose(first[1], (-8, -8, 16, 16), atol=1e-4)
    np.testing.assert_allclose(first[2], (-4.4853, -12.9706, 12.4853, 20.9706), atol=1e-4)
    np.testing.assert_allclose(first[4, [0, 3]], (-11.1191, 19.1191), atol=1e-4)
    np.testing.assert_allclose(first[7, [0, 3]], (-15.0488, 23.0488), atol=1e-4)


def test_order_is_level_row_column():
    anchors = pyramid_anchors((128, 256), 4.0)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    np.testing.assert_allclose(centres[9], (4, 12))  # second column of level 3
    np.testing.assert_allclose(centres[9 * 32], (12, 4))  # second row
    np.testing.assert_allclose(centres[9 * 16 * 32], (8, 8))  # first of level 4


def test_one_scale_for_region_proposals():
    anchors = pyramid_anchors((640, 640), 3.0, scales=(1,), ratios=(1, 2, 0.5))
    assert anchors.shape == (25575, 4)
    nine = pyramid_anchors((640, 640), 3.0)
    np.testing.assert_array_equal(anchors[:3], nine[[1, 2, 0]])
    np.testing.assert_array_equal(anchors[-1], nine[-9])
