"""Writes what the TF2 Model Garden computes, for tests that compare ours without TensorFlow.

    tools/maintenance/make_oracle_env.sh ORACLE
    ORACLE/bin/python tools/maintenance/make_goldens.py [--output=tests/goldens] [STAGE ...]

One .npz a stage. Inputs and weights are not stored: `oracle_cases.py` makes them on both sides.
tf2_beta alone holds a whole checkpoint, as bytes.
"""

import argparse
import pathlib
import sys
import tempfile
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import oracle_cases as cases
import oracle_garden as garden
import oracle_regions as regions
import tensorflow as tf
import tf_keras
from official.vision.dataloaders import retinanet_input
from official.vision.modeling.layers import detection_generator
from official.vision.ops import anchor

Arrays = dict[str, np.ndarray]


def backbone() -> Arrays:
    """Features of every level, and the heads' outputs of two cases."""
    result = {}
    for name, (size, changes) in cases.BACKBONES.items():
        model = cases.model(**changes)
        _, network = garden.build(model, size)
        garden.assign_random(network, model)
        images = cases.normalised(cases.images(name, 1, size))
        for key, value in garden.forward(network, images).items():
            if key.startswith('feature') or name in cases.HEADS:
                result[f'{name}/{key}'] = value
    return result


def mobile() -> Arrays:
    """Features and the heads' outputs of SpineNet-Mobile."""
    _, network = garden.build(cases.MOBILE, cases.MOBILE_SIZE)
    garden.assign_random(network, cases.MOBILE)
    images = cases.normalised(cases.images('mobile', 1, cases.MOBILE_SIZE))
    return garden.forward(network, images)


def resnet() -> Arrays:
    """Features and the heads' outputs of a RetinaNet on ResNet-FPN."""
    _, network = garden.build(cases.RESNET, cases.RESNET_SIZE)
    garden.assign_random(network, cases.RESNET)
    images = cases.normalised(cases.images('resnet', 1, cases.RESNET_SIZE))
    return garden.forward(network, images)


def anchors() -> Arrays:
    """Anchor boxes of a pyramid, level by level."""
    result = {}
    for size, anchor_size in cases.ANCHORS:
        made = anchor.Anchor(3, 7, 3, [0.5, 1.0, 2.0], anchor_size, size).multilevel_boxes
        flat = [tf.reshape(boxes, [-1, 4]).numpy() for boxes in made.values()]
        result[f'{size[0]}x{size[1]}/{anchor_size:g}'] = np.concatenate(flat)
    return result


