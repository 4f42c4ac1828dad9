"""Builds the Model Garden's Mask R-CNN and its cascade at any width, and runs them stage by stage.

As `oracle_garden.py` for RetinaNet: needs the environment that `make_oracle_env.sh` builds.
"""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import oracle_cases as cases
import oracle_garden as garden
import tensorflow as tf
import tf_keras
from official.vision.configs import maskrcnn as garden_config
from official.vision.modeling import factory
from official.vision.modeling.backbones import spinenet
from official.vision.modeling.layers import roi_generator, roi_sampler
from official.vision.ops import anchor, mask_ops
from official.vision.tasks import maskrcnn as garden_task

from spinenet_jax.convert import tf_names

RATIOS = [0.5, 1.0, 2.0]
ANCHORS = 256  # of an image, drawn to train the proposals on; as published
Arrays = dict[str, np.ndarray]


def build(model: dict, size: tuple[int, int], weight_decay: float = 0.0, few: bool = True) -> tuple:
    """(Garden task, Keras model) of `model` (see `oracle_cases.MASK_RCNN`).

    With `few` regions, as `oracle_cases` says; else as many as the Garden's own experiment has.
    """
    cascade = model['cascade']
    published = 'cascadercnn_spinenet_coco' if cascade else 'maskrcnn_spinenet_coco'
    config = getattr(garden_config, published)().task
    config.model.input_size = [*size, 3]
    config.model.num_classes = model['num_classes']
    config.model.anchor.anchor_size = model['anchor_size']
    config.model.norm_activation.activation = model['activation']
    config.model.rpn_head.num_convs = model['rpn_convs']
    for head in (config.model.rpn_head, config.model.detection_head, config.model.mask_head):
        head.num_filters = model['head_channels']
    for head in (config.model.detection_head, config.model.mask_head):
        head.num_convs = model['head_convs']
    config.model.detection_head.fc_dims = model['hidden_channels']
    if few:
        proposals = config.model.roi_generator
        proposals.pre_nms_top_k = 2 * cases.PROPOSALS['candidates']
        proposals.test_pre_nms_top_k = cases.PROPOSALS['candidates']
        proposals.num_proposals = proposals.test_num_proposals = cases.PROPOSALS['proposals']
        config.model.roi_sampler.num_sampled_rois = cases.REGIONS
        config.model.mask_sampler.num_sampled_masks = cases.TRAINED_MASKS
    config.losses.l2_weight_decay = weight_decay
    regularizer = tf_keras.regularizers.l2(weight_decay / 2.0) if weight_decay else None
    specs = tf_keras.layers.InputSpec(shape=[None, *size, 3])
    norm = config.model.norm_activation
    backbone = garden.build_backbone(model, specs, spinenet.SPINENET_BLOCK_SPECS, regularizer, norm)
    network = factory.build_maskrcnn(specs, config.model, regularizer, backbone=backbone)
    network(tf.zeros([1, *size, 3]), tf.constant([size], tf.float32), training=False)
    return garden_task.MaskRCNNTask(config), network


def assign_random(
    network: tf_keras.Model,
    model: dict,
    draw: Callable[..., np.ndarray] = cases.region_weight,
) -> dict[str, tf.Variable]:
    """Give every variable what `draw` (path, our shape) gives; returns `variables`."""
    named = variables(network, model)
    for path, variable in named.items():
        shape = garden.in_their_order(path, np.empty(variable.shape)).shape  # its own inverse
        variable.assign(garden.in_their_order(path, draw(path, shape)))
    return named


def variables(network: tf_keras.Model, model: dict) -> dict[str, tf.Variable]:
    """{our path: variable} of every variable of the model."""
    heads = tf_names.RegionHeads(
        model['rpn_convs'], model['head_convs'], len(network.detection_head)
    )
    architecture = tf_names.Architecture(model['block_repeats'], 0, regions=heads)
    return garden.named_variables(network, list(_keyed(network)), architecture)


def _keyed(network: tf_keras.Model) -> Iterator[tuple[str, tf.Variable]]:
    """Each variable with a key like that of its checkpoint."""
    yield from garden.backbone_keyed(network)
    head = network.rpn_head
    for j, conv in enumerate(head._convs):
        yield from garden.leaves(f'rpn_head/_convs/{j}', conv)
    for place, norms in enumerate(head._norms):
        for j, norm in enumerate(norms):
            yield from garden.leaves(f'rpn_head/_norms/{place}/{j}', norm)
    for name in ('_classifier', '_box_regressor'):
        yield from garden.leaves(f'rpn_head/{name}', getattr(head, name))
    heads = {f'detection_head/{n}': head for n, head in enumerate(network.detection_head)}
    for key, head in {**heads, 'mask_head': network.mask_head}.items():
        for name in ('_convs', '_conv_norms', '_fcs', '_fc_norms'):
            for j, layer in enumerate(getattr(head, name, ())):
                yield from garden.leaves(f'{key}/{name}/{j}', layer)
        for name in ('_classifier', '_box_regressor', '_deconv', '_deconv_bn', '_mask_regressor'):
            if hasattr(head, name):
                yield from garden.leaves(f'{key}/{name}', getattr(head, name))


