"""peers.py's worker for the TF2 Model Garden: its RetinaNets, graphs of tf.function.

Runs in the environment that tools/maintenance/make_oracle_env.sh builds.
"""

from importlib.metadata import version

import oracle_cases as cases
import oracle_garden as garden
import peer_worker as worker
import tensorflow as tf
import tf_keras
from official.vision.modeling.layers import detection_generator
from official.vision.ops import anchor

MODELS = {
    'retinanet': cases.model(**{**cases.FULL['49'], 'activation': 'relu'}),
    'mobile': cases.model(**cases.FULL['mb49']),
}


def crowd(network: tf_keras.Model, outputs, x: tf.Tensor) -> None:
    """Predictors whose outputs are as crowded as `worker.calibration` says."""
    head = network.head
    classifier, regressor = head._classifier, head._box_regressor
    for predictor in (classifier, regressor):
        predictor.bias.assign(tf.zeros_like(predictor.bias))
    logits, codes = (
        tf.concat([tf.reshape(level, [-1]) for level in levels.values()], 0).numpy()
        for levels in outputs(x)
    )
    logit_scale, bias, code_scale = worker.calibration(logits, codes)
    kernel_of(classifier).assign(kernel_of(classifier) * logit_scale)
    classifier.bias.assign(tf.fill(classifier.bias.shape, bias))
    kernel_of(regressor).assign(kernel_of(regressor) * code_scale)


def kernel_of(predictor: tf_keras.layers.Layer) -> tf.Variable:
    """The kernel of a convolution, the pointwise one of a separable convolution."""
    separable = isinstance(predictor, tf_keras.layers.SeparableConv2D)
    return predictor.pointwise_kernel if separable else predictor.kernel


def labels(side: int, count: int, anchor_size: float) -> dict:
    """The targets that the Garden's data loader makes of `worker.objects`."""
    made = anchor.Anchor(3, 7, 3, [0.5, 1.0, 2.0], anchor_size, (side, side))
    labeler, rows = anchor.AnchorLabeler(), []
    names = ('cls_targets', 'box_targets', 'attributes', 'cls_weights', 'box_weights')
    for boxes, kinds in zip(*worker.objects(side, count), strict=True):
        kinds = tf.constant(kinds[:, None], tf.int32)
        found = labeler.label_anchors(made.multilevel_boxes, tf.constant(boxes), kinds)
        found = dict(zip(names, found, strict=True))
        del found['attributes']
        rows.append(found)
    return tf.nest.map_structure(lambda *values: tf.stack(values), *rows)


def train_measure(spec: worker.Spec):
    """One training step as a function."""
    side, model = spec.train_size, MODELS[spec.model]
    task, network = garden.build(model, (side, side), worker.WEIGHT_DECAY)
    optimizer = tf_keras.optimizers.legacy.SGD(worker.LEARNING_RATE, worker.MOMENTUM)
    x = tf.constant(worker.images(spec, spec.train_batch, side))
    inputs = (x, labels(side, spec.train_batch, model['anchor_size']))
    step = tf.function(lambda: task.train_step(inputs, network, optimizer)['loss'])
    return lambda: step().numpy()


def build(spec: worker.Spec) -> worker.Peer:
    """Graphs are traced on the first call of each measure."""
    size = (spec.image_size, spec.image_size)
    model = MODELS[spec.model]
    _, network = garden.build(model, size)
    one = tf.constant(worker.images(spec, 1, spec.image_size))
    shape = tf.constant([size], tf.float32)

    @tf.function
    def outputs(x):
        logits, codes, _ = network.head(network.backbone(x, training=False), training=False)
        return logits, codes

    @tf.function
    def whole(x):
        return network(x, image_shape=shape, training=False)

    crowd(network, outputs, one)
    scores = [tf.sigmoid(level).numpy() for level in outputs(one)[0].values()]
    generator = detection_generator.MultilevelDetectionGenerator(nms_version='batched')
    anchors = anchor.Anchor(3, 7, 3, [0.5, 1.0, 2.0], model['anchor_size'], size).multilevel_boxes
    anchors = {level: boxes[None] for level, boxes in anchors.items()}

    @tf.function
    def batched(x):
        logits, codes = outputs(x)
        return generator(codes, logits, anchors, shape)

    square = tf.constant(worker.square(spec))
    product = tf.function(lambda: tf.matmul(square, square))
    measures = {
        'network': lambda: [level.numpy() for levels in outputs(one) for level in levels.values()],
        'end_to_end': lambda: whole(one)['detection_boxes'].numpy(),
        'end_to_end_batched': lambda: batched(one)['detection_boxes'].numpy(),
        'train': train_measure(spec),
        'matmul': lambda: product().numpy(),
    }
    facts = {
        'model': worker.NAMES[spec.model],
        'dtype': 'float32',
        'candidates': sum(int((s > worker.SCORE_THRESHOLD).sum()) for s in scores),
        'versions': {name: version(name) for name in ('tensorflow-cpu', 'tf-models-official')},
    }
    return worker.Peer(facts, measures)


if __name__ == '__main__':
    worker.serve(build)
