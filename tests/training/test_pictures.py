"""Pictures of detections on validation images."""

import cv2
import numpy as np

from spinenet_jax.data.batch import Category, Rows
from spinenet_jax.data.decode import BadImageError
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.training.metrics import MetricsLog
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


class Annotated(Photos):
    """A box at (x 40..60, y 20..30) of each."""

    def __getitem__(self, n):
        boxes = np.array([[20, 40, 30, 60]], np.float32)
        return {**super().__getitem__(n), 'boxes': boxes, 'labels': np.array([1])}


def test_ground_truth_is_drawn_beside_what_is_found_and_reaches_tensorboard(tmp_path):
    """Left the annotated image, enlarged 12 times, 8 pixels from the edge and below the titles."""
    (picture,) = write_pictures(tmp_path, 5, TASK, Annotated(tmp_path), {1: row(0.9)})
    drawn = cv2.imread(str(tmp_path / 'pictures' / '5_11.jpg'))
    assert drawn.shape[:2] == picture.size and drawn.shape[1] == 3 * 8 + 2 * 960
    left, right = (np.abs(drawn[260:500, x : x + 960].astype(int) - 100) > 50 for x in (8, 976))
    assert left[50, 481].any() and not left[50, 122].any()
    assert right[50, 121].any() and not right[50, 482].any()
    log = MetricsLog(tmp_path, 0)
    log.write_pictures(5, [picture])
    log.close()
    (events,) = tmp_path.glob('events*')
    content = events.read_bytes()
    assert picture.jpeg in content and b'pictures/11' in content


def test_a_classifier_draws_nothing(tmp_path):
    rows = {0: {'scores': np.ones(1, np.float32), 'classes': np.ones(1, np.int32)}}
    write_pictures(tmp_path, 1, ClassificationTask(ROWS, 3), Photos(tmp_path), rows)
    assert not (tmp_path / 'pictures').exists()


def test_pictured_images_are_spread_and_always_the_same():
    assert pictured(10, 3) == [0, 3, 6]
    assert pictured(2, 8) == [0, 1]
    assert pictured(0, 8) == pictured(10, 0) == []
