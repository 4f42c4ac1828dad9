"""COCO directories: what is read, and every way in which a file can be wrong."""

import contextlib
import errno
import io
import json
import os

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO

from spinenet_jax.data.annotations import _bounds
from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.decode import BadImageError, read_image
from spinenet_jax.errors import UserError
from spinenet_jax.evaluation.coco import CocoEvaluator

GOOD = {'image_id': 100, 'category_id': 3, 'bbox': [10, 5, 20, 8], 'area': 150.5}


def test_reads_boxes_labels_and_crowds(make_coco, coco_json):
    crowd = {**GOOD, 'iscrowd': 1, 'segmentation': {'size': [30, 40], 'counts': [0, 1200]}}
    other = {
        **GOOD,
        'category_id': 7,
        'bbox': [35.5, 0, 10, 30.25],
    }  # leaves the image on the right
    root = make_coco(coco_json(2, [GOOD, crowd, other]))
    source = CocoSource(root, 'train')
    record = source[0]
    # (x 10, y 5, w 20, h 8) is (ymin 5, xmin 10, ymax 13, xmax 30).
    np.testing.assert_array_equal(
        record['boxes'], np.float32([[5, 10, 13, 30], [5, 10, 13, 30], [0, 35.5, 30, 40]])
    )
    assert record['labels'].tolist() == [1, 1, 2]
    assert record['is_crowd'].tolist() == [False, True, False]
    assert record['size'] == (30, 40)
    assert source[1]['boxes'].shape == (0, 4)  # an image without annotations stays
    assert source.image_ids == [100, 101]
    assert source.box_counts.tolist() == [2, 0]
    assert source.report == []


@pytest.mark.parametrize(
    ('num_classes', 'labels'), [(0, [1, 2]), (3, [1, 2]), (8, [3, 7]), (91, [3, 7]), (7, [1, 2])]
)
def test_labels_are_ids_where_they_fit(make_coco, coco_json, num_classes, labels):
    source = CocoSource(make_coco(coco_json()), 'train', num_classes)
    assert [c.label for c in source.categories] == labels
    assert [c.id for c in source.categories] == [3, 7]


def test_too_few_channels_are_refused(make_coco, coco_json):
    with pytest.raises(UserError, match='num_classes=3'):
        CocoSource(make_coco(coco_json()), 'train', 2)


def test_a_crowd_may_be_a_switch(make_coco, coco_json):
    rows = [{**GOOD, 'iscrowd': crowd} for crowd in (True, False, None)]
    source = CocoSource(make_coco(coco_json(1, rows)), 'train')
    assert source[0]['is_crowd'].tolist() == [True, False, False]
    assert [a['iscrowd'] for a in source.ground_truth['annotations']] == [1, 0, 0]


@pytest.mark.parametrize(
    'segmentation',
    [
        [[10, 5, 30, 5, 30, 13, 10, 13]],
        {'size': [30, 40], 'counts': [10 * 30 + 5] + [8, 22] * 19 + [8, 317]},
    ],
    ids=['polygon', 'RLE'],
)
def test_box_comes_from_the_mask_where_none_is_given(make_coco, coco_json, segmentation):
    annotation = {'image_id': 100, 'category_id': 3, 'segmentation': segmentation}
    source = CocoSource(make_coco(coco_json(1, [annotation])), 'train')
    np.testing.assert_array_equal(source[0]['boxes'], [[5, 10, 13, 30]])


