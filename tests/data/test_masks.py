"""Masks cut to their boxes: by hand, against pycocotools, and moved as boxes are."""

import numpy as np
import pytest
from pycocotools import mask as coco

from spinenet_jax.data import transforms
from spinenet_jax.data.masks import crop_mask, crop_masks, draw, original_boxes
from spinenet_jax.data.segmentations import Polygons, Rle

SIZE = (60, 90)


def encoded(mask):
    """A mask as an RLE."""
    return Rle(mask.shape, coco.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'])


def random_polygons(rng):
    """One to three parts, some of them beyond the image."""
    parts = []
    for _ in range(rng.integers(1, 4)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 20)))
        radius = rng.uniform(4, 40) * rng.uniform(0.4, 1, angles.shape)
        y, x = rng.uniform(-5, SIZE[0] + 5), rng.uniform(-5, SIZE[1] + 5)
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        parts.append(np.round(points, 2).reshape(-1))
    return Polygons(parts)


def windows(rng, count=4):
    for _ in range(count):
        top, left = rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1])
        yield top, left, rng.integers(top, SIZE[0]) + 1, rng.integers(left, SIZE[1]) + 1
    yield 0, 0, *SIZE


def test_a_part_is_what_pycocotools_draws_of_the_whole():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(60):
        polygons = random_polygons(rng)
        rle = coco.merge(coco.frPyObjects(polygons.coco, *SIZE))
        whole = coco.decode(rle)
        seen += whole.any()
        for top, left, bottom, right in windows(rng):
            part = whole[top:bottom, left:right]
            window = (top, left, bottom, right)
            np.testing.assert_array_equal(draw(polygons, window, SIZE), part)
            np.testing.assert_array_equal(draw(Rle(SIZE, rle['counts']), window, SIZE), part)
    assert seen > 40


def test_samples_by_hand():
    # A 10 x 20 image, left half of the box 2..8 x 4..12 filled. Columns are sampled from
    # 4 * 19 / 20 = 3.8 to 12 * 0.95 = 11.4, in steps of 7.6 / 4 = 1.9: 3.8, 5.7, 7.6, 9.5, 11.4.
    # Pixels 4 to 7 are filled: 0.8, 1, 0.4, 0, 0.
    mask = np.zeros((10, 20), np.uint8)
    mask[2:8, 4:8] = 1
    box = np.array([2, 4, 8, 12], np.float32)
    got = crop_mask(encoded(mask), box, mask.shape, size=5)
    # Rows 1.8, 3.15, 4.5, 5.85, 7.2: the first lies at 0.8 of the filled ones, the last at 0.8.
    want = np.outer([0.8, 1, 1, 1, 0.8], [0.8, 1, 0.4, 0, 0])
    np.testing.assert_allclose(got / 255, want, atol=0.02)


def test_equals_a_loop():
    rng = np.random.default_rng(1)
    for _ in range(20):
        polygons = random_polygons(rng)
        whole = coco.decode(coco.merge(coco.frPyObjects(polygons.coco, *SIZE))).astype(float)
        low = rng.uniform(0, 30, 2)
        box = np.float32([*low, *np.minimum(low + rng.uniform(1, 60, 2), SIZE)])
        got = crop_mask(polygons, box, SIZE, size=7) / 255
        for i, j in np.ndindex(7, 7):
            y = (box[0] + i / 6 * (box[2] - box[0])) * (SIZE[0] - 1) / SIZE[0]
            x = (box[1] + j / 6 * (box[3] - box[1])) * (SIZE[1] - 1) / SIZE[1]
            a, b = int(y), int(x)
            patch = np.pad(whole, ((0, 1), (0, 1)), 'edge')[a : a + 2, b : b + 2]
            want = np.array([a + 1 - y, y - a]) @ patch @ np.array([b + 1 - x, x - b])
            assert abs(got[i, j] - want) < 0.05, (i, j)  # OpenCV places samples on a grid


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('scale', [0.5, 1.0, 2.5])
def test_masks_move_as_boxes_do(flip, scale):
    # An "L": upright at the left, foot at the bottom. Mirrored, the upright is at the right.
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 20:28] = 1
    mask[24:30, 20:50] = 1
    box = np.float32([[10, 20, 30, 50]])
    draws = transforms.Draws(flip, scale, 0.3, 0.4)
    placement = transforms.place(mask.shape, (64, 64), draws)
    placed, seen = transforms.place_boxes(box, placement, 80, flip)
    assert seen.all()
    back = original_boxes(placed, placement, 80, flip)
    assert (back[0, :2] >= box[0, :2] - 1e-3).all() and (back[0, 2:] <= box[0, 2:] + 1e-3).all()
    masks, has_mask = crop_masks([encoded(mask)], back, mask.shape, flip, size=56)
    assert has_mask.all()
    # The same mask as a picture, placed like the image.
    picture = np.repeat(mask[..., None] * np.uint8(255), 3, -1)
    seen_mask = transforms.place_image(picture, placement, (64, 64), flip)[..., 0] > 127
    # Painted back into the box of the network's input it is the same up to a pixel at the edges.
    ymin, xmin, ymax, xmax = placed[0]
    agree = total = 0
    for y, x in np.ndindex(64, 64):
        if ymin + 1 < y + 0.5 < ymax - 1 and xmin + 1 < x + 0.5 < xmax - 1:
            i = int((y + 0.5 - ymin) / (ymax - ymin) * 56)
            j = int((x + 0.5 - xmin) / (xmax - xmin) * 56)
            agree += (masks[0, i, j] > 127) == seen_mask[y, x]
            total += 1
    assert agree / total > 0.9
    if scale == 1.0:
        upright = masks[0, :20, ::-1] if flip else masks[0, :20]
        assert (upright[4:16, 2:10] == 255).all() and not upright[:, 24:].any()


def test_objects_without_a_mask():
    masks, has_mask = crop_masks([None, None], np.zeros((2, 4), np.float32), (8, 8))
    assert masks.shape == (2, 112, 112) and not masks.any() and not has_mask.any()
    masks, has_mask = crop_masks([], np.zeros((0, 4), np.float32), (8, 8))
    assert masks.shape == (0, 112, 112) and has_mask.shape == (0,)


def test_a_box_of_one_pixel_at_the_border():
    mask = np.ones((8, 8), np.uint8)
    for box in ([7, 7, 8, 8], [0, 0, 0.25, 8], [0, 0, 8, 8]):
        assert (crop_mask(encoded(mask), np.float32(box), (8, 8)) == 255).all()
