"""Runs in processes of their own: signals from outside, and several processes as one run."""

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

from spinenet_jax.files import absolute
from spinenet_jax.training import lock
from spinenet_jax.training.checkpoint import load_model

SCRIPT = Path(__file__).parent / 'tiny_run.py'


def launch(folder, *flags, devices=1):
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': os.environ['XLA_FLAGS']
        + f' --xla_force_host_platform_device_count={devices}',  # the last one counts
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


def last_line(process, seconds=60):
    """The exit status and the last line of stderr; a traceback is a failure."""
    _, errors = process.communicate(timeout=seconds)
    assert 'Traceback' not in errors, errors[-3000:]
    return process.returncode, errors.splitlines()[-1]


def wait_for_steps(folder, count=2):
    """Until metrics.jsonl has that many lines."""
    path = folder / 'metrics.jsonl'
    wait_for(lambda: path.exists() and path.read_text().count('\n') >= count)


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError('the run does not get going')


def free_address():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{s.getsockname()[1]}'


def together(folder, *flags, second=()):
    """Two processes of two devices."""
    address = free_address()
    joint = [f'--address={address}', '--processes=2', *flags]
    return [
        launch(folder, f'--process={p}', *joint, *(second if p else ()), devices=2) for p in (0, 1)
    ]


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


def test_ctrl_c_before_the_first_step_is_one_line(tmp_path):
    process = launch(tmp_path, '--build_pause=30')
    wait_for(lambda: (tmp_path / '.lock').exists())
    process.send_signal(signal.SIGINT)
    assert last_line(process) == (130, 'interrupted: there was nothing new to save')


def test_ctrl_c_while_evaluating_leaves_when_the_step_is_saved(tmp_path):
    process = launch(tmp_path, '--eval_every=1', '--eval_pause=30')
    wait_for_steps(tmp_path, 4)
    process.send_signal(signal.SIGINT)
    assert last_line(process, 20) == (0, 'interrupted: step 4 is saved')
    assert load_model(tmp_path)[1] == 4


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    process = launch(tmp_path, '--epochs=1000', '--pause=3')
    wait_for_steps(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert last_line(process, 2) == (130, 'interrupted again: left at once')


def test_a_second_run_on_a_workdir_is_one_line(tmp_path):
    held = lock.acquire(absolute(tmp_path))
    status, line = last_line(launch(tmp_path))
    assert status == 2 and f'another run writes to it (process {os.getpid()} on ' in line
    held.release()


def test_hosts_that_do_not_come_together_end_with_one_line(tmp_path):
    address = free_address()
    flags = (f'--address={address}', '--processes=2', '--join_seconds=2')
    processes = [launch(tmp_path, *flags, f'--process={p}') for p in (1,)]
    status, line = last_line(processes[0])
    assert status == 1 and line.startswith(f'error: process 0 did not answer at {address} within')
    status, line = last_line(launch(tmp_path, *flags, '--process=0'))
    assert status == 1 and f'not all processes came together at {address} within 2 s' in line


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ('second', 'words'),
    [
        ('--set=optim.learning_rate=0.2', 'optim.learning_rate is 0.2 there and 0.1 on process 0'),
        ('--set=seed=3', 'other settings than process 0: seed is 3 there and 0'),
        ('--images=64', 'other data than process 0: images is 64 there and 32'),
        ('--refuse=/data: no such directory', '/data: no such directory'),
        ('--workdir={}', 'is not the same folder on all hosts: process 1 does not see'),
    ],
)
def test_what_differs_between_hosts_ends_all_of_them_with_the_reason(tmp_path, second, words):
    other = tmp_path / 'other'
    for process in together(tmp_path / 'one', second=[second.format(other)]):
        status, line = last_line(process)
        assert status == 2 and words in line and line.startswith('error: ')


@pytest.mark.slow
def test_a_bug_on_one_host_is_told_by_the_others(tmp_path):
    processes = together(tmp_path, second=['--crash=5'])
    status, line = last_line(processes[0])
    assert (status, line) == (1, 'error: process 1 stopped: IndexError: a bug')
    assert 'Traceback' in processes[1].communicate()[1], 'a bug keeps its traceback'


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize('victim', [0, 1])
def test_a_lost_host_ends_the_others_with_one_last_line(tmp_path, victim, number):
    flags = ('--host_timeout=4', '--epochs=1000', '--pause=0.05', '--checkpoint_every=3')
    processes = together(tmp_path, *flags)
    wait_for(lambda: (tmp_path / 'checkpoints' / '6').exists())
    began = time.monotonic()
    processes[victim].send_signal(number)
    _, errors = processes[1 - victim].communicate(timeout=60)
    assert time.monotonic() - began < 15
    processes[victim].kill()
    processes[victim].wait()
    line = errors.splitlines()[-1]
    # Gloo aborts the survivor when a message meets the next operation's buffer after another one
    # was cut off; its witness then says what can be seen from outside.
    witnessed = f'error: process {1 - victim} of 2 was killed, crashed, or lost another one'
    assert line.startswith(
        witnessed if 'gloo::EnforceNotMet' in errors else f'error: process {victim}'
    )
    assert processes[1 - victim].returncode != 0
    steps = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
    assert f'the last checkpoint is {steps[-1]}; start the same command again' in line
    if number == signal.SIGKILL and victim == 1:  # and it does go on
        for process in together(tmp_path, f'--epochs={steps[-1] // 4 + 2}'):
            assert finish(process)[0] == 'finished'
