"""Crops of boxes, on a small set in the file formats of iNaturalist 2017, bad records included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from spinenet_jax.data import inaturalist_bbox
from spinenet_jax.data.crops import Window
from spinenet_jax.data.image_folder import ImageFolder
from spinenet_jax.data.inaturalist_bbox import enlarged_window, plan_crops, write_crops
from spinenet_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = [
    {'id': 0, 'name': 'Puma concolor', 'supercategory': 'Mammalia'},
    {'id': 7, 'name': 'Anas × hybrid/1', 'supercategory': 'Aves'},  # noqa: RUF001
    {'id': 12, 'name': 'Apis', 'supercategory': 'Insecta'},
    {'id': 13, 'name': 'Quercus', 'supercategory': 'Plantae'},  # plants have no boxes
]


def name_of(number):
    return f'train_val_images/Aves/Some bird/{number}.jpg'


def annotation(number, image, category, box):
    record = {'id': number, 'image_id': image, 'category_id': category, 'iscrowd': 0}
    return {**record, 'bbox': box, 'area': 1.0}


def write(folder, name, images, annotations, categories=CATEGORIES):
    records = [
        {'id': i, 'file_name': name_of(i), 'width': 100, 'height': 60, 'license': 3} for i in images
    ]
    data = {'info': {'year': 2017}, 'images': records, 'annotations': annotations}
    (folder / name).write_text(json.dumps({**data, 'categories': categories, 'licenses': []}))


@pytest.fixture
def public(tmp_path):
    """Images 1 to 5 of a horizontal ramp, 2 x column; 4 is damaged and 6 is missing."""
    folder = tmp_path / 'public'
    (folder / name_of(1)).parent.mkdir(parents=True)
    ramp = np.broadcast_to(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (60, 100, 3))
    for i in (1, 2, 3, 5):
        cv2.imwrite(str(folder / name_of(i)), ramp, (cv2.IMWRITE_JPEG_QUALITY, 100))
    (folder / name_of(4)).write_bytes((folder / name_of(1)).read_bytes()[:300])
    train = [
        annotation(1, 1, 0, [20, 10, 40, 20]),
        annotation(2, 1, 7, [0, 0, 100, 60]),  # the whole image: clipped on all sides
        annotation(3, 2, 7, [90, 50, 30, 30]),  # reaches beyond the image
        annotation(4, 3, 7, [200, 10, 20, 20]),  # outside
        annotation(5, 3, 7, [10, 10, 0, 20]),  # no area
        annotation(6, 3, 7, [10, 10, 5]),  # three numbers
        annotation(7, 99, 7, [10, 10, 20, 20]),  # no such image
        annotation(8, 3, 99, [10, 10, 20, 20]),  # no such category
        annotation(9, 4, 7, [10, 10, 20, 20]),  # damaged image
        annotation(10, 6, 7, [10, 10, 20, 20]),  # missing image
    ]
    write(folder, 'train_2017_bboxes.json', [1, 2, 3, 4, 6], train)
    write(folder, 'val_2017_bboxes.json', [5], [annotation(1, 5, 12, [10.5, 10, 1, 1])])
    return folder


def test_window_by_hand():
    # 40 x 20 at (20, 10) grows by a quarter of a side on each side: x 10..70, y 5..35.
    assert enlarged_window([20, 10, 40, 20], (60, 100)) == Window(5, 10, 30, 60)
    # x 82.5..127.5 and y 42.5..87.5, clipped to 100 and 60; whole pixels outwards.
    assert enlarged_window([90, 50, 30, 30], (60, 100)) == Window(42, 82, 18, 18)
    assert enlarged_window([0, 0, 100, 60], (60, 100)) == Window(0, 0, 60, 100)
    assert enlarged_window([0.1, 0.1, 0.2, 0.2], (60, 100)) == Window(0, 0, 1, 1)
    for x in np.linspace(0, 59.9, 300):  # three tenths never cover more than two pixels
        assert enlarged_window([x, 0, 0.2, 1], (60, 60)).width <= 2


def run(public, output):
    command = [sys.executable, 'tools/make_inaturalist_bbox.py', f'--images={public}']
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return subprocess.run(
        [*command, f'--output={output}'], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_tool_from_public_files_to_a_source(public, tmp_path):
    output = tmp_path / 'out'
    done = run(public, output)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-3:] == [
        '3 train crops (published: 496,164)',
        '1 val crops (published: 48,736)',
        '3 classes (published: 2,854)',
    ]
    for part in (
        'annotations of no listed image',
        'unknown category',
        'without four finite box numbers',
        'no area',
        'outside their image',
        '2 images that cannot be read (first: ' + name_of(4),
    ):
        assert sum(part in line for line in lines) == 1, part
    train = ImageFolder(output, 'train', num_classes=2855)
    assert [train.describe(i) for i in range(len(train))] == [
        '0000_Puma_concolor/1_1.jpg', '0007_Anas_hybrid_1/1_2.jpg', '0007_Anas_hybrid_1/2_3.jpg',
    ]  # fmt: skip
    val = ImageFolder(output, 'val')
    assert [val[0]['label'], len(val.categories)] == [3, 3]
    crop = cv2.imread(train[0]['image'])
    assert crop.shape == (30, 60, 3)
    np.testing.assert_allclose(crop[15, :, 0], np.arange(20, 140, 2), atol=2)


def test_a_class_has_one_folder_name_in_all_splits(tmp_path):
    """Ids were once padded to the longest that the split itself uses."""
    categories = [{'id': 7, 'name': 'Anas'}, {'id': 31_000, 'name': 'Apis'}]
    files = {split: tmp_path / f'{split}.json' for split in ('train', 'val')}
    used = {'train': [7, 31_000], 'val': [7]}
    for split, path in files.items():
        rows = [annotation(n, 1, i, [0, 0, 9, 9]) for n, i in enumerate(used[split], 1)]
        write(tmp_path, path.name, [1], rows, categories[: len(rows)])
    train, val = plan_crops(files)
    assert train.folders == {7: '00007_Anas', 31_000: '31000_Apis'}
    assert val.folders == {7: '00007_Anas'}
    write(tmp_path, 'val.json', [1], [], [{'id': 7, 'name': 'Anser'}])
    with pytest.raises(UserError, match=r'val\.json: category 7 is "Anser", in another .*"Anas"'):
        plan_crops(files)


def test_a_stopped_run_goes_on(public, tmp_path, monkeypatch):
    output = tmp_path / 'out'
    (plan,) = plan_crops({'train': public / 'train_2017_bboxes.json'})
    inaturalist_bbox.make_folders([plan], output)
    monkeypatch.setattr(inaturalist_bbox, '_CHUNK', 1)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_crops(plan, public, output, threads=1, progress=stop)
    files = sorted(output.rglob('*.jpg'))
    assert len(files) == 2
    files[0].write_bytes(b'kept as it is')
    (files[0].parent / '.2_3.jpg.tmp').write_bytes(b'half a fi')
    ticks = []
    # The file names start with the folder's own name: it may be given itself.
    result = write_crops(plan, public / 'train_val_images', output, threads=1,
                         progress=ticks.append)  # fmt: skip
    assert (result.crops, result.classes, sum(ticks)) == (3, 2, 5)
    assert files[0].read_bytes() == b'kept as it is'
    assert len(list(output.rglob('*.jpg'))) == 3


def test_a_box_outside_an_image_of_unknown_size_is_counted(public, tmp_path):
    boxes = [[20, 10, 40, 20], [100, 10, 300, 20], [10, 900, 20, 20]]
    rows = [annotation(n, 1, 7, box) for n, box in enumerate(boxes, 1)]
    write(public, 'sizes.json', [1], rows)
    data = json.loads((public / 'sizes.json').read_text())
    del data['images'][0]['width']
    (public / 'sizes.json').write_text(json.dumps(data))
    plans = plan_crops({'train': public / 'sizes.json'})
    inaturalist_bbox.make_folders(plans, tmp_path / 'out')
    for _ in range(2):  # what is there already changes no number
        result = write_crops(plans[0], public, tmp_path / 'out')
        assert result.crops == len(list((tmp_path / 'out').rglob('*.jpg'))) == 1
        assert result.report == ['sizes.json: 2 annotations outside their image (first: 2, 3)']


def test_threads_are_counted_on_systems_that_do_not_tell(public, tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    plans = plan_crops({'val': public / 'val_2017_bboxes.json'})
    inaturalist_bbox.make_folders(plans, tmp_path / 'out')
    assert write_crops(plans[0], public, tmp_path / 'out').crops == 1


def test_mistakes_are_one_line(public, tmp_path):
    (plan,) = plan_crops({'train': public / 'train_2017_bboxes.json'})
    with pytest.raises(UserError, match='nowhere: no such directory'):
        write_crops(plan, tmp_path / 'nowhere', tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file: cannot be written'):
        inaturalist_bbox.make_folders([plan], tmp_path / 'file')
    done = run(tmp_path, tmp_path / 'out')
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f'error: {tmp_path / "train_2017_bboxes.json"}: no such file'
    ]
