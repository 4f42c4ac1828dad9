"""Joins the processes of a run, keeps them in agreement, and ends all when one is lost.

`initialise` is to be called once, before anything touches a device. What the processes tell each
other beside their collectives goes through the key-value store of JAX's coordination service,
which process 0 holds and which needs no device.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

# The key-value store has no public name in JAX 0.10 and 0.11; Orbax reaches it in the same way.
from jax._src import distributed as jax_distributed

from spinenet_jax import interrupts
from spinenet_jax.errors import UserError
from spinenet_jax.training import witness

DEFAULT_CACHE = os.path.join('~', '.cache', 'spinenet_jax', 'xla')
JOIN_SECONDS = 300.0  # that hosts may start apart
HOST_TIMEOUT = 100.0  # seconds without a sign of life
FACTOR = 10  # times the limit that others wait for a process that lives: it may be compiling
SHOWN = 5  # differences that are named
PREFIX = 'spinenet/'
FOR_EVER_MS = 7 * 24 * 3600 * 1000  # a wait that the watch ends

_processes: _Processes | None = None
_counters: dict[str, itertools.count] = {}


def use_compilation_cache() -> str:
    """Keep compiled programs between runs; returns the folder.

    JAX_COMPILATION_CACHE_DIR in the environment overrides ~/.cache/spinenet_jax/xla. Programs that
    compile in less than a second, which JAX leaves out by default, are kept as well.
    """
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.expanduser(DEFAULT_CACHE)
    jax.config.update('jax_compilation_cache_dir', folder)
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    return folder


def initialise(
    coordinator_address: str = '',
    num_processes: int = 0,
    process_id: int = -1,
    host_timeout: float = HOST_TIMEOUT,
    join_seconds: float = JOIN_SECONDS,
) -> None:
    """Join the other processes of the run, one a host; nothing to do for a single process.

    With an address given, all three must be: 'host:port' of process 0, the number of processes
    and this process's number from 0. Without, a TPU VM finds its slice by itself, and every
    other machine runs alone.

    Args:
      coordinator_address: of process 0.
      num_processes: of the run.
      process_id: of this process.
      host_timeout: seconds after which a process without a sign of life counts as lost; all
        others then end with one line.
      join_seconds: that the processes have to come together.

    Raises:
      UserError: flags that are incomplete or do not fit each other.
    """
    if host_timeout < 1:
        raise UserError(f'--host_timeout={host_timeout:g}: at least 1 second is needed')
    if coordinator_address:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise UserError(
                f'--coordinator_address needs --num_processes (is {num_processes}) and '
                f'--process_id from 0 to num_processes - 1 (is {process_id})'
            )
        _check_address(coordinator_address, process_id)
        _join((coordinator_address, num_processes, process_id), host_timeout, join_seconds)
    elif num_processes > 0 or process_id >= 0:
        raise UserError('--num_processes and --process_id need --coordinator_address=host:port')
    elif _on_tpu_vm():
        _join((), host_timeout, join_seconds)


def joined() -> bool:
    """Whether this process is one of several of a run."""
    return _processes is not None


def from_first(name: str, value: Any) -> Any:
    """Process 0's value on every process; all must ask for the same names in the same order.

    value: what JSON holds; of the other processes not looked at.
    """
    if _processes is None:
        return value
    key = _next_key(name)
    if _processes.index == 0:
        _processes.client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_processes.client.blocking_key_value_get(key, FOR_EVER_MS))


def gather(name: str, value: Any) -> list[Any]:
    """The values of all processes, in their order; all must ask alike, as for `from_first`."""
    if _processes is None:
        return [value]
    key = _next_key(name)
    client = _processes.client
    client.key_value_set(f'{key}/{_processes.index}', json.dumps(value))
    return [
        json.loads(client.blocking_key_value_get(f'{key}/{index}', FOR_EVER_MS))
        for index in range(_processes.count)
    ]


def compare(what: str, facts: Mapping[str, Any]) -> None:
    """Make sure that all processes have the same facts.

    Args:
      what: they are about, for the message.
      facts: nested dicts, as JSON holds them.

    Raises:
      UserError: on all processes, naming who differs from process 0 and in which fields.
    """
    found = gather(what, facts)
    for index, other in enumerate(found):
        lines = [
            f'{key} is {there!r} there and {first!r} on process 0'
            for key, first, there in differences(found[0], other)
        ]
        if lines:
            more = f' and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''
            raise UserError(
                f'process {index} was started with other {what} than process 0: '
                f'{"; ".join(lines[:SHOWN])}{more}. Start all with the same'
            )


def differences(old: Any, new: Any, prefix: str = '') -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) of every leaf that differs between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for key in sorted(old.keys() | new.keys())
            for found in differences(
                old.get(key), new.get(key), f'{prefix}.{key}' if prefix else key
            )
        ]
    alike = old == new or (old != old and new != new)  # NaN is not equal to itself
    return [] if alike else [(prefix, old, new)]


def note_folder(folder: str, newest: Callable[[], int | None]) -> None:
    """Tell what a last line is to say: the folder of checkpoints, and how to find the newest."""
    if _processes is not None:
        _processes.newest = newest
        _processes.tell(folder=folder)


def note_progress(step: int) -> None:
    """A sign that the main thread goes on; the others wait for one that falls behind."""
    if _processes is not None:
        _processes.step = step


def explain() -> None:
    """End this process with one line if an error is what the end of another looks like from here.

    Waits as long as it takes to be sure of the others; returns if the error is its own.
    """
    if _processes is not None:
        _processes.explain()


def leave(line: str, status: int, again: bool = True) -> None:
    """End this process and, with the same reason, all others; returns where it is alone.

    Args:
      line: the last one that this process prints.
      status: of the exit.
      again: whether the others are to say that the same command can be started again.
    """
    if _processes is not None:
        reason = f'process {_processes.index} stopped: {line.removeprefix("error: ")}'
        _processes.end(line, status, {'reason': reason, 'status': status, 'again': again})


def finish() -> None:
    """Wait until all processes have come to their end, and part."""
    global _processes
    if _processes is None:
        return
    _processes.wait_for_all()
    _processes = None
    interrupts.on_leaving(None)
    jax.distributed.shutdown()


def _check_address(address: str, process_id: int) -> None:
    """UserError for an address that nobody could be met at."""
    host, colon, port = address.rpartition(':')
    if not colon or not host.strip('[]') or (':' in host and not host.startswith('[')):
        raise UserError(
            f"--coordinator_address='{address}' must read host:port, for example 10.0.0.2:1234"
        )
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"--coordinator_address='{address}': '{port}' is not a port (1 to 65535)")
    try:
        socket.getaddrinfo(host.strip('[]'), int(port))
    except OSError as error:
        raise UserError(
            f"--coordinator_address='{address}': {host} cannot be found ({error.strerror})"
        ) from error
    if process_id == 0:
        try:
            with socket.create_server(('', int(port)), reuse_port=False):
                pass
        except OSError as error:
            raise UserError(
                f"--coordinator_address='{address}': process 0 cannot listen on port {port} "
                f'({error.strerror})'
            ) from error


def _join(where: Sequence[Any], host_timeout: float, join_seconds: float) -> None:
    """jax.distributed.initialize, with our own limits in front of those that end in an abort."""
    global _processes
    said = _tell_when_late(where, join_seconds)
    try:
        jax.distributed.initialize(
            *where,
            initialization_timeout=int(join_seconds) + 60,
            heartbeat_timeout_seconds=int(2 * host_timeout) + 20,
            shutdown_timeout_seconds=int(2 * host_timeout) + 20,
        )
    except ValueError as error:
        if where or 'coordinator_address' not in str(error):
            raise
        # Chips without a slice, as hosted notebooks and containers have them.
        logging.warning('JAX finds no other hosts of this TPU: this machine runs alone')
    finally:
        said.set()
    state = jax_distributed.global_state
    if state.num_processes > 1:
        _processes = _Processes(state, host_timeout)
        interrupts.on_leaving(leave)
        # JAX's runtime aborts when process 0 dies. The stacks of Python that absl would print then
        # say nothing of the reason; the witness does.
        signal.signal(signal.SIGABRT, signal.SIG_DFL)


def _tell_when_late(where: Sequence[Any], seconds: float) -> threading.Event:
    """Ends the process with one line if the event it returns is not set in time."""
    joined = threading.Event()

    def wait():
        if joined.wait(seconds):
            return
        meeting = f' at {where[0]}' if where else ''
        missing = f'not all processes came together{meeting} within {seconds:.0f} seconds'
        if where and where[2] != 0 and not witness.answers(where[0]):
            missing = f'process 0 did not answer{meeting} within {seconds:.0f} seconds'
        interrupts.print_last(f'error: {missing}: start the same command on every host')
        os._exit(1)

    threading.Thread(target=wait, name='join', daemon=True).start()
    return joined


def _next_key(name: str) -> str:
    """A key that is used once; the same on all processes as long as they ask alike."""
    number = next(_counters.setdefault(name, itertools.count()))
    return f'{PREFIX}{name}/{number}'


class _Sign(NamedTuple):
    """What was last heard of a process; times by our own clock."""

    beat: int
    step: int
    since: float  # of the beat
    moved: float  # when it was last seen at a new step


class _Processes:
    """The processes of a run, as this one sees them.

    Three threads: one writes a beat of this process into the store and reads those of all; one
    waits for word that another process ends; one judges how long ago all that was. They are
    several because the first two hang when the host of the store does. JAX's own limits are set
    beyond ours: where they are met first, its runtime aborts.
    """

    def __init__(self, state: Any, limit: float) -> None:
        self.client, self.index, self.count = state.client, state.process_id, state.num_processes
        self.limit = limit
        self.step = 0
        self.newest: Callable[[], int | None] = lambda: None
        self._pause = min(max(limit / 20, 0.2), 5.0)
        self._signs: dict[int, _Sign] = {}
        self._heard = time.monotonic()
        self._stopped = threading.Event()
        self._leaving = threading.Lock()
        self._witness = self._start_witness(state.coordinator_address)
        for target in (self._exchange, self._await_end, self._judge):
            threading.Thread(target=target, name='processes', daemon=True).start()

    def tell(self, **facts: Any) -> None:
        """Facts for the last line of the witness."""
        with contextlib.suppress(OSError, ValueError):  # it is gone, or told that all is over
            self._witness.stdin.write(json.dumps(facts) + '\n')
            self._witness.stdin.flush()

    def explain(self) -> None:
        """Ends this process if another one is the reason of an error met here.

        Returns once every other process has shown that it lives well after the error.
        """
        began = time.monotonic()
        while time.monotonic() - began < self.limit + self._pause:
            time.sleep(self._pause / 2)
            silent = self._silent(4 * self._pause)
            if silent:
                self._end_because(f'{silent} was lost')
            others = [sign for index, sign in self._signs.items() if index != self.index]
            if min((sign.since for sign in others), default=0) > began + 2 * self._pause:
                return

    def wait_for_all(self) -> None:
        """Returns when every process has come to its end."""
        self._send('done', 'done')
        for index in range(self.count):
            self.client.blocking_key_value_get(f'{PREFIX}done/{index}', FOR_EVER_MS)
        self._stopped.set()
        self._send_end({})  # lets the waiting threads go
        self.tell(in_order=True)
        self._witness.stdin.close()

    def _start_witness(self, address: str) -> subprocess.Popen:
        self._witness = subprocess.Popen(
            [sys.executable, '-I', '-S', witness.__file__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C at a terminal is not for it
        )
        self.tell(index=self.index, count=self.count, address=address)
        return self._witness

    def _exchange(self) -> None:
        """Thread: our beat out, everybody's beats in."""
        for beat in itertools.count():
            if self._stopped.wait(self._pause if beat else 0):
                return
            try:
                self._set(f'beat/{self.index}', json.dumps([beat, self.step]))
                beats = self.client.key_value_dir_get(f'{PREFIX}beat/')
            except RuntimeError:  # the store is gone: JAX aborts, or the judge sees the silence
                continue
            self._heard = time.monotonic()
            for key, text in beats:
                self._note(int(key.rpartition('/')[2]), *json.loads(text))

    def _note(self, index: int, beat: int, step: int) -> None:
        before = self._signs.get(index)
        if before is None or before.beat != beat:
            moved = before is None or before.step != step
            since = self._heard if moved else before.moved
            self._signs[index] = _Sign(beat, step, self._heard, since)

    def _await_end(self) -> None:
        """Thread: ends the process when another one says that the run is over."""
        try:
            end = json.loads(self.client.blocking_key_value_get(f'{PREFIX}end', FOR_EVER_MS))
        except RuntimeError:
            return
        if end and not self._stopped.is_set():
            self.end(self._words(end['reason'], end['again']), end['status'], None)

    def _judge(self) -> None:
        """Thread: ends the process when another one is lost."""
        then = time.monotonic()
        while not self._stopped.wait(self._pause / 2):
            now = time.monotonic()
            if now - then > self.limit / 2:  # this process was stopped itself: it knows nothing
                self._heard = now
                for index, sign in self._signs.items():
                    self._signs[index] = sign._replace(since=now, moved=now)
            then = now
            lost = self._lost()
            if lost:
                self._end_because(lost)

    def _lost(self) -> str:
        """Which process is lost, in words; '' if none is."""
        silent = self._silent(self.limit)
        if silent:
            return f'{silent} gave no sign of life for {self.limit:.0f} seconds'
        mine, now, longest = self._signs.get(self.index), time.monotonic(), FACTOR * self.limit
        for index, sign in sorted(self._signs.items()) if mine else ():
            if sign.step < mine.step and now - max(sign.moved, mine.moved) > longest:
                return f'process {index} stood still at step {sign.step} for {longest:.0f} seconds'
        return ''

    def _silent(self, seconds: float) -> str:
        """The process that was not heard of for so long, in words; '' if there is none."""
        now = time.monotonic()
        if now - self._heard > seconds and self.index != 0:
            return 'process 0'
        for index, sign in sorted(self._signs.items()):
            if index != self.index and now - sign.since > seconds:
                return f'process {index}'
        return ''

    def _end_because(self, lost: str) -> None:
        self.end(self._words(lost, True), 1, {'reason': lost, 'status': 1, 'again': True})

    def _words(self, reason: str, again: bool) -> str:
        """The last line of a process that ends because of another one."""
        if not again:
            return f'error: {reason}'
        return f'error: {reason}; {witness.checkpoint_words(self._newest())}{witness.AGAIN}'

    def _newest(self) -> int | None:
        """The newest checkpoint, unless the folder does not answer."""
        found: list[int | None] = []
        thread = threading.Thread(target=lambda: found.append(self.newest()), daemon=True)
        thread.start()
        thread.join(5)
        return found[0] if found else None

    def end(self, line: str, status: int, word: Mapping[str, Any] | None) -> None:
        """Prints the last line and ends at once; JAX's way out would wait for the others.

        word: for the others; None if they gave it.
        """
        if not self._leaving.acquire(blocking=False):
            time.sleep(FOR_EVER_MS)  # another thread of this process is at it
        if self.index == 0 or self._silent(4 * self._pause) != 'process 0':
            if word is not None:
                self._send_end(word)
            self._send('left', 'left')
        if self.index == 0:  # the store ends with this process
            self._wait_for_readers()
        self.tell(in_order=True)
        interrupts.print_last(line)
        os._exit(status)

    def _wait_for_readers(self) -> None:
        """Until every process that lives has heard why the run ends, or some time has passed."""
        began = time.monotonic()
        while time.monotonic() - began < 3 * self._pause + 2:
            with contextlib.suppress(RuntimeError):
                left = self.client.key_value_dir_get(f'{PREFIX}left/')
                if len(left) >= self.count - bool(self._silent(2 * self._pause)):
                    return
            time.sleep(0.05)

    def _send_end(self, word: Mapping[str, Any]) -> None:
        """The reason why the run ends; the first one counts."""
        self._patiently(lambda: self._set('end', json.dumps(word), False))

    def _send(self, kind: str, text: str) -> None:
        self._patiently(lambda: self._set(f'{kind}/{self.index}', text))

    def _set(self, key: str, text: str, overwrite: bool = True) -> None:
        self.client.key_value_set(PREFIX + key, text, overwrite)

    def _patiently(self, call: Callable[[], None]) -> None:
        """Calls the store, but does not wait for one that does not answer."""

        def work():
            with contextlib.suppress(RuntimeError):  # it is gone, or the key was set before
                call()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(3)


def _on_tpu_vm() -> bool:
    """Whether TPU chips and their library are here and not switched off by JAX_PLATFORMS."""
    platforms = os.environ.get('JAX_PLATFORMS', '')
    wanted = not platforms or 'tpu' in platforms
    chips = glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*')
    return bool(wanted and chips and importlib.util.find_spec('libtpu'))
