"""Train a model: python train.py --config=configs/digits.py --workdir=runs/digits

Any field of the config can be set on the command line: --config.train.epochs=1. The same command
on the same workdir continues where the run was stopped.
"""

import sys

from absl import flags

from spinenet_jax import launch


def main() -> int:
    """Exit status 0: done, or saved on request; 1: the loss is not finite; 2: a user's mistake."""
    launch.start_jax()

    from spinenet_jax.training.loop import train
    from spinenet_jax.training.metrics import NonFiniteError

    try:
        train(flags.FLAGS.config, flags.FLAGS.workdir)
    except NonFiniteError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    launch.define_flags()
    flags.adopt_module_key_flags(launch)
    launch.run(main)
