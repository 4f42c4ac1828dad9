"""The real loop on the tiny model as a script of its own: python tiny_run.py --workdir=W [flags].

Ends as train.py does: one line and a status for whatever comes from outside.
"""

import sys
import time
from pathlib import Path

from absl import flags

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from spinenet_jax import launch  # noqa: E402

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of the run.', required=True)
_PROCESS = flags.DEFINE_integer('process', -1, 'Of several, from 0.')
_PROCESSES = flags.DEFINE_integer('processes', 0, 'How many there are.')
_ADDRESS = flags.DEFINE_string('address', '', 'host:port of process 0.')
_HOST_TIMEOUT = flags.DEFINE_float('host_timeout', 100, 'Until a silent process is lost.')
_JOIN_SECONDS = flags.DEFINE_float('join_seconds', 60, 'Until all must be there.')
_EPOCHS = flags.DEFINE_integer('epochs', 5, 'Of four steps.')
_CHECKPOINT_EVERY = flags.DEFINE_integer('checkpoint_every', 1000, 'Steps.')
_EVAL_EVERY = flags.DEFINE_integer('eval_every', 1000, 'Epochs.')
_PAUSE = flags.DEFINE_float('pause', 0, 'Seconds before a batch, so that a signal meets the run.')
_EVAL_PAUSE = flags.DEFINE_float('eval_pause', 0, 'Seconds in every evaluation.')
_BUILD_PAUSE = flags.DEFINE_float('build_pause', 0, 'Seconds while the data is read.')
_IMAGES = flags.DEFINE_integer('images', 32, 'In an epoch, as this process sees it.')
_SET = flags.DEFINE_multi_string('set', [], 'section.key=value of the config.')
_DROPOUT = flags.DEFINE_float('dropout', 0, 'Draws belong to a device: not where these differ.')
_REFUSE = flags.DEFINE_string('refuse', '', 'A mistake of the user found while data is read.')
_CRASH = flags.DEFINE_integer('crash', -1, 'Step at which this process has a bug.')


def main() -> int:
    """Trains, and prints how that ended and at which step."""
    from spinenet_jax.training import distributed

    distributed.initialise(
        _ADDRESS.value,
        _PROCESSES.value,
        _PROCESS.value,
        host_timeout=_HOST_TIMEOUT.value,
        join_seconds=_JOIN_SECONDS.value,
    )

    import dataclasses

    from tiny import TinyModel, accuracy, stream, tiny_config, tiny_experiment

    from spinenet_jax.errors import UserError
    from spinenet_jax.training import loop

    config = tiny_config(
        epochs=_EPOCHS.value,
        checkpoint_every_steps=_CHECKPOINT_EVERY.value,
        eval_every_epochs=_EVAL_EVERY.value,
    )
    for assignment in _SET.value:
        name, _, value = assignment.partition('=')
        section, _, key = name.rpartition('.')
        part = config[section] if section else config
        part[key] = type(part[key])(value)

    def batches(start):
        for step, batch in enumerate(stream(start, config.train.batch_size, config.seed), start):
            time.sleep(_PAUSE.value)
            if step == _CRASH.value:
                raise IndexError('a bug')
            yield batch

    def evaluate(state):
        time.sleep(_EVAL_PAUSE.value)
        return accuracy(state)

    def build(config):
        time.sleep(_BUILD_PAUSE.value)
        if _REFUSE.value:
            raise UserError(_REFUSE.value)
        return dataclasses.replace(
            tiny_experiment(config),
            model=TinyModel(dropout=_DROPOUT.value),
            image_count=_IMAGES.value,
            batches=batches,
            evaluate=evaluate,
        )

    loop.build_experiment = build
    result = loop.train(config, _WORKDIR.value)
    print('finished' if result.finished else 'stopped', int(result.state.step), flush=True)
    return 0


if __name__ == '__main__':
    launch.run(main, at_once=True)
