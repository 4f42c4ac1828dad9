"""Notebooks are what their sources make, and what the library does for them works outside, too.

tools/maintenance/run_notebooks.py runs them; .ci/run calls it.
"""

import ast
import json
import re
import subprocess

import jax
import numpy as np
import pytest

pytest.importorskip('jupytext')

from spinenet_jax import notebook
from spinenet_jax.errors import RunError, UserError
from tools.maintenance import make_notebooks

ROOT, ORDER = make_notebooks.ROOT, make_notebooks.ORDER


def cells_of(name):
    return json.loads((make_notebooks.FOLDER / f'{name}.ipynb').read_text())['cells']


def source_of(cell):
    source = cell['source']
    return source if isinstance(source, str) else ''.join(source)


def test_notebooks_are_made_from_their_sources():
    assert make_notebooks.stale() == [], 'python tools/maintenance/make_notebooks.py'
    assert {path.stem for path in make_notebooks.FOLDER.glob('*.*')} == set(ORDER)


@pytest.mark.parametrize('name', ORDER)
def test_a_notebook_begins_as_all_do_and_has_no_outputs(name):
    cells = cells_of(name)
    assert f'/{make_notebooks.REPOSITORY}/blob/main/notebooks/{name}.ipynb)' in source_of(cells[0])
    tags = [tag for cell in cells for tag in cell['metadata'].get('tags', [])]
    assert tags == ['install', 'parameters']
    assert not any(cell.get('outputs') for cell in cells)


@pytest.mark.parametrize('name', ORDER)
def test_a_notebook_uses_public_names_and_links_to_what_exists(name):
    text = (make_notebooks.FOLDER / f'{name}.py').read_text()
    for node in ast.walk(ast.parse(text)):
        attribute = getattr(node, 'attr', '')
        assert not attribute.startswith('_'), attribute
        if isinstance(node, ast.ImportFrom):
            assert not any(alias.name.startswith('_') for alias in node.names)
    for link in re.findall(r'\]\((?!http)([^)#]+)', text):
        assert (make_notebooks.FOLDER / link).exists(), link


SCRIPT = """
import pathlib, sys
folder = pathlib.Path(sys.argv[2].partition('=')[2])
folder.mkdir(exist_ok=True)
lines = '{"step": 1, "loss": 2.0}\\n{"step": 2, "eval/AP": 0.5}\\n{"step": 3, "lo'
(folder / 'metrics.jsonl').write_text(lines)
print('error: the world is broken')
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    return path


def answer(monkeypatch, stdout, status=0):
    """Lets the process that looks for devices print this."""
    done = subprocess.CompletedProcess([], status, stdout, 'first\nlast: no device\n')
    monkeypatch.setattr(notebook.subprocess, 'run', lambda *_, **__: done)


def test_a_tpu_is_left_to_the_scripts(monkeypatch, capsys):
    before = jax.config.jax_platforms
    answer(monkeypatch, 'some warning\ntpu 0.10.2 TPU_0 TPU_1\n')
    try:
        notebook.prepare()
        assert jax.config.jax_platforms == 'cpu'
    finally:
        jax.config.update('jax_platforms', before)
    assert capsys.readouterr().out.startswith('JAX 0.10.2 on TPU_0 TPU_1\nscripts run on the TPU')


def test_a_gpu_that_is_not_used_is_told_of(monkeypatch, capsys):
    answer(monkeypatch, 'cpu 0.10.2 TFRT_CPU_0\n')
    monkeypatch.setattr(notebook.shutil, 'which', lambda name: f'/usr/bin/{name}')
    notebook.prepare()
    assert 'pip install "jax[cuda12]"' in capsys.readouterr().out
    answer(monkeypatch, 'cuda 0.10.2 CudaDevice(id=0)\n')
    notebook.prepare()
    assert capsys.readouterr().out == 'JAX 0.10.2 on CudaDevice(id=0)\n'


def test_jax_that_does_not_start_is_one_line(monkeypatch):
    answer(monkeypatch, '', status=1)
    with pytest.raises(RunError, match='JAX does not start: last: no device'):
        notebook.prepare()


def test_a_run_is_followed_to_its_end(script, tmp_path, capsys):
    notebook.train(f'python {script} 0 --workdir={tmp_path}/run', every_seconds=0.1)
    lines = notebook.read_metrics(tmp_path / 'run/metrics.jsonl')
    assert lines == [{'step': 1, 'loss': 2.0}, {'step': 2, 'eval/AP': 0.5}]
    assert 'starting' in capsys.readouterr().out


def test_a_run_that_fails_says_why(script, tmp_path):
    with pytest.raises(RunError, match='the world is broken'):
        notebook.train(f'python {script} 2 --workdir={tmp_path}/run', every_seconds=0.1)
    with pytest.raises(UserError, match='names no --workdir'):
        notebook.train('python train.py --config=configs/digits.py')


def test_curves_of_runs_at_any_moment():
    empty = notebook.draw_curve([])
    some = notebook.draw_curve([{'step': 1, 'loss': 2.0}, {'step': 5, 'loss': 1.0}])
    scored = notebook.draw_curve([{'step': 1, 'loss': 2.0}, {'step': 5, 'eval/top1': 0.9}])
    assert empty.shape == some.shape == scored.shape == (320, 900, 3)
    assert (empty != some).any() and (some != scored).any()
    assert notebook.read_metrics('missing/metrics.jsonl') == []


def test_pictures_are_shown_as_one(capsys):
    notebook.show([np.zeros((10, 20, 3), np.uint8)] * 2, columns=5)
    assert 'Image' in capsys.readouterr().out
