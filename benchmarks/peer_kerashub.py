"""peers.py's worker for KerasHub: its RetinaNet ResNet-50-FPN on Keras' JAX backend.

Runs in the environment that tools/maintenance/make_peer_env.sh kerashub builds.
"""

import os
from importlib.metadata import version

os.environ['KERAS_BACKEND'] = 'jax'

import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
import peer_worker as worker


def detector(side: int) -> keras.Model:
    """Random weights; suppression at the threshold and number of detections of all peers."""
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type='bottleneck_block',
        image_shape=(side, side, 3),
    )
    backbone = keras_hub.models.RetinaNetBackbone(
        encoder, min_level=3, max_level=7, use_p5=False, image_shape=(side, side, 3)
    )
    decoder = keras_hub.layers.NonMaxSuppression(
        bounding_box_format='yxyx',
        from_logits=True,
        iou_threshold=worker.IOU_THRESHOLD,
        confidence_threshold=worker.SCORE_THRESHOLD,
        max_detections=worker.DETECTIONS,
    )
    return keras_hub.models.RetinaNetObjectDetector(
        backbone,
        num_classes=worker.CLASSES,
        bounding_box_format='yxyx',
        prediction_decoder=decoder,
    )


def variables(model: keras.Model) -> tuple[list, list]:
    """Arrays of the trainable and of the other variables."""
    trainable = [variable.value for variable in model.trainable_variables]
    return trainable, [variable.value for variable in model.non_trainable_variables]


def crowd(model: keras.Model, network, x: jax.Array) -> None:
    """Predictors whose outputs are as crowded as `worker.calibration` says."""
    heads = (model.classification_head, model.box_head)
    classifier, regressor = (head.prediction_layer for head in heads)
    for predictor in (classifier, regressor):
        predictor.bias.assign(jnp.zeros(predictor.bias.shape))
    outputs = network(variables(model), x)
    logits, codes = (np.asarray(outputs[key]) for key in ('cls_logits', 'bbox_regression'))
    logit_scale, bias, code_scale = worker.calibration(logits, codes)
    classifier.kernel.assign(classifier.kernel.value * logit_scale)
    classifier.bias.assign(jnp.full(classifier.bias.shape, bias))
    regressor.kernel.assign(regressor.kernel.value * code_scale)


def train_measure(spec: worker.Spec):
    """One training step as a function."""
    model = detector(spec.train_size)
    model.compile(
        optimizer=keras.optimizers.SGD(
            worker.LEARNING_RATE, worker.MOMENTUM, weight_decay=worker.WEIGHT_DECAY
        )
    )
    x = worker.images(spec, spec.train_batch, spec.train_size)
    boxes, labels = worker.objects(spec.train_size, spec.train_batch)
    y = {'boxes': boxes, 'labels': labels.astype(np.float32)}
    # Not the model's own, which takes no dictionary of boxes and labels.
    return lambda: keras.Model.train_on_batch(model, x, y)


def build(spec: worker.Spec) -> worker.Peer:
    """Everything is compiled on the first call of each measure."""
    model = detector(spec.image_size)
    one = jax.device_put(worker.images(spec, 1, spec.image_size))

    def forward(v, x):
        return model.stateless_call(*v, x, training=False)[0]

    network = jax.jit(forward)
    whole = jax.jit(lambda v, x: model.decode_predictions(forward(v, x), x))
    crowd(model, network, one)
    v = variables(model)
    scores = jax.nn.sigmoid(network(v, one)['cls_logits'])
    square = jnp.asarray(worker.square(spec))
    product = jax.jit(jnp.dot)
    measures = {
        'network': lambda: jax.block_until_ready(network(v, one)),
        'end_to_end': lambda: jax.block_until_ready(whole(v, one)),
        'train': train_measure(spec),
        'matmul': lambda: product(square, square).block_until_ready(),
    }
    facts = {
        'model': 'RetinaNet ResNet-50-FPN',
        'dtype': 'float32',
        'candidates': int(jnp.sum(scores > worker.SCORE_THRESHOLD)),
        'versions': {name: version(name) for name in ('keras', 'keras-hub', 'jax')},
    }
    return worker.Peer(facts, measures)


if __name__ == '__main__':
    worker.serve(build)
