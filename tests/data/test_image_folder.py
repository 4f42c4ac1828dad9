"""A folder of images, and the scans of digits: labels, splits, reports and mistakes."""

import cv2
import numpy as np
import pytest

from spinenet_jax.data.decode import read_image
from spinenet_jax.data.digit_scans import DigitScans
from spinenet_jax.data.image_folder import ImageFolder
from spinenet_jax.errors import UserError


def write(path, brightness=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((6, 8, 3), brightness, np.uint8))


@pytest.fixture
def root(tmp_path):
    for name in ('train/cat/b.jpg', 'train/cat/a.PNG', 'train/dog 2/ä.jpeg', 'val/dog 2/x.png'):
        write(tmp_path / name)
    (tmp_path / 'train/cat/notes.txt').write_text('no image')
    (tmp_path / 'train/cat/.hidden.jpg').write_text('')
    (tmp_path / 'train/zebra').mkdir()
    return tmp_path


def test_records_in_order(root):
    source = ImageFolder(root, 'train')
    assert [source.describe(i) for i in range(len(source))] == [
        'cat/a.PNG', 'cat/b.jpg', 'dog 2/ä.jpeg',
    ]  # fmt: skip
    assert [source[i]['label'] for i in range(3)] == [1, 1, 2]
    assert list(source.image_ids) == [0, 1, 2]
    assert read_image(source[2]['image']).shape == (6, 8, 3)
    assert [tuple(c) for c in source.categories] == [
        (1, 1, 'cat'),
        (2, 2, 'dog 2'),
        (3, 3, 'zebra'),
    ]
    assert source.report == [
        'train: 2 files that are no images (first: cat/.hidden.jpg, cat/notes.txt)',
        'train: 1 classes without images (first: zebra)',
    ]


def test_labels_of_all_splits_are_those_of_training(root):
    source = ImageFolder(root, 'val')
    assert [source[i]['label'] for i in range(len(source))] == [2]
    assert len(source.categories) == 3
    alone = ImageFolder(root, 'val', train_split='elsewhere')
    assert [tuple(c) for c in alone.categories] == [(1, 1, 'dog 2')]
    assert alone[0]['label'] == 1


def test_mistakes_are_one_line(root, tmp_path):
    with pytest.raises(UserError, match=r'nowhere: no such directory \(data.root\)'):
        ImageFolder(root / 'nowhere', 'train')
    with pytest.raises(UserError, match=r'test: no such directory; splits there: train, val'):
        ImageFolder(root, 'test')
    with pytest.raises(UserError, match='3 categories but the model 3 channels'):
        ImageFolder(root, 'train', num_classes=3)
    write(root / 'val/emu/x.jpg')
    with pytest.raises(UserError, match=r'val/emu: the training split has no class "emu"'):
        ImageFolder(root, 'val')
    (root / 'empty/cat').mkdir(parents=True)
    with pytest.raises(UserError, match=r'empty: no images in its 1 folders'):
        ImageFolder(root, 'empty')


def test_more_outputs_than_classes_change_no_label(root):
    assert ImageFolder(root, 'train', num_classes=1001).categories[2].label == 3


def test_digit_scans():
    train, val = DigitScans('train'), DigitScans('val', num_classes=11)
    assert (len(train), len(val)) == (1433, 364)
    assert not set(train.image_ids) & set(val.image_ids)
    labels = [val[i]['label'] for i in range(len(val))]
    assert set(labels) == set(range(1, 11)) and min(np.bincount(labels)[1:]) >= 34
    image = read_image(val[0]['image'])
    assert image.shape == (80, 80, 3) and image.min() == 0 and image.max() > 200
    assert val.categories[0] == (1, 1, '0') and val.describe(0) == f'scan {val.image_ids[0]}'
    with pytest.raises(UserError, match='no split "test" of the digits: there are val, train'):
        DigitScans('test')
    with pytest.raises(UserError, match='10 categories but the model 10 channels'):
        DigitScans('train', num_classes=10)
