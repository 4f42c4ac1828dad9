"""COCO directories: what is read, and every way in which a file can be wrong."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from spinenet_jax.data.coco import CocoSource
from spinenet_jax.errors import UserError

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


REFUSED = {
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
