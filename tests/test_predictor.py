"""A trained model from Python: what may be given, and what comes back."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

import spinenet_jax
from configs import common
from spinenet_jax import inference
from spinenet_jax.data.batch import Category, Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.errors import UserError
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.build import build_model
from spinenet_jax.ops.nms import Rules
from spinenet_jax.predictor import Predictor, Result
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.tasks.records import Instances, instances_of
from spinenet_jax.training import workdir
from spinenet_jax.training.checkpoint import Checkpoints, absolute
from spinenet_jax.training.state import TrainState
from spinenet_jax.training.step import make_eval_step

SETTINGS = {
    'task': 'detection',
    'model': {'num_classes': 3},
    'data': {'max_pixels': 2_000_000},
    'eval': {'batch_size': 4},
}
CATEGORIES = [Category(1, 44, 'bright')]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


class Mean(nn.Module):
    """The mean of each image; its pyramid has one map, the image itself at half its size."""

    def __call__(self, images, *, train):
        del train
        return images.mean((1, 2, 3))

    def backbone(self, images, *, train):
        del train
        return {1: FeatureMap(images[:, ::2, ::2], 1)}


class Whole(DetectionTask):
    """Finds two objects, both all of the image: of labels 1, which has a name, and 2."""

    def forward(self, model, batch, *, train):
        return model(batch['image'] / 255.0, train=train)

    def predictions(self, outputs, batch):
        size = batch['content_size'].astype(jnp.float32)
        box = jnp.concatenate([jnp.zeros_like(size), size], -1)
        return {
            'boxes': jnp.stack([box, box], 1),
            'scores': jnp.stack([outputs, outputs / 2], 1),
            'classes': jnp.tile(jnp.array([1, 2]), (len(outputs), 1)),
            'valid': jnp.ones((len(outputs), 2), bool),
        }


class WholeMask(Whole):
    """The same with masks: the left half of the first object's box, all of the second's."""

    def predictions(self, outputs, batch):
        masks = jnp.ones((2, 28, 28)).at[0, :, 14:].set(0.0)
        return super().predictions(outputs, batch) | {
            'masks': jnp.tile(masks, (len(outputs), 1, 1, 1))
        }

    def found(self, row):
        return instances_of(row)


class Bright(ClassificationTask):
    """Label 1 the likelier the brighter the image."""

    def forward(self, model, batch, *, train):
        mean = model(batch['image'] / 255.0, train=train)
        return jnp.stack([jnp.full_like(mean, -9.0), 10 * mean, 10 - 10 * mean], 1)


def predictor_of(task):
    step = make_eval_step(Mean(), task)
    return Predictor(
        inference.Trained(ConfigDict(SETTINGS), task, step, {}, {}, 7, CATEGORIES),
    )


@pytest.fixture(scope='module')
def detector():
    rows = Rows(Augmentation((32, 32), 1.0, 1.0, False, 4), WholeImage((32, 32)))
    return predictor_of(Whole(rows, 3, 3.0, (3, 7), Rules()))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.full((40, 60, 3), (10, 200, 200), np.uint8))
    return path


def test_masks_come_as_pixels_of_the_image(photo):
    rows = Rows(Augmentation((32, 32), 1.0, 1.0, False, 4), WholeImage((32, 32)))
    found = predictor_of(WholeMask(rows, 3, 3.0, (3, 7), Rules())).predict(photo)
    assert found.masks.shape == (2, 40, 60) and found.masks.dtype == bool
    inside = found.masks[:, 1:-1, 1:-1]  # a mask fades towards its box
    assert inside[0, :, :28].all() and not inside[0, :, 30:].any()
    assert inside[1].all()
    nothing = Result(
        Instances(found.boxes[:0], found.scores[:0], found.labels[:0], []), [], (40, 60)
    )
    assert nothing.masks.shape == (0, 40, 60)


def test_one_image_as_name_path_or_array(detector, photo):
    pixels = cv2.imread(str(photo))[..., ::-1]
    for image in (str(photo), photo, pixels):
        found = detector.predict(image)
        assert found.boxes == pytest.approx(np.array([[0, 0, 40, 60]] * 2), abs=0.5)
        assert found.names == ['bright', '2'] and found.labels.tolist() == [1, 2]
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert len(found) == 2
        assert repr(found).startswith('<2 found: bright 0.')


def test_several_images_give_a_list_in_their_order(detector, photo):
    dark, bright = np.zeros((64, 64, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    found = detector.predict([dark, photo, bright, *[dark] * 3])
    assert len(found) == 6
    assert [f.size for f in found[:3]] == [(64, 64), (40, 60), (32, 32)]
    assert found[0].scores[0] == 0 and found[2].scores[0] == pytest.approx(1)
    stacked = detector.predict(np.stack([dark, dark]))
    assert [len(f) for f in stacked] == [2, 2]
    assert detector.predict([]) == []
    assert len(detector.predict(x for x in [photo])) == 1


@pytest.mark.parametrize(
    ('image', 'words'),
    [
        ('missing.jpg', r'missing\.jpg: No such file'),
        (3, 'the image is a int: must be a file name or a numpy array'),
        (np.zeros((4, 4, 3)), r'the image is float64\[4, 4, 3\]: must be'),
        (np.zeros((4, 4), np.uint8), r'uint8\[4, 4\]: must be'),
        (np.zeros((0, 4, 3), np.uint8), r'uint8\[0, 4, 3\]: must be'),
        ([np.zeros((4, 4, 3), np.uint8), None], 'image 1 is a NoneType'),
        (np.zeros((2, 4, 4, 1), np.uint8), r'image 0 is uint8\[4, 4, 1\]'),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(detector, image, words):
    for method in (detector.predict, detector.features):
        with pytest.raises(UserError, match=words) as error:
            method(image)
        assert '\n' not in str(error.value)


def test_pictures(detector, photo):
    found = detector.predict(photo)
    drawn = detector.draw(photo, found)
    assert drawn.shape == (427, 640, 3)
    nothing = detector.draw(photo, found, min_score=0.99)
    assert (drawn != nothing).any() and len(np.unique(nothing.reshape(-1, 3), axis=0)) == 1
    with pytest.raises(UserError, match='4x4 pixels, and what was found is of one with 60x40'):
        detector.draw(np.zeros((4, 4, 3), np.uint8), found)


def test_features_are_normalised_and_by_level(detector, monkeypatch):
    monkeypatch.setattr(inference, 'build_task_model', lambda *_, **__: Mean())
    image = np.full((32, 32, 3), (255, 0, 128), np.uint8)
    pyramid = detector.features(image)
    assert pyramid[1].shape == (16, 16, 3) and pyramid[1].dtype == np.float32
    wanted = (np.array([255, 0, 128]) / 255 - MEAN) / DEVIATION
    assert pyramid[1][3, 5] == pytest.approx(wanted, abs=0.02)
    both = detector.features([image, np.zeros((8, 4, 3), np.uint8)])
    assert len(both) == 2
    assert (both[1][1][:, 9:] == 0).all()  # a narrow image is padded after normalisation


def test_a_classifier_names_and_captions():
    rows = Rows(
        RandomCrop((32, 32), (0.5, 1), (0.75, 1.33), False),
        CentralCrop((32, 32), 1.0),
    )
    model = predictor_of(Bright(rows, 3))
    image = np.full((40, 40, 3), 255, np.uint8)
    found = model.predict(image)
    assert found.names == ['bright', '2'] and found.scores[0] > 0.99
    assert repr(found) == '<2 found: bright 1.00, 2 0.00>'
    drawn = model.draw(image, found)
    assert drawn.shape == (640, 640, 3) and (drawn[:30, :60] != 255).any()
    with pytest.raises(AttributeError):
        _ = found.boxes


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A workdir as a run leaves it, with weights that are all one half."""
    folder = absolute(tmp_path_factory.mktemp('run'))
    config = common.get_config()
    config.model.update({'width': 0.1, 'endpoint_channels': 8, 'head_channels': 8, 'head_convs': 1})
    config.model.num_classes = 2
    config.data.image_size = (64, 96)
    model = build_model(config.model, task=config.task, axis_name=None)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    halves = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes)
    workdir.record_config(folder, config)
    workdir.record_categories(folder, CATEGORIES)
    checkpoints = Checkpoints(folder)
    optimizer = optax.sgd(0.1).init(halves['params'])
    checkpoints.save(TrainState(np.int32(4), halves['params'], halves['batch_stats'], optimizer))
    checkpoints.close()
    return folder


