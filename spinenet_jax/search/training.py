"""Trains in a folder as its config.json says: python -m spinenet_jax.search.training --workdir=...

What train.py does for a run of an earlier config, as a process that a search can start wherever the
package is installed.
"""

from absl import flags

from spinenet_jax import launch


def main() -> None:
    """Trains, or continues where an earlier process was lost."""
    from spinenet_jax.inference import read_config
    from spinenet_jax.training import distributed
    from spinenet_jax.training.loop import train

    # A candidate is one process: a TPU host would otherwise look for the others of its slice, or
    # for a second candidate on the same host.
    distributed.use_compilation_cache()
    train(read_config(flags.FLAGS.workdir), flags.FLAGS.workdir)


if __name__ == '__main__':
    launch.define_flags(config_required=False)
    launch.run(main)