NAN = float('nan')
LEFT_OUT = {
    'unknown image': ({'image_id': 999}, 'of no listed image', 0, 0),
    'unknown category': ({'category_id': 5}, 'unknown category', 0, 0),
    'NaN box': ({'bbox': [1, NAN, 3, 4]}, 'four finite', 0, 0),
    'infinite box': ({'bbox': [1, 2, float('inf'), 4]}, 'four finite', 0, 0),
    'three numbers': ({'bbox': [1, 2, 3]}, 'four finite', 0, 0),
    'words for numbers': ({'bbox': ['a', 'b', 'c', 'd']}, 'four finite', 0, 0),
    'null box': ({'bbox': None}, 'four finite', 0, 0),
    'a text of four digits': ({'bbox': '1234'}, 'four finite', 0, 0),
    'texts of numbers': ({'bbox': ['1', '2', '3', '4']}, 'four finite', 0, 0),
    'a dictionary': ({'bbox': {'1': 1, '2': 2, '3': 3, '4': 4}}, 'four finite', 0, 0),
    'switches': ({'bbox': [True, True, True, True]}, 'four finite', 0, 0),
    'a number of 400 digits': ({'bbox': [1, 2, 10**400, 4]}, 'four finite', 0, 0),
    'a large number': ({'bbox': [1, 2, 1e300, 4]}, 'beyond a million', 0, 0),
    'numbers for polygons': ({'bbox': [], 'segmentation': 12345}, 'four finite', 0, 0),
    'a number for a polygon': ({'bbox': [], 'segmentation': [10**9]}, 'four finite', 0, 0),
    'odd polygon': ({'bbox': [], 'segmentation': [[1, 2, 3]]}, 'four finite', 0, 0),
    'RLE of another size': (
        {'bbox': [], 'segmentation': {'size': [2**31, 2**31], 'counts': [0, 4]}},
        'four finite',
        0,
        0,
    ),
    'negative run': (
        {'bbox': [], 'segmentation': {'size': [2, 2], 'counts': [-4, 8]}},
        'four finite',
        0,
        0,
    ),
    'damaged compressed RLE': (
        {'bbox': [], 'segmentation': {'size': [2, 2], 'counts': 'ooooooooooooooooooo'}},
        'four finite',
        0,
        0,
    ),
    'negative width': ({'bbox': [5, 5, -2, 4]}, 'negative', 0, 0),
    # pycocotools counts these as objects nobody finds, and so does our ground truth:
    'zero height': ({'bbox': [5, 5, 3, 0]}, 'no area', 0, 1),
    'outside the image': ({'bbox': [50, 5, 3, 3]}, 'outside', 0, 1),
}


@pytest.mark.parametrize(
    ('change', 'line', 'trained', 'evaluated'), LEFT_OUT.values(), ids=LEFT_OUT
)
def test_bad_annotation_is_counted(make_coco, coco_json, change, line, trained, evaluated):
    root = make_coco(coco_json(1, [{**GOOD, **change}, {**GOOD, 'area': 1}]))
    source = CocoSource(root, 'train')
    assert len(source[0]['boxes']) == trained + 1
    assert len(source.ground_truth['annotations']) == evaluated + 1
    assert len(source.report) == 1
    assert line in source.report[0]
    assert 'instances_train.json: 1 annotations' in source.report[0]
    assert '(first: 1)' in source.report[0]


@pytest.mark.parametrize('area', [-1, -1e-9, 1e308, 2e10, float('inf'), 10**400])
def test_area_that_makes_coco_ignore_an_object_is_replaced(make_coco, coco_json, area):
    source = CocoSource(make_coco(coco_json(1, [{**GOOD, 'area': area}])), 'train')
    assert source.ground_truth['annotations'][0]['area'] == 20 * 8
    assert "1 annotations whose area cannot be, the box's taken (first: 1)" in source.report[0]
    evaluator = CocoEvaluator(source.ground_truth, source.categories, whole_split=True)
    box, one = np.float32([[[5, 10, 13, 30]]]), np.ones((1, 1))
    evaluator.update([100], box, one, one, one > 0)
    assert evaluator.result()['AP'] == 1.0


def test_area_of_a_huge_box_does_not_make_coco_ignore_it(make_coco, coco_json):
    row = {'image_id': 100, 'category_id': 3, 'bbox': [0, 0, 9e5, 9e5]}
    source = CocoSource(make_coco(coco_json(1, [row])), 'train')
    assert source.ground_truth['annotations'][0]['area'] == 1e10


def test_bounds_of_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 12, 2)
        bits = rng.random((height, width)) < rng.choice([0.02, 0.2, 0.8, 1.0])
        rle = mask.encode(np.asfortranarray(bits, np.uint8))
        runs = np.flatnonzero(np.diff(np.r_[0, bits.ravel(order='F'), 0])).tolist()
        runs = np.diff([0, *runs, bits.size]).tolist()
        if bits.ravel(order='F')[-1]:
            runs = runs[:-1]
        want = mask.toBbox(rle).tolist() if bits.any() else None
        size = [int(height), int(width)]
        assert _bounds({'size': size, 'counts': rle['counts'].decode()}) == want
        assert _bounds({'size': size, 'counts': runs}) == want


