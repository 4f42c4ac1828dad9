"""Batches of images and labels: the same stream as detection's, with other rows."""

import itertools

import cv2
import numpy as np
import pytest

from configs import common
from spinenet_jax.data.batch import BOXES, LABEL
from spinenet_jax.data.build import build_source, eval_batches, label_rows, train_batches
from spinenet_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Ten images of gray 20 * n, in classes of even and odd n; number 3 is damaged."""
    for n in range(10):
        folder = tmp_path / 'train' / ('odd' if n % 2 else 'even')
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{n}.png'), np.full((30, 40, 3), 20 * n, np.uint8))
    (tmp_path / 'train/odd/3.png').write_bytes(b'')
    return tmp_path


def config(root, **changes):
    data = common.get_config().data
    data.update({'source': 'image_folder', 'root': str(root), 'train_split': 'train'})
    data.update({'eval_split': 'train', 'image_size': (16, 16), **changes})
    return data


def take(cfg, steps, start=0, process=(0, 1), batch=4):
    place = {'process_index': process[0], 'process_count': process[1]}
    row = label_rows(cfg).train
    source = build_source(cfg, 'train', 0, row.needs)
    stream = train_batches(source, row, cfg, batch_size=batch, seed=0, start_step=start, **place)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return source, batches


def test_training_rows(root):
    source, batches = take(config(root), 5)
    have = {k: (v.shape, str(v.dtype)) for k, v in batches[0].items()}
    assert have == {
        'image': ((4, 16, 16, 3), 'uint8'),
        'content_size': ((4, 2), 'int32'),
        'label': ((4,), 'int32'),
    }
    gray = np.concatenate([b['image'][:, 0, 0, 0] for b in batches]) // 20
    labels = np.concatenate([b['label'] for b in batches])
    np.testing.assert_array_equal(labels, gray % 2 + 1)
    # Two epochs; the damaged one is replaced by the next, number 5.
    assert sorted(gray) == sorted([0, 1, 2, 4, 5, 5, 6, 7, 8, 9] * 2)
    assert source.unreadable.count == 2


def test_stream_resumes_and_does_not_depend_on_processes(root):
    cfg = config(root)
    straight = take(cfg, 6)[1]
    later = take(cfg, 2, start=4)[1]
    halves = [take(cfg, 6, process=(p, 2), batch=2)[1] for p in range(2)]
    for step in range(6):
        for key, value in straight[step].items():
            both = np.concatenate([half[step][key] for half in halves])
            np.testing.assert_array_equal(both, value)
            if step >= 4:
                np.testing.assert_array_equal(later[step - 4][key], value)


def test_evaluation_rows(root):
    cfg = config(root)
    source = build_source(cfg, 'eval', 0, LABEL)
    place = {'process_index': 0, 'process_count': 1}
    rows = list(eval_batches(source, label_rows(cfg).eval, cfg, batch_size=4, **place))
    index, label = (np.concatenate([b[k] for b in rows]) for k in ('index', 'label'))
    # Even ones first: 0 2 4 6 8, then 1 3 5 7 9, of which 3 is damaged.
    assert index.tolist() == [0, 1, 2, 3, 4, 5, -1, 7, 8, 9, -1, -1]
    assert label.tolist() == [1, 1, 1, 1, 1, 2, 0, 2, 2, 2, 0, 0]
    assert rows[0]['scale'][0].tolist() == pytest.approx([16 / 26] * 2)  # 0.875 of 30 is 26


def test_source_must_have_what_the_task_needs(root):
    """Refused before the folder is looked at."""
    with pytest.raises(UserError, match=r'"coco" has no label, .* choose one of image_folder, tf'):
        build_source(config('nowhere', source='coco'), 'train', 0, LABEL)
    with pytest.raises(UserError, match=r'"image_folder" has no boxes, is_crowd, labels, which'):
        build_source(config('nowhere'), 'train', 0, BOXES)
    with pytest.raises(UserError, match='"coco" has no masks, which the task needs: no source'):
        build_source(config('nowhere', source='coco'), 'train', 0, BOXES | {'masks'})
    with pytest.raises(UserError, match='choose one of coco, tfds, digits, image_folder'):
        build_source(config(root, source='voc'), 'train', 0, BOXES)
    assert len(build_source(config(root), 'train', 0, LABEL)) == 10
