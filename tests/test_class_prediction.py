"""From image files to their best classes, with a classifier that needs no training."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax import prediction
from spinenet_jax.data.batch import Category, Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.inference import Trained
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.records import ClassRecords
from spinenet_jax.training.step import make_eval_step

CATEGORIES = [Category(1, 101, 'dark'), Category(2, 102, 'bright')]
SETTINGS = {'data': {'max_pixels': 10**6}, 'eval': {'batch_size': 4}}


class Mean(nn.Module):
    """The darkest value of each image."""

    def __call__(self, images, *, train):
        del train
        return images.min((1, 2, 3))


class BrightTask(ClassificationTask):
    """Three labels, of which the last has no name; the second is the more likely the brighter."""

    def forward(self, model, batch, *, train):
        return model(batch['image'] / 255.0, train=train)

    def predictions(self, outputs, batch):
        scores = jnp.stack([outputs, 1 - outputs, 0 * outputs], 1)
        return {'scores': scores, 'classes': jnp.tile(jnp.array([2, 1, 3]), (len(outputs), 1))}


@pytest.fixture
def found(tmp_path):
    """A bright centre within a dark rim of one sixteenth, which the crop removes; a broken file."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[4:60, 4:60] = 204
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    (tmp_path / 'b.png').write_bytes(b'')
    cv2.imwrite(str(tmp_path / 'c.png'), np.full((9, 200, 3), 51, np.uint8))
    task = BrightTask(Rows(RandomCrop((16, 16)), CentralCrop((16, 16))), 4)
    trained = Trained(ConfigDict(SETTINGS), task, make_eval_step(Mean(), task), {}, {}, 1, [])
    return list(prediction.predict(trained, prediction.find_images([str(tmp_path)])))


def test_classes_best_first(found):
    assert [p.image is None for p in found] == [False, True, False]
    assert found[0].found.labels.tolist() == [2, 1, 3]
    assert found[0].found.scores == pytest.approx([0.8, 0.2, 0.0], abs=1e-6)
    assert found[2].found.scores == pytest.approx([0.2, 0.8, 0.0], abs=1e-6)


def test_records_and_line(found):
    records = ClassRecords(CATEGORIES)
    line = records.add(found[0].path, found[0].image.shape[:2], found[0].found)
    (image,) = records.as_dict['images']
    assert (image['height'], image['width']) == (64, 64)
    assert image['classes'][0] == {
        'id': 102,
        'name': 'bright',
        'score': pytest.approx(0.8, abs=1e-5),
    }
    assert line == f'{found[0].path}: bright 0.800, dark 0.200, 3 0.000'
