"""Tools start from a clean shell, and --help prints help and changes nothing."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In an environment or a process of their own: started by benchmarks/peers.py and torture.py.
STARTED_BY_OTHERS = ('peer_', 'startup_probe', 'torture_worker')
SCRIPTS = sorted(
    path
    for folder in ('.', 'tools', 'tools/maintenance', 'benchmarks')
    for path in (ROOT / folder).glob('*.py')
    if "if __name__ == '__main__':" in path.read_text()
    and not path.name.startswith(STARTED_BY_OTHERS)
)


def start(*command, cwd=ROOT):
    """Runs a command in a shell that knows nothing of this repository."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    environment['JAX_PLATFORMS'] = 'cpu'
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def files():
    """When every file that a tool may write was written last."""
    folders = (ROOT / 'docs', ROOT / 'benchmarks/logs', ROOT / 'tests/goldens')
    return {
        path: path.stat().st_mtime_ns
        for path in [ROOT / 'README.md', *(p for folder in folders for p in folder.iterdir())]
    }


@pytest.mark.slow
def test_help_prints_help_and_changes_nothing(tmp_path):
    before = files()
    with ThreadPoolExecutor(2) as pool:
        ended = list(
            pool.map(lambda path: start(sys.executable, str(path), '--help', cwd=tmp_path), SCRIPTS)
        )
    for path, done in zip(SCRIPTS, ended, strict=True):
        assert 'Traceback' not in done.stderr, f'{path.name}: {done.stderr}'
        if done.stderr.startswith('error: no TensorFlow here'):
            continue
        assert done.returncode in (0, 1), path.name  # absl says 1
        assert '--help' in done.stdout, path.name
        first = next(line for line in path.read_text().splitlines() if line)
        assert first.strip('"#!. ')[:40] in ' '.join(done.stdout.split()), path.name
    assert files() == before
    assert os.listdir(tmp_path) == []


def test_help_of_a_page_writer_writes_no_page():
    before = files()
    done = start(sys.executable, 'tools/maintenance/tpu_table.py', '--help')
    assert done.returncode == 0 and 'docs/tpu.md' in done.stdout
    assert files() == before


@pytest.mark.parametrize('name', ['make_oracle_env.sh', 'make_peer_env.sh'])
def test_help_of_a_shell_script_makes_no_folder(name, tmp_path):
    done = start('bash', str(ROOT / 'tools/maintenance' / name), '--help', cwd=tmp_path)
    assert f'usage: tools/maintenance/{name}' in done.stderr
    assert os.listdir(tmp_path) == []


def test_draw_graph_draws(tmp_path):
    pytest.importorskip('matplotlib')
    done = start(sys.executable, 'tools/draw_graph.py', f'--output={tmp_path}/drawn.v1')
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ['drawn.v1.png', 'drawn.v1.svg']


def test_a_word_that_is_no_flag_is_refused(tmp_path):
    done = start(
        sys.executable, str(ROOT / 'tools/maintenance/tpu_table.py'), '--pgae', cwd=tmp_path
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
