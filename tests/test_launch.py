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
        ((COCO, '--config.train.epochs=x'), '--config.train.epochs=x: invalid literal'),
        ((COCO, '--config.zzzz=1'), "no field 'zzzz'"),
        (('--config=configs/retinanet.py:50-B',), 'model one of 49S, 49,'),
        (('--config=configs/nothing.py',), '--config=configs/nothing.py: no such file'),
        ((COCO, '--nothing'), "Unknown command line flag 'nothing'"),
        ((COCO, 'extra'), "unexpected argument 'extra'"),
        ((), '--config must have a value'),
    ],
)
def test_mistake_is_one_line(words, line, tmp_path):
    done = start(f'--workdir={tmp_path}', *words)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1


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
