"""Which image comes when: epochs, resume, processes, damage, the padded end."""

import itertools
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from spinenet_jax.data import pipeline
from spinenet_jax.data.batch import BOXES, pad_boxes
from spinenet_jax.data.build import box_rows, build_source, eval_batches, train_batches
from spinenet_jax.data.pipeline import shuffled
from spinenet_jax.errors import UserError

BOX = {'category_id': 3, 'bbox': [10, 5, 20, 10]}


def config(root, **changes):
    return ConfigDict(
        {
            'source': 'coco',
            'root': str(root),
            'train_split': 'train',
            'eval_split': 'train',
            'tfds_name': '',
            'annotations': '',
            'image_size': (32, 48),
            'scale_min': 0.5,
            'scale_max': 2.0,
            'flip': True,
            'max_boxes': 6,
            'num_threads': 2,
            'worker_count': 0,
            'max_pixels': 10_000,
            'allow_outside_root': False,
            **changes,
        }
    )


@pytest.fixture
def ten(make_coco, coco_json):
    """Ten images, number n of gray 20 * n, one box each."""
    data = coco_json(10, [{**BOX, 'image_id': 100 + n} for n in range(10)])
    return make_coco(data, {f'{n}.jpg': gray(n) for n in range(10)})


def gray(n):
    import cv2

    return cv2.imencode('.jpg', np.full((30, 40, 3), 20 * n, np.uint8))[1].tobytes()


def take(root, steps, *, batch=4, start=0, process=(0, 1), seed=0, **changes):
    cfg = config(root, **changes)
    rows = box_rows(cfg)
    source = build_source(cfg, 'train', 0, rows.needs)
    stream = train_batches(
        source,
        rows.train,
        cfg,
        batch_size=batch,
        seed=seed,
        start_step=start,
        process_index=process[0],
        process_count=process[1],
    )
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return source, batches


def numbers(batches):
    """Which images these are, from their gray."""
    return np.concatenate([np.round(b['image'][:, 0, 0, 0] / 20) for b in batches]).tolist()


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert sorted(x) == sorted(y)
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def test_shapes_and_types(ten):
    _, (batch,) = take(ten, 1)
    have = {k: (v.shape, str(v.dtype)) for k, v in batch.items()}
    assert have == {
        'image': ((4, 32, 48, 3), 'uint8'),
        'content_size': ((4, 2), 'int32'),
        'boxes': ((4, 6, 4), 'float32'),
        'labels': ((4, 6), 'int32'),
        'valid': ((4, 6), 'bool'),
    }


def test_every_epoch_is_another_permutation(ten):
    _, batches = take(ten, 15)  # 60 images, six epochs; batches cross the ends of epochs
    epochs = np.reshape(numbers(batches), (6, 10))
    assert all(sorted(e) == list(range(10)) for e in epochs.tolist())
    assert len({tuple(e) for e in epochs.tolist()}) == 6


@pytest.mark.parametrize('count', [1, 2, 7, 100])
def test_shuffle_is_a_permutation(count):
    for epoch in range(3):
        got = [shuffled(epoch * count + i, count, 5) for i in range(count)]
        assert sorted(got) == list(range(count))


def test_repeated_visits_differ(make_coco, coco_json):
    root = make_coco(coco_json(1, [{**BOX, 'image_id': 100}]))
    _, batches = take(root, 2, scale_max=1.0)
    sizes = np.concatenate([b['content_size'] for b in batches])
    assert len(np.unique(sizes, axis=0)) > 3


def test_same_seed_same_batches_and_another_seed_others(ten):
    first, again, other = (take(ten, 4, seed=s)[1] for s in (1, 1, 2))
    assert_equal(first, again)
    assert numbers(first) != numbers(other)


@pytest.mark.parametrize('threads', [1, 0])
def test_starts_anywhere_with_any_threads(ten, threads):
    straight = take(ten, 9)[1]
    assert_equal(take(ten, 4, start=5, num_threads=threads)[1], straight[5:])


def test_processes_share_the_same_global_batches(ten):
    one = take(ten, 5, batch=4, start=3)[1]
    two = [take(ten, 5, batch=2, start=3, process=(p, 2))[1] for p in range(2)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*two, strict=True)]
    assert_equal(one, joined)


def test_threads_follow_the_cores_up_to_a_limit(monkeypatch):
    for cores, want in ((1, 1), (12, 12), (96, 16)):
        monkeypatch.setattr(pipeline, 'core_count', lambda cores=cores: cores)
        assert pipeline.Reading().threads == want
        assert pipeline.Reading(num_threads=40).threads == 40


@pytest.mark.slow
def test_workers_give_the_same_batches(ten):
    """Also where no script has parsed absl's flags, which Grain's workers read."""
    from absl import flags

    flags.FLAGS.unparse_flags()
    assert_equal(take(ten, 5, worker_count=2)[1], take(ten, 5)[1])


