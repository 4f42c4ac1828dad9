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

    from spinenet_jax import parallel
    from spinenet_jax.lowering.policy import policy_of
    from spinenet_jax.tasks.build import build_task, build_task_model
    from spinenet_jax.training.programs import config_train_step
    from spinenet_jax.training.state import create_state

    task = build_task(config)
    policy = policy_of(jax.devices()[0])
    model = build_task_model(config, axis_name=parallel.AXIS, policy=policy, remat=remat)
    step, optimizer = config_train_step(config, model, task)
    state = parallel.replicate(create_state(model, optimizer, task.image_size, seed=0))
    batch = random_batch(task.rows.train.fields, config.train.batch_size, config.model.num_classes)
    return step, state, parallel.shard(batch)


def random_batch(fields, images, num_classes):
    """A batch of noise for a detector (ten boxes an image) or a classifier.

    Args:
      fields: the entries of a row.
      images: rows.
      num_classes: labels are below it.
    """
    rng = np.random.default_rng(0)
    height, width, _ = fields['image'].shape
    batch = {
        'image': rng.integers(0, 256, (images, *fields['image'].shape)),
        'content_size': np.full((images, 2), (height, width)),
        'label': rng.integers(0, num_classes, images),
    }
    if 'boxes' in fields:
        shape = (images, *fields['labels'].shape)
        corner = rng.uniform(0, 0.6, (*shape, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, corner.shape)], axis=-1)
        batch['boxes'] = boxes * (height, width, height, width)
        batch['labels'] = rng.integers(1, num_classes, shape)
        batch['valid'] = np.broadcast_to(np.arange(shape[1]) < 10, shape)
    if 'masks' in fields:
        shape = (images, *fields['masks'].shape)
        batch['masks'] = rng.integers(0, 256, shape)
        batch['has_mask'] = batch['valid']
    return {name: batch[name].astype(field.dtype) for name, field in fields.items()}


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
