"""What a person reads after a mistake on the command line: one line, exit status 2."""

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from spinenet_jax import launch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COCO = '--config=configs/retinanet.py:49-B'


def start(*words):
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, 'train.py', *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        ((COCO, '--config.trian.epochs=1'), "no field 'trian': did you mean 'train'?"),
        ((COCO, '--config.train.epoch=1'), "no field 'epoch': did you mean 'epochs'?"),
        ((COCO, '--config.train.batch_size=x'), 'train.batch_size=x: invalid literal'),
        ((COCO, '--config.train.epochs=x'), '--config.train.epochs=x: could not convert'),
        ((COCO, '--config.zzzz=1'), "no field 'zzzz'"),
        (('--config=configs/retinanet.py:50-B',), 'model one of 49S, 49,'),
        (('--config=configs/nothing.py',), '--config=configs/nothing.py: no such file'),
        ((COCO, '--nothing'), "Unknown command line flag 'nothing'"),
        ((COCO, 'extra'), "unexpected argument 'extra'"),
        ((), '--config must have a value'),
        (('--config=',), '--config is empty'),
        (('--config=README.md',), ': not a Python file that gives a config'),
        (('--config=docs/spinenet49.png',), 'spinenet49.png:1: not a Python file'),
        (('--config=configs',), '--config=configs: not a file'),
        (('--config=tools/maintenance/tpu_table.py',), 'has no function get_config()'),
        (('--config=configs/common.py:small',), 'get_config() takes 0 positional arguments'),
        ((COCO, '--workdir='), '--workdir=: is empty'),
        ((COCO, '--workdir=gs://runs/x'), 'gs:// needs the package gcsfs: pip install gcsfs'),
        ((COCO, '--workdir=abc://runs/x'), 'storage of an unknown kind'),
        ((COCO, '--config.eval.batch_size=0'), 'eval.batch_size=0: must be a whole number from 1'),
        ((COCO, '--config.train.epochs=nan'), 'train.epochs=nan: must be a number above 0'),
        ((COCO, '--config.data.image_size=(64,)'), 'data.image_size=(64,): must be two whole'),
    ],
)
def test_mistake_is_one_line(words, line, tmp_path):
    done = start(f'--workdir={tmp_path}', *words)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1


# A mistake in a config file, the line it is in, and the words that name it.
CONFIG = """from configs import common


def get_config():
    config = common.get_config()
    {}
    return config
"""
MISTAKES = {
    "config.train['epoch'] += 1": 'KeyError',
    "config.train.epochs = 'ten'": 'TypeError',
    'config.optim.momentum = config.optim.momentun': 'AttributeError',
    'config.model.width = wide': "NameError: name 'wide' is not defined",
    'config.train.epochs = 10**400': 'OverflowError',
    'config.seed = 1 // 0': 'ZeroDivisionError',
    'open("nothing")': 'FileNotFoundError',
    'config.seed = = 1': 'not a Python file',
    'config = {}': 'get_config() returned dict: must',
    'config.data.augment = True': 'data.augment is no setting',
}


