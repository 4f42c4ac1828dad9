"""Exports of any number and size of images, loaded with JAX and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spinenet_jax.errors import RunError, UserError
from spinenet_jax.export import folder, stablehlo
from spinenet_jax.export.comparison import compare_detections, compare_raw
from spinenet_jax.export.detector import Request, build_function, policy_for
from spinenet_jax.lowering.policy import PLAIN

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 50, 70, 3), np.uint8)
SERVE = """
import json
import jax
import numpy as np
from jax import export

with open('exported/model.stablehlo', 'rb') as file:
    detect = jax.jit(export.deserialize(bytearray(file.read())).call)
names = {c['label']: c['name'] for c in json.load(open('exported/metadata.json'))['classes']}
found = detect(np.load('images.npy'))  # uint8 [images, height, width, 3], RGB
boxes, scores, classes = (np.asarray(found[key][0]) for key in ('boxes', 'scores', 'classes'))
for n in np.flatnonzero(np.asarray(found['valid'][0]) & (scores >= 0.3)):
    print(names[int(classes[n])], f'{scores[n]:.3f}', boxes[n].tolist())
"""


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp('run') / 'exported'
    agreement = folder.export(trained, 'stablehlo', Request(0, None), output, IMAGES)
    return output, agreement


def test_a_folder_holds_the_file_and_what_one_must_know(exported):
    output, agreement = exported
    assert {p.name for p in output.iterdir()} == {'model.stablehlo', 'metadata.json'}
    assert [p.name for p in output.parent.iterdir()] == ['exported']
    facts = json.loads((output / 'metadata.json').read_text())
    assert facts['images'] == {'shape': [None, None, None, 3], 'dtype': 'uint8', 'channels': 'RGB'}
    assert facts['classes'][1] == {'label': 2, 'id': 20, 'name': 'class 2'}
    assert facts['rules']['iou'] == 0.5 and facts['checkpoint'] == 7
    assert agreement.compared > 10 and agreement.missing == 0


def test_the_documentation_has_the_program_that_is_tested():
    assert SERVE.strip() in (Path(__file__).parents[2] / 'docs/export.md').read_text()


def test_another_process_runs_it_with_jax_alone(exported):
    output, _ = exported
    np.save(output.parent / 'images.npy', IMAGES)
    program = (
        'import sys\n'
        'for name in ("flax", "spinenet_jax", "orbax"):\n'
        '    sys.modules[name] = None\n' + SERVE
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=output.parent, capture_output=True, text=True
    )
    (output.parent / 'images.npy').unlink()
    assert done.returncode == 0, done.stderr
    found = stablehlo.load(output)(IMAGES)
    drawn = int(((found['scores'] >= 0.3) & found['valid'])[0].sum())
    assert len(done.stdout.splitlines()) == drawn > 0


def test_a_file_that_computes_something_else_is_not_left(trained, tmp_path, monkeypatch):
    right = build_function

    def wrong(*arguments, **options):
        function = right(*arguments, **options)
        return lambda images: {**function(images), 'scores': function(images)['scores'] * 0.9}

    monkeypatch.setattr(stablehlo, 'build_function', wrong)
    with pytest.raises(RunError, match='differs from the model and was removed'):
        folder.export(trained, 'stablehlo', Request(2, (50, 70)), tmp_path / 'a', IMAGES)
    assert not list(tmp_path.iterdir())


def test_the_network_alone_takes_its_own_size(trained, tmp_path):
    agreement = folder.export(trained, 'stablehlo', Request(0, None, raw=True), tmp_path / 'a')
    assert agreement.compared == 3 and max(agreement.largest.values()) < 1e-4
    facts = json.loads((tmp_path / 'a/metadata.json').read_text())
    assert facts['images']['shape'] == [None, 64, 96, 3] and facts['anchors']['levels'] == [3, 3]
    with pytest.raises(UserError, match='--image_size'):
        folder.complete(Request(0, (9, 9), raw=True), 'stablehlo', (64, 96))


def test_what_is_no_export_is_never_replaced(trained, tmp_path):
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(UserError, match='holds something else'):
        folder.export(trained, 'stablehlo', Request(0, None), tmp_path)
    with pytest.raises(UserError, match='a file is there'):
        folder.export(trained, 'stablehlo', Request(0, None), tmp_path / 'mine.txt')


def test_a_missing_package_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, 'PACKAGES', ('no_such_package',))
    with pytest.raises(UserError, match='needs the package no_such_package'):
        folder.export(trained, 'stablehlo', Request(0, None), tmp_path / 'a')


def test_formats_that_fix_sizes_get_one_image_of_the_input():
    assert folder.complete(Request(0, None), 'tflite', (64, 96)) == Request(1, (64, 96))
    assert folder.complete(Request(2, (5, 6)), 'tflite', (64, 96)) == Request(2, (5, 6))
    assert folder.complete(Request(0, None), 'savedmodel', (64, 96)) == Request(0, None)
    with pytest.raises(UserError, match='only --format=tflite'):
        folder.complete(Request(0, None, weights='int8'), 'onnx', (64, 96))


def test_comparison_counts_what_has_no_counterpart():
    boxes = np.array([[[0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 9, 9]]], np.float32)
    one = {
        'boxes': boxes,
        'scores': np.array([[0.9, 0.5, 0.4]], np.float32),
        'classes': np.array([[1, 2, 1]]),
        'valid': np.array([[True, True, True]]),
    }
    assert compare_detections(one, one, 0.01, 1e-4, 0.05)[:2] == (3, 0)
    other = {**one, 'classes': np.array([[1, 1, 1]])}
    assert compare_detections(one, other, 0.01, 1e-4, 0.05).missing == 2  # one on each side
    shorter = {**one, 'valid': np.array([[True, True, False]])}  # the last of a list may be lost
    assert compare_detections(one, shorter, 0.01, 1e-4, 0.05).missing == 0


def test_a_file_that_finds_nothing_does_not_agree():
    one = {
        'boxes': np.array([[[0, 0, 4, 4], [0, 0, 0, 0]]], np.float32),
        'scores': np.array([[0.9, 0.0]], np.float32),
        'classes': np.array([[1, 0]]),
        'valid': np.array([[True, False]]),
    }
    nothing = {**one, 'valid': np.array([[False, False]])}
    assert compare_detections(one, nothing, 0.01, 1e-4, 0.05).missing == 1
    assert compare_detections(nothing, one, 0.01, 1e-4, 0.05).missing == 1
    assert compare_detections(one, nothing, 0.01, 0.9, 0.05).missing == 0  # near the threshold
    raw = {'logits': np.zeros((1, 2, 3)), 'codes': np.zeros((1, 2, 4))}
    assert np.isnan(compare_raw(raw, raw | {'codes': np.full((1, 2, 4), np.nan)}).largest['codes'])


def test_a_file_for_other_machines_alone_is_refused_before_it_is_written(trained, tmp_path):
    with pytest.raises(UserError, match=r'--platforms=cuda: .* JAX runs on cpu here: add cpu$'):
        folder.export(
            trained, 'stablehlo', Request(0, None, platforms=('cuda',)), tmp_path / 'a', IMAGES
        )
    assert not list(tmp_path.iterdir())


def test_policy_is_that_of_a_cpu_where_nothing_else_is_asked_for():
    assert policy_for(Request(1, None, platforms=('cpu',))).name == 'cpu'
    assert policy_for(Request(0, None, platforms=('cpu',))) == PLAIN
