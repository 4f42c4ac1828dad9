"""Box arithmetic by hand."""

import jax
import numpy as np
import pytest

from spinenet_jax.ops import boxes
from tests import tf1


def test_iou_by_hand():
    # 10x10 and 10x10 shifted by (0, 5): 50 / 150. Disjoint: 0. Empty against anything: 0.
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    b = np.array([[0, 5, 10, 15], [20, 20, 30, 30], [5, 5, 5, 5]], np.float32)
    np.testing.assert_allclose(boxes.iou(a, b), [[1 / 3, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_area_of_swapped_edges_is_zero():
    np.testing.assert_array_equal(boxes.area(np.array([[4, 0, 0, 4], [0, 0, 2, 3.0]])), [0, 6])


def test_encode_by_hand():
    # Anchor centre (8, 8), sides 16; box centre (10, 9), sides (8, 32).
    code = boxes.encode(np.array([6, -7, 14, 25.0]), np.array([0, 0, 16, 16.0]))
    np.testing.assert_allclose(code, [2 / 16, 1 / 16, -np.log(2), np.log(2)], rtol=1e-6)


def test_decode_inverts_encode_and_clamps():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (20, 2))
    box = np.concatenate([corner, corner + rng.uniform(1, 50, (20, 2))], 1).astype(np.float32)
    np.testing.assert_allclose(boxes.decode(boxes.encode(box, box[::-1]), box[::-1]), box, 1e-4)
    huge = boxes.decode(np.array([0, 0, 50.0, 50.0]), np.array([0, 0, 16.0, 16.0]))
    np.testing.assert_allclose(huge[2:] - huge[:2], [1000, 1000], rtol=1e-5)  # 62.5 * 16


def test_clip():
    np.testing.assert_array_equal(
        boxes.clip(np.array([-1, 5, 30, 70], np.float32), (20, 60)), np.array([0, 5, 20, 60])
    )


def test_gradient_of_empty_boxes_is_finite():
    grad = jax.grad(lambda b: boxes.iou(b, b).sum() + boxes.encode(b, b + 1).sum())
    assert np.isfinite(grad(np.zeros((2, 4), np.float32))).all()


def test_weights_and_inclusive_edges_by_hand():
    # TF1's sides are one longer: the anchor 0..15 is 16 long with centre 8, the box 2..9 is 8 long
    # with centre 6: offset -2 / 16, ratio 1/2. Weights 10 and 5 multiply.
    box, anchor = np.array([2, 2, 9, 9.0]), np.array([0, 0, 15, 15.0])
    want = [-1.25, -1.25, -5 * np.log(2), -5 * np.log(2)]
    code = boxes.encode(box, anchor, (10, 10, 5, 5), inclusive=True)
    np.testing.assert_allclose(code, want, rtol=1e-6)
    back = boxes.decode(code, anchor, (10, 10, 5, 5), inclusive=True)
    np.testing.assert_allclose(back, box, rtol=1e-5)
    clipped = boxes.clip(np.array([-1, 5, 30, 70], np.float32), (20, 60), inclusive=True)
    np.testing.assert_array_equal(clipped, [0, 5, 19, 59])


@pytest.mark.parametrize('name', ['unit', '10_10_5_5'])
def test_equals_tf1(name):
    stored = tf1.arrays('ops')
    weights = boxes.UNIT_WEIGHTS if name == 'unit' else (10, 10, 5, 5)
    anchors = stored['coder_anchors']
    decoded = boxes.decode(stored['coder_codes'], anchors, weights, inclusive=True)
    np.testing.assert_allclose(decoded, stored[f'coder_decoded/{name}'], 1e-6, 1e-5)
    encoded = boxes.encode(stored['coder_boxes'], anchors, weights, inclusive=True)
    np.testing.assert_allclose(encoded, stored[f'coder_encoded/{name}'], 1e-6, 1e-6)
    if name == 'unit':
        clipped = boxes.clip(decoded, (60, 80), inclusive=True)
        np.testing.assert_allclose(clipped, stored['coder_clipped'], 1e-6, 1e-5)
