"""What is printed and written after an evaluation."""

import json

import pytest

from spinenet_jax import buckets
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.report import (
    folder_of,
    mismatches,
    problem,
    table,
    write_files,
)
from spinenet_jax.evaluation.runner import EvaluationResult

DETECTION = {'image_id': 1, 'category_id': 2, 'bbox': [0.0, 1.0, 2.0, 3.001], 'score': 0.50000009}
WRITTEN = {'image_id': 1, 'category_id': 2, 'bbox': [0.0, 1.0, 2.0, 3.0], 'score': 0.5}
RESULT = EvaluationResult(
    metrics={'AP': 0.25, 'AP50': 0.5},
    per_class={'cat': 0.1, 'zebra': 0.4},
    detections=[DETECTION],
    images=2,
    skipped=1,
    seconds=3.0,
)
BARE = EvaluationResult({}, {}, [DETECTION], 2, 0, 3.0)


def test_table_names_every_number_and_sorts_classes():
    lines = table(RESULT, 'mask/AP').splitlines()
    assert lines[0] == '2 images in 3.0 s, 1 detections'
    assert '1 images could not be read' in lines[1]
    assert '    AP  25.00' in lines
    first = lines.index('class mask/AP')
    assert lines[first:] == ['class mask/AP', 'zebra   40.00', 'cat     10.00']


def test_table_says_why_there_are_no_metrics():
    assert 'no annotations' in table(BARE, 'AP')


def test_files(tmp_path):
    folder = tmp_path / 'new' / 'folder'
    write_files(folder, RESULT, {'step': 7, 'split': 'val'})
    results = json.loads((folder / 'results.json').read_text())
    assert results == {
        'AP': 0.25, 'AP50': 0.5, 'step': 7, 'split': 'val', 'images': 2, 'skipped': 1,
        'per_class': {'cat': 0.1, 'zebra': 0.4},
    }  # fmt: skip
    assert json.loads((folder / 'detections.json').read_text()) == [WRITTEN]


def test_no_results_file_without_metrics(tmp_path):
    write_files(tmp_path, BARE, {})
    assert [p.name for p in tmp_path.iterdir()] == ['detections.json']


def test_what_is_missing_of_the_files_is_named(tmp_path):
    assert problem(tmp_path).endswith('results.json is missing')
    write_files(tmp_path, RESULT, {})
    assert problem(tmp_path) == ''
    (tmp_path / 'detections.json').write_text('[{"image_id": 1, "cat')
    assert 'detections.json is damaged' in problem(tmp_path)
    (tmp_path / 'detections.json').unlink()
    assert problem(tmp_path).endswith('detections.json is missing')
    (tmp_path / 'results.json').write_text('{"top1": 0.5}')
    assert problem(tmp_path) == '', 'a classifier has no detections'


def test_results_come_after_detections_and_each_is_whole_or_absent(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr('spinenet_jax.files.os.fsync', full)
        with pytest.raises(OSError):
            write_files(tmp_path, RESULT, {})
    assert list(tmp_path.iterdir()) == []


def test_another_split_has_a_folder_of_its_own(monkeypatch):
    monkeypatch.setattr(buckets, 'PACKAGES', {'gs': 'fsspec'})
    assert folder_of('/runs/a', '').as_posix() == '/runs/a'
    assert folder_of('/runs/a', 'val2017').as_posix() == '/runs/a/eval-val2017'
    assert folder_of('gs://b/a', '../x y').as_posix() == 'gs://b/a/eval-.._x_y'


def test_expected_numbers():
    assert mismatches({'AP': 0.25}, {}) == []
    assert mismatches({'AP': 0.25}, {'AP': (0.24, 0.011)}) == []
    assert mismatches({'AP': 0.25}, {'AP': (0.24, 0.009)}) == [
        'AP is 0.2500, expected 0.2400 +- 0.0090'
    ]
    assert mismatches({}, {'AP': (0.24, 0.01)})[0].startswith('AP was not measured')
    assert mismatches({'AP': float('nan')}, {'AP': (0.24, 0.01)}) != []


@pytest.mark.parametrize('pair', [0.3, (0.3,), ('a', 'b'), None])
def test_expected_must_be_a_pair(pair):
    with pytest.raises(UserError, match=r'eval\.expected\.AP'):
        mismatches({'AP': 0.25}, {'AP': pair})
