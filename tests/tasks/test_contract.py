"""Detection and classification keep the contract of a task."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spinenet_jax.data.batch import Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.ops.nms import Rules
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from tests.contract import check_task

SIZE = (32, 48)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
RECORD = {
    'image': b'',
    'image_id': 3,
    'size': (40, 50),
    'boxes': np.array([[2, 2, 30, 40], [10, 10, 20, 20]], np.float32),
    'labels': np.array([1, 2], np.int32),
    'is_crowd': np.array([False, True]),
    'label': 2,
}


class Maps(nn.Module):
    """RetinaNet's outputs at two levels, from one convolution each."""

    @nn.compact
    def __call__(self, images, *, train):
        strides = [(8, 8), (16, 16)]
        logits = [nn.Conv(9 * 4, stride, stride)(images) for stride in strides]
        return logits, [nn.Conv(9 * 4, stride, stride)(images) for stride in strides]


class Logits(nn.Module):
    """A linear layer on the mean colour."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(4)(jnp.mean(images, (1, 2)))


def test_detection():
    rows = Rows(Augmentation(SIZE, 0.8, 1.2, True, 5), WholeImage(SIZE))
    rules = Rules(first_class=1, detections=10, candidates=50)
    check_task(DetectionTask(rows, 4, 3.0, (3, 4), rules), Maps(), RECORD, IMAGE)


def test_classification():
    rows = Rows(RandomCrop(SIZE), CentralCrop(SIZE))
    check_task(ClassificationTask(rows, 4, 0.1), Logits(), RECORD, IMAGE)
