"""A graph of the user's own, from a file: trained, evaluated and run, the file gone by then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
GRAPH = '4R 0,1 | 3B 1,2 out'
SETTINGS = {
    'model.min_level': 3,
    'model.max_level': 3,
    'model.width': 0.0625,
    'model.endpoint_channels': 8,
    'model.head_channels': 8,
    'model.head_convs': 1,
    'data.image_size': '(64,64)',
    'train.epochs': 0.016,  # two steps
    'eval.batch_size': 100,
}


def run(*words):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_graph_file_trains_evaluates_and_predicts(tmp_path):
    file, workdir = tmp_path / 'mine.json', tmp_path / 'run'
    file.write_text(json.dumps({'name': 'mine', 'graph': GRAPH}))
    changes = [f'--config.{key}={value}' for key, value in SETTINGS.items()]
    graph = f'--config.model.graph={file}'
    run('train.py', '--config=configs/digits.py', f'--workdir={workdir}', graph, *changes)
    config = json.loads((workdir / 'config.json').read_text())
    assert config['model']['graph'] == GRAPH
    trained = json.loads((workdir / 'results.json').read_text())

    file.unlink()
    run('eval.py', f'--workdir={workdir}', f'--output={tmp_path / "again"}')
    assert json.loads((tmp_path / 'again/results.json').read_text())['AP'] == trained['AP']
    Image.new('RGB', (70, 50)).save(tmp_path / 'photo.png')
    run(
        'predict.py',
        f'--workdir={workdir}',
        f'--images={tmp_path}/photo.png',
        f'--output={tmp_path / "out"}',
    )
    assert (tmp_path / 'out/predictions.json').exists()