REFUSED = {
    'a number of 5,000 digits': (lambda d: '{"images": [' + '9' * 5000 + ']}', 'not valid JSON'),
    'NUL in a file name': (
        lambda d: {**d, 'images': [{'id': 4, 'file_name': 'a\0.jpg'}]},
        r'images\[0\] \(id 4\) has no "file_name" that a file can have',
    ),
    'annotation of image "100"': (
        lambda d: {**d, 'annotations': [{**GOOD, 'image_id': '100'}]},
        r'annotations\[0\]',
    ),
    'nesting': (lambda d: '[' * 100_000, 'not valid JSON'),
    'empty file': (lambda d: '', 'is empty'),
    'not JSON': (lambda d: json.dumps(d)[:-20], 'not valid JSON'),
    'a list': (lambda d: '[]', 'no list "images"'),
    'no images key': (lambda d: {'annotations': []}, 'no list "images"'),
    'no images': (lambda d: {**d, 'images': []}, '"images" is empty'),
    'no categories': (lambda d: {**d, 'categories': []}, '"categories" is missing or empty'),
    'annotations not a list': (lambda d: {**d, 'annotations': {'a': 1}}, 'not a list'),
    'image without id': (lambda d: {**d, 'images': [{'file_name': 'a'}]}, r'images\[0\]'),
    'image without name': (lambda d: {**d, 'images': [{'id': 4}]}, r'images\[0\] \(id 4\)'),
    'image id of two files': (
        lambda d: {**d, 'images': [*d['images'], {'id': 100, 'file_name': 'b.jpg'}]},
        r'images\[2\]: id 100 is both "0.jpg" and "b.jpg"',
    ),
    'category id of two names': (
        lambda d: {**d, 'categories': [*d['categories'], {'id': 3, 'name': 'cow'}]},
        r'categories\[2\]: id 3 is both "cat" and "cow"',
    ),
    'category without id': (lambda d: {**d, 'categories': [{'name': 'x'}]}, r'categories\[0\]'),
    'image id beyond float64': (
        lambda d: {**d, 'images': [{'id': 2**60, 'file_name': 'a'}]},
        r'images\[0\]',
    ),
    'annotation without image': (
        lambda d: {**d, 'annotations': [{'category_id': 3, 'bbox': [1, 2, 3, 4]}]},
        r'annotations\[0\]',
    ),
    'annotation of image "x"': (
        lambda d: {**d, 'annotations': [{**GOOD, 'image_id': 'x'}]},
        r'annotations\[0\]',
    ),
}


@pytest.mark.parametrize(('change', 'message'), REFUSED.values(), ids=REFUSED)
def test_bad_file_is_refused_in_one_line(make_coco, coco_json, change, message):
    root = make_coco(change(coco_json()), files={'0.jpg': b'x'})
    with pytest.raises(UserError, match=message) as error:
        CocoSource(root, 'train')
    assert 'instances_train.json' in str(error.value)
    assert '\n' not in str(error.value)


OUTSIDE = ['/etc/passwd', '../../secret.jpg', 'a/../../../x.jpg', '../..', '/dev/zero']


@pytest.mark.parametrize('name', OUTSIDE)
def test_file_name_that_leaves_the_root_is_refused(make_coco, coco_json, name):
    data = coco_json(2, [GOOD])
    data['images'][1]['file_name'] = name
    root = make_coco(data, files={'0.jpg': b'x'})
    with pytest.raises(UserError, match=r'leads out of the data set .*allow_outside_root') as error:
        CocoSource(root, 'train')
    assert name in str(error.value)


def test_file_name_that_leaves_the_root_is_followed_where_that_is_wanted(
    make_coco, coco_json, jpeg_bytes, tmp_path_factory
):
    path = tmp_path_factory.mktemp('elsewhere') / 'x.jpg'
    path.write_bytes(jpeg_bytes(30, 40))
    data = coco_json(2, [GOOD])
    data['images'][1]['file_name'] = str(path)
    root = make_coco(data, files={'0.jpg': jpeg_bytes(30, 40)})
    source = CocoSource(root, 'train', allow_outside_root=True)
    assert len(source) == 2 and source[1]['image'] == str(path)


