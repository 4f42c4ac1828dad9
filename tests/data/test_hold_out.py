"""Images held out of a split: disjoint, complete, seeded, and read as any other split."""

import json

import numpy as np
import pytest

from spinenet_jax.data.coco import CocoSource
from spinenet_jax.data.hold_out import ensure_held_out, hold_out, names
from spinenet_jax.errors import UserError

CATEGORIES = [{'id': 1, 'name': 'one'}, {'id': 7, 'name': 'seven'}]


def write_split(root, count, boxes=2):
    """A COCO split of empty files; every third image has no annotation."""
    (root / 'annotations').mkdir(parents=True)
    (root / 'train').mkdir()
    images = [{'id': 3 * n, 'file_name': f'{n}.jpg', 'width': 9, 'height': 8} for n in range(count)]
    annotations = [
        {'id': n * boxes + k, 'image_id': 3 * n, 'category_id': 7, 'bbox': [k, 0, 2, 2]}
        for n in range(count)
        for k in range(boxes if n % 3 else 0)
    ]
    rest = {'area': 4.0, 'iscrowd': 0}
    content = {'images': images, 'annotations': [a | rest for a in annotations]}
    content |= {'categories': CATEGORIES, 'info': {'year': 2017}}
    (root / 'annotations' / 'instances_train.json').write_text(json.dumps(content))
    for image in images:
        (root / 'train' / image['file_name']).touch()
    return content


def read(root, name):
    return json.loads((root / 'annotations' / f'instances_{name}.json').read_text())


def test_parts_are_disjoint_and_complete(tmp_path):
    whole = write_split(tmp_path, 50)
    assert hold_out(tmp_path, 'train', 13) == (37, 13)
    kept, held_out = (read(tmp_path, name) for name in names('train'))
    ids = [{image['id'] for image in part['images']} for part in (kept, held_out)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {image['id'] for image in whole['images']}
    assert [len(part) for part in ids] == [37, 13]
    for part, mine in zip((kept, held_out), ids, strict=True):
        wanted = [a for a in whole['annotations'] if a['image_id'] in mine]
        assert part['annotations'] == wanted
        assert part['categories'] == CATEGORIES
        assert part['info'] == {'year': 2017}


def test_the_papers_numbers_of_images(tmp_path):
    """118,287 images of train2017 less 7,392 are 110,895."""
    images = [{'id': n, 'file_name': f'{n:012d}.jpg'} for n in range(118_287)]
    (tmp_path / 'annotations').mkdir()
    content = {'images': images, 'annotations': [], 'categories': CATEGORIES}
    path = tmp_path / 'annotations' / 'instances_train2017.json'
    path.write_text(json.dumps(content))
    assert hold_out(tmp_path, 'train2017', 7392) == (110_895, 7392)
    kept, held_out = (read(tmp_path, name)['images'] for name in names('train2017'))
    assert not {i['id'] for i in kept} & {i['id'] for i in held_out}
    assert abs(np.mean([image['id'] for image in held_out]) - 118_287 / 2) < 2000  # a random draw


def test_the_parts_are_read_from_the_images_of_the_whole(tmp_path):
    write_split(tmp_path, 10)
    hold_out(tmp_path, 'train', 4)
    kept, held_out = (CocoSource(tmp_path, name, 0) for name in names('train'))
    assert (len(kept), len(held_out)) == (6, 4)
    assert kept.report == held_out.report == []
    assert kept.categories == held_out.categories
    assert kept[0]['image'] == str(tmp_path / kept.describe(0))
    assert kept.describe(0).startswith('train/')


@pytest.mark.parametrize('folder', ['train', 'pictures/old'])
def test_names_may_start_at_the_root(tmp_path, folder):
    whole = write_split(tmp_path, 10)
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / 'train').rename(tmp_path / folder)
    for image in whole['images']:
        image['file_name'] = f'{folder}/{image["file_name"]}'
    (tmp_path / 'annotations' / 'instances_train.json').write_text(json.dumps(whole))
    hold_out(tmp_path, 'train', 4)
    kept, held_out = (CocoSource(tmp_path, name, 0) for name in names('train'))
    assert (len(kept), len(held_out)) == (6, 4)
    assert kept.describe(0).startswith(f'{folder}/')


def test_the_draw_is_a_function_of_the_seed(tmp_path):
    write_split(tmp_path, 30)

    def drawn(seed):
        hold_out(tmp_path, 'train', 10, seed)
        return [image['id'] for image in read(tmp_path, names('train')[1])['images']]

    assert drawn(1) == drawn(1) != drawn(2)


def test_what_is_there_stays(tmp_path):
    write_split(tmp_path, 10)
    ensure_held_out(tmp_path, 'train', 4)
    ensure_held_out(tmp_path, 'train', 7)
    assert len(read(tmp_path, names('train')[1])['images']) == 4
    assert not list((tmp_path / 'annotations').glob('*.tmp'))


@pytest.mark.parametrize(
    ('split', 'count', 'message'),
    [
        ('train', 0, '10 images, 0 of them cannot be held out'),
        ('train', 10, '10 images, 10 of them cannot be held out'),
        ('val', 3, r'instances_val\.json: no such file'),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, split, count, message):
    write_split(tmp_path, 10)
    with pytest.raises(UserError, match=message):
        hold_out(tmp_path, split, count)


def test_a_byte_order_mark_no_annotations_and_repeated_images_are_taken(tmp_path):
    whole = write_split(tmp_path, 10)
    del whole['annotations']
    whole['images'] += whole['images'][:3]
    path = tmp_path / 'annotations' / 'instances_train.json'
    path.write_text(json.dumps(whole), encoding='utf-8-sig')
    assert hold_out(tmp_path, 'train', 4) == (6, 4)
    parts = [read(tmp_path, name) for name in names('train')]
    assert [len(part['images']) for part in parts] == [6, 4]
    assert [part['annotations'] for part in parts] == [[], []]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"images": [', 'not valid JSON'),
        ('{"annotations": []}', 'no list "images"'),
        (
            '{"images": [{"file_name": "0.jpg"}], "categories": [{"id": 1}]}',
            r'images\[0\] has no integer "id"',
        ),
    ],
)
def test_what_training_refuses_is_refused(tmp_path, text, message):
    write_split(tmp_path, 10)
    (tmp_path / 'annotations' / 'instances_train.json').write_text(text)
    with pytest.raises(UserError, match=message):
        hold_out(tmp_path, 'train', 4)
