"""Answers Ctrl-C and SIGTERM at any time, also while the main thread is inside a long call.

Python runs signal handlers in the main thread, between two of its instructions: not while XLA
compiles for minutes, and a KeyboardInterrupt that is raised inside a destructor or a callback is
lost altogether. So a thread of its own reads the signals as they arrive and decides. Imports
nothing heavy, so that a script can be interrupted while it still imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 'interrupted'
SECOND = 'interrupted again: left at once'

_answer: Callable[[int], None] | None = None
_raised = False  # whether the main thread has had its KeyboardInterrupt
_reader: int | None = None
_leave: Callable[[str, int], None] | None = None


def leave(line: str, status: int) -> None:
    """Ends the process at once with one last line; a run of several processes tells the others."""
    if _leave is not None:
        _leave(line, status)
    print_last(line)
    os._exit(status)


def print_last(line: str) -> None:
    """Prints a line after all others; a closed stream is no reason not to end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, f'{line}\n'.encode())


def on_leaving(call: Callable[[str, int], None] | None) -> None:
    """`call` is to end the process in place of `leave`: the others of its run must hear of it."""
    global _leave
    _leave = call


def answer_with(answer: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """Hand the signals to `answer`, called in the reading thread with the signal's number.

    Returns what was called before, to be put back. Without any, the first Ctrl-C raises
    KeyboardInterrupt in the main thread and the second ends the process at once.
    """
    global _answer
    before, _answer = _answer, answer
    return before


def installed() -> bool:
    """Whether signals are read here: in the scripts, never where a notebook uses the library."""
    return _reader is not None


def install(*signals: int) -> None:
    """Start reading signals, to be called by a script in its main thread.

    signals: beside SIGINT.
    """
    global _reader
    if _reader is None:
        _reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, _in_main_thread)
        threading.Thread(target=_read, name='interrupts', daemon=True).start()
    for number in signals:
        signal.signal(number, _in_main_thread)


def note_alone(*signals: int) -> Callable[[], bool]:
    """Have signals noted and nothing else; returns whether one has come, to be asked between steps.

    For work that can stop between any two of its steps and not within one: an exception raised
    there may meet a callback of JAX's garbage collection or of a drawing library, where it is lost
    or ends in an abort. A Ctrl-C after the first signal ends the process at once.

    signals: beside SIGINT.
    """
    asked = threading.Event()

    def answer(number: int) -> None:
        if asked.is_set() and number == signal.SIGINT:
            leave(SECOND, 128 + number)
        asked.set()

    answer_with(answer)
    install(*signals)
    return asked.is_set


def nothing_to_save(number: int) -> None:
    """An answer: leave at once, with one line."""
    leave(f'{INTERRUPTED}: there was nothing new to save', 128 + number)


def _in_main_thread(number: int, frame: object) -> None:
    global _raised
    del frame
    if _answer is None and number == signal.SIGINT and not _raised:
        _raised = True
        raise KeyboardInterrupt


def _read() -> None:
    """The thread: hands over each signal as it arrives."""
    interrupted = 0
    while True:
        for number in os.read(_reader, 64):
            if _answer is not None:
                _answer(number)
            elif number == signal.SIGINT:
                interrupted += 1
                if interrupted > 1:
                    leave(SECOND, 128 + number)
