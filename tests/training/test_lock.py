"""One run a workdir: a second one is refused, and a killed owner keeps nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.files import absolute
from spinenet_jax.training import lock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def owner(tmp_path):
    """Another process that owns the workdir, with a child that was forked meanwhile."""
    program = (
        'import os, sys, time\n'
        'from spinenet_jax.files import absolute\n'
        'from spinenet_jax.training import lock\n'
        'held = lock.acquire(absolute(sys.argv[1]))\n'
        'child = os.fork()\n'
        'print(child or "", flush=True)\n'
        'time.sleep(60)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    children = [line.strip() for line in (process.stdout.readline(), process.stdout.readline())]
    yield process
    process.kill()
    os.kill(int(max(children)), signal.SIGKILL)


def test_a_second_run_is_refused_and_a_killed_owner_keeps_nothing(tmp_path, owner):
    with pytest.raises(UserError, match=f'another run writes to it .process {owner.pid} on '):
        lock.acquire(absolute(tmp_path))
    owner.kill()
    owner.wait()
    held = lock.acquire(absolute(tmp_path))
    held.release()
    held.release()


def test_lock_that_is_held_by_somebody_unknown(tmp_path, owner):
    (tmp_path / lock.FILE).write_bytes(b'\xff')
    with pytest.raises(UserError, match=r'another run writes to it \(unknown\)'):
        lock.acquire(absolute(tmp_path))


def lease(folder):
    return lock._Lease(absolute(folder), renew_seconds=0.2)


def test_a_lease_that_is_renewed_is_respected(tmp_path):
    held = lease(tmp_path).take()
    with pytest.raises(UserError, match=f'another run writes to it .process {os.getpid()} on '):
        lease(tmp_path).take()
    held.release()
    assert not (tmp_path / lock.LEASE).exists()
    lease(tmp_path).take().release()


@pytest.mark.parametrize('content', ['', '{', '[1]', '{"token": 3}'])
def test_a_lease_that_nobody_renews_is_taken(tmp_path, content):
    (tmp_path / lock.LEASE).write_text(content)
    lease(tmp_path).take().release()


def test_a_lease_of_a_killed_owner_is_taken_after_a_look(tmp_path):
    killed = lease(tmp_path)
    killed._write()
    began = time.monotonic()
    lease(tmp_path).take().release()
    assert 0.4 < time.monotonic() - began < 5


def test_one_failed_renewal_does_not_end_the_lease(tmp_path, monkeypatch):
    """The clients of object stores raise errors of their own."""
    first = lease(tmp_path)
    held = first.take()
    write, failed = lock.write_atomically, []

    def failing_once(*arguments):
        if not failed:
            failed.append(True)
            raise type('HttpError', (Exception,), {})('503')
        write(*arguments)

    monkeypatch.setattr(lock, 'write_atomically', failing_once)
    before = (tmp_path / lock.LEASE).read_text()
    for _ in range(100):
        if (tmp_path / lock.LEASE).read_text() != before:
            break
        time.sleep(0.1)
    else:
        pytest.fail('it was not renewed after the failure')
    held.release()
    assert failed and not (tmp_path / lock.LEASE).exists()


def test_an_owner_that_was_stopped_too_long_learns_that_it_lost(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(lock, '_tell_lost', told.append)
    first = lease(tmp_path)
    held = first.take()
    second = lease(tmp_path)
    second._write()
    for _ in range(50):
        if told:
            break
        time.sleep(0.1)
    held.release()
    assert told and (tmp_path / lock.LEASE).exists(), 'the lease of the new owner stays'
