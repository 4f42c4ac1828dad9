"""Keeps two runs from writing to one workdir.

On a local or network file system the kernel holds a lock on a file, which ends with its owner,
however it ends. An object store has no locks: there the owner renews a lease, and whoever finds
one that is renewed keeps away. Both are held by process 0 of a run alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from absl import logging
from etils import epath

from spinenet_jax import interrupts
from spinenet_jax.errors import UserError
from spinenet_jax.files import DamagedFileError, is_remote, read_json, write_atomically

FILE = '.lock'
LEASE = 'lease.json'
RENEW_SECONDS = 20.0
WATCH_RENEWALS = 2.5  # a lease that did not change for so many renewals has lost its owner
FORGOTTEN_SECONDS = 600.0  # older ones are not watched; clocks may differ by less
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Lock:
    """Ownership of a workdir, until `release` or the end of the process."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def release(self) -> None:
        """Give the workdir back; a second call does nothing."""
        release, self._release = self._release, lambda: None
        release()


def acquire(workdir: epath.Path) -> Lock:
    """Own a workdir that exists.

    Raises:
      UserError: another run writes to it; names the process and its machine.
    """
    if is_remote(workdir):
        return _Lease(workdir).take()
    handle = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # A lock of POSIX, not of BSD: a worker that was forked does not inherit it, so it cannot
        # outlive its owner in one.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        try:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(_taken(workdir, _parse(os.read(handle, 1000)))) from None
        finally:
            os.close(handle)
        if error.errno not in NO_LOCKS:
            raise
        logging.warning('%s: its file system has no locks, a lease is used', workdir)
        return _Lease(workdir).take()
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps(_owner()).encode())
    return Lock(lambda: os.close(handle))


def _owner() -> dict[str, Any]:
    """Who we are, for the message to another."""
    return {'host': socket.gethostname(), 'process': os.getpid(), 'since': time.time()}


def _taken(workdir: epath.Path, owner: dict[str, Any]) -> str:
    """The line for whoever comes second."""
    since = time.strftime('%Y-%m-%d %H:%M', time.localtime(owner.get('since', 0)))
    who = f'process {owner["process"]} on {owner["host"]}, since {since}' if owner else 'unknown'
    return (
        f'--workdir={workdir}: another run writes to it ({who}). Wait for it, stop it, or use '
        'another workdir'
    )


def _parse(data: bytes) -> dict[str, Any]:
    """What an owner wrote, {} where it makes no sense."""
    try:
        found = json.loads(data)
        return {'host': found['host'], 'process': found['process'], 'since': float(found['since'])}
    except (ValueError, KeyError, TypeError):
        return {}


def _tell_lost(workdir: epath.Path) -> None:
    """Another run took over while this one was stopped: it must not write any more."""
    line = f'{workdir}: another run took over while this one was stopped'
    if interrupts.installed():
        interrupts.leave(f'error: {line}', 1)
    logging.error('%s: it must not go on', line)


class _Lease:
    """A file that its owner renews; good as long as clocks and the store are."""

    def __init__(self, workdir: epath.Path, renew_seconds: float = RENEW_SECONDS) -> None:
        self._path, self._workdir = workdir / LEASE, workdir
        self._renew_seconds = renew_seconds
        self._token = uuid.uuid4().hex
        self._stopped = threading.Event()

    def take(self) -> Lock:
        """Own it, after a look at whether somebody else does; UserError if so."""
        found = self._read()
        if found and time.time() - found.get('renewed', 0) < FORGOTTEN_SECONDS:
            logging.info('%s: watching whether the run that wrote it is alive', self._path)
            deadline = time.monotonic() + WATCH_RENEWALS * self._renew_seconds
            while time.monotonic() < deadline:
                time.sleep(self._renew_seconds / 10)
                now = self._read()
                if not now:
                    break
                if now != found:
                    raise UserError(_taken(self._workdir, _parse(json.dumps(now).encode())))
        self._write()
        time.sleep(self._renew_seconds / 20)  # of two that take it at once, the later one stays
        now = self._read()
        if now.get('token') != self._token:
            raise UserError(_taken(self._workdir, _parse(json.dumps(now).encode())))
        threading.Thread(target=self._renew, name='lease', daemon=True).start()
        return Lock(self._give_back)

    def _renew(self) -> None:
        while not self._stopped.wait(self._renew_seconds):
            try:
                token = self._read().get('token')
                if token not in (None, self._token):
                    _tell_lost(self._workdir)
                    return
                self._write()
            except Exception as error:  # of a store's client, which are not all OSError
                logging.warning('%s could not be renewed: %s', self._path, error)

    def _give_back(self) -> None:
        self._stopped.set()
        with contextlib.suppress(Exception):  # the next run finds that nobody renews it
            if self._read().get('token') == self._token:
                self._path.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            found = read_json(self._path)
        except DamagedFileError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        lease = _owner() | {'token': self._token, 'renewed': time.time()}
        write_atomically(self._path, json.dumps(lease) + '\n')
