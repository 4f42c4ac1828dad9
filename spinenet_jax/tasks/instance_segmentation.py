"""Instance segmentation with Mask R-CNN: proposals, sampled regions, five losses, masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spinenet_jax.data.batch import Category, Example, Rows, Source
from spinenet_jax.evaluation.instances import InstanceEvaluator
from spinenet_jax.lowering.feature_map import FeatureMap
from spinenet_jax.models.mask_rcnn import MaskRCNN
from spinenet_jax.ops import nms, region_losses, sampling
from spinenet_jax.ops.anchors import pyramid_anchors
from spinenet_jax.ops.images import normalise
from spinenet_jax.ops.mask_targets import crop_masks
from spinenet_jax.ops.proposals import ProposalRules, Proposals, propose
from spinenet_jax.ops.region_losses import Normalisation, Pair
from spinenet_jax.ops.region_outputs import CASCADE_WEIGHTS, detect_regions, refine
from spinenet_jax.ops.sampling import AnchorSample, Regions
from spinenet_jax.tasks.records import InstanceRecords, Instances, draw, instances_of
from spinenet_jax.tasks.task import Batch, Scalars

ANCHOR_SCALES = (1.0,)
STAGE_IOUS = (0.5, 0.6, 0.7)  # a region is an object's above these, in the stages of a cascade
POSITIVE_FRACTION = 0.25  # largest share of objects' regions among those drawn
TRUTH = ('boxes', 'labels', 'valid', 'masks', 'has_mask')


class Stage(NamedTuple):
    """What a box head said of regions in training.

    Attributes:
      logits: f32[B,R,K]. codes: f32[B,R,4*K], in a cascade f32[B,R,4].
      regions: with a leading B.
    """

    logits: jax.Array
    codes: jax.Array
    regions: Regions


class Trained(NamedTuple):
    """Outputs of a forward pass in training.

    Attributes:
      scores, codes: of the region proposal network, lists over levels.
      anchors: which anchors were drawn, and their targets, with a leading B.
      stages: one, or those of a cascade.
      masks: f32[B,M,28,28], logits of the objects' classes.
      mask_regions: the M regions of them.
    """

    scores: list[jax.Array]
    codes: list[jax.Array]
    anchors: AnchorSample
    stages: tuple[Stage, ...]
    masks: jax.Array
    mask_regions: Regions


@dataclass(frozen=True)
class InstanceSegmentationTask:
    """Two-stage detection with masks (Mask R-CNN; constants of both public versions).

    The methods are those of `tasks.task.Task`.

    Attributes:
      rows: whole images with boxes and masks.
      anchor_size: side of the square anchor in cells.
      levels: (lowest, highest) level of the pyramid.
      rules: of post-processing.
      train_proposals, eval_proposals: which proposals there are. `inclusive` also says how regions
        are coded, in training, and detections decoded, in evaluation.
      regions: of an image that are drawn to train on; a quarter of them, at most, are objects', and
        these alone learn masks.
      anchors: of an image whose scores are trained; half of them, at most, are objects'.
      cascade: whether the model has three box heads, each on the boxes of the one before.
      normalisation: what losses are divided by.
    """

    rows: Rows
    anchor_size: float
    levels: tuple[int, int]
    rules: nms.Rules
    train_proposals: ProposalRules
    eval_proposals: ProposalRules
    regions: int = 512
    anchors: int = 256
    cascade: bool = False
    normalisation: Normalisation = region_losses.TF1

    streams = ('dropout', 'sampling')
    main_metric = 'mask/AP'

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""
        height, width, _ = self.rows.eval.fields['image'].shape
        return height, width

    @property
    def _weights(self) -> tuple[tuple[float, ...], ...]:
        """Of the box codes of each stage."""
        return CASCADE_WEIGHTS if self.cascade else CASCADE_WEIGHTS[:1]

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """The objects. Which region should say what is known after the forward pass only."""
        return {name: batch[name] for name in TRUTH}

    def forward(
        self, model: MaskRCNN, batch: Batch, *, train: bool
    ) -> Trained | dict[str, jax.Array]:
        """In training what the losses need, in evaluation the detections with their masks."""
        images = normalise(batch['image'], batch['content_size'])
        return self.learn(model, images, batch) if train else self.detect(model, images)

    def learn(self, model: MaskRCNN, images: jax.Array, batch: Batch) -> Trained:
        """The training pass of normalised images f[B,H,W,3]."""
        pyramid = model.features(images, train=True)
        scores, codes = model.propose(pyramid, train=True)
        anchor_key, region_key = jax.random.split(model.make_rng('sampling'))
        anchors = self._draw_anchors(batch, anchor_key)
        proposals = self._proposals(scores, codes, self.train_proposals)
        stages = self._stages(
            model, pyramid, batch, self._draw_regions(proposals, batch, region_key)
        )
        most = int(self.regions * POSITIVE_FRACTION)
        first = partial(sampling.first_positives, count=most)
        regions = jax.vmap(first)(stages[-1].regions, batch['has_mask'])
        masks = model.masks(pyramid, regions.boxes, regions.labels, train=True)
        return Trained(scores, codes, anchors, stages, masks, regions)

    def detect(self, model: MaskRCNN, images: jax.Array) -> dict[str, jax.Array]:
        """The detections in normalised images f[B,H,W,3], see `predictions`.

        A cascade's classes are scored by the mean of its stages' logits.
        """
        pyramid = model.features(images, train=False)
        proposals = self._proposals(*model.propose(pyramid, train=False), self.eval_proposals)
        inclusive, size, weights = self.eval_proposals.inclusive, self.image_size, self._weights
        boxes = proposals.boxes
        total, codes = model.classify(pyramid, boxes, train=False)
        for stage in range(1, len(weights)):
            boxes = refine(codes, boxes, size, weights[stage - 1], inclusive)
            logits, codes = model.classify(pyramid, boxes, stage=stage, train=False)
            total += logits
        found = detect_regions(
            total / len(weights),
            codes,
            boxes,
            proposals.valid,
            size,
            self.rules,
            weights[-1],
            inclusive,
        )
        masks = model.masks(pyramid, found.boxes, found.classes, train=False)
        return {**found._asdict(), 'masks': jax.nn.sigmoid(masks)}

    @property
    def _pyramid_anchors(self) -> jax.Array:
        """f32[A,4] of all levels."""
        size, levels = self.image_size, self.levels
        return jnp.asarray(pyramid_anchors(size, self.anchor_size, levels, ANCHOR_SCALES))

    def _proposals(
        self, scores: list[jax.Array], codes: list[jax.Array], rules: ProposalRules
    ) -> Proposals:
        return propose(scores, codes, self._pyramid_anchors, self.image_size, rules)

    def _draw_anchors(self, batch: Batch, key: jax.Array) -> AnchorSample:
        """Which anchors' scores are trained."""
        anchors = self._pyramid_anchors
        noise = jax.random.uniform(key, (len(batch['boxes']), len(anchors)))
        # One image after the other: the overlaps of several at once would lie badly in a TPU's
        # vector registers (docs/tpu_log.md).
        return jax.lax.map(
            lambda image: sampling.sample_anchors(anchors, *image, count=self.anchors),
            (batch['boxes'], batch['valid'], noise),
        )

    def _draw_regions(self, proposals: Proposals, batch: Batch, key: jax.Array) -> Regions:
        """Which regions the heads are trained on: proposals and the objects' own boxes."""
        shape = (len(batch['boxes']), proposals.boxes.shape[1] + batch['boxes'].shape[1])
        sample = partial(
            sampling.sample_regions,
            count=self.regions,
            fraction=POSITIVE_FRACTION,
            iou=STAGE_IOUS[0],
        )
        return jax.lax.map(
            lambda image: sample(*image),
            (
                proposals.boxes,
                proposals.valid,
                batch['boxes'],
                batch['labels'],
                batch['valid'],
                jax.random.uniform(key, shape),
            ),
        )

    def _stages(
        self, model: MaskRCNN, pyramid: dict[int, FeatureMap], batch: Batch, regions: Regions
    ) -> tuple[Stage, ...]:
        """The box heads, each on what the one before made of its regions, assigned anew."""
        truth = (batch['boxes'], batch['labels'], batch['valid'])
        stages = [Stage(*model.classify(pyramid, regions.boxes, train=True), regions)]
        for number in range(1, len(self._weights)):
            boxes = refine(
                stages[-1].codes,
                regions.boxes,
                self.image_size,
                self._weights[number - 1],
                self.train_proposals.inclusive,
            )
            assign = partial(sampling.assign, iou=STAGE_IOUS[number])
            regions, _ = jax.vmap(assign)(boxes, regions.valid, *truth)
            outputs = model.classify(pyramid, regions.boxes, stage=number, train=True)
            stages.append(Stage(*outputs, regions))
        return tuple(stages)

    def normalisers(self, outputs: Trained, targets: Mapping[str, jax.Array]) -> Scalars:
        """Anchors, regions, coordinates and pixels that the losses are divided by."""
        counts = _spread(
            {name: count for name, (_, count) in self._pairs(outputs, targets).items()}
        )
        return {**counts, 'shares': jnp.ones(())}

    def numerators(self, outputs: Trained, targets: Mapping[str, jax.Array]) -> Scalars:
        """The five losses, summed; those of levels and stages one by one."""
        return _spread({name: total for name, (total, _) in self._pairs(outputs, targets).items()})

    def losses(self, numerators: Scalars, normalisers: Scalars) -> Scalars:
        """The five losses and their sum; those of a cascade's stages are averaged."""
        counts = _collect({k: v for k, v in normalisers.items() if k != 'shares'})
        pairs = {name: (total, counts[name]) for name, total in _collect(numerators).items()}
        return region_losses.combine(pairs, self.normalisation, normalisers['shares'])

    def _pairs(self, outputs: Trained, targets: Mapping[str, jax.Array]) -> dict[str, Pair]:
        """Sums and counts of the five losses."""
        boxes, inclusive = targets['boxes'], self.train_proposals.inclusive
        class_pairs, box_pairs = [], []
        for (logits, codes, regions), weights in zip(outputs.stages, self._weights, strict=True):
            class_pairs.append(region_losses.class_loss(logits, regions.labels, regions.valid))
            goal = jax.vmap(partial(sampling.region_codes, weights=weights, inclusive=inclusive))(
                regions, boxes
            )
            box_pairs.append(region_losses.box_loss(codes, goal, regions.labels, regions.positive))
        regions, side = outputs.mask_regions, outputs.masks.shape[-1]
        goal = jax.vmap(partial(crop_masks, size=side))(
            targets['masks'], boxes, regions.matched, regions.boxes
        )
        score = region_losses.score_loss(outputs.scores, outputs.anchors, self.normalisation)
        return {
            'rpn_score': score,
            'rpn_box': region_losses.anchor_box_loss(outputs.codes, outputs.anchors),
            'class': region_losses.stack(class_pairs),
            'box': region_losses.stack(box_pairs),
            'mask': region_losses.mask_loss(outputs.masks, goal, regions.valid),
        }

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Batch
    ) -> Mapping[str, jax.Array]:
        """The detections of each image, best first.

        Returns:
          boxes f32[B,D,4] in pixels of the network's input, scores f32[B,D], classes i32[B,D]
          (labels, from 1), valid bool[B,D], and masks f32[B,D,28,28], the probability that each
          part of the box belongs to the object, of its class alone.
        """
        del batch
        return outputs

    def evaluator(self, source: Source) -> InstanceEvaluator:
        """COCO's metrics of boxes and masks."""
        return InstanceEvaluator(source)

    def found(self, row: Example) -> Instances:
        """The objects of one image with their masks, in its own pixels."""
        return instances_of(row)

    def records(self, categories: Sequence[Category]) -> InstanceRecords:
        """COCO's format, masks as RLE."""
        return InstanceRecords(categories)

    def picture(
        self,
        image: np.ndarray,
        found: Instances,
        names: Mapping[int, str],
        *,
        min_score: float,
        side: int,
    ) -> np.ndarray:
        """The image with its objects' masks."""
        return draw(image, found, names, min_score=min_score, side=side)


def _spread(values: Mapping[str, jax.Array]) -> Scalars:
    """Arrays by name as scalars: entry n of 'box' becomes 'box/n'."""
    scalars = {}
    for name, value in values.items():
        if value.ndim:
            scalars |= {f'{name}/{n}': value[n] for n in range(len(value))}
        else:
            scalars[name] = value
    return scalars


def _collect(scalars: Scalars) -> dict[str, jax.Array]:
    """Undoes `_spread`."""
    parts: dict[str, dict[int, jax.Array]] = {}
    values = {}
    for key, value in scalars.items():
        name, _, place = key.partition('/')
        if place:
            parts.setdefault(name, {})[int(place)] = value
        else:
            values[name] = value
    stacked = {n: jnp.stack([part[i] for i in sorted(part)]) for n, part in parts.items()}
    return {**values, **stacked}
