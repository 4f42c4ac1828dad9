"""What several benchmarks compute with: the training step, made-up batches and outputs."""

import numpy as np


def training_step(config, remat=False):
    """The step of train.py on noise.

    Args:
      config: `train.batch_size` images over all devices.
      remat: recompute blocks in the backward pass.

    Returns:
      (step, state, batch): `step(state, batch)` gives the next state, and gives this one away.
    """
    import jax

    from spinenet_jax.lowering.policy import policy_of
    from spinenet_jax.models.build import build_model
    from spinenet_jax.tasks.build import build_task
    from spinenet_jax.training import optim
    from spinenet_jax.training.state import AXIS, create_state, replicate, shard_sharding
    from spinenet_jax.training.step import make_train_step

    batch_size, devices = config.train.batch_size, jax.device_count()
    task = build_task(config)
    model = build_model(
        config.model,
        task=config.task,
        axis_name=AXIS,
        policy=policy_of(jax.devices()[0]),
        remat=remat,
    )
    schedule = optim.learning_rate_schedule(config.optim, batch_size, 463, 162_050)
    optimizer = optim.make_optimizer(config.optim, schedule)
    state = replicate(create_state(model, optimizer, task.image_size, seed=0))
    batch = random_batch(task, devices, batch_size // devices)
    pieces = config.optim.accumulate_steps
    step = make_train_step(model, task, optimizer, schedule, seed=0, accumulate_steps=pieces)
    return step, state, jax.device_put(batch, shard_sharding())


def random_batch(task, devices, per_device):
    """A batch of noise for a detector (ten boxes an image) or a classifier.

    Each entry is [devices, per_device, ...].
    """
    rng = np.random.default_rng(0)
    shape, (height, width) = (devices, per_device), task.image_size
    corner = rng.uniform(0, 0.6, (*shape, 100, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, corner.shape)], axis=-1)
    batch = {
        'image': rng.integers(0, 256, (*shape, height, width, 3)).astype(np.uint8),
        'content_size': np.full((*shape, 2), (height, width), np.int32),
        'boxes': (boxes * (height, width, height, width)).astype(np.float32),
        'labels': rng.integers(1, task.num_classes, (*shape, 100)).astype(np.int32),
        'valid': np.broadcast_to(np.arange(100) < 10, (*shape, 100)),
        'label': rng.integers(0, task.num_classes, shape).astype(np.int32),
    }
    return {key: batch[key] for key in task.device_keys_train}


def crowded_outputs(task, batch_size):
    """Random logits and codes, one candidate in fifty above the score threshold."""
    import jax

    rng, outputs = np.random.default_rng(0), ([], [])
    for level in range(task.levels[0], task.levels[1] + 1):
        rows, columns = (-(-side // 2**level) for side in task.image_size)
        shape = (batch_size, rows, columns)
        logits = rng.normal(-5, 1, (*shape, 9 * task.num_classes))
        outputs[0].append(logits.astype(np.float32))
        outputs[1].append(rng.normal(0, 0.3, (*shape, 36)).astype(np.float32))
    return jax.device_put(outputs)