def detect(
    network: tf_keras.Model, images: np.ndarray, masks: int | None = cases.MASKS_STORED
) -> Arrays:
    """Outputs of every stage at inference for normalised f32[B,H,W,3] images.

    Of masks the first, or with None all.
    """
    size = tf.constant([images.shape[1:3]] * len(images), tf.float32)
    with _recorded(roi_generator.MultilevelROIGenerator) as proposals:
        found = network(images, size, training=False)
    result = {
        'proposals': proposals[0][0].numpy(),
        'proposal_scores': proposals[0][1].numpy(),
        'logits': found['cls_outputs'].numpy(),
        'codes': found['box_outputs'].numpy(),
        'masks': found['detection_masks'].numpy()[:, :masks],
    }
    for level in garden.LEVELS:
        result[f'feature{level}'] = found['backbone_features'][str(level)].numpy()
        result[f'rpn_scores{level}'] = found['rpn_scores'][str(level)].numpy()
        result[f'rpn_codes{level}'] = found['rpn_boxes'][str(level)].numpy()
    for name in ('boxes', 'scores', 'classes'):
        result[f'detection_{name}'] = found[f'detection_{name}'].numpy()
    result['count'] = found['num_detections'].numpy()
    return result


def paste(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """u8[n,*size] in {0, 1} of f32[n,m,m] and f32[n,4], in the Garden's evaluation."""
    # float64: in float32 it is rounding that cuts an edge close to a whole pixel to this or that.
    boxes = boxes.astype(np.float64)[:, [1, 0, 3, 2]]
    boxes[:, 2:] -= boxes[:, :2]
    return mask_ops.paste_instance_masks(masks, boxes, *size)


def loaded(batch: Arrays, size: tuple[int, int], anchor_size: float) -> dict:
    """A training batch as the Garden's data loader gives it to `task.train_step`.

    Args:
      batch: boxes, labels, valid and masks, see `oracle_cases.mask_rcnn_batch`.
      size: of the images.
      anchor_size: of the model, in cells.
    """
    count = len(batch['boxes'])
    info = tf.constant([[size, size, (1, 1), (0, 0)]] * count, tf.float32)
    labels = _labels(batch, size, anchor_size, ANCHORS)
    return {**labels, **_padded(batch), 'image_info': info, 'anchor_boxes': None}


def train(task: garden_task.MaskRCNNTask, network: tf_keras.Model, named: dict) -> Arrays:
    """A training pass with its random draws, losses, gradients and updated statistics."""
    batch, size = cases.mask_rcnn_batch(), cases.MASK_RCNN_TRAINING['size']
    labels, truth = _labels(batch, size), _padded(batch)
    images = tf.constant(cases.normalised(batch['image']))
    shape = tf.constant([size] * len(images), tf.float32)
    tf.random.set_seed(0)
    with (
        _recorded(roi_generator.MultilevelROIGenerator) as proposals,
        _recorded(roi_sampler.ROISampler) as regions,
        tf.GradientTape() as tape,
    ):
        outputs = network(images, shape, training=True, **truth)
        losses = task.build_losses(outputs, labels, aux_losses=network.losses)
    paths = [path for path in named if path.startswith('params/')]
    gradients = tape.gradient(losses['total_loss'], [named[path] for path in paths])
    result = {
        'proposals': proposals[0][0].numpy(),
        'proposal_scores': proposals[0][1].numpy(),
        'mask_logits': outputs['mask_outputs'].numpy(),
        'mask_targets': outputs['mask_targets'].numpy(),
        'gradient_norms': np.array([np.linalg.norm(g.numpy()) for g in gradients], np.float32),
    }
    for n, (boxes, _, classes, indices) in enumerate(regions):
        end = f'_{n}' if n else ''
        result[f'regions{n}'] = boxes.numpy()
        result[f'labels{n}'] = classes.numpy().astype(np.int32)
        result[f'matched{n}'] = indices.numpy().astype(np.int32)
        result[f'logits{n}'] = outputs[f'class_outputs{end}'].numpy()
        result[f'codes{n}'] = outputs[f'box_outputs{end}'].numpy()
        result[f'targets{n}'] = outputs[f'box_targets{end}'].numpy()
    for level in garden.LEVELS:
        for name in ('score', 'box'):
            targets = labels[f'rpn_{name}_targets'][str(level)].numpy()
            result[f'rpn_{name}_targets{level}'] = targets
    result |= {f'loss/{name}': value.numpy() for name, value in losses.items()}
    result['gradient_names'] = np.array(paths)
    for path, gradient in zip(paths, gradients, strict=True):
        if 'backbone' not in path or 'stem_conv' in path:
            result[f'gradient/{path}'] = cases.pack(gradient.numpy())
    for path, variable in named.items():
        if path.startswith('batch_stats/') and 'backbone' not in path:
            result[f'updated/{path}'] = variable.numpy()
    return result


def ten_steps(task: garden_task.MaskRCNNTask, network: tf_keras.Model, named: dict) -> Arrays:
    """Ten steps of SGD on one batch: the regions drawn, the losses, and how the heads changed."""
    batch, size = cases.mask_rcnn_batch(), cases.MASK_RCNN_TRAINING['size']
    labels, truth = _labels(batch, size), _padded(batch)
    images = tf.constant(cases.normalised(batch['image']))
    shape = tf.constant([size] * len(images), tf.float32)
    sgd, start = cases.TRAINING_SGD, {path: value.numpy() for path, value in named.items()}
    optimizer = tf_keras.optimizers.legacy.SGD(sgd['learning_rate'], sgd['momentum'])
    paths = [path for path in named if path.startswith('params/')]
    tf.random.set_seed(2)
    drawn, rows = [], []
    for _ in range(cases.TRAINING_STEPS):
        with _recorded(roi_sampler.ROISampler) as regions, tf.GradientTape() as tape:
            outputs = network(images, shape, training=True, **truth)
            losses = task.build_losses(outputs, labels, aux_losses=network.losses)
        gradients = tape.gradient(losses['total_loss'], [named[path] for path in paths])
        optimizer.apply_gradients(
            (gradient, named[path]) for path, gradient in zip(paths, gradients, strict=True)
        )
        boxes, _, classes, indices = regions[0]
        drawn.append((boxes.numpy(), classes.numpy(), indices.numpy()))
        rows.append([losses[name].numpy() for name in cases.LOSSES])
    boxes, classes, indices = (np.stack(values) for values in zip(*drawn, strict=True))
    result = {
        'regions': boxes,
        'labels': classes.astype(np.int32),
        'matched': indices.astype(np.int32),
        'losses': np.array(rows, np.float32),
    }
    for path, variable in named.items():
        if 'backbone' not in path or 'stem_conv' in path:
            result[f'change/{path}'] = cases.pack(variable.numpy() - start[path])
    return result


def _labels(
    batch: Arrays,
    size: tuple[int, int],
    anchor_size: float = cases.MASK_RCNN['anchor_size'],
    count: int = cases.ANCHORS_DRAWN,
) -> dict:
    """The targets of `count` anchors an image that the Garden's data loader draws at random."""
    tf.random.set_seed(1)
    made = anchor.Anchor(3, 7, 1, RATIOS, anchor_size, size).multilevel_boxes
    labeler = anchor.RpnAnchorLabeler(rpn_batch_size_per_im=count)
    rows = []
    for boxes, labels, valid in zip(batch['boxes'], batch['labels'], batch['valid'], strict=True):
        found = labeler.label_anchors(
            made, tf.constant(boxes[valid]), tf.constant(labels[valid])[:, None]
        )
        rows.append(dict(zip(('rpn_score_targets', 'rpn_box_targets'), found, strict=True)))
    return tf.nest.map_structure(lambda *values: tf.stack(values), *rows)


def _padded(batch: Arrays) -> dict:
    """The objects as the Garden's data loader gives them: -1 where there is none."""
    valid = batch['valid']
    return {
        'gt_boxes': tf.constant(np.where(valid[..., None], batch['boxes'], -1)),
        'gt_classes': tf.constant(np.where(valid, batch['labels'], -1)),
        'gt_masks': tf.constant(
            np.where(valid[..., None, None], batch['masks'] / np.float32(255), -1), tf.float32
        ),
    }


@contextlib.contextmanager
def _recorded(layer: type[tf_keras.layers.Layer]) -> Iterator[list]:
    """While it lasts, what a kind of layer returns is collected in a list."""
    results, call = [], layer.call

    def spy(self: tf_keras.layers.Layer, *arguments: object, **options: object) -> object:
        results.append(call(self, *arguments, **options))
        return results[-1]

    with mock.patch.object(layer, 'call', spy):
        yield results
