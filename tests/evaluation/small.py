"""A data source in memory, and a detector whose result on it can be worked out by hand.

Seven PNG images of different sizes. The detector finds one box: the upper left quarter of what is
not padding, with the image's mean brightness as its score. Run as a script, it prints the
evaluation as JSON: `python small.py <batch size> [<port> <process count> <process index>]`.
"""

import json
import sys
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from spinenet_jax.data.batch import BOXES, Category, Rows, Unreadable
from spinenet_jax.data.pipeline import Augmentation, WholeImage
from spinenet_jax.evaluation.detection import DetectionEvaluator

SIZES = [(40, 60), (64, 64), (100, 30), (32, 200), (50, 50), (90, 120), (33, 77)]
BRIGHTNESS = [250, 40, 80, 120, 160, 200, 230]


class SmallSource:
    """Seven images; their ids are 10 times their position, plus 3."""

    provides = BOXES
    name = 'small'
    report = ()

    def __init__(self, broken=(), annotated=True):
        self.categories = [Category(1, 5, 'quarter'), Category(2, 9, 'whole')]
        self.image_ids = [10 * i + 3 for i in range(len(SIZES))]
        self.unreadable = Unreadable()
        self._broken, self._annotated = broken, annotated

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        height, width = SIZES[index]
        image = np.full((height, width, 3), BRIGHTNESS[index], np.uint8)
        encoded = cv2.imencode('.png', image)[1].tobytes()
        return {
            'image': b'nonsense' if index in self._broken else encoded,
            'image_id': self.image_ids[index],
            'size': (height, width),
            'boxes': np.array([[0, 0, height / 2, width / 2]], np.float32),
            'labels': np.ones(1, np.int32),
            'is_crowd': np.zeros(1, bool),
        }

    def describe(self, index):
        return f'image {index}'

    @property
    def ground_truth(self):
        """A box over the quarter the detector finds, but over the whole in the last image."""
        if not self._annotated:
            return None
        annotations = []
        for i, (h, w) in enumerate(SIZES):
            part = 1 if i == len(SIZES) - 1 else 2
            box = [0, 0, w / part, h / part]
            annotations.append(
                {'id': i, 'image_id': self.image_ids[i], 'category_id': 5, 'bbox': box}
                | {'area': box[2] * box[3], 'iscrowd': 0}
            )
        return {
            'images': [{'id': i} for i in self.image_ids],
            'annotations': annotations,
            'categories': [{'id': c.id, 'name': c.name} for c in self.categories],
        }


class Brightness(nn.Module):
    """The mean of an image times a weight."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        return images.mean((1, 2, 3)) * self.param('weight', nn.initializers.ones, ())


class QuarterTask:
    """One box an image, and one row that is not valid."""

    rows = Rows(Augmentation((64, 64), 1.0, 1.0, False, 4), WholeImage((64, 64)))

    def forward(self, model, batch, *, train):
        height, width = batch['image'].shape[1:3]
        content = batch['content_size'].prod(-1)[:, None, None, None] / (height * width)
        return model(batch['image'] / 255.0 / jnp.maximum(content, 1e-6), train=train)

    def predictions(self, outputs, batch):
        half = batch['content_size'] / 2.0
        boxes = jnp.concatenate([jnp.zeros_like(half), half], -1)
        count = len(outputs)
        return {
            'boxes': jnp.stack([boxes, jnp.full_like(boxes, jnp.nan)], 1),
            'scores': jnp.stack([outputs, outputs], 1),
            'classes': jnp.ones((count, 2), jnp.int32),
            'valid': jnp.tile(jnp.array([True, False]), (count, 1)),
        }

    def evaluator(self, source):
        return DetectionEvaluator(source)


def settings(batch_size):
    return ConfigDict(
        {
            'data': {'num_threads': 1, 'worker_count': 0, 'max_pixels': 10**6},
            'eval': {'batch_size': batch_size},
        }
    )


STATE = SimpleNamespace(params={'weight': np.float32(0.5)}, batch_stats={})


def run(batch_size, source=None, eval_step=None, **options):
    from spinenet_jax.evaluation.runner import evaluate
    from spinenet_jax.training.step import make_eval_step

    step = eval_step or make_eval_step(Brightness(), QuarterTask())
    config, source = settings(batch_size), source or SmallSource()
    return evaluate(config, QuarterTask(), STATE, source, step, progress=False, **options)


if __name__ == '__main__':
    batch_size, *place = map(int, sys.argv[1:])
    if place:
        jax.distributed.initialize(f'localhost:{place[0]}', place[1], place[2])
    result = run(batch_size)
    print(json.dumps({'metrics': result.metrics, 'detections': result.detections}))
