"""Times one training step on this machine.

    python benchmarks/train_step.py --config=configs/retinanet.py:49-B \
        --config.train.batch_size=4 --config.data.image_size='(256, 256)'

Times the very step that train.py runs, matching and losses included, on random images that are
already on the device. `memory_gib` is what the compiler reserves on a device for state, batch and
temporaries. Prints one JSON line; with --record it is also appended to
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
_STEPS = flags.DEFINE_integer('steps', 10, 'steps timed, after one that is not')
_RECORD = flags.DEFINE_bool('record', False, "append to the repository's log")


def measure(config):
    """Compile and time the step; seconds, images a second."""
    import jax

    from benchmarks.synthetic import training_step
    from benchmarks.timing import call_seconds
    from spinenet_jax.training.memory import choose_remat, device_memory
    from spinenet_jax.training.step import check_batch_size

    devices = jax.device_count()
    check_batch_size(config.train.batch_size, devices, config.optim.accumulate_steps)
    remat = choose_remat(config, devices, device_memory())
    step, state, batch = training_step(config, remat)
    began = time.perf_counter()
    step = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - began
    memory = step.memory_analysis()

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    seconds = call_seconds(call, repeats=_STEPS.value)
    median = statistics.median(seconds)
    return {
        'remat': remat,
        'compile_s': round(compile_seconds, 1),
        'memory_gib': round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2),
        'step_s': round(median, 4),
        'step_s_min': round(min(seconds), 4),
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
    machine.report('train_step', facts | measure(config), _RECORD.value)


if __name__ == '__main__':
    launch.run(main)
