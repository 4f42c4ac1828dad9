"""The smallest task with everything that instance segmentation has.

A two-stage detector of one bright square an image: every cell of a coarse map gets an objectness;
the best cells are the proposals; in training some of them are sampled at random, with the cell of
the ground truth among them, and only they are classified and masked. The number of regions that
count therefore depends on the outputs. Two metrics, a mask in every detection, pictures.
"""

from __future__ import annotations

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tiny import tiny_config

from spinenet_jax.data.batch import (
    BOXES,
    Category,
    Field,
    Rows,
    Unreadable,
    box_fields,
    image_fields,
    pad_boxes,
)
from spinenet_jax.data.build import train_batches
from spinenet_jax.data.pipeline import WholeImage
from spinenet_jax.evaluation.runner import evaluate
from spinenet_jax.ops.images import normalise
from spinenet_jax.tasks.records import DetectionRecords, Detections, draw
from spinenet_jax.training.experiment import Experiment
from spinenet_jax.training.pictures import pictured
from spinenet_jax.training.step import make_eval_step

SIZE, CELL = (16, 16), 4
CELLS = SIZE[0] // CELL * (SIZE[1] // CELL)
SAMPLED, CLASSES = 3, 3  # regions an image; background and two classes


class Squares:
    """Eight images with a bright square each, larger in those of the second class."""

    name = 'squares'
    provides = BOXES | {'masks'}
    categories = (Category(1, 4, 'small'), Category(2, 9, 'large'))
    image_ids = range(8)
    report = ()
    ground_truth = None

    def __init__(self):
        self.unreadable = Unreadable()

    def __len__(self):
        return 8

    def __getitem__(self, n):
        label = 1 + n % 2
        top, left = CELL * (n // 2 % 3), CELL * (n % 3)
        mask = np.zeros(SIZE, bool)
        mask[top : top + 3 * label, left : left + 3 * label] = True
        image = np.where(mask, 230, 40).astype(np.uint8)
        return {
            'image': cv2.imencode('.png', np.stack([image] * 3, -1))[1].tobytes(),
            'image_id': n,
            'size': SIZE,
            'boxes': np.array([[top, left, top + 3 * label, left + 3 * label]], np.float32),
            'labels': np.array([label], np.int32),
            'is_crowd': np.zeros(1, bool),
            'masks': mask[None],
        }

    def describe(self, n):
        return f'square {n}'


@dataclasses.dataclass(frozen=True)
class SquareRow:
    """Images as they are, with boxes and masks."""

    needs = Squares.provides

    @property
    def fields(self):
        masks = {'masks': Field((2, *SIZE), np.bool_)}
        return {**image_fields(SIZE), **box_fields(2), **masks}

    def __call__(self, record, image, rng):
        masks = np.zeros((2, *SIZE), bool)
        masks[: len(record['masks'])] = record['masks']
        return {
            'image': image,
            'content_size': np.int32(SIZE),
            **pad_boxes(record['boxes'], record['labels'], 2),
            'masks': masks,
        }


class TwoStage(nn.Module):
    """A map of cells, and three heads that look at single cells."""

    axis_name: str | None = 'batch'

    def setup(self):
        self.conv = nn.Conv(8, (CELL, CELL), (CELL, CELL), use_bias=False)
        self.norm = nn.BatchNorm(axis_name=self.axis_name)
        self.dropout = nn.Dropout(0.1)
        self.objectness, self.classes = nn.Dense(1), nn.Dense(CLASSES)
        self.masks = nn.Dense(CELL * CELL)

    def features(self, images, *, train):
        """f32[B,H,W,3] to f32[B,cells,8]."""
        x = self.norm(self.conv(images), use_running_average=not train)
        x = self.dropout(nn.relu(x), deterministic=not train)
        return x.reshape(len(x), CELLS, -1)

    def propose(self, features):
        """Objectness f32[B,cells]."""
        return self.objectness(features)[..., 0]

    def refine(self, regions):
        """f32[B,R,8] to logits f32[B,R,classes] and masks f32[B,R,16]."""
        return self.classes(regions), self.masks(regions)

    def __call__(self, images, *, train):
        features = self.features(images, train=train)
        return self.propose(features), self.refine(features)


class SquareEvaluator:
    """Share of images whose best cell is right, by class and by mask."""

    def __init__(self, source):
        self._source, self._right = source, {'AP': [], 'mask/AP': []}
        self.detections = []

    def update(self, rows):
        for n, index in enumerate(rows['index'].tolist()):
            record = self._source[index]
            top, left = (rows['boxes'][n, :2]).astype(int)
            truth = record['masks'][0, top : top + CELL, left : left + CELL]
            self._right['AP'].append(rows['classes'][n] == record['labels'][0])
            self._right['mask/AP'].append(((rows['masks'][n] > 0) == truth).mean())
            found = {'image_id': record['image_id'], 'category_id': 1, 'bbox': [0.0, 0.0, 1.0, 1.0]}
            self.detections.append({**found, 'score': 1.0})

    def result(self):
        return {name: float(np.mean(values)) for name, values in self._right.items()}

    def per_class(self):
        return {}


@dataclasses.dataclass(frozen=True)
class SquareTask:
    """See `tasks.task.Task`."""

    rows = Rows(SquareRow(), WholeImage(SIZE))
    image_size = SIZE
    streams = ('dropout', 'sampling')
    main_metric = 'mask/AP'

    def targets(self, batch):
        corners = CELL * jnp.stack(jnp.divmod(jnp.arange(CELLS), SIZE[1] // CELL), -1)
        box = batch['boxes'][:, :1]  # f32[B,1,4]: one square an image
        inside = (corners >= box[..., :2]) & (corners < box[..., 2:])
        whole = batch['masks'][:, 0].reshape(-1, SIZE[0] // CELL, CELL, SIZE[1] // CELL, CELL)
        cells = whole.transpose(0, 1, 3, 2, 4).reshape(len(whole), CELLS, CELL * CELL)
        return {
            'positive': inside.all(-1) & batch['valid'][:, :1],
            'label': batch['labels'][:, 0],
            'mask': cells,
        }

    def forward(self, model, batch, *, train):
        images = normalise(batch['image'], batch['content_size'])
        features = model.features(images, train=train)
        objectness = model.propose(features)
        if train:  # the ground truth is a proposal too, and chance has its say
            truth = self.targets(batch)['positive']
            noise = jax.random.gumbel(model.make_rng('sampling'), objectness.shape)
            rank = jnp.where(truth, noise + 1.0, objectness + noise)
            _, chosen = jax.lax.top_k(jax.lax.stop_gradient(rank), SAMPLED)
        else:
            _, chosen = jax.lax.top_k(objectness, 1)
        regions = jnp.take_along_axis(features, chosen[..., None], axis=1)
        logits, masks = model.refine(regions)
        return {'objectness': objectness, 'chosen': chosen, 'logits': logits, 'masks': masks}

    def _sampled(self, outputs, targets):
        """Which of the regions show the square, bool[B,R]."""
        return jnp.take_along_axis(targets['positive'], outputs['chosen'], axis=1)

    def normalisers(self, outputs, targets):
        return {
            'cells': jnp.float32(targets['positive'].size),
            'regions': jnp.sum(self._sampled(outputs, targets), dtype=jnp.float32),
        }

    def numerators(self, outputs, targets):
        positive = self._sampled(outputs, targets)
        label = jnp.where(positive, targets['label'][:, None], 0)
        masks = jnp.take_along_axis(targets['mask'], outputs['chosen'][..., None], axis=1)
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(outputs['logits'], label)
        sigmoid = optax.losses.sigmoid_binary_cross_entropy
        mask = sigmoid(outputs['masks'], masks.astype(jnp.float32)).mean(-1)
        objectness = sigmoid(outputs['objectness'], targets['positive'].astype(jnp.float32))
        return {
            'objectness': objectness.sum(),
            'class': entropy.sum(),
            'mask': jnp.where(positive, mask, 0.0).sum(),
        }

    def losses(self, numerators, normalisers):
        regions = normalisers['regions'] + 1.0
        parts = {
            'objectness_loss': numerators['objectness'] / normalisers['cells'],
            'class_loss': numerators['class'] / regions,
            'mask_loss': numerators['mask'] / regions,
        }
        return {'loss': sum(parts.values()), 'regions': normalisers['regions'], **parts}

    def predictions(self, outputs, batch):
        cell = outputs['chosen'][:, 0]
        corner = CELL * jnp.stack(jnp.divmod(cell, SIZE[1] // CELL), -1).astype(jnp.float32)
        return {
            'boxes': jnp.concatenate([corner, corner + CELL], -1),
            'classes': outputs['logits'][:, 0, 1:].argmax(-1).astype(jnp.int32) + 1,
            'scores': jax.nn.sigmoid(outputs['objectness'].max(-1)),
            'masks': outputs['masks'].reshape(-1, CELL, CELL),
        }

    def evaluator(self, source):
        return SquareEvaluator(source)

    def found(self, row):
        return Detections(row['boxes'][None], row['scores'][None], row['classes'][None])

    def records(self, categories):
        return DetectionRecords(categories)

    def picture(self, image, found, names, *, min_score, side):
        return draw(image, found, names, min_score=0.0, side=side)


def square_config():
    """Six steps of eight images, each in two micro-batches; evaluated after every other step."""
    config = tiny_config(epochs=6, checkpoint_every_steps=100)
    config.optim.accumulate_steps = 2
    config.data.num_threads = 1
    config.eval.batch_size, config.eval.pictures = 4, 2
    return config


def square_experiment(config):
    """What `build_experiment` would assemble."""
    task, source, model = SquareTask(), Squares(), TwoStage()
    eval_step, drawn = make_eval_step(model, task), pictured(len(source), config.eval.pictures)

    def batches(start):
        return train_batches(
            source,
            task.rows.train,
            config.data,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=start,
            process_index=0,
            process_count=1,
        )

    def score(state):
        return evaluate(config, task, state, source, eval_step, examples=drawn)

    return Experiment(
        model=model,
        task=task,
        image_count=len(source),
        batches=batches,
        evaluate=score,
        eval_source=source,
        categories=source.categories,
    )
