"""Detection, instance segmentation and classification keep the contract of a task."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spinenet_jax.data.batch import Rows
from spinenet_jax.data.crops import CentralCrop, RandomCrop
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.data.segmentations import Polygons
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.layers import Layers
from spinenet_jax.models.mask_rcnn import MaskRCNN
from spinenet_jax.ops.nms import Rules
from spinenet_jax.ops.proposals import ProposalRules
from spinenet_jax.tasks.classification import ClassificationTask
from spinenet_jax.tasks.detection import DetectionTask
from spinenet_jax.tasks.instance_segmentation import InstanceSegmentationTask
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
SQUARE = Polygons([np.array([2.0, 2, 30, 2, 30, 20, 2, 20])])
MASKS = {**RECORD, 'segmentations': [SQUARE, None]}


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


class Pyramid(nn.Module):
    """A map of two levels, from one convolution each."""

    @nn.compact
    def __call__(self, images, *, train):
        maps = {level: nn.Conv(4, (2**level,) * 2, (2**level,) * 2) for level in (3, 4)}
        return {level: FeatureMap(conv(images), level) for level, conv in maps.items()}


@pytest.mark.parametrize('cascade', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_instance_segmentation(cascade):
    model = MaskRCNN(
        Pyramid(),
        Layers(),
        num_classes=4,
        head_channels=4,
        head_convs=1,
        hidden=8,
        stages=3 if cascade else 1,
        proposals=2,
        detections=2,
    )
    proposals = ProposalRules(candidates=20, proposals=10)
    task = InstanceSegmentationTask(
        rows=Rows(Augmentation(SIZE, 0.8, 1.2, True, 5, with_masks=True), WholeImage(SIZE)),
        anchor_size=3.0,
        levels=(3, 4),
        rules=Rules(first_class=1, detections=10, candidates=50),
        train_proposals=proposals,
        eval_proposals=proposals,
        regions=8,
        cascade=cascade,
    )
    check_task(task, model, MASKS, IMAGE)


def test_classification():
    rows = Rows(RandomCrop(SIZE), CentralCrop(SIZE))
    check_task(ClassificationTask(rows, 4, 0.1), Logits(), RECORD, IMAGE)
