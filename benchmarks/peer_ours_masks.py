"""peers.py's worker for this project's Mask R-CNN: network, masks in the image, training step."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import peer_worker as worker
from flax import linen as nn
from ml_collections import ConfigDict
from peer_ours import Training, drawn, settings

from configs import mask_rcnn
from spinenet_jax.evaluation.masks import paste
from spinenet_jax.lowering.policy import policy_of
from spinenet_jax.tasks.build import build_task, build_task_model


def dense(model, images, regions, detections, classes):
    """Every convolution: proposals' maps, heads on `regions`, masks of `detections`."""
    pyramid = model.features(images, train=False)
    return (
        model.propose(pyramid, train=False),
        model.classify(pyramid, regions, train=False),
        model.masks(pyramid, detections, classes, train=False),
    )


def crowd(variables: dict, outputs) -> dict:
    """Variables whose outputs are as crowded as `worker.region_calibration` says.

    Args:
      variables: of the model, the predictors' biases being zero.
      outputs: of `dense` with them.
    """
    params = jax.tree.map(lambda value: value, variables['params'])
    box_head, proposal_head = params['box_heads_0'], params['proposal_head']
    predictors = (box_head['class'], box_head['box'], proposal_head['score'], proposal_head['box'])
    (scores, proposal_codes), (logits, codes), _ = outputs
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(part)])
        for part in (logits, codes, scores, proposal_codes)
    ]
    for predictor, scale in zip(predictors, worker.region_calibration(*flat), strict=True):
        predictor['kernel'] *= scale
    return {**variables, 'params': params}


def train_measure(config: ConfigDict, spec: worker.Spec) -> Training:
    """The training step, which draws anchors and regions."""
    boxes, labels, masks = worker.instances(spec.train_size, spec.train_batch)
    objects = {
        'boxes': boxes,
        'labels': labels.astype(np.int32),
        'masks': masks,
        'has_mask': np.ones(labels.shape, bool),
    }
    return Training(config, objects)


def build(spec: worker.Spec) -> worker.Peer:
    """Everything is compiled on the first call of each measure."""
    config = settings(mask_rcnn.get_config('49-B'), spec, spec.image_size)
    task, policy = build_task(config), policy_of(jax.devices()[0])
    model = build_task_model(config, axis_name=None, policy=policy)
    one = jax.device_put(worker.images(spec, 1, spec.image_size))
    regions, classes = worker.regions(spec.image_size)
    few = worker.DETECTIONS
    given = jax.device_put((one, regions[None], regions[None, :few], classes[None, :few]))
    variables = drawn(config, model)
    network = jax.jit(lambda v, *given: nn.apply(dense, model)(v, *given))
    whole = jax.jit(lambda v, x: nn.apply(task.detect, model)(v, x))
    variables = crowd(variables, network(variables, *given))
    scores = jax.nn.softmax(network(variables, *given)[1][0])[..., 1:]

    def end_to_end() -> None:
        found = jax.tree.map(np.asarray, whole(variables, one))
        paste(found['masks'][0], found['boxes'][0], task.image_size)

    square = jnp.asarray(worker.square(spec))
    product = jax.jit(jnp.dot)
    measures = {
        'network': lambda: jax.block_until_ready(network(variables, *given)),
        'end_to_end': end_to_end,
        'train': train_measure(settings(mask_rcnn.get_config('49-B'), spec, spec.train_size), spec),
        'matmul': lambda: product(square, square).block_until_ready(),
    }
    facts = {
        'model': 'Mask R-CNN SpineNet-49',
        'dtype': config.model.dtype,
        'candidates': int(jnp.sum(scores > worker.SCORE_THRESHOLD)),
        'detections': int(whole(variables, one)['valid'].sum()),
        'versions': {'jax': jax.__version__, 'flax': flax.__version__},
    }
    return worker.Peer(facts, measures)


if __name__ == '__main__':
    worker.serve(build)
