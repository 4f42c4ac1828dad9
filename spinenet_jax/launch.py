"""Starts a script: defines and parses flags, and turns whatever ends it into one line and a status.

Imports nothing heavy, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from spinenet_jax import buckets, console, interrupts
from spinenet_jax.errors import WORLD, RunError, UserError, is_out_of_memory

FLAGS = flags.FLAGS
OUT_OF_MEMORY = (
    'the step does not fit the memory of the device: try --config.train.remat=True, '
    '--config.optim.accumulate_steps=2 or a smaller batch'
)
OUT_OF_MEMORY_INFERENCE = (
    'the model does not fit the memory of the device: try a smaller --config.eval.batch_size'
)
LONGEST_LINE = 400  # characters of a message; libraries may print whole dictionaries
CLOSED_PIPE = 141  # exit status, as the shell gives it


def define_flags(config_required: bool = True) -> None:
    """Defines --config, --workdir and the three flags that join several hosts into one run.

    Args:
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
    check_folder('workdir')


def check_folder(name: str) -> None:
    """Refuses values of a flag that name no folder: '' would be the current one."""

    def names_a_folder(value: str | None) -> bool:
        if value is not None and not value.strip():
            raise flags.ValidationError('is empty: name a folder')
        try:
            buckets.check(value or '')
        except UserError as error:
            raise flags.ValidationError(str(error)) from None
        return True

    flags.register_validator(name, names_a_folder)


def start_jax() -> None:
    """Joins the other processes, switches the compilation cache on; before a device is used."""
    from spinenet_jax.training import distributed

    distributed.use_compilation_cache()
    distributed.initialise(
        FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id, FLAGS.host_timeout
    )


def run(
    main: Callable[..., int | None],
    config_of_workdir: bool = False,
    takes_arguments: bool = False,
    out_of_memory: str = OUT_OF_MEMORY,
    at_once: bool = False,
) -> None:
    """Parses the flags and calls main; what it returns is the exit status.

    A user's mistake prints one line and exits with status 2, a broken world with status 1, Ctrl-C
    with 130. A programming error keeps its traceback. In a run of several processes all others
    end with the same reason.

    Args:
      main: does the work.
      config_of_workdir: without a --config, take the settings of the run in --workdir.
      takes_arguments: call main with the list of words on the command line that are no flags,
        instead of refusing them.
      out_of_memory: what to say when the device has too little.
      at_once: Ctrl-C ends the process in the middle of whatever it does, unless something that
        has work to save answers it; otherwise it raises KeyboardInterrupt.
    """

    def guarded(argv: list[str]) -> int | None:
        if len(argv) > 1 and not takes_arguments:
            raise UserError(f"unexpected argument '{argv[1]}': flags are --name=value")
        status = main(argv[1:]) if takes_arguments else main()
        if _processes():
            _processes().finish()
        return status

    def ending_well(argv: list[str]) -> int | None:
        try:
            return guarded(argv)
        except KeyboardInterrupt:
            interrupts.leave(interrupts.INTERRUPTED, 130)
        except BrokenPipeError as error:
            if error.filename is not None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
            return CLOSED_PIPE
        except Exception as error:
            found = _line_of(error, out_of_memory)
            if found is None and _processes():
                _processes().explain()  # does not return if it is another one's
                traceback.print_exc()
                line = f'error: {type(error).__name__}: {_joined(str(error))[:200]}'
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

    def parse(argv: list[str]) -> list[str]:
        console.start()
        FLAGS.set_gnu_getopt(True)  # flags may follow other words
        return _parse(_with_config_of_workdir(argv) if config_of_workdir else argv)

    try:
        app.run(ending_well, flags_parser=parse)
    except KeyboardInterrupt:
        interrupts.leave(interrupts.INTERRUPTED, 130)


def _processes():
    """The module that joined the processes of a run, if one did."""
    module = sys.modules.get('spinenet_jax.training.distributed')
    return module if module is not None and module.joined() else None


def _line_of(error: Exception, out_of_memory: str) -> tuple[str, int] | None:
    """The line and the exit status of an error that is none of ours; None for one that is."""
    if isinstance(error, UserError):
        return _joined(str(error)), 2
    if isinstance(error, RunError):
        return _joined(str(error)), 1
    if buckets.is_store_error(error):  # some are OSErrors, with numbers of a socket
        said = f'{type(error).__name__}: {_joined(str(error))[:200]}'
        return f'the object store: {said}; see to that, then start the same command again', 1
    if isinstance(error, OSError):
        advice = WORLD.get(error.errno)
        if advice is None or (error.filename is None and error.errno == errno.ENOENT):
            return None
        where = f'{os.fsdecode(error.filename)}: ' if error.filename is not None else ''
        return f'{where}{error.strerror}: {advice}', 1
    if is_out_of_memory(error):
        return f'{out_of_memory} ({_joined(str(error))[:200]})', 2
    return None