def test_file_name_may_lead_to_another_folder_of_the_root(make_coco, coco_json, jpeg_bytes):
    data = coco_json(1, [GOOD])
    data['images'][0]['file_name'] = '../images/0.jpg'
    root = make_coco(data, files={})
    (root / 'images').mkdir()
    (root / 'images/0.jpg').write_bytes(jpeg_bytes(30, 40))
    assert read_image(CocoSource(root, 'train')[0]['image']).shape == (30, 40, 3)


def test_names_that_no_file_can_have_are_missing_images(make_coco, coco_json, jpeg_bytes):
    root = make_coco(coco_json(), files={})
    os.mkfifo(root / 'train/pipe.jpg')
    names = ['0.jpg', 'x' * 300 + '.jpg', 'y/' * 3000 + 'a.jpg', '\ud800.jpg', 'loop/a.jpg']
    data = coco_json(6, [GOOD])
    for record, name in zip(data['images'], [*names, 'pipe.jpg'], strict=True):
        record['file_name'] = name
    os.symlink('loop', root / 'train/loop')
    (root / 'train/0.jpg').write_bytes(jpeg_bytes(30, 40))
    (root / 'annotations/instances_train.json').write_text(json.dumps(data))
    source = CocoSource(root, 'train')
    assert [source.describe(i) for i in range(len(source))] == ['0.jpg', 'pipe.jpg']
    assert '4 images not in' in source.report[-1]
    assert all(len(line) < 1500 and line.isprintable() for line in source.report)
    with pytest.raises(BadImageError, match='not a regular file'):
        read_image(source[1]['image'])


def test_names_of_classes_can_be_printed(make_coco, coco_json):
    names = [{'id': 3, 'name': 'a\nb\ud800'}, {'id': 7, 'name': 'x' * 10_000}]
    source = CocoSource(make_coco(coco_json(1, [GOOD], categories=names)), 'train')
    assert source.categories[0].name == 'a?b?'
    assert len(source.categories[1].name) == 200


def test_sizes_that_cannot_be_are_unknown(make_coco, coco_json):
    for size in ((2**31, 40), (30, 2**31), (10**400, 40), (-30, 40), (30.5, 40), ('30', 40)):
        data = coco_json(1, [GOOD])
        data['images'][0].update(height=size[0], width=size[1])
        source = CocoSource(make_coco(data), 'train')
        assert source[0]['size'] is None, size


@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device'])
def test_annotations_that_are_no_file_are_refused(make_coco, coco_json, kind):
    root = make_coco(coco_json())
    path = root / 'annotations/instances_train.json'
    path.unlink()
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    else:
        os.symlink('/dev/zero', path)
    with pytest.raises(UserError, match=r'instances_train\.json: not a regular file'):
        CocoSource(root, 'train')


def test_folders_without_permission_are_one_line(make_coco, coco_json, monkeypatch):
    root = make_coco(coco_json())

    def forbidden(path):
        raise PermissionError(errno.EACCES, 'Permission denied', path)

    monkeypatch.setattr(os, 'listdir', forbidden)
    with pytest.raises(UserError, match=r'train: cannot be listed: Permission denied'):
        CocoSource(root, 'train')


def test_missing_directories_and_files_are_refused(make_coco, coco_json, tmp_path):
    with pytest.raises(UserError, match='no such directory'):
        CocoSource(tmp_path / 'nowhere', 'train')
    root = make_coco(coco_json(), files={})
    with pytest.raises(UserError, match=r'none of the 2 images .* \(first: 0.jpg\)'):
        CocoSource(root, 'train')
    with pytest.raises(UserError, match=r'instances_val.json: no such file; splits there: train'):
        CocoSource(root, 'val')


def test_missing_image_is_left_out_but_evaluated(make_coco, coco_json, jpeg_bytes):
    data = coco_json(3, [GOOD])
    source = CocoSource(make_coco(data, files={'1.jpg': jpeg_bytes(30, 40)}), 'train')
    assert source.image_ids == [101]
    assert source.describe(0) == '1.jpg'
    assert '2 images not in' in source.report[0] and '(first: 0.jpg, 2.jpg)' in source.report[0]
    assert [i['id'] for i in source.ground_truth['images']] == [100, 101, 102]


