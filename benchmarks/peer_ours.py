"""peers.py's worker for this project: network, post-processing and the step of train.py."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import peer_worker as worker
from flax import linen as nn
from ml_collections import ConfigDict

from configs import retinanet
from spinenet_jax.analysis.cost import config_cost
from spinenet_jax.lowering.policy import policy_of
from spinenet_jax.parallel import AXIS, replicate, shard
from spinenet_jax.tasks.build import build_task, build_task_model
from spinenet_jax.training import optim
from spinenet_jax.training.state import create_state
from spinenet_jax.training.step import make_train_step

CONFIGS = {'retinanet': '49-B', 'mobile': 'mb49-M'}


def settings(config: ConfigDict, spec: worker.Spec, side: int) -> ConfigDict:
    """`config` for images of `side`: float32 on CPU, bfloat16 on GPU."""
    config.data.image_size = (side, side)
    config.model.dtype = 'bfloat16' if spec.on == 'gpu' else 'float32'
    config.train.batch_size = spec.train_batch
    return config


def drawn(config: ConfigDict, model: nn.Module) -> dict:
    """The variables that training would start from; nothing is compiled for them."""
    optimizer = optim.make_optimizer(config.optim, lambda step: worker.LEARNING_RATE)
    state = create_state(model, optimizer, tuple(config.data.image_size), seed=0)
    return {'params': state.params, 'batch_stats': state.batch_stats}


def crowd(variables: dict, network, x: jax.Array) -> dict:
    """Variables whose outputs are as crowded as `worker.calibration` says."""
    params = jax.tree.map(lambda value: value, variables['params'])
    heads = [params[name]['predict'] for name in ('class_head', 'box_head')]
    heads = [head.get('pointwise', head) for head in heads]  # of separable heads
    for head in heads:
        head['bias'] = jnp.zeros_like(head['bias'])
    logits, codes = (
        np.concatenate([np.ravel(level) for level in levels])
        for levels in network({**variables, 'params': params}, x)
    )
    logit_scale, bias, code_scale = worker.calibration(logits, codes)
    heads[0]['kernel'] *= logit_scale
    heads[0]['bias'] += bias
    heads[1]['kernel'] *= code_scale
    return {**variables, 'params': params}


def compiled_step(config: ConfigDict, objects: dict[str, np.ndarray]):
    """(the compiled training step, its state, a batch of noise with these objects)."""
    task, policy = build_task(config), policy_of(jax.devices()[0])
    model = build_task_model(config, axis_name=AXIS, policy=policy)
    optimizer = optim.make_optimizer(config.optim, lambda step: worker.LEARNING_RATE)
    device = jax.devices()[:1]
    state = replicate(create_state(model, optimizer, task.image_size, seed=0), device)
    count = config.train.batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, *task.image_size, 3))
    batch = {
        'image': pixels.astype(np.uint8),
        'content_size': np.full((count, 2), task.image_size, np.int32),
        'valid': np.ones((count, worker.BOXES), bool),
        **objects,
    }
    batch = shard(batch, device)
    step = make_train_step(
        model, task, optimizer, lambda step: worker.LEARNING_RATE, seed=0, devices=device
    )
    return step.lower(state, batch).compile(), state, batch


class Training:
    """One training step a call, compiled on the first.

    Attributes:
      peak_bytes: of device memory, as the compiler counts them; None before the first call.
    """

    def __init__(self, config: ConfigDict, objects: dict[str, np.ndarray]) -> None:
        self.config, self.objects = config, objects
        self.step, self.peak_bytes = None, None

    def __call__(self) -> None:
        if self.step is None:
            self.step, self.state, self.batch = compiled_step(self.config, self.objects)
            memory = self.step.memory_analysis()
            if memory:
                self.peak_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def build(spec: worker.Spec) -> worker.Peer:
    """Everything is compiled on the first call of each measure."""
    config = settings(retinanet.get_config(CONFIGS[spec.model]), spec, spec.image_size)
    task, policy = build_task(config), policy_of(jax.devices()[0])
    model = build_task_model(config, axis_name=None, policy=policy)
    one = jax.device_put(worker.images(spec, 1, spec.image_size))
    variables = drawn(config, model)
    network = jax.jit(lambda v, x: model.apply(v, x, train=False))
    whole = jax.jit(lambda v, x: task.predictions(model.apply(v, x, train=False), {}))
    variables = crowd(variables, network, one)
    scores = [jax.nn.sigmoid(level) for level in network(variables, one)[0]]

    def call(function, x):
        return lambda: jax.block_until_ready(function(variables, x))

    square = jnp.asarray(worker.square(spec), config.model.dtype)
    product = jax.jit(jnp.dot)
    boxes, labels = worker.objects(spec.train_size, spec.train_batch)
    train = Training(
        settings(retinanet.get_config(CONFIGS[spec.model]), spec, spec.train_size),
        {'boxes': boxes, 'labels': labels.astype(np.int32)},
    )
    measures = {
        'network': call(network, one),
        'end_to_end': call(whole, one),
        'train': train,
        'matmul': lambda: product(square, square).block_until_ready(),
    }
    for batch in spec.batches:
        x = jax.device_put(worker.images(spec, batch, spec.image_size))
        measures[f'throughput_{batch}'] = call(whole, x)
    parts = config_cost(config).values()
    facts = {
        'model': worker.NAMES[spec.model],
        'dtype': config.model.dtype,
        'candidates': int(sum(jnp.sum(s > worker.SCORE_THRESHOLD) for s in scores)),
        'multiply_adds': sum(part.multiply_adds for part in parts),
        'versions': {'jax': jax.__version__, 'flax': flax.__version__},
    }
    return worker.Peer(facts, measures, lambda name: train.peak_bytes if name == 'train' else None)


if __name__ == '__main__':
    worker.serve(build)
