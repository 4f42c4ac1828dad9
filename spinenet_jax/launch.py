"""Starts a script: turns flags into a config, and whatever ends it into one line and a status.

Imports nothing heavy, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import errno
import logging as python_logging
import os
import re
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from spinenet_jax import interrupts
from spinenet_jax.errors import WORLD, RunError, UserError

FLAGS = flags.FLAGS
OUT_OF_MEMORY = (
    'the step does not fit the memory of the device: try --config.train.remat=True, '
    '--config.optim.accumulate_steps=2 or a smaller batch'
)
OUT_OF_MEMORY_INFERENCE = (
    'the model does not fit the memory of the device: try a smaller --config.eval.batch_size'
)
QUIET = (
    'orbax',
    'grain',
    'etils',
    'jax',
    'asyncio',
)  # packages whose INFO lines are not for a user


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
    flags.DEFINE_integer(
        'host_timeout',
        100,
        'Seconds without a sign of life after which a process counts as lost and all others end.',
    )
    flags.mark_flags_as_required(['config', 'workdir'] if config_required else ['workdir'])


def start_jax() -> None:
    """Join the other processes and switch the compilation cache on; before any device is used."""
    from spinenet_jax.training import distributed

    distributed.use_compilation_cache()
    distributed.initialise(
        FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id, FLAGS.host_timeout
    )


def run(
    main: Callable[[], int | None],
    config_of_workdir: bool = False,
    out_of_memory: str = OUT_OF_MEMORY,
    at_once: bool = False,
) -> None:
    """Parse the flags and call main; what it returns is the exit status.

    A user's mistake prints one line and exits with status 2, a broken world with status 1, Ctrl-C
    with 130. A programming error keeps its traceback. In a run of several processes all others
    end with the same reason.

    Args:
      main: does the work.
      config_of_workdir: without a --config, take the settings of the run in --workdir.
      out_of_memory: what to say when the device has too little.
      at_once: Ctrl-C ends the process in the middle of whatever it does, unless something that
        has work to save answers it; otherwise it raises KeyboardInterrupt.
    """

    def guarded(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument '{argv[1]}': flags are --name=value")
        status = main()
        if _processes():
            _processes().finish()
        return status

    def ending_well(argv: list[str]) -> int | None:
        try:
            return guarded(argv)
        except KeyboardInterrupt:
            interrupts.leave(interrupts.INTERRUPTED, 130)
        except Exception as error:
            found = _line_of(error, out_of_memory)
            if found is None and _processes():
                _processes().explain()  # does not return if it is another one's
                traceback.print_exc()
                line = f'error: {type(error).__name__}: {_one_line(error)[:200]}'
                _processes().leave(line, 1, again=False)
            if found is None:
                raise
            line, status = found
            if _processes():
                _processes().leave(f'error: {line}', status, again=status == 1)
            print(f'error: {line}', file=sys.stderr)
            return status

    interrupts.install()
    if at_once:
        interrupts.answer_with(interrupts.nothing_to_save)
    _quieten()
    completed = _with_config_of_workdir if config_of_workdir else list
    try:
        app.run(ending_well, flags_parser=lambda argv: _parse(completed(argv)))
    except KeyboardInterrupt:
        interrupts.leave(interrupts.INTERRUPTED, 130)


def _processes():
    """The module that joined the processes of a run, if one did."""
    module = sys.modules.get('spinenet_jax.training.distributed')
    return module if module is not None and module.joined() else None


def _line_of(error: Exception, out_of_memory: str) -> tuple[str, int] | None:
    """The line and the exit status of an error that is none of ours; None for one that is."""
    if isinstance(error, UserError):
        return _one_line(error), 2
    if isinstance(error, RunError):
        return _one_line(error), 1
    if isinstance(error, OSError):
        advice = WORLD.get(error.errno)
        if advice is None or (error.filename is None and error.errno == errno.ENOENT):
            return None
        where = f'{os.fsdecode(error.filename)}: ' if error.filename is not None else ''
        return f'{where}{error.strerror}: {advice}', 1
    if isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error):  # JAX's own kind
        return f'{out_of_memory} ({_one_line(error)[:200]})', 2
    return None


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
    """Drops the INFO lines of libraries, and the tracebacks of what they raise as well."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        library = any(f'/{name}/' in record.pathname for name in QUIET)
        return not library or (record.levelno >= python_logging.WARNING and not record.exc_info)


def _quieten() -> None:
    logging.get_absl_handler().addFilter(_OnlyOurs())