def test_repeated_records(make_coco, coco_json):
    data = coco_json(1, [GOOD, GOOD, GOOD])
    data['images'] *= 2
    for record in data['annotations']:
        record['id'] = 9
    source = CocoSource(make_coco(data), 'train')
    assert source.image_ids == [100]
    assert 'image records repeated' in source.report[0]
    assert 'ids used more than once' in source.report[1]
    assert [a['id'] for a in source.ground_truth['annotations']] == [1, 2, 3]


def test_annotation_id_zero_is_renumbered(make_coco, coco_json):
    # pycocotools takes id 0 for "not matched".
    source = CocoSource(make_coco(coco_json(1, [{**GOOD, 'id': 0}])), 'train')
    assert source.ground_truth['annotations'][0]['id'] == 1


def test_ground_truth_is_what_pycocotools_reads_itself(make_coco, coco_json):
    rows = [GOOD, {**GOOD, 'image_id': 101, 'iscrowd': 1}, {**GOOD, 'category_id': 7}]
    root = make_coco(coco_json(2, rows))
    ours = COCO()
    ours.dataset = CocoSource(root, 'train').ground_truth
    with contextlib.redirect_stdout(io.StringIO()):
        ours.createIndex()
        theirs = COCO(str(root / 'annotations/instances_train.json'))
    assert ours.anns == theirs.anns
    assert ours.imgs == theirs.imgs


def test_ids_that_are_no_numbers_are_renumbered(make_coco, coco_json):
    rows = [{**GOOD, 'id': 'a'}, {**GOOD, 'id': None}, {**GOOD, 'id': NAN}]
    source = CocoSource(make_coco(coco_json(1, rows)), 'train')
    assert [a['id'] for a in source.ground_truth['annotations']] == [1, 2, 3]
    assert source.report == []


def test_byte_order_mark_is_skipped(make_coco, coco_json, jpeg_bytes):
    text = chr(0xFEFF) + json.dumps(coco_json(1, [GOOD]))
    source = CocoSource(make_coco(text, {'0.jpg': jpeg_bytes(30, 40)}), 'train')
    assert len(source[0]['boxes']) == 1


def test_area_comes_from_the_box_where_none_is_given(make_coco, coco_json):
    row = {k: v for k, v in GOOD.items() if k != 'area'}
    source = CocoSource(make_coco(coco_json(1, [row])), 'train')
    assert source.ground_truth['annotations'][0]['area'] == 20 * 8


def test_image_list_without_annotations(make_coco, coco_json):
    data = coco_json()
    del data['annotations']
    root = make_coco(data)
    path = root / 'annotations/instances_train.json'
    path.rename(root / 'annotations/image_info_test-dev2017.json')
    (root / 'train').rename(root / 'test2017')
    source = CocoSource(root, 'test-dev2017')
    assert len(source) == 2
    assert source.ground_truth is None


def test_file_names_may_say_the_folder(make_coco, coco_json):
    data = coco_json(1, [GOOD])
    files = {'0.jpg': b'x'}
    data['images'][0]['file_name'] = 'train/0.jpg'
    source = CocoSource(make_coco(data, files), 'train')
    assert source[0]['image'].endswith('/train/0.jpg') and '/train/train/' not in source[0]['image']


def test_size_unknown_where_the_file_does_not_say(make_coco, coco_json):
    data = coco_json(1, [GOOD])
    data['images'][0].update(width=0, height=None)
    assert CocoSource(make_coco(data, {'0.jpg': b'x'}), 'train')[0]['size'] is None


@pytest.mark.parametrize(
    ('file', 'name'),
    [
        ('data.yaml', 'YOLO'),
        ('labels/train/0.txt', 'YOLO'),
        ('Annotations/0.xml', 'Pascal VOC'),
        ('VOC2012/Annotations/0.xml', 'Pascal VOC'),
    ],
)
def test_folders_of_other_formats_are_named(tmp_path, file, name):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text('')
    with pytest.raises(UserError, match=f'{name} format.*docs/own_data.md'):
        CocoSource(tmp_path, 'train')
