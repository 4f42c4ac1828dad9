"""Train a model: python train.py --config=configs/digits.py --workdir=runs/digits

Any field of the config can be set on the command line: --config.train.epochs=1. The same command
on the same workdir continues where the run was stopped.
"""

from absl import flags

from spinenet_jax import launch


def main() -> int:
    """Exit status 0: done, or saved on request; 1: a loss that is not finite, a full disk or a
    lost host; 2: a user's mistake; 130: interrupted with nothing to save.
    """
    launch.start_jax()

    from spinenet_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir)
    return 0


if __name__ == '__main__':
    launch.define_flags()
    flags.adopt_module_key_flags(launch)
    launch.run(main, at_once=True)
