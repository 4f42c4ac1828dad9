"""Pictures of detections on validation images."""

import cv2
import numpy as np

from spinenet_jax.data.batch import Category, Rows
from spinenet_jax.data.decode import BadImageError
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.training.pictures import pictured, write_pictures

ROWS = Rows(Augmentation((64, 64), 1.0, 1.0, False, 4), WholeImage((64, 64)))
TASK = DetectionTask(ROWS, 8, 3.0, (3, 7), Rules())


class Photos:
    """Four gray images; the third has no file, the last cannot even be looked at."""

    name = 'photos'
    categories = (Category(1, 7, 'cat'),)

    def __init__(self, folder):
        self.folder = folder
        for n in range(2):
            cv2.imwrite(str(folder / f'{n}.png'), np.full((40, 80, 3), 100, np.uint8))

    def __len__(self):
        return 4

    def __getitem__(self, n):
        if n == 3:  # a TFDS reader needs the size of the image for its boxes
            raise BadImageError('no image format')
        return {'image': str(self.folder / f'{n}.png'), 'image_id': 10 + n, 'size': (40, 80)}


def row(score):
    """One object, (x 10..70, y 5..35) in an image that was enlarged by 2, and padding."""
    return {
        'boxes': np.array([[10, 20, 70, 140], [np.nan] * 4], np.float32),
        'scores': np.array([score, 1.0], np.float32),
        'classes': np.array([1, 1], np.int32),
        'valid': np.array([True, False]),
        'scale': np.array([2, 2], np.float32),
        'original_size': np.array([40, 80], np.int32),
    }


def test_draws_what_is_sure_and_skips_what_cannot_be_read(tmp_path):
    examples = {n: row(0.1 if n == 1 else 0.9) for n in range(4)}
    write_pictures(tmp_path, 5, TASK, Photos(tmp_path), examples)
    names = sorted(p.name for p in (tmp_path / 'pictures').iterdir())
    assert names == ['5_10.jpg', '5_11.jpg']
    with_box, without = (cv2.imread(str(tmp_path / 'pictures' / n)) for n in names)
    assert with_box.shape == (480, 960, 3)
    assert np.abs(without.astype(int) - 100).max() < 5
    # At 12 times its size, the frame's left edge is at x 120.
    assert np.abs(with_box[200:300, 121].astype(int) - 100).max() > 50
    assert np.abs(with_box[200:300, 400].astype(int) - 100).max() < 5


def test_a_classifier_draws_nothing(tmp_path):
    rows = {0: {'scores': np.ones(1, np.float32), 'classes': np.ones(1, np.int32)}}
    write_pictures(tmp_path, 1, ClassificationTask(ROWS, 3), Photos(tmp_path), rows)
    assert not (tmp_path / 'pictures').exists()


def test_pictured_images_are_spread_and_always_the_same():
    assert pictured(10, 3) == [0, 3, 6]
    assert pictured(2, 8) == [0, 1]
    assert pictured(0, 8) == pictured(10, 0) == []
