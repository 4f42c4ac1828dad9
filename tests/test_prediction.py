"""From image files to records and pictures, with a detector that needs no training."""

import os

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax import prediction
from spinenet_jax.data.batch import Category, Rows
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.errors import UserError
from spinenet_jax.inference import Trained
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.tasks.records import DetectionRecords, Detections
from spinenet_jax.training.step import make_eval_step

SETTINGS = {'data': {'max_pixels': 2_000_000}, 'eval': {'batch_size': 4}}
CATEGORIES = [Category(1, 44, 'bright'), Category(2, 45, 'dark')]


class Mean(nn.Module):
    """The mean of each image."""

    def __call__(self, images, *, train):
        del train
        return images.mean((1, 2, 3))


class WholeTask(DetectionTask):
    """Finds one object, all of the image; the second row is padding."""

    def forward(self, model, batch, *, train):
        return model(batch['image'] / 255.0, train=train)

    def predictions(self, outputs, batch):
        size = batch['content_size'].astype(jnp.float32)
        box = jnp.concatenate([jnp.zeros_like(size), size], -1)
        count = len(outputs)
        return {
            'boxes': jnp.stack([box, box], 1),
            'scores': jnp.stack([outputs, outputs], 1),
            'classes': jnp.ones((count, 2), jnp.int32),
            'valid': jnp.tile(jnp.array([True, False]), (count, 1)),
        }


@pytest.fixture(scope='module')
def trained():
    rows = Rows(Augmentation((32, 32), 1.0, 1.0, False, 4), WholeImage((32, 32)))
    task = WholeTask(rows, 3, 3.0, (3, 7), Rules())
    step = make_eval_step(Mean(), task)
    return Trained(ConfigDict(SETTINGS), task, step, {}, {}, 1, CATEGORIES)


@pytest.fixture
def photos(tmp_path):
    """Six files: five images of which one is tiny, one large and one gray, and one broken."""
    shapes = {'a.jpg': (40, 60, 3), 'b.PNG': (33, 20, 3), 'c.jpg': (900, 1300, 3), 'd.bmp': (8, 8)}
    for name, shape in shapes.items():
        cv2.imwrite(str(tmp_path / name), np.full(shape, 200, np.uint8))
    (tmp_path / 'e.jpg').write_bytes((tmp_path / 'c.jpg').read_bytes()[:3000])
    cv2.imwrite(str(tmp_path / 'f.jpg'), np.full((30, 30, 3), 100, np.uint8))
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def test_folders_globs_and_files(photos):
    folder = [str(photos / n) for n in ('a.jpg', 'b.PNG', 'c.jpg', 'd.bmp', 'e.jpg', 'f.jpg')]
    assert prediction.find_images([str(photos)]) == folder
    assert prediction.find_images([str(photos / '[ab].*')]) == folder[:2]
    assert prediction.find_images([folder[1], str(photos)]) == [folder[1], folder[0], *folder[2:]]
    assert prediction.find_images([str(photos / '**' / 'd.bmp')]) == [folder[3]]


@pytest.mark.parametrize('pattern', ['nothing/*.jpg', 'missing.jpg', '*.gif'])
def test_a_pattern_without_images_is_refused_in_one_line(photos, pattern):
    with pytest.raises(UserError, match='no image there') as error:
        prediction.find_images([str(photos / pattern)])
    assert '\n' not in str(error.value)


def test_boxes_are_in_pixels_of_each_image(trained, photos):
    found = list(prediction.predict(trained, prediction.find_images([str(photos)])))
    assert [p.image is None for p in found] == [False] * 4 + [True, False]
    assert 'truncated' in found[4].problem
    for p in found[:4]:
        assert p.found.boxes == pytest.approx(np.array([[0, 0, *p.image.shape[:2]]]), abs=0.5)
        assert p.found.labels.tolist() == [1]
    square = found[5].found  # fills the network's input, so its score is its brightness
    assert square.scores.tolist() == pytest.approx([100 / 255], abs=0.01)


def test_no_images_gives_nothing(trained):
    assert list(prediction.predict(trained, [])) == []


