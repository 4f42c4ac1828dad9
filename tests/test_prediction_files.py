"""What predict.py writes: never over a file of somebody else, and whole however it ends."""

import json
import os

import cv2
import numpy as np
import pytest

from spinenet_jax import prediction_files
from spinenet_jax.data.batch import Category
from spinenet_jax.errors import UserError
from spinenet_jax.prediction import Prediction
from spinenet_jax.prediction_files import PredictionFolder
from spinenet_jax.tasks.records import ClassRecords, DetectionRecords, Detections

PICTURE = np.full((20, 30, 3), 120, np.uint8)
CATEGORIES = [Category(1, 44, 'bright')]


@pytest.fixture
def photos(tmp_path):
    """Three originals of a user."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for name in 'abc':
        cv2.imwrite(str(folder / f'{name}.jpg'), PICTURE)
    return folder


def paths(folder):
    return sorted(str(path) for path in folder.glob('*.jpg'))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def unchanged(image, found):
    """The picture of an image: itself."""
    return image


def predictions(names, ending=None):
    """A detection in each image, then an exception."""
    for name in names:
        box, score, label = np.float32([[1, 2, 10, 20]]), np.float32([0.9]), np.int32([1])
        yield Prediction(name, PICTURE, Detections(box, score, label))
    if ending is not None:
        raise ending


def test_originals_are_never_written_over(photos):
    before = contents(photos)
    for output in (photos, photos / '.', photos.parent / 'link'):
        if output.name == 'link':
            output.symlink_to(photos)
        with pytest.raises(UserError, match='holds images to predict on'):
            PredictionFolder(output, paths(photos))
    assert contents(photos) == before


def test_files_of_others_keep_their_names_and_ours_are_replaced(photos, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'a.jpg').write_bytes(b'not a picture of ours')
    (out / 'b.jpg').mkdir()
    os.symlink(photos / 'c.jpg', out / 'c.jpg')
    before = contents(photos)
    for _ in range(2):
        folder = PredictionFolder(out, paths(photos))
        names = [folder.write_picture(path, PICTURE) for path in paths(photos)]
        assert names == ['a_2.jpg', 'b_2.jpg', 'c_2.jpg']
    assert (out / 'a.jpg').read_bytes() == b'not a picture of ours'
    assert contents(photos) == before
    assert cv2.imread(str(out / 'a_2.jpg')).shape == PICTURE.shape


def test_pictures_of_equal_names_do_not_overwrite_each_other(tmp_path):
    folder = PredictionFolder(tmp_path, [])
    images = ('a/x.jpg', 'b/x.png', 'x.jpg', 'y.jpg')
    names = [folder.write_picture(path, PICTURE) for path in images]
    assert names == ['x.jpg', 'x_2.jpg', 'x_3.jpg', 'y.jpg']


def test_the_thousandth_picture_of_a_name_is_named_at_once(tmp_path, monkeypatch):
    tried, shortened = [], prediction_files._shortened
    monkeypatch.setattr(
        prediction_files, '_shortened', lambda *stem: tried.append(stem) or shortened(*stem)
    )
    folder = PredictionFolder(tmp_path, [])
    names = [folder._free_name(f'{n}/x.jpg') for n in range(1000)]
    assert len(set(names)) == len(tried) == 1000 and names[-1] == 'x_1000.jpg'


def test_long_names_are_shortened_to_what_a_file_may_have(tmp_path):
    folder = PredictionFolder(tmp_path, [])
    long = ['x' * 251 + '.png', 'x' * 252 + '.p', 'é' * 127, '\udcff' * 255]
    names = [folder.write_picture(path, PICTURE) for path in long]
    assert names[0] == 'x' * 251 + '.jpg' and names[1] == 'x' * 249 + '_2.jpg'
    assert names[2] == 'é' * 125 + '.jpg' and names[3] == '\udcff' * 251 + '.jpg'
    assert set(names) == set(os.listdir(tmp_path))


def test_predictions_of_somebody_else_are_refused_at_the_start(tmp_path):
    (tmp_path / 'predictions.json').write_text('{"images": []}')
    with pytest.raises(UserError, match=r'predictions\.json: not made by predict\.py'):
        PredictionFolder(tmp_path, [])
    for kind in (DetectionRecords, ClassRecords):
        other = tmp_path / kind.__name__
        PredictionFolder(other, []).write_records(kind([]).as_dict)
        PredictionFolder(other, [])


@pytest.mark.parametrize('ending', [KeyboardInterrupt(), SystemExit(143), RuntimeError('memory')])
def test_predictions_are_complete_on_any_end(tmp_path, ending):
    folder, records = PredictionFolder(tmp_path, []), DetectionRecords(CATEGORIES)
    with pytest.raises(type(ending)):
        folder.write_all(predictions(['a.jpg', 'b.jpg'], ending), 3, records, unchanged)
    data = json.loads((tmp_path / 'predictions.json').read_text())
    assert [image['file_name'] for image in data['images']] == ['a.jpg', 'b.jpg']
    assert sorted(os.listdir(tmp_path)) == ['a.jpg', 'b.jpg', 'predictions.json']


def test_a_kill_leaves_what_was_found_some_seconds_ago(tmp_path, monkeypatch):
    """predictions.json is whole at any moment; here it is written after every image."""
    monkeypatch.setattr(prediction_files, 'INTERVAL', 0.0)
    monkeypatch.setattr(prediction_files, 'SHARE', 0.0)
    folder, records = PredictionFolder(tmp_path, []), DetectionRecords(CATEGORIES)
    counts = []

    def watched():
        for found in predictions(['a.jpg', 'b.jpg', 'c.jpg']):
            if (tmp_path / 'predictions.json').exists():
                data = json.loads((tmp_path / 'predictions.json').read_text())
                counts.append(len(data['annotations']))
            yield found

    assert folder.write_all(watched(), 3, records, unchanged) == 0
    assert counts == [1, 2]


def test_folders_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    for output in (tmp_path / 'file', '/proc/nothing', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match='cannot be written'):
            PredictionFolder(output, [])
    folder = PredictionFolder(tmp_path / 'out', [])
    (tmp_path / 'out').rmdir()
    with pytest.raises(UserError, match=r'a\.jpg: cannot be written \(No such file'):
        folder.write_picture('a.jpg', PICTURE)


def test_images_that_could_not_be_read_are_counted(tmp_path, capsys):
    bad = Prediction('a.jpg', None, problem='truncated JPEG')
    records = DetectionRecords([])
    assert PredictionFolder(tmp_path, []).write_all([bad], 1, records, unchanged) == 1
    assert 'truncated JPEG' in capsys.readouterr().err


def test_two_runs_do_not_write_into_one_temporary_file(tmp_path, monkeypatch):
    """Neither damages the other's files; predictions.json is that of the last one."""
    folder, renamed = PredictionFolder(tmp_path, []), []
    kind = type(folder._folder)
    monkeypatch.setattr(kind, 'replace', lambda path, target: renamed.append(path.name))
    for process in (1, 2):
        monkeypatch.setattr(prediction_files.os, 'getpid', lambda process=process: process)
        folder.write_picture('a.jpg', PICTURE)
    assert len(set(renamed)) == 2


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    PredictionFolder('~/out', []).write_picture('a.jpg', PICTURE)
    assert (tmp_path / 'out' / 'a.jpg').exists()
