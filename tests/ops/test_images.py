"""Normalisation and its padding."""

import numpy as np

from spinenet_jax.ops.images import normalise


def test_padding_is_zero_and_values_are_those_of_imagenet():
    image = np.full((1, 3, 4, 3), 255, np.uint8)
    out = np.asarray(normalise(image, np.array([[2, 3]])))
    # (1 - 0.485) / 0.229 and so on.
    np.testing.assert_allclose(out[0, 1, 2], [2.2489083, 2.4285715, 2.64], rtol=1e-6)
    assert not out[0, 2].any() and not out[0, :, 3].any()
