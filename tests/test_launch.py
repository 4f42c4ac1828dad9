"""What a person reads after a mistake on the command line: one line, exit status 2."""

import os
import resource
import subprocess
import sys

import pytest

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
        (('--config=README.md',), 'README.md:23: not a Python file that gives a config'),
        (('--config=docs/spinenet49.png',), 'spinenet49.png:1: not a Python file'),
        (('--config=configs',), '--config=configs: not a file'),
        (('--config=tools/tpu_table.py',), 'has no function get_config()'),
        (('--config=configs/digits.py:small',), 'get_config() takes 0 positional arguments'),
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


def test_too_little_memory_is_one_line_that_says_what_to_turn():
    code = """if True:
        import jax
        from spinenet_jax import launch

        def main():
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: allocating 9 bytes')

        launch.run(main)
    """
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert '--config.train.remat=True' in done.stderr and 'allocating 9 bytes' in done.stderr
    assert done.stderr.count('\n') == 1
