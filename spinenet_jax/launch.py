"""How does a script of this project start? Flags to a config, and a user's mistake to one line.

Imports nothing heavy, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import logging as python_logging
import os
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from spinenet_jax.errors import UserError

FLAGS = flags.FLAGS
OUT_OF_MEMORY = (
    'the step does not fit the memory of the device: try --config.train.remat=True, '
    '--config.optim.accumulate_steps=2 or a smaller batch'
)
QUIET = ('orbax', 'grain', 'etils', 'jax')  # packages whose INFO lines are not for a user


def define_flags(config_required: bool = True) -> None:
    """Define --config, --workdir and the three flags that join several hosts into one run.

    config_required: False where the config of the workdir can stand in.
    """
    config_flags.DEFINE_config_file(
        'config',
        None,
        'Config file, with its argument: configs/retinanet.py:49-B.'
        + ('' if config_required else " The workdir's own by default."),
    )
    flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, results.')
    flags.DEFINE_string(
        'coordinator_address',
        '',
        'host:port of process 0, where a run spans several hosts that are not a TPU slice.',
    )
    flags.DEFINE_integer('num_processes', 0, 'Number of processes of the run, one a host.')
    flags.DEFINE_integer('process_id', -1, 'Number of this process, from 0.')
    flags.mark_flags_as_required(['config', 'workdir'] if config_required else ['workdir'])


def start_jax() -> None:
    """Join the other processes and switch the compilation cache on; before any device is used."""
    from spinenet_jax.training import distributed

    distributed.use_compilation_cache()
    distributed.initialise(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)


def run(main: Callable[[], int | None], config_of_workdir: bool = False) -> None:
    """Parse the flags and call main; what it returns is the exit status.

    A UserError, or a flag that cannot be used, prints one line and exits with status 2.

    config_of_workdir: without a --config, take the settings of the run in --workdir.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument '{argv[1]}': flags are --name=value")
            return main()
        except UserError as error:
            return _refuse(error)
        except RuntimeError as error:  # JAX's own kind, without importing JAX
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            return _refuse(UserError(f'{OUT_OF_MEMORY} ({_one_line(error)[:200]})'))

    _quieten()
    completed = _with_config_of_workdir if config_of_workdir else list
    app.run(guarded, flags_parser=lambda argv: _parse(completed(argv)))


def _with_config_of_workdir(argv: list[str]) -> list[str]:
    """argv with --config=configs/workdir.py:<workdir>, if it names a workdir and no config."""
    words = [word.lstrip('-') for word in argv]
    if any(word == 'config' or word.startswith('config=') for word in words):
        return argv
    after = [*words[1:], '']
    for word, following in zip(words, after, strict=True):
        if word.startswith('workdir=') or word == 'workdir':
            workdir = following if word == 'workdir' else word.partition('=')[2]
            file = os.path.join(os.path.dirname(os.path.abspath(argv[0])), 'configs/workdir.py')
            return [argv[0], f'--config={file}:{workdir}', *argv[1:]]
    return argv


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with every mistake as one line."""
    try:
        rest = FLAGS(argv)
        if 'config' in FLAGS and FLAGS.config is not None:
            getattr(FLAGS.config, 'seed', None)  # a file that failed to load says so on first use
    except (flags.Error, OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        sys.exit(_refuse(error))
    return rest


def _refuse(error: Exception) -> int:
    """Print what was wrong; returns the exit status."""
    print(f'error: {_one_line(error)}', file=sys.stderr)
    return 2


def _one_line(error: Exception) -> str:
    """The line that matters of a message that may carry a traceback or a list of attempts."""
    text = str(error).replace('\\n', '\n')
    meant = re.search(r'Did you mean "(.*?)" instead of "(.*?)"', text)
    missing = re.search(r"No such file or directory: '(.*?)'", text)
    if isinstance(error, (KeyError, AttributeError)) and meant:
        return f"--config has no field '{meant[2]}': did you mean '{meant[1]}'?"
    if isinstance(error, (KeyError, AttributeError)):
        return f'--config has no field {text.strip(chr(34))}'
    if isinstance(error, OSError) and missing:
        return f'--config={missing[1]}: no such file'
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if 'Traceback' in text:  # raised inside a config file
        return re.sub(r'^[\w.]+(Error|Exception): ', '', lines[-1])
    return ' '.join(lines)


class _OnlyOurs(python_logging.Filter):
    """Drops the INFO lines of libraries."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        library = any(f'/{name}/' in record.pathname for name in QUIET)
        return not library or record.levelno >= python_logging.WARNING


def _quieten() -> None:
    logging.get_absl_handler().addFilter(_OnlyOurs())
