"""The embedded data set: what it promises."""

import hashlib
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from spinenet_jax.data import digits
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.errors import UserError

COUNTS = {'train': 12, 'val': 5}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('digits') / 'set'
    digits.write_digits(path, COUNTS)
    return path


def hashes(path):
    files = sorted(p for p in path.rglob('*') if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_bytes_are_a_function_of_the_seed(root, tmp_path):
    digits.write_digits(tmp_path / 'again', COUNTS)
    digits.write_digits(tmp_path / 'other', COUNTS, seed=1)
    assert len(hashes(root)) == 12 + 5 + 2
    assert hashes(tmp_path / 'again') == hashes(root)
    assert hashes(tmp_path / 'other') != hashes(root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['again', 'other']  # nothing left behind


def test_more_scenes_leave_the_first_ones_alone(root, tmp_path):
    digits.write_digits(tmp_path / 'more', {'train': 14, 'val': 5})
    few, more = hashes(root), hashes(tmp_path / 'more')
    assert all(more[name] == few[name] for name in few if name.endswith('.jpg'))


def test_no_scan_is_in_both_splits():
    _, labels = digits.smoothed_scans()
    parts = digits.split_scans(labels, 0)
    assert not set(parts['train']) & set(parts['val'])
    assert len(parts['train']) + len(parts['val']) == 1797
    assert np.bincount(labels[parts['val']])[1:].min() >= 34


def test_boxes_are_tight_around_masks_that_do_not_overlap(root):
    data = json.loads((root / 'annotations/instances_train.json').read_text())
    total = {}
    for a in data['annotations']:
        mask = coco_mask.decode(a['segmentation'])
        assert a['area'] == mask.sum() > 0
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert a['bbox'] == tight
        total[a['image_id']] = total.get(a['image_id'], 0) + mask
    assert max(t.max() for t in total.values()) == 1
    assert set(total) == set(range(12))  # every scene has a digit


def test_reads_like_any_coco_directory(root):
    source = CocoSource(root, 'val')
    assert len(source) == 5 and source.report == []
    assert [(c.label, c.name) for c in source.categories] == [(k + 1, str(k)) for k in range(10)]
    image = cv2.imread(source[0]['image'])
    assert image.shape == (digits.SIZE, digits.SIZE, 3)


def test_digits_of_all_sizes_stand_out():
    scans, labels = digits.smoothed_scans()
    heights, contrasts = [], []
    for n in range(40):
        image, objects = digits.make_scene(np.random.default_rng(n), scans, labels)
        assert 1 <= len(objects) <= 5
        gray = image.mean(-1)
        for _, mask in objects:
            rows = np.flatnonzero(mask.any(1))
            heights.append(rows[-1] - rows[0] + 1)
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~mask
            contrasts.append(abs(gray[mask].mean() - gray[ring].mean()))
    assert min(heights) < 40 and max(heights) > 180
    assert np.median(contrasts) > 60


def test_written_once(root, monkeypatch, tmp_path):
    monkeypatch.setattr(digits, 'SCENES', {'train': 2, 'val': 1})
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    first = digits.ensure_digits()
    assert first == str(tmp_path / f'spinenet_jax/digits-{digits.VERSION}')
    before = hashes(tmp_path)
    monkeypatch.setattr(digits, 'write_digits', None)
    assert digits.ensure_digits() == first
    assert hashes(tmp_path) == before
    assert digits.ensure_digits(str(root)) == str(root)


def test_another_directory_is_not_overwritten(tmp_path):
    (tmp_path / 'thesis.tex').write_text('x')
    with pytest.raises(UserError, match='neither empty nor the digits'):
        digits.ensure_digits(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(UserError, match=r'/proc/nothing/digits: cannot be written \('):
        digits.ensure_digits('/proc/nothing/digits')
