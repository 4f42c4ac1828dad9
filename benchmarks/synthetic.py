"""Made-up batches and outputs that several benchmarks compute with."""

import numpy as np


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
