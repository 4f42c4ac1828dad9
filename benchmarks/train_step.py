"""How long does one training step take on this machine?

    python benchmarks/train_step.py --config=configs/retinanet.py:49-B \
        --config.train.batch_size=4 --config.data.image_size='(256, 256)'

Times the very step that train.py runs, matching and losses included, on random images that are
already on the device. `memory_gib` is what the compiler
reserves on a device for state, batch and temporaries. Prints one JSON line, also appended to
benchmarks/logs/train_step.jsonl.
"""

import statistics
import sys
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spinenet_jax import launch  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file('config', None, 'configuration to time')
flags.mark_flag_as_required('config')
_STEPS = flags.DEFINE_integer('steps', 10, 'steps timed, after two that are not')
_LOG = flags.DEFINE_string('log', '', 'file to append to; default benchmarks/logs/...')


def measure(config):
    """Compile and time the step; seconds, images a second."""
    import jax

    from benchmarks.synthetic import random_batch
    from spinenet_jax.models.build import build_model
    from spinenet_jax.tasks.build import build_task
    from spinenet_jax.training import optim
    from spinenet_jax.training.memory import choose_remat, device_memory
    from spinenet_jax.training.state import AXIS, create_state, replicate, shard_sharding
    from spinenet_jax.training.step import check_batch_size, make_train_step

    devices = jax.device_count()
    check_batch_size(config.train.batch_size, devices, config.optim.accumulate_steps)
    remat = choose_remat(config, devices, device_memory())
    task, model = build_task(config), build_model(config.model, AXIS, config.task, remat=remat)
    schedule = optim.learning_rate_schedule(config.optim, config.train.batch_size, 463, 162050)
    optimizer = optim.make_optimizer(config.optim, schedule)
    state = replicate(create_state(model, optimizer, task.image_size, seed=0))
    batch = random_batch(task, devices, config.train.batch_size // devices)
    batch = jax.device_put(batch, shard_sharding())
    began = time.perf_counter()
    pieces = config.optim.accumulate_steps
    step = make_train_step(model, task, optimizer, schedule, seed=0, accumulate_steps=pieces)
    step = step.lower(state, batch).compile()
    memory = step.memory_analysis()
    compile_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(_STEPS.value + 2):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[2:])
    return {
        'remat': remat,
        'compile_s': round(compile_seconds, 1),
        'memory_gib': round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2),
        'step_s': round(median, 4),
        'step_s_min': round(min(seconds[2:]), 4),
        'images_per_s': round(config.train.batch_size / median, 2),
    }


def main():
    from benchmarks import machine

    config = _CONFIG.value
    facts = machine.compute()
    facts |= {
        'model': machine.model_name(config),
        'image_size': list(config.data.image_size),
        'batch_size': config.train.batch_size,
        'dtype': config.model.dtype,
    }
    machine.record('train_step', facts | measure(config), _LOG.value)


if __name__ == '__main__':
    launch.run(main)
