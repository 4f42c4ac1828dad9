"""Windows of training and evaluation: distribution, limits, pixels."""

import numpy as np
import pytest

from spinenet_jax.data.crops import CentralCrop, RandomCrop, Window, central_window, random_window

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
RECORD = {'image': b'', 'image_id': 0, 'size': None, 'label': 3}


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def windows(size, count, area=AREA, aspect=ASPECT):
    rng = generator()
    return np.array([random_window(rng, size, area, aspect) for _ in range(count)])


def ks(values, cdf):
    """Largest distance of an empirical distribution from the expected one."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    expected = cdf(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def test_distribution_on_a_square():
    """4,000 windows of a 1,000 pixel square; 1% of fair samples are beyond 1.63 / sqrt n.

    Aspect r is uniform in 3/4..4/3. Given r, the height is uniform between 1000 * sqrt(0.08 / r)
    and the largest that fits: 1000 / sqrt(r) for area 1, cut to 1000 (r < 1) or 1000 / r (r > 1).
    The place is uniform over the room left.
    """
    top, left, height, width = windows((1000, 1000), 4000).T
    limit = 1.63 / np.sqrt(4000)
    ratio = width / height
    assert ks(ratio, lambda r: np.clip((r - 3 / 4) / (4 / 3 - 3 / 4), 0, 1)) < limit
    low = 1000 * np.sqrt(0.08 / ratio)
    high = np.minimum(1000, 1000 / ratio)
    assert ks((height - low) / (high - low), lambda u: np.clip(u, 0, 1)) < limit
    for start, room in ((top, 1000 - height), (left, 1000 - width)):
        wide = room > 100
        place = (start + 0.5)[wide] / (room + 1)[wide]
        assert ks(place, lambda u: np.clip(u, 0, 1)) < 1.63 / np.sqrt(wide.sum())
    # Uniform height, not uniform area: the mean share is well below (0.08 + 1) / 2.
    assert (height * width / 1e6).mean() == pytest.approx(0.398, abs=0.015)


@pytest.mark.parametrize('size', [(375, 500), (640, 427), (120, 90), (33, 40), (8, 9)])
def test_windows_stay_in_limits(size):
    top, left, height, width = windows(size, 500).T
    assert (top >= 0).all() and (top + height <= size[0]).all()
    assert (left >= 0).all() and (left + width <= size[1]).all()
    share = height * width / (size[0] * size[1])
    assert (share >= 0.08).all() and (share <= 1).all()
    assert (np.abs(width - height * np.clip(width / height, *ASPECT)) <= 0.51).all()
    for start, length, full in ((top, height, size[0]), (left, width, size[1])):
        assert start.min() <= 0.02 * full and (start + length).max() >= 0.98 * full


def test_impossible_limits_give_none():
    assert random_window(generator(), (10, 1000), (0.5, 1.0), ASPECT) is None
    assert random_window(generator(), (1, 1), AREA, ASPECT) == Window(0, 0, 1, 1)


def test_central_window_by_hand():
    # 0.875 of 256 is 224; of the rest, 32 above and (400 - 224 + 1) // 2 = 88 on the left.
    assert central_window((256, 400), (224, 224), 0.875) == Window(16, 88, 224, 224)
    assert central_window((5, 4), (2, 2), 0.75) == Window(1, 1, 3, 3)
    # A flat target takes the whole width and half of the height.
    assert central_window((100, 100), (50, 100), 1.0) == Window(25, 0, 50, 100)
    assert central_window((1, 1), (224, 224), 0.875) == Window(0, 0, 1, 1)


def test_evaluation_row():
    image = np.zeros((64, 80, 3), np.uint8)
    image[4:60, 12:68] = 200  # exactly the window of 56 x 56
    row = CentralCrop((28, 28))(RECORD, image)
    assert row['image'].shape == (28, 28, 3) and (row['image'] == 200).all()
    assert row['label'] == 3 and row['content_size'].tolist() == [28, 28]
    assert row['scale'].tolist() == [0.5, 0.5] and row['original_size'].tolist() == [64, 80]


def test_training_row_flips_half_and_nothing_else_changes():
    image = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None] * 2, 100, 0).repeat(3, 2)
    flips = 0
    for seed in range(200):
        plain = RandomCrop((32, 32), flip=False)(RECORD, image, generator(seed))
        row = RandomCrop((32, 32))(RECORD, image, generator(seed))
        flipped = row['image'][0, 0, 0] > row['image'][0, -1, 0]
        flips += flipped
        np.testing.assert_array_equal(row['image'][:, :: -1 if flipped else 1], plain['image'])
        assert row['image'].flags['C_CONTIGUOUS'] and row['label'] == 3
    assert 75 <= flips <= 125


def test_image_too_narrow_is_cut_in_the_middle():
    image = np.zeros((4, 1000, 3), np.uint8)
    image[:, 480:520] = 255
    row = RandomCrop((8, 8), area=(0.9, 1.0))(RECORD, image, generator())
    assert (row['image'] == 255).all()
