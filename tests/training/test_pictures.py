"""Pictures of detections on validation images."""

import cv2
import numpy as np

from spinenet_jax.data.batch import Category
from spinenet_jax.training.pictures import write_pictures


class Photos:
    """Four gray images; the last cannot be read."""

    categories = (Category(1, 7, 'cat'),)

    def __init__(self, folder):
        self.folder = folder
        for n in range(3):
            cv2.imwrite(str(folder / f'{n}.png'), np.full((40, 80, 3), 100, np.uint8))

    def __len__(self):
        return 4

    def __getitem__(self, n):
        return {'image': str(self.folder / f'{n}.png'), 'image_id': 10 + n, 'size': (40, 80)}

    def describe(self, n):
        return f'{n}.png'


class Nothing:
    """A source without an image."""

    categories = ()

    def __len__(self):
        return 0


def found(image_id, score, category=7):
    box = [10.0, 5.0, 60.0, 30.0]
    return {'image_id': image_id, 'score': score, 'category_id': category, 'bbox': box}


def test_draws_what_is_sure_and_skips_what_cannot_be_read(tmp_path):
    source = Photos(tmp_path)
    write_pictures(tmp_path, 5, source, [found(10, 0.9), found(11, 0.1)], count=9)
    names = sorted(p.name for p in (tmp_path / 'pictures').iterdir())
    assert names == ['5_10.jpg', '5_11.jpg', '5_12.jpg']
    with_box, without = (cv2.imread(str(tmp_path / 'pictures' / n)) for n in names[:2])
    assert with_box.shape == (480, 960, 3)
    assert np.abs(without.astype(int) - 100).max() < 5
    # Box (x 10..70, y 5..35) at 12 times its size: the frame's left edge is at x 120.
    assert np.abs(with_box[200:300, 121].astype(int) - 100).max() > 50
    assert np.abs(with_box[200:300, 400].astype(int) - 100).max() < 5


def test_no_pictures_of_no_images(tmp_path):
    write_pictures(tmp_path, 1, Nothing(), [], count=3)
    assert list((tmp_path / 'pictures').iterdir()) == []