def _label(boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> dict:
    """The Garden's training targets of one image, as its data loader packs them."""
    made = anchor.Anchor(3, 7, 3, [0.5, 1.0, 2.0], 3.0, size).multilevel_boxes
    labeler = anchor.AnchorLabeler()
    names = ('cls_targets', 'box_targets', 'attributes', 'cls_weights', 'box_weights')
    found = labeler.label_anchors(made, tf.constant(boxes), tf.constant(labels)[:, None])
    return {k: v for k, v in zip(names, found, strict=True) if k != 'attributes'}


def _flat(levels: dict[str, tf.Tensor], width: int) -> np.ndarray:
    """Targets of all levels in one array [A,width]."""
    return np.concatenate([tf.reshape(value, [-1, width]).numpy() for value in levels.values()])


def matching() -> Arrays:
    """Targets of every anchor."""
    result = {}
    for name, (boxes, labels) in cases.matching().items():
        found = _label(boxes, labels, cases.MATCHING_SIZE)
        result[f'{name}/labels'] = _flat(found['cls_targets'], 1)[:, 0].astype(np.int8)
        positive = found['box_weights'].numpy() > 0
        result[f'{name}/positive'] = positive
        # Codes of other anchors are those of an empty box; no loss ever sees them.
        result[f'{name}/codes'] = _flat(found['box_targets'], 4) * positive[:, None]
        if found['cls_weights'].numpy().min() < 1:
            raise ValueError('an anchor is ignored')
    return result


def losses() -> Arrays:
    """Class, box and total loss of given outputs, for each matching case, without weight decay."""
    result = {}
    model, size = cases.model(), cases.MATCHING_SIZE
    task, _ = garden.build(model, size)
    for name, (boxes, labels) in cases.matching().items():
        found = _label(boxes, labels, size)
        count = found['box_weights'].shape[0]
        logits, codes = cases.head_outputs(f'losses {name}', count, model['num_classes'])
        outputs = {
            'cls_outputs': {'3': logits[None, :, None, :]},
            'box_outputs': {'3': codes[None, :, None, :]},
        }
        targets = {
            'cls_targets': {'3': _flat(found['cls_targets'], 1)[None, :, 0].astype(np.int32)},
            'box_targets': {'3': _flat(found['box_targets'], 4)[None]},
            'cls_weights': found['cls_weights'][None],
            'box_weights': found['box_weights'][None],
        }
        total, class_loss, box_loss, _ = task.build_losses(outputs, targets)
        result[name] = np.array([total, class_loss, box_loss], np.float32)
    return result


def training() -> Arrays:
    """Losses, gradients and state over ten steps of SGD, weight decay included; packed."""
    model, sgd = cases.TRAINING, cases.TRAINING_SGD
    task, network = garden.build(model, cases.TRAINING_SIZE, sgd['weight_decay'])
    named = garden.assign_random(network, model, cases.training_weight)
    start = {path: variable.numpy() for path, variable in named.items()}
    optimizer = tf_keras.optimizers.legacy.SGD(sgd['learning_rate'], sgd['momentum'])
    result, rows = {}, []
    for step in range(cases.TRAINING_STEPS):
        inputs = _training_inputs(step)
        if step == 0:
            result |= _gradients(task, network, named, inputs)
        metrics = task.build_metrics()
        task.train_step(inputs, network, optimizer, metrics)
        rows.append([float(metric.result()) for metric in metrics[:3]])
        if step in (0, cases.TRAINING_STEPS - 1):
            for path, variable in named.items():
                if step or path.startswith('batch_stats/'):  # params: the gradient says it
                    change = variable.numpy() - start[path]
                    result[f'change{step + 1}/{path}'] = cases.pack(change)
    result['losses'] = np.array(rows, np.float32)  # total, class, box
    return result


def _training_inputs(step: int) -> tuple[tf.Tensor, dict]:
    batch = cases.training_batch(step)
    labels = []
    for boxes, kinds, valid in zip(batch['boxes'], batch['labels'], batch['valid'], strict=True):
        labels.append(_label(boxes[valid], kinds[valid], cases.TRAINING_SIZE))
    return (
        tf.constant(cases.normalised(batch['image'])),
        tf.nest.map_structure(lambda *rows: tf.stack(rows), *labels),
    )


def _gradients(task, network, named: dict[str, tf.Variable], inputs: tuple) -> Arrays:
    """Gradients of the total loss; the norms' statistics stay as they were."""
    images, labels = inputs
    before = [variable.numpy() for variable in network.variables]
    with tf.GradientTape() as tape:
        outputs = network(images, training=True)
        total = task.build_losses(outputs, labels, aux_losses=network.losses)[0]
    paths = [path for path in named if path.startswith('params/')]
    gradients = tape.gradient(total, [named[path] for path in paths])
    for variable, value in zip(network.variables, before, strict=True):
        variable.assign(value)
    found = zip(paths, gradients, strict=True)
    return {f'gradient/{path}': cases.pack(g.numpy()) for path, g in found}


def detection() -> Arrays:
    """The 100 detections of given head outputs, by the Garden's default suppression."""
    size, classes = cases.MATCHING_SIZE, cases.NARROW['num_classes']
    made = anchor.Anchor(3, 7, 3, [0.5, 1.0, 2.0], 3.0, size).multilevel_boxes
    generator = detection_generator.MultilevelDetectionGenerator(nms_version='v2')
    result = {}
    for name in cases.DETECTION_CASES:
        count = sum(int(np.prod(boxes.shape)) // 4 for boxes in made.values())
        logits, codes = cases.detection_outputs(name, count, classes)
        raw_boxes, raw_scores, start = {}, {}, 0
        for level, boxes in made.items():
            rows, columns, width = boxes.shape
            stop = start + rows * columns * width // 4
            raw_boxes[level] = tf.reshape(codes[start:stop], [1, rows, columns, -1])
            raw_scores[level] = tf.reshape(logits[start:stop], [1, rows, columns, -1])
            start = stop
        tiled = {level: boxes[None] for level, boxes in made.items()}
        found = generator(raw_boxes, raw_scores, tiled, tf.constant([size], tf.float32))
        for key in ('boxes', 'scores', 'classes'):
            result[f'{name}/{key}'] = found[f'detection_{key}'][0].numpy()
        result[f'{name}/count'] = found['num_detections'][0].numpy()
    return result


def preprocessing() -> Arrays:
    """Image, boxes and scale that the data loader makes of a photograph for fixed draws.

    Pixels are stored in 1/64 of a grey level, normalisation undone.
    """
    result = {}
    for name, (_, draws) in cases.PREPROCESSING.items():
        image, info, boxes, labels = _parse(name, draws)
        mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
        grey = (image * deviation + mean) * 255 * (np.abs(image).max(-1, keepdims=True) > 0)
        result[f'{name}/image'] = np.round(grey * 64).astype(np.uint16)
        result[f'{name}/info'] = info
        result[f'{name}/boxes'], result[f'{name}/labels'] = boxes, labels
    return result


def _parse(name: str, draws: tuple | None) -> tuple:
    """(normalised image, image info, boxes, labels) of one photograph."""
    image, boxes, labels, crowd = cases.photo(name)
    size = tf.constant(image.shape[:2] * 2, tf.float32)
    data = {
        'image': tf.constant(image),
        'groundtruth_boxes': tf.constant(boxes) / size,
        'groundtruth_classes': tf.constant(labels),
        'groundtruth_is_crowd': tf.constant(crowd),
        'groundtruth_area': tf.ones(len(boxes)),
        'source_id': tf.constant('1'),
        'height': image.shape[0],
        'width': image.shape[1],
    }
    parser = retinanet_input.Parser(
        output_size=list(cases.PREPROCESSING_SIZE),
        min_level=3,
        max_level=7,
        num_scales=3,
        aspect_ratios=[0.5, 1.0, 2.0],
        anchor_size=3.0,
        aug_rand_hflip=True,
        aug_scale_min=0.1,
        aug_scale_max=2.0,
        dtype='float32',
    )
    seen = []
    labeler = mock.Mock(wraps=anchor.AnchorLabeler())
    labeler.label_anchors.side_effect = lambda *a: (
        seen.append(a),
        anchor.AnchorLabeler().label_anchors(*a),
    )[1]
    if draws is None:
        image, packed = parser._parse_eval_data(data, anchor_labeler=labeler)
    else:
        flip, scale, y, x = draws
        values = iter([0.0 if flip else 0.9, scale, [y, x]])
        fixed = lambda *_, **__: tf.constant(next(values), tf.float32)  # noqa: E731
        with mock.patch.object(tf.random, 'uniform', fixed):
            image, packed = parser._parse_train_data(data, anchor_labeler=labeler)
    _, boxes, labels, *_ = seen[0]
    return image.numpy(), packed['image_info'].numpy(), boxes.numpy(), labels.numpy()[:, 0]


def decoding() -> Arrays:
    """JPEG files and the pixels that both implementations' data loaders decode from them."""
    result = {}
    for name, options in cases.JPEGS.items():
        file = tf.io.encode_jpeg(cases.jpeg_pixels(name), **options)
        result[f'{name}/file'] = np.frombuffer(file.numpy(), np.uint8)
        result[f'{name}/pixels'] = tf.io.decode_image(file, channels=3).numpy()
    return result


def tf2_beta() -> Arrays:
    """A checkpoint in the layout of the Garden's beta, and what its model computes.

    'file/<name>' are the bytes of its files, saved as the Garden's trainer saves them.
    """
    model, size = cases.BETA, cases.BETA_SIZE
    _, network = garden.build(model, size, beta=True)
    garden.assign_random(network, model, beta=True)
    images = cases.normalised(cases.images('tf2_beta', 1, size))
    result = garden.forward(network, images)
    with tempfile.TemporaryDirectory() as folder:
        step = tf.Variable(231000, dtype=tf.int64)
        tf.train.Checkpoint(model=network, global_step=step).write(f'{folder}/ckpt-231000')
        for path in sorted(pathlib.Path(folder).iterdir()):
            result[f'file/{path.name}'] = np.frombuffer(path.read_bytes(), np.uint8)
    return result


def tf2_mask_rcnn() -> Arrays:
    """Every stage of Mask R-CNN at inference, a training pass, and ten steps."""
    return _regions(cases.MASK_RCNN)


def tf2_cascade() -> Arrays:
    """The same of its cascade, without the steps."""
    return _regions({**cases.MASK_RCNN, 'cascade': True})


def _regions(model: dict) -> Arrays:
    """'detect/...', 'train/...' and, without a cascade, 'steps/...'."""
    size = cases.MASK_RCNN_SIZE
    _, network = regions.build(model, size)
    regions.assign_random(network, model)
    images = cases.normalised(cases.images('mask_rcnn', 1, size))
    result = {f'detect/{key}': value for key, value in regions.detect(network, images).items()}
    task, network, named = _training_of(model)
    result |= {f'train/{k}': v for k, v in regions.train(task, network, named).items()}
    if model['cascade']:  # its stages are those of one head; a training pass holds them to theirs
        return result
    return result | {f'steps/{k}': v for k, v in regions.ten_steps(*_training_of(model)).items()}


def _training_of(model: dict) -> tuple:
    """(Garden task, Keras model, {our path: variable}) at the start of training."""
    decay = cases.TRAINING_SGD['weight_decay']
    task, network = regions.build(model, cases.MASK_RCNN_TRAINING['size'], decay)
    return task, network, regions.assign_random(network, model)


STAGES = (
    backbone,
    mobile,
    resnet,
    anchors,
    matching,
    losses,
    training,
    detection,
    decoding,
    preprocessing,
    tf2_beta,
    tf2_mask_rcnn,
    tf2_cascade,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'goldens'
    parser.add_argument('--output', type=pathlib.Path, default=default)
    names = [stage.__name__ for stage in STAGES]
    parser.add_argument('stages', nargs='*', metavar='STAGE', help=f'of {", ".join(names)}')
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(names):
        parser.error(f'no stage {", ".join(sorted(unknown))}; there are {", ".join(names)}')
    arguments.output.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if arguments.stages and stage.__name__ not in arguments.stages:
            continue
        path = arguments.output / f'{stage.__name__}.npz'
        np.savez_compressed(path, **stage())
        print(f'{path}: {path.stat().st_size / 1e6:.2f} MB', flush=True)


if __name__ == '__main__':
    main()
