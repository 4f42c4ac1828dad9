"""Search for a backbone: python search.py --config=configs/search.py:digits --workdir=runs/search

The same command on the same workdir continues, whatever was killed. search.md there says at any
time how far it is, and best.json is a graph for `train.py --config.model.graph=`. docs/search.md
has the rest: fleets, your own reward, the settings.
"""

import signal
import sys

from absl import flags
from ml_collections import config_flags

from spinenet_jax import interrupts, launch

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with its argument: configs/search.py:digits.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the search.')
_ENGINE = flags.DEFINE_string(
    'engine', 'local', "'local': processes on this machine; 'ray': the cluster of RAY_ADDRESS."
)
_EVALUATOR = flags.DEFINE_string(
    'evaluator',
    'spinenet_jax.search.proxy:evaluate',
    'package.module:function that gives the reward of a candidate.',
)
flags.mark_flags_as_required(['config', 'workdir'])
launch.check_folder('workdir')


def main() -> int:
    """Exit status 0: done; 2: a user's mistake; 130: stopped, to be continued."""
    import jax

    jax.config.update('jax_platforms', 'cpu')  # accelerators are the candidates'

    from spinenet_jax.search import build, progress, settings

    config = _CONFIG.value
    settings.check(config)
    watch = progress.Progress(_WORKDIR.value)
    stopped = interrupts.note_alone(signal.SIGTERM)
    engine = build.build_engine(config, _ENGINE.value)
    search = build.build_search(config, _WORKDIR.value, engine, _EVALUATOR.value, watch)
    search.run(stopped)
    if stopped():
        print('stopped: the same command continues', file=sys.stderr)
        return 130
    watch.finish(search)
    return 0


if __name__ == '__main__':
    launch.run(main)