def test_only_unreadable_images(trained, photos):
    found = list(prediction.predict(trained, [str(photos / 'e.jpg')]))
    assert [p.image for p in found] == [None]


def test_records_are_coco_shaped(trained, photos):
    records = trained.task.records(CATEGORIES)
    for p in prediction.predict(trained, [str(photos / 'a.jpg'), str(photos / 'f.jpg')]):
        assert records.add(p.path, p.image.shape[:2], p.found) == ''
    data = records.as_dict
    assert data['images'][0] == {
        'id': 1, 'file_name': str(photos / 'a.jpg'), 'height': 40, 'width': 60
    }  # fmt: skip
    assert data['categories'][0] == {'id': 44, 'name': 'bright'}
    assert [(a['id'], a['image_id'], a['category_id']) for a in data['annotations']] == [
        (1, 1, 44),
        (2, 2, 44),
    ]
    assert data['annotations'][1]['bbox'] == [0, 0, 30, 30]
    assert records.summary(0.3) == '2 of 2 detections drawn'
    assert records.summary(0.9) == '0 of 2 detections drawn (scores are up to 0.51, --score=0.9)'
    assert DetectionRecords(CATEGORIES).summary(0.3) == '0 of 0 detections drawn'


def picture(trained, prediction_, min_score, names=()):
    image = prediction_.image
    side = prediction.picture_side(image)
    return trained.task.picture(
        image, prediction_.found, dict(names), min_score=min_score, side=side
    )


def test_pictures_of_small_images_are_enlarged_and_of_large_ones_are_not(trained, photos):
    paths = [str(photos / 'a.jpg'), str(photos / 'c.jpg')]
    small, large = prediction.predict(trained, paths)
    assert picture(trained, small, 0.0, {1: 'bright'}).shape == (427, 640, 3)
    assert picture(trained, large, 0.0).shape == (900, 1300, 3)


def test_boxes_below_the_threshold_are_not_drawn(trained, photos):
    (found,) = prediction.predict(trained, [str(photos / 'c.jpg')])
    assert (picture(trained, found, 0.99) == found.image).all()
    assert (picture(trained, found, 0.1) != found.image).any()


def test_pictures_are_never_larger_than_a_jpeg(trained):
    image = np.zeros((4, 70_000, 3), np.uint8)
    box = np.float32([[0, 10, 4, 60_000]])
    detections = Detections(box, np.float32([0.9]), np.int32([1]))
    drawn = picture(trained, prediction.Prediction('long.png', image, detections), 0.3)
    assert drawn.shape == (4, 65_500, 3)
    assert cv2.imencode('.jpg', drawn)[0]


def test_special_files_and_images_of_too_many_pixels_are_skipped(trained, photos):
    os.mkfifo(photos / 'g.jpg')
    (photos / 'h.jpg').mkdir()
    cv2.imwrite(str(photos / 'i.png'), np.zeros((2001, 1000), np.uint8))
    os.symlink('/dev/zero', photos / 'j.jpg')
    os.symlink(photos / 'j.jpg', photos / 'k.jpg')
    names = 'ghijk'
    paths = [path for path in prediction.find_images([str(photos)]) if path[-5] in names]
    assert len(paths) == 5
    problems = [found.problem for found in prediction.predict(trained, paths)]
    assert problems == [
        'not a regular file',
        'not a regular file',
        'it has 1000x2001 pixels, more than 2,000,000 (data.max_pixels)',
        'not a regular file',
        'not a regular file',
    ]


def test_batches_of_large_images_are_not_filled_up(photos, monkeypatch):
    paths = prediction.find_images([str(photos)])  # 2,400, 660, 1,170,000, 64, broken, 900 pixels
    batches = list(prediction._batches(paths, 4, 2_000_000))
    assert [[p.path for p in batch] for batch in batches] == [paths[:4], paths[4:]]
    monkeypatch.setattr(prediction, 'HELD_PIXELS', 3000)
    batches = list(prediction._batches(paths, 4, 2_000_000))
    assert [len(batch) for batch in batches] == [2, 1, 3]
