"""Flags that join processes, and the folder of compiled programs."""

import json
import socket
import subprocess
import sys

import jax
import pytest

from spinenet_jax.errors import UserError
from spinenet_jax.training import distributed, witness


@pytest.mark.parametrize(
    ('flags', 'line'),
    [
        (('10.0.0.2:1234', 0, 0), r'needs --num_processes \(is 0\)'),
        (('10.0.0.2:1234', 2, 2), r'--process_id from 0 to num_processes - 1 \(is 2\)'),
        (('10.0.0.2:1234', 2, -1), r'\(is -1\)'),
        (('10.0.0.2', 2, 0), 'must read host:port'),
        ((':', 2, 0), 'must read host:port'),
        ((':1234', 2, 0), 'must read host:port'),
        (('a:b:1234', 2, 0), 'must read host:port'),
        (('127.0.0.1:', 2, 0), r"'' is not a port \(1 to 65535\)"),
        (('127.0.0.1:x', 2, 0), "'x' is not a port"),
        (('127.0.0.1:0', 2, 0), "'0' is not a port"),
        (('127.0.0.1:65536', 2, 0), "'65536' is not a port"),
        (('nowhere.invalid:1234', 2, 1), 'nowhere.invalid cannot be found'),
        (('127.0.0.1:1234', 2, 1, 0.5), 'host_timeout=0.5: at least 1 second'),
        (('', 2, 0), 'need --coordinator_address'),
        (('', 0, 1), 'need --coordinator_address'),
    ],
)
def test_incomplete_flags_are_refused(flags, line):
    with pytest.raises(UserError, match=line):
        distributed.initialise(*flags)


def test_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'process 0 cannot listen on port {port}'):
            distributed.initialise(f'127.0.0.1:{port}', 2, 0)


def test_differences_are_named_by_their_place():
    old = {'a': {'b': 1, 'c': (1, 2)}, 'd': float('nan'), 'gone': 1}
    new = {'a': {'b': 2, 'c': (1, 2)}, 'd': float('nan'), 'new': None}
    assert distributed.differences(old, new) == [('a.b', 1, 2), ('gone', 1, None)]


@pytest.mark.parametrize(
    ('facts', 'words'),
    [
        ({'index': 0, 'count': 2}, 'killed, crashed, or lost another one; there is no'),
        ({'index': 1, 'count': 2, 'address': '127.0.0.1:1'}, 'process 0, which coordinates at'),
        ({'index': 1, 'count': 2, 'checkpoint': 7}, 'the last checkpoint is 7; start the same'),
    ],
)
def test_the_witness_says_what_can_be_seen_from_outside(facts, words):
    assert words in witness.last_line(facts)


def test_the_witness_is_silent_after_an_end_in_order(tmp_path):
    for step in ('3', '12', 'notes', '20.orbax-checkpoint-tmp'):
        (tmp_path / step).mkdir()
    facts = json.dumps({'index': 0, 'count': 2, 'folder': str(tmp_path)}) + '\n'
    for more, said in (('', 'the last checkpoint is 12;'), ('{"in_order": true}\n', '')):
        done = subprocess.run(
            [sys.executable, witness.__file__], input=facts + more, capture_output=True, text=True
        )
        assert said in done.stderr and bool(done.stderr) == bool(said)


def test_alone_there_is_nothing_to_join():
    distributed.initialise()
    assert jax.process_count() == 1 and not jax.distributed.is_initialized()


def test_chips_without_a_slice_run_alone(monkeypatch, caplog):
    """Hosted notebooks and containers have them: JAX finds no coordinator."""

    def initialise(**_):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(distributed, '_on_tpu_vm', lambda: True)
    monkeypatch.setattr(distributed.jax.distributed, 'initialize', initialise)
    distributed.initialise()
    assert 'this machine runs alone' in caplog.text and not distributed.joined()


def test_cache_folder(monkeypatch, tmp_path):
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    try:
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
        assert distributed.use_compilation_cache() == str(tmp_path)
        monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
        monkeypatch.setenv('HOME', '/home/someone')
        folder = distributed.use_compilation_cache()
        assert folder == '/home/someone/.cache/spinenet_jax/xla'
        assert jax.config.jax_compilation_cache_dir == folder
        assert jax.config.jax_persistent_cache_min_compile_time_secs < 1
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
