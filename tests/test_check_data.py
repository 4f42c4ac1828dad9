"""tools/check_data.py from a clean shell."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def check_data(*flags, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools/check_data.py'), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'train').mkdir()
    image = np.full((60, 80, 3), 128, np.uint8)
    for n in range(3):
        cv2.imwrite(str(tmp_path / f'train/{n}.jpg'), image)
    data = {
        'images': [
            {'id': n, 'file_name': f'{n}.jpg', 'width': 80, 'height': 60} for n in range(1, 3)
        ],
        'annotations': [
            {
                'id': 1,
                'image_id': 1,
                'category_id': 5,
                'bbox': [10, 10, 30, 30],
                'segmentation': [[10, 10, 10, 40, 40, 40]],
            },
            {'id': 2, 'image_id': 1, 'category_id': 6, 'bbox': [10, 10, 30, -3]},
        ],
        'categories': [{'id': 5, 'name': 'cup'}, {'id': 6, 'name': 'plate'}],
    }
    (tmp_path / 'annotations/instances_train.json').write_text(json.dumps(data))
    return tmp_path


def test_prints_what_is_there_and_draws_it(root, tmp_path):
    done = check_data(f'--root={root}', f'--output={tmp_path}/out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '2 images, 1 objects to train on, 1 images without any' in done.stdout
    assert 'negative box side' in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith('cup')] == [
        ['cup', '1']
    ]
    sheet = cv2.imread(str(tmp_path / 'out/train_images.jpg'))
    assert sheet.shape[1] > 5 * 320 and len(np.unique(sheet)) > 20
    # Four times as large, 8 pixels from the edges: the lower left half of the box is filled.
    (inside, outside) = (sheet[8 + y, 8 + x].astype(int) for y, x in ((140, 60), (70, 140)))
    assert np.ptp(inside) > 30 and np.abs(outside - 128).max() < 10
    assert cv2.imread(str(tmp_path / 'out/train_sizes.png')) is not None


def test_a_mistake_is_one_line(tmp_path):
    done = check_data(f'--root={tmp_path / "nowhere"}')
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and 'no such directory' in done.stderr