def test_a_run_is_loaded_without_flags(run):
    model = spinenet_jax.load(run)
    assert (model.step, model.class_names) == (4, ['bright'])
    assert repr(model) == '<detection model of step 4: 1 classes, 64 x 96 pixels>'


@pytest.mark.parametrize('checkpoint', ['latest', 4, '4'])
def test_any_checkpoint_and_its_own_path(run, checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(
        inference,
        'load_trained',
        lambda config, *rest: (
            asked.append((config.model.width, *rest)) or SimpleNamespace(categories=[])
        ),
    )
    spinenet_jax.load(run, checkpoint)
    spinenet_jax.load(f'{run}/checkpoints/4')
    assert asked == [(0.1, run, str(checkpoint)), (0.1, f'{run}/checkpoints/4', 'best')]


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r'config\.json: no such file'):
        spinenet_jax.load(tmp_path)
    with pytest.raises(UserError, match='9'):
        spinenet_jax.load(run, 9)


def test_importing_the_package_imports_nothing():
    program = (
        'import sys, spinenet_jax\n'
        'print({"jax", "numpy", "flax", "cv2", "absl"} & set(sys.modules))\n'
        'print(callable(spinenet_jax.load), hasattr(spinenet_jax, "lode"))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split('\n')[:2] == ['set()', 'True False'], done.stderr
