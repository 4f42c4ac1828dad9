"""Runs in processes of their own: a signal from outside, and several processes as one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from spinenet_jax.training.checkpoint import load_model

SCRIPT = Path(__file__).parent / 'tiny_run.py'


def launch(folder, *flags, devices=1):
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), f'--workdir={folder}', *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    """The words of the last line, once it has ended with status 0; else shows the errors."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return out.splitlines()[-1].split()


def wait_for_steps(folder, count=2):
    """Until metrics.jsonl has that many lines."""
    path = folder / 'metrics.jsonl'
    for _ in range(1200):
        if path.exists() and path.read_text().count('\n') >= count:
            return
        time.sleep(0.1)
    raise AssertionError('the run does not get going')


def free_address():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{s.getsockname()[1]}'


def together(folder, *flags):
    """Two processes of two devices."""
    address = free_address()
    joint = [f'--address={address}', '--processes=2', *flags]
    return [launch(folder, f'--process={p}', *joint, devices=2) for p in (0, 1)]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_with_status_0(tmp_path, number):
    process = launch(tmp_path, '--epochs=1000', '--pause=0.05')
    wait_for_steps(tmp_path)
    process.send_signal(number)
    word, step = finish(process)
    assert word == 'stopped' and int(step) > 2
    assert load_model(tmp_path)[1] == int(step)
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert lines[-1]['step'] == int(step)
    if number == signal.SIGTERM:
        assert finish(launch(tmp_path, f'--epochs={int(step) // 4 + 2}'))[0] == 'finished'


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_one_of_four(tmp_path):
    for process in together(tmp_path / 'two'):
        assert finish(process) == ['finished', '20']
    assert finish(launch(tmp_path / 'one', devices=4)) == ['finished', '20']
    (two, _), (one, _) = load_model(tmp_path / 'two'), load_model(tmp_path / 'one')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), two, one)
    lines = [
        [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('one', 'two')
    ]
    assert [x['step'] for x in lines[0]] == [x['step'] for x in lines[1]]
    losses = [[x['loss'] for x in kind if 'loss' in x] for kind in lines]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_processes_agree_on_the_step_to_stop_at(tmp_path):
    """Only one of them gets the signal; both save and leave at one step."""
    processes = together(tmp_path, '--epochs=1000', '--pause=0.05')
    wait_for_steps(tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    first, second = [finish(process) for process in processes]
    assert first == second and first[0] == 'stopped'
    assert load_model(tmp_path)[1] == int(first[1])
