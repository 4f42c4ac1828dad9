"""Times detection on one batch: the network, post-processing, and its share of the whole.

    python benchmarks/inference.py --config=configs/retinanet.py:49-B --batch_size=1

Times the network alone, the network with post-processing, post-processing alone on outputs as
crowded as a busy photograph's (100 detections among thousands of candidates) and, of that,
suppression alone. Images are random and already on the device; `photo_ms` is the whole way of one
photograph of 640 x 480, from the bytes of its JPEG to detections on the host (batch 1 only). Prints
one JSON line; with --record it is also appended to benchmarks/logs/inference.jsonl.
"""

import functools
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spinenet_jax import launch  # noqa: E402
from spinenet_jax.errors import UserError  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file('config', None, 'configuration to time')
flags.mark_flag_as_required('config')
_BATCH = flags.DEFINE_integer('batch_size', 1, 'images')
_REPEATS = flags.DEFINE_integer('repeats', 10, 'calls timed, after one that is not')
_RECORD = flags.DEFINE_bool('record', False, "append to the repository's log")


def photo(task, whole, variables):
    """A function from the bytes of a JPEG to detections on the host."""
    import cv2
    import jax
    import numpy as np

    from spinenet_jax.data.batch import NO_RECORD
    from spinenet_jax.data.decode import decode_image

    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.uniform(0, 255, (60, 80, 3)), (640, 480))
    pixels = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    data = cv2.imencode('.jpg', pixels)[1].tobytes()

    def detect():
        row = task.rows.eval(NO_RECORD, decode_image(data))
        batch = {name: row[name][None] for name in ('image', 'content_size')}
        return jax.device_get(whole(variables, batch))

    return detect


def measure(config):
    """Times of the parts, in milliseconds, and the share of post-processing."""
    import jax
    import numpy as np
    from flax import linen as nn

    from benchmarks.synthetic import crowded_outputs
    from benchmarks.timing import median_seconds
    from spinenet_jax.lowering.policy import policy_of
    from spinenet_jax.ops import nms
    from spinenet_jax.tasks.build import build_task, build_task_model
    from spinenet_jax.tasks.detection import DetectionTask
    from spinenet_jax.training import optim
    from spinenet_jax.training.state import create_state

    task, policy = build_task(config), policy_of(jax.devices()[0])
    model = build_task_model(config, axis_name=None, policy=policy)
    if not isinstance(task, DetectionTask):
        raise UserError(f'--config: task {config.task!r}; only detectors are timed here')
    optimizer = optim.make_optimizer(config.optim, lambda step: 0.0)
    state = create_state(model, optimizer, task.image_size, seed=0)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    size, rng = task.image_size, np.random.default_rng(0)
    batch = {
        'image': rng.integers(0, 256, (_BATCH.value, *size, 3)).astype(np.uint8),
        'content_size': np.full((_BATCH.value, 2), size, np.int32),
    }
    batch = jax.device_put(batch)
    forward = nn.apply(task.forward, model)
    network = jax.jit(lambda v, b: forward(v, b, train=False))
    whole = jax.jit(lambda v, b: task.predictions(network(v, b), b))
    post = jax.jit(lambda outputs: task.predictions(outputs, {}))
    candidates = rng.uniform(0, 600, (1000, 2)).astype(np.float32)
    candidates = np.concatenate([candidates, candidates + 60], axis=1)
    scores = np.sort(rng.uniform(0.05, 1, 1000).astype(np.float32))[::-1]
    suppress = jax.jit(lambda b, s, c: nms.best_of_sorted(b, s, c, task.rules))
    classes = rng.integers(1, task.num_classes, 1000).astype(np.int32)
    seconds = functools.partial(median_seconds, repeats=_REPEATS.value)
    times = {
        'network_ms': seconds(network, variables, batch),
        'with_post_processing_ms': seconds(whole, variables, batch),
        'post_processing_ms': seconds(post, crowded_outputs(task, _BATCH.value)),
        'suppression_ms': seconds(suppress, *jax.device_put((candidates, scores, classes))),
    }
    if _BATCH.value == 1:
        times['photo_ms'] = seconds(photo(task, whole, variables))
    times = {name: round(1000 * value, 2) for name, value in times.items()}
    total = times['network_ms'] + times['post_processing_ms']
    return {**times, 'post_processing_share': round(times['post_processing_ms'] / total, 4)}


def main():
    from benchmarks import machine

    config = _CONFIG.value
    facts = machine.compute()
    facts |= {
        'model': machine.model_name(config),
        'image_size': list(config.data.image_size),
        'batch_size': _BATCH.value,
        'dtype': config.model.dtype,
    }
    machine.report('inference', facts | measure(config), _RECORD.value)


if __name__ == '__main__':
    launch.run(main)
