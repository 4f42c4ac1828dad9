"""Placement of images and boxes in the network's input."""

import numpy as np
import pytest

from spinenet_jax.data import transforms
from spinenet_jax.data.transforms import Draws, place, place_boxes, place_image


def test_scale_is_relative_to_the_output():
    # 480x640 into 640x640 at 1.5: S = 960x960, ratio min(960/480, 960/640) = 1.5 -> 720x960;
    # room (80, 320) times draws (0.5, 0.25) -> offset (40, 80); all 640x640 are seen.
    placement = place((480, 640), (640, 640), Draws(scale=1.5, offset_y=0.5, offset_x=0.25))
    assert placement.new_size == (720, 960)
    assert placement.offset == (40, 80)
    assert placement.content_size == (640, 640)
    np.testing.assert_array_equal(placement.scale, np.float32([1.5, 1.5]))


def test_small_scale_sits_top_left():
    placement = place((480, 640), (640, 640), Draws(scale=0.5, offset_y=0.9, offset_x=0.9))
    assert placement.new_size == placement.content_size == (240, 320)
    assert placement.offset == (0, 0)


def test_sizes_round_half_to_even_and_scale_is_per_axis():
    # 5x10 into 9x9: ratio 0.9 -> (4.5, 9) -> 4 and 9, so y is scaled by 4/5 and x by 9/10.
    placement = place((5, 10), (9, 9), Draws())
    assert placement.new_size == (4, 9)
    np.testing.assert_array_equal(placement.scale, np.float32([0.8, 0.9]))


def test_extreme_aspect_keeps_a_pixel():
    placement = place((1, 5000), (64, 64), Draws(scale=0.5))
    assert placement.new_size == (1, 32)


def test_output_may_be_of_any_shape():
    image = np.full((30, 40, 3), 7, np.uint8)
    placement = place((30, 40), (224, 320), Draws())
    assert placement.new_size == (224, 299)
    out = place_image(image, placement, (224, 320))
    assert out.shape == (224, 320, 3)
    assert (out[:, :299] == 7).all() and (out[:, 299:] == 0).all()


def bilinear(image, new_h, new_w):
    """Half-pixel bilinear resize, one output pixel at a time."""
    h, w, _ = image.shape
    out = np.zeros((new_h, new_w, 3))
    for i in range(new_h):
        for j in range(new_w):
            y = min(max((i + 0.5) * h / new_h - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / new_w - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
            low = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + low * (y - y0)
    return out


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('scale', [0.5, 1.0, 2.0, 7.0])
def test_pixels_against_a_loop(scale, flip):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)
    draws = Draws(flip, scale, 0.3, 0.8)
    placement = place((13, 17), (24, 20), draws)
    (y, x), (h, w) = placement.offset, placement.content_size
    source = image[:, ::-1] if flip else image
    want = bilinear(source.astype(float), *placement.new_size)[y : y + h, x : x + w]
    got = place_image(image, placement, (24, 20), flip)
    assert np.abs(got[:h, :w] - want).max() <= 1
    assert got[h:].sum() == 0 and got[:, w:].sum() == 0


def test_large_scale_computes_only_the_window(monkeypatch):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    placement = place((40, 50), (64, 64), Draws(scale=2.5, offset_y=0.7, offset_x=0.2))
    whole = place_image(image, placement, (64, 64)).astype(int)
    monkeypatch.setattr(transforms, '_LARGEST_RESIZE', 1)
    window = place_image(image, placement, (64, 64))
    assert np.abs(whole - window).max() <= 1


def test_very_long_images_are_enlarged_as_others_are():
    """OpenCV's warpAffine refuses sides from 32,767 pixels on."""
    image = np.tile(np.arange(4, dtype=np.uint8)[:, None, None] * 60, (1, 40_000, 3))
    placement = place((4, 40_000), (64, 64), Draws(scale=700.0, offset_x=0.5))
    got = place_image(image, placement, (64, 64))
    want = bilinear(image[:, :9].astype(float), placement.new_size[0], 1)[:64, 0]
    assert np.abs(got[: len(want), 30] - want).max() <= 1


def test_boxes_by_hand():
    # At scale 1.5 with offset (40, 80): 100*1.5-40 = 110, 200*1.5-80 = 220, ...
    placement = place((480, 640), (640, 640), Draws(scale=1.5, offset_y=0.5, offset_x=0.25))
    boxes = np.float32(
        [[100, 200, 150, 240], [0, 0, 20, 640], [400, 500, 480, 640], [0, 480, 480, 640]]
    )
    got, seen = place_boxes(boxes, placement, 640)
    np.testing.assert_array_equal(got[0], [110, 220, 185, 280])
    np.testing.assert_array_equal(got[3], [0, 640, 640, 640])  # begins where the window ends
    np.testing.assert_array_equal(got[2], [560, 640, 640, 640])
    assert seen.tolist() == [True, False, False, False]  # the second ends at y 30 - 40 < 0


def test_boxes_end_at_the_content():
    placement = place((480, 640), (640, 640), Draws())
    got, seen = place_boxes(np.float32([[470, 600, 500, 700]]), placement, 640)
    np.testing.assert_array_equal(got, [[470, 600, 480, 640]])
    assert seen.all()


def test_flip_mirrors_boxes_with_the_pixels():
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:9, 3:12] = 255
    draws = Draws(flip=True, scale=1.0)
    placement = place((20, 30), (20, 30), draws)
    box, _ = place_boxes(np.float32([[4, 3, 9, 12]]), placement, 30, flip=True)
    np.testing.assert_array_equal(box, [[4, 18, 9, 27]])
    ys, xs = np.nonzero(place_image(image, placement, (20, 30), flip=True)[..., 0])
    assert (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1) == (4, 18, 9, 27)


def test_no_boxes():
    boxes, seen = place_boxes(np.zeros((0, 4)), place((9, 9), (8, 8), Draws()), 9, flip=True)
    assert boxes.shape == (0, 4) and seen.shape == (0,)


def test_draws_cover_their_range():
    rng = np.random.default_rng(0)
    draws = [transforms.sample_draws(rng, 0.8, 1.2, True) for _ in range(500)]
    scales = np.array([d.scale for d in draws])
    assert 0.8 <= scales.min() < 0.81 and 1.19 < scales.max() <= 1.2
    assert 0.4 < np.mean([d.flip for d in draws]) < 0.6
    same = [transforms.sample_draws(np.random.default_rng(5), 0.8, 1.2, f) for f in (True, False)]
    assert same[0][1:] == same[1][1:] and not same[1].flip
