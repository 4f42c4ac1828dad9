"""Object detection with RetinaNet: anchor targets, focal and box losses, detections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from spinenet_jax.data.batch import Category, Example, Rows, Source
from spinenet_jax.evaluation.detection import DetectionEvaluator
from spinenet_jax.ops import losses, nms
from spinenet_jax.ops.anchors import ANCHORS_PER_CELL, pyramid_anchors
from spinenet_jax.ops.detections import detect
from spinenet_jax.ops.images import normalise
from spinenet_jax.ops.matching import AnchorTargets, match_anchors
from spinenet_jax.tasks.records import DetectionRecords, Detections, detections_of, draw
from spinenet_jax.tasks.task import Batch, Scalars

BOX_LOSS_WEIGHT = 50.0
FOCAL_ALPHA, FOCAL_GAMMA, HUBER_DELTA = 0.25, 1.5, 0.1
Outputs = tuple[list[jax.Array], list[jax.Array]]


@dataclass(frozen=True)
class DetectionTask:
    """One-stage detection with anchors (focal-loss paper; constants of both public versions).

    The methods are those of `tasks.task.Task`.

    Attributes:
      rows: whole images with boxes.
      num_classes: channels of the classifier; channel 0, background, is trained as a class that
        nothing is and never detected.
      anchor_size: side of the smallest square anchor in cells.
      levels: (lowest, highest) level of the pyramid.
      rules: of post-processing.
    """

    rows: Rows
    num_classes: int
    anchor_size: float
    levels: tuple[int, int]
    rules: nms.Rules

    streams = ('dropout',)
    main_metric = 'AP'

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""
        height, width, _ = self.rows.eval.fields['image'].shape
        return height, width

    @property
    def anchors(self) -> jax.Array:
        """f32[A,4] of the whole pyramid."""
        return jnp.asarray(pyramid_anchors(self.image_size, self.anchor_size, self.levels))

    def targets(self, batch: Batch) -> AnchorTargets:
        """Targets of every anchor, `AnchorTargets` with a leading B."""
        anchors = self.anchors
        boxes = (batch['boxes'], batch['labels'], batch['valid'])
        # One image after the other: the overlaps of several at once would lie badly in a TPU's
        # vector registers (docs/tpu_log.md).
        return jax.lax.map(lambda image: match_anchors(anchors, *image), boxes)

    def forward(self, model: nn.Module, batch: Batch, *, train: bool) -> Outputs:
        """Logits and box codes of every anchor; the input is zero where there is only padding.

        Returns:
          Lists over levels, f32[B,h,w,9*K] and f32[B,h,w,9*4].
        """
        return model(normalise(batch['image'], batch['content_size']), train=train)

    def normalisers(self, outputs: Outputs, targets: AnchorTargets) -> Scalars:
        """The number of positive anchors."""
        del outputs
        return {'positives': jnp.sum(targets.positive, dtype=jnp.float32)}

    def numerators(self, outputs: Outputs, targets: AnchorTargets) -> Scalars:
        """Summed class and box losses."""
        totals = {'class': jnp.zeros(()), 'box': jnp.zeros(())}
        start = 0
        for logits, codes in zip(*outputs, strict=True):
            batch, rows, columns, _ = logits.shape
            stop = start + rows * columns * ANCHORS_PER_CELL
            labels, goal, positive = (
                x[:, start:stop].reshape(batch, rows, columns, -1)
                for x in (targets.labels, targets.codes, targets.positive)
            )
            # Label -1 is no class: a row of zeros.
            classes = jnp.tile(jnp.arange(self.num_classes), ANCHORS_PER_CELL)
            one_hot = spread(labels, self.num_classes, self.num_classes) == classes
            focal = losses.focal(logits, one_hot.astype(jnp.float32), FOCAL_ALPHA, FOCAL_GAMMA)
            huber = optax.losses.huber_loss(codes, goal, delta=HUBER_DELTA)
            totals['class'] += jnp.sum(focal)
            totals['box'] += jnp.sum(jnp.where(spread(positive, 4, 2) > 0, huber, 0.0))
            start = stop
        return totals

    def losses(self, numerators: Scalars, normalisers: Scalars) -> Scalars:
        """The total and its parts: class loss a positive anchor, box loss a coordinate, times 50.

        One is added to the number of positives, so that a batch without any has a finite loss.
        """
        normaliser = normalisers['positives'] + 1.0
        class_loss = numerators['class'] / normaliser
        box_loss = numerators['box'] / (4.0 * normaliser)
        return {
            'loss': class_loss + BOX_LOSS_WEIGHT * box_loss,
            'class_loss': class_loss,
            'box_loss': box_loss,
        }

    def predictions(self, outputs: Outputs, batch: Batch) -> Mapping[str, jax.Array]:
        """The detections of each image, best first.

        Returns:
          boxes f32[B,D,4] in pixels of the network's input, scores f32[B,D], classes i32[B,D]
          (labels, from 1) and valid bool[B,D].
        """
        del batch
        logits, codes = self.joined(outputs)
        found = detect(logits, codes, self.anchors, self.image_size, self.rules)
        return found._asdict()

    def joined(self, outputs: Outputs) -> list[jax.Array]:
        """Logits f32[B,A,K] and codes f32[B,A,4] of the whole pyramid, from those of its levels."""
        return [
            jnp.concatenate([x.reshape(x.shape[0], -1, width) for x in levels], axis=1)
            for levels, width in zip(outputs, (self.num_classes, 4), strict=True)
        ]

    def evaluator(self, source: Source) -> DetectionEvaluator:
        """COCO's metrics of boxes."""
        return DetectionEvaluator(source)

    def found(self, row: Example) -> Detections:
        """The detections of one image in its own pixels."""
        return detections_of(row)

    def records(self, categories: Sequence[Category]) -> DetectionRecords:
        """COCO's format."""
        return DetectionRecords(categories)

    def picture(
        self,
        image: np.ndarray,
        found: Detections,
        names: Mapping[int, str],
        *,
        min_score: float,
        side: int,
    ) -> np.ndarray:
        """The image with its boxes."""
        return draw(image, found, names, min_score=min_score, side=side)


def spread(values: jax.Array, repeats: int, limit: int) -> jax.Array:
    """Repeat each of the last axis's values `repeats` times in a row, as `jnp.repeat` does.

    Written as a product with ones and zeros, which lands in the layout that the heads' outputs have
    on a TPU; a repeat, or a reshape to [..., anchors, classes], would copy those outputs.

    Args:
      values: i32 or bool[...,n].
      repeats: at least 1.
      limit: the values are whole numbers whose size is below it.

    Returns:
      f32[...,n * repeats], exact.
    """
    count = values.shape[-1]
    ones = np.kron(np.eye(count), np.ones((1, repeats))).astype(np.float32)
    # Up to 256 whole numbers are exact in bfloat16, which a TPU multiplies by default.
    precision = 'default' if limit <= 256 else 'highest'
    return jnp.matmul(values.astype(jnp.float32), ones, precision=precision)