@pytest.mark.parametrize(('line', 'words'), MISTAKES.items(), ids=MISTAKES)
def test_mistake_in_a_config_file_is_shown_with_file_and_line(line, words, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(CONFIG.format(line))
    done = start(f'--workdir={tmp_path / "run"}', f'--config={path}')
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert words in done.stderr
    in_line = 'returned' not in words and 'no setting' not in words
    assert not in_line or done.stderr.startswith(f'error: {path}:6: ')


def test_a_closed_pipe_is_no_traceback():
    code = """if True:
        from spinenet_jax import launch

        def main():
            for _ in range(100_000):
                print('a line that nobody reads')

        launch.run(main)
    """
    command = [sys.executable, '-c', code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b'' and run.wait() == 141


def test_unwritable_workdir_is_one_line():
    done = start(COCO, '--workdir=/proc/nothing')
    assert done.returncode == 2
    assert done.stderr.startswith('error: --workdir=/proc/nothing: cannot be written')


def test_help_is_quick():
    """Processor time, which a busy machine does not stretch as it does the clock."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    done = start('--help')
    assert spent() - before < 2
    assert '--workdir' in done.stdout and '--coordinator_address' in done.stdout


def run_main(body, ending='', **launch_arguments):
    """A script whose main does `body`; returns its process, ended."""
    arguments = ''.join(f', {name}={value!r}' for name, value in launch_arguments.items())
    program = (
        'import errno, os, signal, sys, time\n'
        'from spinenet_jax import interrupts, launch\n'
        'from spinenet_jax.errors import RunError, UserError\n'
        'def main():\n'
        f'{textwrap.indent(textwrap.dedent(body), "    ")}\n'
        f'launch.run(main{arguments})\n'
    )
    return subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ('advice', 'words'),
    [('OUT_OF_MEMORY', '--config.train.remat=True'),
     ('OUT_OF_MEMORY_INFERENCE', 'a smaller --config.eval.batch_size')],
)  # fmt: skip
def test_too_little_memory_is_one_line_that_says_what_to_turn(advice, words):
    text = getattr(launch, advice)
    done = run_main("raise RuntimeError('RESOURCE_EXHAUSTED: 9 bytes')", out_of_memory=text)
    assert done.returncode == 2
    assert words in done.stderr and '9 bytes' in done.stderr
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('script', ['eval.py', 'predict.py'])
def test_evaluation_and_prediction_give_advice_that_fits_there(script):
    text = (Path(ROOT) / script).read_text()
    assert 'out_of_memory=launch.OUT_OF_MEMORY_INFERENCE' in text


@pytest.mark.parametrize(
    ('body', 'status', 'line'),
    [
        ("raise UserError('this is wrong')", 2, 'error: this is wrong'),
        ("raise RunError('a host was lost')", 1, 'error: a host was lost'),
        (
            "raise OSError(errno.ENOSPC, 'No space left on device', '/a/b')",
            1,
            'error: /a/b: No space left on device: make room',
        ),
        ("open('/proc/nothing', 'w')", 1, 'error: /proc/nothing: No such file or directory'),
        ("open('/', 'w')", 1, 'error: /: Is a directory: a folder is where a file should be'),
        ("open('/dev/null/x', 'w')", 1, 'error: /dev/null/x: Not a directory: a file is where'),
        ("open('/' + 300 * 'x')", 1, 'File name too long: use a shorter name'),
        ('raise KeyboardInterrupt', 130, 'interrupted'),
    ],
)
def test_what_is_not_our_mistake_is_one_line(body, status, line):
    done = run_main(body)
    assert done.returncode == status
    assert line in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'body', ["raise KeyError('a')", "raise OSError('no number')", "raise RuntimeError('b')"]
)
def test_a_bug_keeps_its_traceback(body):
    done = run_main(body)
    assert done.returncode == 1 and 'Traceback' in done.stderr


SEND = 'os.kill(os.getpid(), signal.SIGINT); '
# What holds the main thread without looking at signals, as XLA does while it compiles. bz2 lets
# other threads run meanwhile; a regular expression would not.
LONG_CALL = 'import bz2; data = os.urandom(1 << 20) * 60; bz2.compress(data)'


def test_ctrl_c_ends_a_long_call_of_a_script_that_has_nothing_to_save():
    done = run_main(
        f"""
        import threading
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        {LONG_CALL}
        print('went on')
        """,
        at_once=True,
    )
    assert done.returncode == 130 and done.stdout == ''
    assert done.stderr == 'interrupted: there was nothing new to save\n'


def test_ctrl_c_that_python_swallows_is_not_lost():
    """As a KeyboardInterrupt in a destructor is; here by code that catches too much."""
    swallowing = f"""
        try:
            {SEND}time.sleep(5)
        except BaseException:
            pass
        {{}}
        print('went on')
        """
    done = run_main(swallowing.format(''), at_once=True)
    assert done.returncode == 130 and done.stdout == ''
    done = run_main(swallowing.format(f'{SEND}time.sleep(5)'))
    assert done.returncode == 130 and done.stdout == ''
    assert done.stderr == 'interrupted again: left at once\n'


def test_finally_of_a_script_runs_at_the_first_ctrl_c():
    """predict.py writes what it has."""
    done = run_main(
        f"""
        try:
            {SEND}time.sleep(5)
        finally:
            print('written')
        """
    )
    assert done.returncode == 130 and done.stdout == 'written\n'
    assert done.stderr == 'interrupted\n'


def test_signals_that_are_only_noted_interrupt_nothing_until_a_second_ctrl_c():
    noting = """
        stopped = interrupts.note_alone(signal.SIGTERM)
        before = stopped()
        for number in ({}):
            os.kill(os.getpid(), number)
            time.sleep(0.5)
        print(before, stopped())
        """
    done = run_main(noting.format('signal.SIGTERM, signal.SIGTERM'))
    assert (done.returncode, done.stdout, done.stderr) == (0, 'False True\n', '')
    done = run_main(noting.format('signal.SIGINT, signal.SIGINT'))
    assert (done.returncode, done.stdout) == (130, '')
    assert done.stderr == 'interrupted again: left at once\n'
