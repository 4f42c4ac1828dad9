"""Log lines on the terminal and in the log file of a run.

On the terminal a line is the time of day and the message, and does not run into a progress bar;
in the file it has absl's prefix with date, process and place in the code.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator

from absl import logging as absl_logging
from tqdm import tqdm

LIBRARIES = ('orbax', 'grain', 'etils', 'jax', 'asyncio')  # their INFO lines are not for a user


def start() -> None:
    """Takes the log lines of all packages over from absl; to be called once, by a script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name in a data set may be any bytes
        sys.stdout.reconfigure(errors='backslashreplace')
    root = logging.getLogger()
    root.removeHandler(absl_logging.get_absl_handler())
    handler = _Terminal()
    handler.setFormatter(_TimeAndMessage('%(asctime)s %(message)s', '%H:%M:%S'))
    handler.addFilter(_not_for_users)
    root.addHandler(handler)


@contextlib.contextmanager
def log_file(path: str | os.PathLike) -> Iterator[None]:
    """Appends all log lines to a file until the block is left, and what it was left with.

    Args:
      path: a local file. A file that cannot be written costs one warning.
    """
    try:
        handler = _File(path, encoding='utf-8', errors='backslashreplace')
    except OSError as error:
        absl_logging.warning('%s: no log file: %s', path, error.strerror or error)
        yield
        return
    handler.setFormatter(absl_logging.PythonFormatter())
    handler.addFilter(_not_for_users)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except BaseException as error:
        place = ('', 0, f'left with {type(error).__name__}: %s', (error,), None)
        handler.handle(logging.LogRecord('absl', logging.ERROR, *place))
        raise
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk was said when a line did not fit
            handler.close()


class _Terminal(logging.Handler):
    """Writes lines to standard error; a progress bar there moves out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


class _TimeAndMessage(logging.Formatter):
    """The time of day and the message; a warning or an error is called so."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno >= logging.WARNING:
            time, _, rest = line.partition(' ')
            return f'{time} {record.levelname.lower()}: {rest}'
        return line


class _File(logging.FileHandler):
    """A log file; when it can no longer be written, as on a full disk, training goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        del record
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise
        logging.getLogger().removeHandler(self)
        absl_logging.warning(
            '%s: not written any more: %s', self.baseFilename, error.strerror or error
        )


def _not_for_users(record: logging.LogRecord) -> bool:
    """False for INFO of libraries, tracebacks they also raise, and Pillow on damaged images."""
    if '/PIL/' in record.pathname:
        return False
    library = any(f'/{name}/' in record.pathname for name in LIBRARIES)
    return not library or (record.levelno >= logging.WARNING and not record.exc_info)
