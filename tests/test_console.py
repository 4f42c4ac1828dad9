"""What a person reads: lines with the time, clear of the progress bar, and a log file."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from absl import logging as absl_logging

from spinenet_jax import console

ROOT = Path(__file__).resolve().parents[1]
# Log lines while bars are open, as in training: one of the steps, one of an evaluation.
PROGRAM = """if True:
    import jax
    import numpy as np
    from absl import logging
    from tqdm import tqdm
    from spinenet_jax import launch
    from spinenet_jax.training.metrics import StepMonitor

    class Log:
        def write(self, step, values):
            pass

    class Value:
        def __init__(self, value):
            self.data = np.array([value])
            self.addressable_shards = [self]

    def main():
        monitor = StepMonitor(
            Log(), start_step=0, total_steps=6, steps_per_epoch=4, batch_size=8, log_every=2
        )
        logging.info('building')
        for step in range(1, 7):
            rates = {'grad_norm': Value(1.0), 'learning_rate': Value(0.1)}
            monitor.push(step, {'loss': Value(1 / step), **rates})
            if step == 3:
                monitor.flush()
                with tqdm(total=2, desc='evaluate', leave=False) as bar:
                    bar.update()
                    logging.warning('an image could not be read')
                monitor.pause()
        monitor.flush()
        monitor.close()
        print('\\ud800 done')

    launch.run(main)
"""


def on_a_terminal(program):
    """What the program writes to a terminal, as one string."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 100, 0, 0))
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', program]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 4096):
                parts.append(part)
        except OSError:  # the other side is closed
            pass
    os.close(ours)
    return b''.join(parts).decode()


def lines_on_screen(text):
    """The lines that stay: '\\r' starts a line anew, and what it had is written over."""
    screen = []
    for line in text.split('\n'):
        shown = ''
        for part in line.strip('\r').split('\r'):
            shown = part + shown[len(part) :]
        screen.append(shown.rstrip())
    return screen


def test_lines_and_progress_bars_do_not_run_into_each_other():
    text = on_a_terminal(PROGRAM)
    assert 'train  33%' in text and 'evaluate:  50%' in text
    time = r'\d\d:\d\d:\d\d'
    wanted = [
        f'{time} building',
        f'{time} step 2/6 loss 0.5, learning_rate 0.1, epoch 0.50, images/s .*, .* left',
        f'{time} warning: an image could not be read',
        f'{time} step 4/6 loss 0.25, learning_rate 0.1, epoch 1.00',
        f'{time} step 6/6 loss 0.1667, learning_rate 0.1, epoch 1.50, .* left',
        r'\\ud800 done',
    ]
    shown = [line for line in lines_on_screen(text) if line]
    assert len(shown) == len(wanted), shown
    for pattern, line in zip(wanted, shown, strict=True):
        assert re.fullmatch(pattern, line), line
    first_bar = text.index('%|')
    assert 'building' in text[:first_bar], 'no bar before the first step is done'


def test_log_file_has_the_prefix_with_date_and_place(tmp_path, monkeypatch):
    # What pytest's own handlers keep is sent to another process, which a lone surrogate cannot be.
    monkeypatch.setattr(logging.getLogger(), 'handlers', [])
    path = tmp_path / 'train.log'
    absl_logging.get_absl_logger().setLevel(logging.INFO)
    for message in ('first', 'second'):
        with console.log_file(path):
            absl_logging.info('%s \ud800', message)
    with pytest.raises(ValueError), console.log_file(path):
        raise ValueError('broken')
    first, second, last = path.read_text().splitlines()
    assert re.fullmatch(r'I\d{4} [\d:.]+ +\d+ test_console\.py:\d+\] first \\ud800', first)
    assert second.endswith(r'second \ud800') and last.endswith('left with ValueError: broken')


def test_a_log_file_that_cannot_be_written_is_one_warning(tmp_path, caplog, capsys):
    with console.log_file('/dev/full'):
        absl_logging.warning('one')
        absl_logging.warning('two')
    with console.log_file(tmp_path / 'nowhere/train.log'):
        absl_logging.warning('three')
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        'one',
        '/dev/full: not written any more: No space left on device',
        'two',
        f'{tmp_path}/nowhere/train.log: no log file: No such file or directory',
        'three',
    ]
    assert capsys.readouterr().err == ''