def test_unreadable_image_is_replaced_and_counted(ten):
    whole = take(ten, 5)[1]
    (ten / 'train/3.jpg').write_bytes(b'')
    (ten / 'train/4.jpg').write_bytes(gray(4)[:200])
    source, batches = take(ten, 5)
    want = [5.0 if n in (3, 4) else n for n in numbers(whole)]
    assert numbers(batches) == want
    assert source.unreadable.count == 4  # two images, two epochs
    assert source.unreadable.summary().startswith('4 images could not be read (first: ')
    assert '3.jpg: the file is empty' in source.unreadable.summary()
    assert '4.jpg: truncated JPEG' in source.unreadable.summary()
    assert_equal(take(ten, 2, start=3)[1], batches[3:])


def test_nothing_readable_stops(ten):
    for n in range(10):
        (ten / f'train/{n}.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='10 images in a row cannot be used'):
        take(ten, 1)


def test_crowds_are_dropped_and_the_largest_boxes_kept(make_coco, coco_json):
    rows = [{'image_id': 100, 'category_id': 3, 'bbox': [0, 0, n, n]} for n in range(1, 9)]
    rows.append({'image_id': 100, 'category_id': 7, 'bbox': [0, 0, 40, 30], 'iscrowd': 1})
    size = {'scale_min': 1.0, 'scale_max': 1.0, 'flip': False, 'image_size': (30, 40)}
    source, (batch,) = take(make_coco(coco_json(1, rows)), 1, batch=1, **size)
    assert batch['boxes'][0, :, 2].tolist() == [3, 4, 5, 6, 7, 8]
    assert batch['valid'].all() and (batch['labels'] == 1).all()
    assert '1 images have more than 6 boxes (up to 8)' in source.report[-1]


def test_pad_boxes_of_none():
    out = pad_boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), 3)
    assert out['boxes'].shape == (3, 4) and not out['valid'].any()


def evaluate(root, batch, process=(0, 1)):
    cfg = config(root, image_size=(60, 60))
    rows = box_rows(cfg)
    source = build_source(cfg, 'eval', 0, rows.needs)
    stream = eval_batches(
        source,
        rows.eval,
        cfg,
        batch_size=batch,
        process_index=process[0],
        process_count=process[1],
    )
    return source, list(stream)


def test_evaluation_visits_every_image_once(ten):
    _, batches = evaluate(ten, 4)
    index = np.concatenate([b['index'] for b in batches])
    assert index.tolist() == [*range(10), -1, -1]
    # 30x40 into 60x60: 45x60, factor 1.5; padding rows hold nothing.
    assert (batches[0]['scale'] == 1.5).all()
    assert batches[0]['content_size'].tolist() == [[45, 60]] * 4
    assert batches[0]['original_size'].tolist() == [[30, 40]] * 4
    assert batches[2]['content_size'].tolist() == [[45, 60]] * 2 + [[0, 0]] * 2
    assert numbers(batches)[:10] == list(range(10))
    types = {k: str(v.dtype) for k, v in batches[0].items()}
    assert types == {
        'image': 'uint8',
        'content_size': 'int32',
        'scale': 'float32',
        'original_size': 'int32',
        'index': 'int32',
    }


def test_processes_have_equally_many_evaluation_batches(ten):
    parts = [evaluate(ten, 4, (p, 2))[1] for p in range(2)]
    assert [len(p) for p in parts] == [2, 2]
    index = [[b['index'].tolist() for b in p] for p in parts]
    assert index == [[[0, 1, 2, 3], [8, 9, -1, -1]], [[4, 5, 6, 7], [-1] * 4]]


def test_unreadable_image_in_evaluation_is_an_empty_row(ten):
    (ten / 'train/3.jpg').write_bytes(b'')
    source, batches = evaluate(ten, 10)
    assert batches[0]['index'].tolist() == [0, 1, 2, -1, 4, 5, 6, 7, 8, 9]
    assert source.unreadable.count == 1


def test_config_mistakes_are_told(ten, make_coco, coco_json):
    with pytest.raises(UserError, match='choose one of coco, tfds, digits'):
        take(ten, 1, source='voc')


def test_images_of_too_many_pixels_are_left_out_and_counted(ten):
    """1,200 pixels each; number 3 gets 120 x 100."""
    import cv2

    cv2.imwrite(str(ten / 'train/3.jpg'), np.zeros((120, 100, 3), np.uint8))
    data = json.loads((ten / 'annotations/instances_train.json').read_text())
    data['images'][3] |= {'height': 120, 'width': 100}
    (ten / 'annotations/instances_train.json').write_text(json.dumps(data))
    source, batches = take(ten, 5)
    assert 3.0 not in numbers(batches) and source.unreadable.count == 2
    words = '3.jpg: it has 100x120 pixels, more than 10,000 (data.max_pixels)'
    assert words in source.unreadable.summary()
    assert take(ten, 5, max_pixels=12_000)[0].unreadable.count == 0
    assert evaluate(ten, 10)[1][0]['index'].tolist() == [0, 1, 2, -1, 4, 5, 6, 7, 8, 9]


def test_training_needs_a_box(make_coco, coco_json):
    root = make_coco(coco_json(2))
    with pytest.raises(UserError, match='no annotation to train on'):
        take(root, 1)
    assert len(build_source(config(root), 'eval', 0, BOXES)) == 2
