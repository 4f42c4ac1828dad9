"""peers.py's worker for the TF2 Model Garden's Mask R-CNN SpineNet-49, graphs of tf.function.

Runs in the environment that tools/maintenance/make_oracle_env.sh builds.
"""

from importlib.metadata import version

import numpy as np
import oracle_cases as cases
import oracle_regions as regions
import peer_worker as worker
import tensorflow as tf
import tf_keras
from pycocotools import mask as coco_mask

MODEL = {**cases.FULL_MASK_RCNN, 'activation': 'relu'}


def crowd(network: tf_keras.Model, outputs) -> None:
    """Predictors whose outputs are as crowded as `worker.region_calibration` says."""
    box_head, proposal_head = network.detection_head[0], network.rpn_head
    predictors = (
        box_head._classifier,
        box_head._box_regressor,
        proposal_head._classifier,
        proposal_head._box_regressor,
    )
    (scores, proposal_codes), (logits, codes), _ = outputs
    arrays = (logits, codes, scores, proposal_codes)
    flat = [np.concatenate([np.ravel(x) for x in tf.nest.flatten(part)]) for part in arrays]
    for predictor, scale in zip(predictors, worker.region_calibration(*flat), strict=True):
        predictor.kernel.assign(predictor.kernel * scale)


def train_measure(spec: worker.Spec):
    """One training step as a function."""
    side = spec.train_size
    task, network = regions.build(MODEL, (side, side), worker.WEIGHT_DECAY, few=False)
    optimizer = tf_keras.optimizers.legacy.SGD(worker.LEARNING_RATE, worker.MOMENTUM)
    boxes, labels, masks = worker.instances(side, spec.train_batch)
    batch = {'boxes': boxes, 'labels': labels.astype(np.int32), 'masks': masks}
    batch['valid'] = np.ones(labels.shape, bool)
    x = tf.constant(worker.images(spec, spec.train_batch, side))
    targets = regions.loaded(batch, (side, side), MODEL['anchor_size'])
    step = tf.function(lambda: task.train_step((x, targets), network, optimizer)['loss'])
    return lambda: step().numpy()


def build(spec: worker.Spec) -> worker.Peer:
    """Graphs are traced on the first call of each measure."""
    size = (spec.image_size, spec.image_size)
    _, network = regions.build(MODEL, size, few=False)
    one = tf.constant(worker.images(spec, 1, spec.image_size))
    shape = tf.constant([size], tf.float32)
    boxes, classes = worker.regions(spec.image_size)
    few = worker.DETECTIONS
    boxes, classes = tf.constant(boxes[None]), tf.constant(classes[None, :few])

    @tf.function
    def dense(x):
        _, pyramid = network._get_backbone_and_decoder_features(x)
        proposals = network.rpn_head(pyramid)
        crops = network.roi_aligner(pyramid, boxes, training=False)
        heads = network.detection_head[0](crops, training=False)
        masks, _ = network._features_to_mask_outputs(pyramid, boxes[:, :few], classes)
        return proposals, heads, masks

    @tf.function
    def whole(x):
        return network(x, shape, training=False)

    crowd(network, dense(one))
    scores = tf.nn.softmax(dense(one)[1][0])[..., 1:].numpy()

    def end_to_end() -> None:
        found = {k: v.numpy() for k, v in whole(one).items() if k.startswith('detection_')}
        pasted = regions.paste(found['detection_masks'][0], found['detection_boxes'][0], size)
        for mask in pasted:  # one by one, as its evaluator does
            coco_mask.encode(np.asfortranarray(mask))

    square = tf.constant(worker.square(spec))
    product = tf.function(lambda: tf.matmul(square, square))
    measures = {
        'network': lambda: [x.numpy() for x in tf.nest.flatten(dense(one))],
        'end_to_end': end_to_end,
        'train': train_measure(spec),
        'matmul': lambda: product().numpy(),
    }
    facts = {
        'model': 'Mask R-CNN SpineNet-49',
        'dtype': 'float32',
        'candidates': int((scores > worker.SCORE_THRESHOLD).sum()),
        'detections': int(whole(one)['num_detections'][0]),
        'versions': {name: version(name) for name in ('tensorflow-cpu', 'tf-models-official')},
    }
    return worker.Peer(facts, measures)


if __name__ == '__main__':
    worker.serve(build)