def _with_config_of_workdir(argv: list[str]) -> list[str]:
    """argv with --config=configs/workdir.py:<workdir>, if it names a workdir and no config."""
    workdir = _value_of('workdir', argv)
    if _value_of('config', argv) is not None or not workdir:
        return argv
    file = os.path.join(os.path.dirname(os.path.abspath(argv[0])), 'configs/workdir.py')
    return [argv[0], f'--config={file}:{workdir}', *argv[1:]]


def _value_of(flag: str, argv: list[str]) -> str | None:
    """What follows --flag on a command line that is not parsed yet; None without the flag."""
    for word, following in zip(argv[1:], [*argv[2:], ''], strict=False):
        name, equals, value = word.lstrip('-').partition('=')
        if word.startswith('-') and name == flag:
            return value if equals else following
    return None


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with every mistake as one line; it ends the process."""
    given = _value_of('config', argv)
    if given == '':
        sys.exit(_refuse('--config is empty: name a config file'))
    path = (given or '').partition(':')[0]
    if os.path.exists(path) and not os.path.isfile(path):
        sys.exit(_refuse(f'--config={path}: not a file'))
    try:
        rest = FLAGS(argv)
        if 'config' in FLAGS and FLAGS['config'].present:
            getattr(FLAGS.config, 'seed', None)  # a file that failed to load says so on first use
            if not isinstance(FLAGS.config, ConfigDict):
                kind = type(FLAGS.config).__name__
                raise UserError(f'{path}: get_config() returned {kind}: must return a ConfigDict')
    except Exception as error:
        line = _mistake_in_config(error, path)
        if line is None and isinstance(
            error, flags.Error | OSError | KeyError | AttributeError | TypeError | ValueError
        ):
            line = _mistake_in_flags(error)
        if line is None:
            raise
        sys.exit(_refuse(line))
    return rest


def _mistake_in_config(error: BaseException, path: str) -> str | None:
    """The line on an error that was raised while the config file ran; None for another error.

    Anything may go wrong in a file that a user wrote. ml_collections and absl raise some of it
    anew, so the first error of the chain counts.
    """
    for cause in reversed(list(_chain(error))):
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, SyntaxError) and _same(cause.filename or path, path):
            return f'{path}:{cause.lineno or 1}: not a Python file that gives a config: {cause.msg}'
        if isinstance(cause, ValueError) and 'null bytes' in str(cause):  # Python before 3.11.4
            return f'{path}:1: not a Python file that gives a config: {cause}'
        frames = traceback.extract_tb(cause.__traceback__)
        places = [frame.lineno for frame in frames if _same(frame.filename, path)]
        if places:
            return f'{path}:{places[-1]}: {type(cause).__name__}: {_joined(str(cause))}'
    text = _joined(str(error))
    if path and 'Flag --config must have a value other than None' in text:
        return f'{path}: get_config() returned None: must return a ConfigDict'
    if "has no attribute 'get_config'" in text:
        return f'{path}: has no function get_config(): not a config file'
    takes = re.search(r'get_config\(\) (takes|missing) .*?(given|argument: .*)', text)
    return f'{path}: {takes[0]}' if takes else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, newest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _same(a: str, b: str) -> bool:
    return bool(a and b) and os.path.abspath(a) == os.path.abspath(b)


def _mistake_in_flags(error: Exception) -> str:
    """The line that matters of a message that may carry a traceback or a list of attempts."""
    text = str(error).replace('\\n', '\n')
    meant = re.search(r'Did you mean "(.*?)" instead of "(.*?)"', text)
    missing = re.search(r"No such file or directory: '(.*?)'", text)
    if isinstance(error, KeyError | AttributeError) and meant:
        return f"--config has no field '{meant[2]}': did you mean '{meant[1]}'?"
    if isinstance(error, KeyError | AttributeError):
        return f'--config has no field {text.strip(chr(34))}'
    if isinstance(error, OSError) and missing:
        return f'--config={missing[1]}: no such file'
    if 'Traceback' in text:  # of ml_collections, around what a config file raised
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return '--config: ' + re.sub(r'^[\w.]+(Error|Exception): ', '', lines[-1])
    return _joined(text)


def _joined(text: str) -> str:
    """A message on one line, cut to what a person reads."""
    line = ' '.join(text.split())
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 3] + '...'


def _refuse(line: str) -> int:
    """Prints what was wrong; returns the exit status."""
    print(f'error: {_joined(line)}', file=sys.stderr)
    return 2
