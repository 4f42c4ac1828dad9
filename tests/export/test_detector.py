"""The exported function against prediction on image files and the placing of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinenet_jax.data import transforms
from spinenet_jax.export.detector import Request, build_function, fit
from spinenet_jax.lowering.policy import PLAIN
from spinenet_jax.tasks.records import detections_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('size', [(40, 50), (200, 150), (64, 96), (1, 1), (30, 1000), (128, 192)])
def test_images_are_placed_as_for_evaluation(size):
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    placement = transforms.place(size, (64, 96), transforms.Draws())
    expected = transforms.place_image(image, placement, (64, 96)).astype(int)
    placed, content, scale = fit(jnp.asarray(image[None]), (64, 96))
    assert tuple(content) == placement.content_size
    np.testing.assert_allclose(scale, placement.scale, rtol=1e-6)
    height, width = placement.content_size
    difference = np.asarray(placed[0])[:height, :width] - expected[:height, :width]
    assert np.abs(difference).max(initial=0) <= 1.0


def test_boxes_are_those_of_prediction_in_pixels_of_the_image(trained):
    """The input's own size apart: 32x48 is enlarged to 64x96, so that boxes must be halved."""
    image = np.kron(RNG.integers(0, 256, (8, 12, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    found = jax.jit(build_function(trained, PLAIN, Request(1, None)))(image[None])
    row = trained.task.rows.eval({}, image)
    exactly = jax.jit(build_function(trained, PLAIN, Request(1, None)))
    at_input = {k: np.asarray(v[0]) for k, v in exactly(row['image'][None]).items()}
    expected = detections_of({**at_input, **row})
    assert len(expected.scores) > 3
    keep = np.asarray(found['valid'][0])
    np.testing.assert_allclose(found['scores'][0][keep][:3], expected.scores[:3], atol=0.02)
    np.testing.assert_allclose(found['boxes'][0][keep][:3], expected.boxes[:3], atol=0.5)
    assert np.asarray(found['boxes']).max() <= 48
